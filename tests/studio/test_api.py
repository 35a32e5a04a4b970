"""The API's answers: uploads, forms, the queue, runs of the command line, events."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from starlette.testclient import TestClient
from studio_client import png, upload

from femtobooth.core import locks, requests
from femtobooth.core.config import Settings, merge
from femtobooth.core.job import stop
from femtobooth.core.run import Run
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.pictures import records
from femtobooth.pictures.provenance import Provenance
from femtobooth.studio import jobs
from femtobooth.studio.library import id_of
from femtobooth.studio.presets import presets
from femtobooth.studio.runner import why_failed
from femtobooth.studio.state import Studio

API = "/api/v1"


def learned(*references: str, **more: Any) -> dict[str, Any]:
    return {"photos": {"paths": [*references], "class_noun": "dog"}, "training": {"steps": 3}, **more}


def submit(client: TestClient, settings: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    headers = {"idempotency-key": key} if key else {}
    answer = client.post(f"{API}/jobs", json={"command": "personalize", "settings": settings}, headers=headers)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


# --- what is sent


def test_a_photo_is_written_anew_upright_and_whole(client: TestClient, studio: Studio) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = (255, 0, 0)
    file, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(pixels).save(file, format="JPEG", quality=95, exif=exif)
    answer = client.post(f"{API}/uploads", files=[("files", ("a.jpg", file.getvalue())), ("files", ("b.jpg", b"no"))])
    (sent,), (refused,) = answer.json()["uploads"], answer.json()["refused"]
    assert (sent["width"], sent["height"], sent["format"], sent["name"]) == (20, 40, "JPEG RGB", "a.jpg")
    assert refused["problem"] == "not a picture"
    with Image.open(BytesIO(client.get(sent["url"]).content)) as image:
        assert (image.format, image.size, image.getexif()) == ("PNG", (20, 40), {})
        assert image.getpixel((10, 5))[0] > 200
        assert image.getpixel((10, 35))[0] < 50


def test_what_is_transparent_becomes_the_mask(client: TestClient, studio: Studio) -> None:
    pixels = np.full((16, 16, 4), 255, np.uint8)
    pixels[:8, :, 3] = 0
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    reference = upload(client, file.getvalue())
    one = client.get(f"{API}/uploads/{reference[7:]}").json()
    assert one["mask"]
    with Image.open(BytesIO(client.get(f"{one['url']}?part=mask").content)) as mask:
        assert np.array_equal(np.asarray(mask), pixels[..., 3])


def test_what_a_model_drew_stays_known_as_that(client: TestClient, studio: Studio, tmp_path: Path) -> None:
    how = {
        "width": 16,
        "height": 16,
        "sampling": {"sampler": "ddim", "steps": 1, "guidance": 1.0, "guidance_rescale": 0.0, "negative": ""},
    }
    drawn = records.encode(
        np.zeros((16, 16, 3), np.uint8), records.record("generated", "a dog", 3, {"hash": "0" * 64}, how)
    )
    one = studio.uploads.get(upload(client, drawn)[7:])
    assert one is not None
    assert one.generated
    studio.uploads.crop(one, (0, 0, 16, 16))
    assert Provenance().generated(studio.uploads.path(one))
    assert not Provenance().generated(studio.uploads.path(studio.uploads.get(upload(client, png())[7:])))  # type: ignore[arg-type]


def test_a_photo_is_cropped_captioned_and_put_back(client: TestClient, studio: Studio) -> None:
    body = png(32)
    reference = upload(client, body)
    address = f"{API}/uploads/{reference[7:]}"
    whole = np.asarray(Image.open(BytesIO(body)))
    mask = Image.fromarray((np.arange(32 * 32).reshape(32, 32) % 2 * 255).astype(np.uint8))
    file = BytesIO()
    mask.save(file, format="PNG")
    assert client.put(f"{address}/mask", files={"file": ("m.png", file.getvalue())}).json()["mask"]
    assert client.put(f"{address}/crop", json={"box": [4, 2, 20, 18]}).json()["crop"] == [4, 2, 20, 18]
    shown = np.asarray(Image.open(BytesIO(client.get(f"{address}/file").content)))
    assert np.array_equal(shown, whole[2:20, 4:24])
    part = np.asarray(Image.open(BytesIO(client.get(f"{address}/file?part=mask").content)))
    assert np.array_equal(part, np.asarray(mask)[2:20, 4:24])
    assert client.put(f"{address}/crop", json={"box": [20, 0, 20, 20]}).status_code == 422
    client.put(f"{address}/crop", json={"box": None})
    assert np.array_equal(np.asarray(Image.open(BytesIO(client.get(f"{address}/file").content))), whole)
    assert client.put(f"{address}/caption", json={"text": " a [V]\ndog "}).json()["caption"] == "a [V] dog"
    assert (studio.uploads.folder / f"{reference[7:]}.txt").read_text() == "a [V] dog\n"


def test_pictures_with_labels_are_a_set_that_finetune_reads(client: TestClient, studio: Studio) -> None:
    items = [
        {"upload": upload(client, png(seed=seed))[7:], "label": "=a, cat" if seed % 2 else "dog"} for seed in range(4)
    ]
    made = client.post(f"{API}/sets", json={"items": items}).json()
    assert (made["count"], made["labels"]) == (4, ["dog", "=a, cat"])
    path = studio.desk.path_of(made["reference"], "data")
    assert path is not None
    rows = [line.split(",", 1) for line in Path(path).read_text().splitlines()]
    assert rows[1:3] == [["pictures/000/00000.png", "dog"], ["pictures/001/00001.png", '"=a, cat"']]
    assert (Path(path).parent / "pictures/001/00003.png").is_file()


# --- settings


def test_photos_of_several_subjects_are_references_too(client: TestClient, studio: Studio) -> None:
    reference = upload(client, png())
    given = {"rex": {"paths": [reference], "class_noun": "dog"}, "tom": {"paths": ["/etc"], "class_noun": "cat"}}
    answer = client.post(f"{API}/jobs", json={"command": "personalize", "settings": {"subjects": given}})
    assert answer.json()["error"]["problem"] == "`paths`: a path of this machine is not taken from a network"
    given["tom"] = "/etc:cat"  # type: ignore[assignment]
    answer = client.post(f"{API}/jobs", json={"command": "personalize", "settings": {"subjects": given}})
    assert (answer.status_code, answer.json()["error"]["problem"]) == (422, "`subjects`: each is given as an object")
    given["tom"] = {"paths": [upload(client, png(seed=1))], "class_noun": "cat"}
    job = client.post(f"{API}/jobs", json={"command": "personalize", "settings": {"subjects": given}}).json()
    written = yaml.safe_load((studio.private / "jobs" / job["id"] / "settings.yaml").read_text())
    assert written["subjects"]["rex"]["paths"] == [studio.desk.path_of(reference, "")]


def test_errors_stand_at_their_fields(client: TestClient) -> None:
    reference = upload(client, png())
    asked = {"command": "personalize", "settings": learned(reference, training={"steps": -1, "clip": "x"}, size=7)}
    answer = client.post(f"{API}/jobs", json=asked)
    assert answer.status_code == 422
    assert [one["setting"] for one in answer.json()["errors"]] == ["size", "training.steps", "training.clip"]
    only = client.post(f"{API}/commands/personalize/check", json={"settings": learned(reference, base="/etc")}).json()
    assert only["error"]["setting"] == "base"
    assert only["error"]["problem"] == "`base`: a path of this machine is not taken from a network"


def test_checking_says_what_settings_come_to(client: TestClient) -> None:
    asked = {"settings": learned(upload(client, png()), loss={"snr_floor": 0.1})}
    told = client.post(f"{API}/commands/personalize/check", json=asked).json()
    assert told["settings"]["training"]["steps"] == 3
    assert told["settings"]["photos"]["paths"] == asked["settings"]["photos"]["paths"]  # type: ignore[index]
    assert "runs" not in told["settings"]
    assert told["notes"] == ["loss.snr_floor: has no effect without snr_gamma"]


# --- the queue


def test_a_job_is_queued_with_paths_in_place_of_references(client: TestClient, studio: Studio) -> None:
    reference = upload(client, png())
    job = submit(client, learned(reference, name="rex"))
    assert (job["status"], job["title"], job["run_id"]) == ("queued", "rex", id_of("rex"))
    written = yaml.safe_load((studio.private / "jobs" / job["id"] / "settings.yaml").read_text())
    assert written["photos"]["paths"] == [str(studio.private / "uploads" / f"{reference[7:]}.png")]
    assert (written["runs"], written["name"]) == (str(studio.folder), "rex")
    assert client.get(f"{API}/jobs/{job['id']}").json()["settings"]["photos"]["paths"] == [reference]
    again = client.post(f"{API}/jobs", json={"command": "personalize", "settings": learned(reference, name="rex")})
    assert again.status_code == 409


def test_a_key_makes_one_job(client: TestClient) -> None:
    settings = learned(upload(client, png()))
    first = submit(client, settings, "key")
    assert submit(client, settings, "key")["id"] == first["id"]
    assert submit(client, settings)["title"] != first["title"]
    asked = {"command": "personalize", "settings": {**settings, "size": 64}}
    assert client.post(f"{API}/jobs", json=asked, headers={"idempotency-key": "key"}).status_code == 409
    assert len(client.get(f"{API}/jobs").json()["jobs"]) == 2


def test_the_queue_is_not_endless(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("femtobooth.studio.desk.MOST_QUEUED", 1)
    settings = learned(upload(client, png()))
    submit(client, settings)
    answer = client.post(f"{API}/jobs", json={"command": "personalize", "settings": settings})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert answer.json()["error"]["problem"] == "1 jobs are waiting already"


def test_jobs_are_ordered_held_taken_up_changed_and_deleted(client: TestClient, studio: Studio) -> None:
    settings = learned(upload(client, png()))
    ids = [submit(client, settings)["id"] for _ in range(3)]
    order = [ids[2], ids[0], ids[1]]
    assert [one["id"] for one in client.post(f"{API}/jobs/order", json={"ids": order}).json()["jobs"]] == order
    assert client.post(f"{API}/jobs/{ids[0]}/pause").json()["status"] == "paused"
    assert [job.id for job in studio.jobs.listed(("queued",))] == [ids[2], ids[1]]
    moves = [("earlier", [ids[0], ids[2], ids[1]]), ("later", order), ("later", [ids[2], ids[1], ids[0]])]
    for what, then in moves:  # a paused one has its place, and takes another
        page = client.post(f"/jobs/{ids[0]}/{what}", data={"from": "queue"}, headers={"hx-request": "true"}).text
        assert [job.id for job in studio.jobs.listed()] == then
        assert page.index(then[0]) < page.index(then[1]) < page.index(then[2])
    client.post(f"{API}/jobs/order", json={"ids": order})
    assert client.post(f"{API}/jobs/{ids[0]}/save").status_code == 409
    assert client.post(f"{API}/jobs/{ids[0]}/resume").json()["status"] == "queued"
    other = client.post(f"{API}/jobs/{ids[0]}/duplicate", json={"settings": {"training": {"steps": 9}}}).json()
    assert other["settings"] == {**settings, "training": {"steps": 9}}
    assert client.delete(f"{API}/jobs/{ids[0]}").status_code == 409
    assert client.delete(f"{API}/jobs/{ids[0]}?confirm=true").status_code == 204
    assert client.get(f"{API}/jobs/{ids[0]}").status_code == 404
    (thrown,) = (studio.private / "trash").iterdir()
    assert (thrown / "settings.yaml").is_file()


def test_the_queue_outlives_the_server(client: TestClient, studio: Studio) -> None:
    job = submit(client, learned(upload(client, png())))
    again = jobs.Jobs(studio.private / "jobs.sqlite")
    assert [one.model_dump(exclude={"device"}) for one in again.listed()] == [
        jobs.Job.model_validate(job).model_dump(exclude={"device"})
    ]
    again.close()


def test_a_job_that_fails_says_why(client: TestClient, studio: Studio) -> None:
    """Its process is a real one, which finds its photo gone."""
    reference = upload(client, png())
    job = submit(client, learned(reference))
    (studio.private / "uploads" / f"{reference[7:]}.png").unlink()
    studio.runner.look()
    assert client.get(f"{API}/jobs/{job['id']}").json()["status"] == "running"
    assert client.delete(f"{API}/jobs/{job['id']}?confirm=true").status_code == 409
    for _ in range(300):
        studio.runner.look()
        job = client.get(f"{API}/jobs/{job['id']}").json()
        if job["status"] != "running":
            break
        time.sleep(0.1)
    assert job["status"] == "failed"
    assert job["error"]["problem"].endswith(f"{reference[7:]}.png: no such file or folder")
    assert job["resumable"] is False


@pytest.mark.parametrize(
    ("code", "paused", "then"),
    [
        (0, True, "done"),
        (130, True, "paused"),
        (130, False, "interrupted"),
        (None, True, "interrupted"),
        (2, True, "failed"),
    ],
)
def test_how_a_job_ended(client: TestClient, studio: Studio, code: int | None, paused: bool, then: str) -> None:
    job = submit(client, learned(upload(client, png())))
    studio.jobs.change(job["id"], status="stopping", paused=paused)
    if code is not None:
        (studio.private / "jobs" / job["id"] / "end.json").write_text(json.dumps({"code": code}))
    studio.runner.look()
    told = client.get(f"{API}/jobs/{job['id']}").json()
    assert (told["status"], told["paused"]) == (then, then == "paused")


def test_why_a_job_failed_is_told_by_names_of_settings(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("loading bundled ...\nfemtobooth: --steps: input is wrong\n  -> give --lr, or leave --none out\n")
    told = why_failed(log, "personalize")
    assert (told.setting, told.problem) == ("training.steps", "`training.steps`: input is wrong")
    assert told.way_out == "give --lr, or leave --none out"
    log.write_text("Traceback:\n  ...\nMemoryError\n")
    assert why_failed(log, "generate").problem == "MemoryError"
    assert why_failed(tmp_path / "none", "generate").problem == "its process said nothing"


# --- runs


class Settled(Settings):
    steps: int = 4


@pytest.fixture
def run(studio: Studio) -> Run:
    """A run that the command line made in the same folder, and works on now."""
    folder = studio.folder / "rex \u202e<b>"
    folder.mkdir()
    locks.acquire(folder)
    found = Run.create(folder, Settled(), kind="personalize")
    lines = [{"seq": seq, "kind": "note", "text": f"{seq}"} for seq in range(1, 6)]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    return found


def test_what_works_is_asked_by_files_in_its_run(client: TestClient, run: Run) -> None:
    address = f"/runs/{id_of(run.folder.name)}"
    for what in ("save", "sample"):
        assert client.post(f"{API}{address}/{what}").status_code == 202
    assert sorted(one.name for one in (run.folder / "requests").iterdir()) == ["sample", "save"]
    page = client.post(f"{address}/save", headers={"hx-request": "true"}).text
    assert "Saving" in page
    assert "Pause" not in page  # the queue does not know it
    assert client.post(f"{address}/pause").status_code == 409
    with run.working():  # whoever takes it up does not do what another was asked for
        assert not (run.folder / "requests").exists()
    locks.release(run.folder)
    told = client.post(f"{API}{address}/sample").json()["error"]
    assert told["way_out"] == "only one that runs can be asked"


def test_a_run_of_another_machine_is_stopped_by_its_folder(run: Run) -> None:
    stop(replace(locks.own(), host="another"), run.folder)
    assert requests.asked(run.folder, "stop")


def test_what_is_gone_is_not_here(client: TestClient) -> None:
    for address in ("/runs/0", "/jobs/0", "/new/0", "/new/0/photos/0/edit", "/draw/0"):
        page = client.get(address, headers={"accept": "text/html"})
        assert (page.status_code, "<h1>Not here</h1>" in page.text) == (404, True)
    assert client.get("/runs/0/head", headers={"hx-request": "true"}).status_code == 286  # it need not ask again
    assert client.get(f"{API}/runs/{'0' * 16}").json()["error"]["problem"] == "no such run"


def test_a_run_is_taught_again_with_its_settings(client: TestClient, studio: Studio) -> None:
    reference = upload(client, png())
    chosen = {"training": {"steps": 60}, "photos": {"class_noun": "dog"}}
    quick = presets(PersonalizeSettings.recommended({"base": "bundled"}))["quick"].settings
    given = merge(quick, chosen, {"photos": {"paths": [reference]}, "name": "rex", "base": "bundled"})
    job = submit(client, given)
    (studio.folder / "rex").mkdir()
    Run.create(studio.folder / "rex", Settled(), kind="personalize", status="interrupted", process=None)
    studio.jobs.change(job["id"], status="interrupted")
    answer = client.post(f"/runs/{job['run_id']}/again", follow_redirects=False)
    draft = studio.drafts.get(answer.headers["location"].rpartition("/")[2])
    assert draft is not None
    assert (draft.photos, draft.base, draft.preset) == ([reference[7:]], "bundled", "quick")
    assert draft.settings == {**chosen, "name": "rex-2"}
    assert 'value="60"' in client.get(f"/new/{draft.id}").text


def test_a_run_of_the_command_line_appears_by_itself(client: TestClient, run: Run) -> None:
    (told,) = client.get(f"{API}/runs").json()["runs"]
    assert (told["status"], told["kind"], told["name"]) == ("running", "personalize", "rex \\u202e<b>")
    assert client.delete(f"{API}/runs/{told['id']}?confirm=true").status_code == 409
    assert client.post(f"{API}/runs/{told['id']}/resume").status_code == 409
    locks.release(run.folder)
    assert client.get(f"{API}/runs/{told['id']}").json()["status"] == "interrupted"
    assert client.post(f"{API}/runs/{told['id']}/stop").status_code == 409
    job = client.post(f"{API}/runs/{told['id']}/resume").json()
    assert (job["status"], job["run_id"], job["command"]) == ("queued", told["id"], "personalize")
    assert client.post(f"{API}/runs/{told['id']}/resume").json()["id"] == job["id"]
    assert client.delete(f"{API}/runs/{told['id']}?confirm=true").status_code == 204
    assert client.get(f"{API}/runs").json()["runs"] == client.get(f"{API}/jobs").json()["jobs"] == []
    assert not run.folder.exists()


def test_events_go_on_after_the_last_that_was_read(client: TestClient, run: Run) -> None:
    run.update(status="done")
    address = f"{API}/runs/{id_of(run.folder.name)}/events"
    told = client.get(address, headers={"last-event-id": "3"})
    assert told.headers["content-type"].startswith("text/event-stream")
    parts = told.text.split("\n\n")
    assert [part.split("\n")[0] for part in parts] == ["retry: 2000", "id: 4", "id: 5", "event: end", ""]
    assert json.loads(parts[2].split("data: ")[1]) == {"seq": 5, "kind": "note", "text": "5"}
    assert json.loads(parts[3].split("data: ")[1]) == {"status": "done"}
    assert client.get(address, headers={"last-event-id": "5"}).status_code == 204
    assert client.get(address, headers={"last-event-id": "x"}).text.count("id: ") == 5


def test_only_what_is_listed_is_given_out(client: TestClient, run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    (run.folder / "link.png").symlink_to(secret)
    (run.folder / "above").symlink_to(tmp_path)
    (run.folder / ".hidden.png").write_bytes(png())
    (run.folder / "program.py").write_text("x")
    (run.folder / "report.html").write_text("<script>1</script>")
    address = f"{API}/runs/{id_of(run.folder.name)}/artifacts"
    listed = client.get(address).json()
    assert [one["name"] for one in listed] == ["events.jsonl", "report.html", "run.json"]
    for name in ("link.png", ".hidden.png", "program.py", "above/secret.png"):
        assert client.get(f"{address}/{id_of(name)}").status_code == 404
    page = client.get(f"{address}/{id_of('report.html')}")
    assert page.text == "<script>1</script>"
    assert page.headers["content-security-policy"].startswith("sandbox ")
