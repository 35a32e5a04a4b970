"""A person with a mouse: photos in, a subject taught through a pause, a killed job and a killed server, pictures out."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import quick_start
from studio_browser import FAR, Server, Watched, until

from femtobooth.core.files import read_object
from femtobooth.generator.settings import GenerateSettings
from femtobooth.workflows import generate

MASCOT = sorted((Path(__file__).parents[2] / "examples" / "mascot").glob("*.jpg"))
STEPS = 30
FEW = {  # what keeps the run short
    "training-steps": STEPS, "training-batch_size": 1, "training-checkpoint_every": 10, "prior-images": 4,
    "samples-every": 10, "samples-images": 1, "validation-every": 0,
    "samples-sampling-steps": 5, "prior-sampling-steps": 5, "prior-sampling_batch": 4,
}  # fmt: skip
UNREACHED = ("Failed to load resource", "ERR_CONN", "htmx:sendError", "htmx:afterRequest")
"""What a browser says of a server that was killed, of a page that was left while it asked for something, and of a
picture that is deleted while it is shown; not of an answer that is an error.
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path / "runs")
    yield found
    found.end()


def drop(page: Any, files: list[Path]) -> None:
    """Drop files on the page, as a person does from a folder's window."""
    import base64

    held = [{"name": one.name, "data": base64.b64encode(one.read_bytes()).decode()} for one in files]
    page.evaluate(
        """files => {
            const held = new DataTransfer();
            for (const one of files) {
                const bytes = Uint8Array.from(atob(one.data), (letter) => letter.charCodeAt(0));
                held.items.add(new File([bytes], one.name, { type: "image/jpeg" }));
            }
            for (const kind of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: held, bubbles: true, cancelable: true }));
        }""",
        held,
    )


def test_a_subject_is_taught_and_drawn_through_a_pause_and_two_kills(
    chromium: Any, server: Server, tmp_path: Path
) -> None:
    page = chromium.new_page(reduced_motion="reduce", viewport={"width": 1400, "height": 900})
    seen = Watched(page)
    page.goto(server.address)
    page.get_by_text("Drop 3 to 5 photos here").wait_for()
    drop(page, MASCOT)
    page.wait_for_url("**/new/*")
    assert page.locator(".photo").count() == len(MASCOT)

    # what is wrong stands at its field
    page.get_by_label("What is it?").fill("robot")
    page.get_by_label("What do you call it?").fill("femto")
    page.get_by_text("Everything else").click()
    page.evaluate("document.querySelectorAll('#teach details details').forEach((one) => { one.open = true; })")
    for name, value in FEW.items():
        page.locator(f"#{name}").fill(str(value))
    page.locator("#training-warmup").fill("-1")
    page.get_by_role("button", name="Teach it").click()
    page.locator("#training-warmup-wrong").wait_for()
    assert "Should be greater than or equal to 0" in page.locator("#training-warmup-wrong").inner_text()
    assert page.locator("#training-steps").input_value() == str(STEPS)  # the rest is as it was filled in
    seen.wrong.clear()  # the console tells of the answer's status, 422
    page.locator("#training-warmup").fill("0")
    page.get_by_role("button", name="Teach it").click()

    # another one waits, is put off by the keyboard, taken off the queue and deleted, into the trash
    second = chromium.new_page(reduced_motion="reduce", viewport={"width": 1400, "height": 900})
    second.set_default_timeout(1000 * FAR)
    second.on("dialog", lambda dialog: dialog.accept())
    second.goto(f"{server.address}/new")
    second.get_by_role("button", name="Try it with our mascot").click()
    second.wait_for_url("**/new/*")
    second.get_by_label("What do you call it?").fill("second")
    second.get_by_role("button", name="Teach it").click()
    second.get_by_text("Waits for 1 other before it").wait_for()
    second.goto(f"{server.address}/settings")
    second.get_by_role("button", name="Pause: second").press("Enter")
    second.get_by_role("button", name="Go on: second").press("Enter")
    second.get_by_role("button", name="Pause: second").press("Enter")
    second.get_by_role("link", name="second").click()
    second.get_by_role("button", name="Delete").click()
    second.wait_for_url(f"{server.address}/")
    second.close()

    # the curve moves, and a reload in the middle loses nothing
    page.wait_for_url("**/runs/*")
    run = server.folder / "femto"
    chart = page.locator("#chart-loss")
    until(lambda: int(chart.get_attribute("data-points") or 0) >= 2)
    page.reload()
    before = until(lambda: int(chart.get_attribute("data-points") or 0))
    until(lambda: int(chart.get_attribute("data-points") or 0) > before >= 2)

    # samples of this step, and a pause of which nothing is lost
    page.get_by_role("button", name="Sample now").click()
    until(lambda: [one for one in (run / "samples").glob("step-*/") if int(one.name[5:]) % 10])
    page.get_by_role("button", name="Pause").click()
    page.locator(".chip.paused").wait_for()
    paused = max(int(one.name[5:]) for one in (run / "checkpoints").glob("step-*/"))
    assert read_object(run / "run.json")["status"] == "interrupted"
    page.get_by_role("button", name="Go on").click()
    until(lambda: [line for line in events(run) if f'"step": {paused + 1},' in line])

    # kill -9 of the job, after another checkpoint: stopped, and one click goes on
    until(lambda: any(int(one.parent.name[5:]) > paused for one in (run / "checkpoints").glob("step-*/manifest.json")))
    os.kill(read_object(run / "run.json")["process"]["pid"], signal.SIGKILL)
    page.get_by_role("button", name="Go on").click()
    page.locator(".chip.running").wait_for()

    # kill -9 of the server: the job goes on, and so does the page once the server is back
    server.kill()
    server.begin()
    page.get_by_role("link", name="Draw with it").wait_for()
    page.locator("#shown img").first.wait_for()
    assert read_object(run / "run.json")["status"] == "done"
    seen.wrong = [one for one in seen.wrong if not any(text in one for text in UNREACHED)]

    # a run that nobody stopped, sampled in between or killed has the same weights
    words = ["personalize", "--config", str(run / "config.yaml"), "--runs", str(tmp_path), "--name", "unbroken", "-q"]
    quick_start.run([sys.executable, "-m", "femtobooth", *words], check=True, cwd=tmp_path)
    weights, unbroken = (
        {path.relative_to(of): path.read_bytes() for path in sorted(of.rglob("*.safetensors"))}
        for of in (run / "model", tmp_path / "unbroken" / "model")
    )
    assert [path.parts[0] for path in weights] == ["text_encoder", "unet", "vae"]
    assert weights == unbroken

    # a picture, the same as the command line's, byte for byte
    page.get_by_role("link", name="Draw with it").click()
    page.get_by_label("What should it draw?").fill("a [V] robot on the moon")
    page.get_by_label("How many").fill("1")
    page.locator("#seed").fill("7")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator(".shot img").wait_for()
    page.locator(".shot button").click()
    assert page.locator("#look-facts").inner_text().startswith("seed\n7")
    address = page.locator("#look-picture").get_attribute("src")
    drawn = page.request.get(address).body()
    out = server.folder.parent / "typed"
    generate.run(
        GenerateSettings.model_validate(
            {"run": str(run), "prompts": ["a [V] robot on the moon"], "count": 1, "seed": 7, "out": str(out)}
            | {"sampling": GenerateSettings.recommended({"run": str(run)})["sampling"]}
        )
    )
    assert next(out.glob("00-*seed7.png")).read_bytes() == drawn
    page.get_by_role("button", name="Close").click()

    # programs are told the same; deleting asks, and moves to the trash
    (job,) = page.request.get(f"{server.address}/api/v1/jobs").json()["jobs"]
    assert (job["status"], job["progress"], job["error"]) == ("done", {"step": STEPS, "steps": STEPS}, None)
    assert page.request.get(f"{server.address}/api/v1/jobs/{job['id']}/result").json()["status"] == "done"
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(server.address)
    page.get_by_role("link", name="femto", exact=True).click()
    page.wait_for_load_state("networkidle")
    assert [one for one in seen.wrong if not any(text in one for text in UNREACHED)] == []
    page.get_by_role("button", name="Delete femto").click()
    page.wait_for_url(f"{server.address}/")
    page.get_by_text("Teach it somebody, or something").wait_for()
    assert not run.exists()
    assert [one for one in (server.folder / ".studio" / "trash").iterdir() if one.name.endswith("-femto")]


def events(run: Path) -> list[str]:
    """Read what a run has told of its steps."""
    return [line for line in (run / "events.jsonl").read_text().splitlines() if '"metrics"' in line]
