"""Parts made by a Ray cluster of two nodes: the rows of one process, whatever is killed meanwhile."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

import psutil  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from tiny_models import subject_photos  # noqa: E402

from femtobooth.core import config  # noqa: E402
from femtobooth.core.bulk.parts import SUCCESS  # noqa: E402
from femtobooth.core.errors import ExistsError, SettingsError  # noqa: E402
from femtobooth.core.files import sha256_of  # noqa: E402
from femtobooth.generator import sampling  # noqa: E402
from femtobooth.generator.settings import GenerateSettings, PersonalizeSettings  # noqa: E402
from femtobooth.recognizer.inference import shared  # noqa: E402
from femtobooth.recognizer.inference.sources import Source  # noqa: E402
from femtobooth.recognizer.inference.units import Classifier  # noqa: E402
from femtobooth.recognizer.settings import ClassifySettings, EmbedSettings  # noqa: E402
from femtobooth.workflows import classify, embed, generate, personalize, protocol, synthesize, train_many  # noqa: E402
from femtobooth.workflows.many.dreambooth_lists import LISTS  # noqa: E402
from femtobooth.workflows.many.settings import TrainManySettings  # noqa: E402
from femtobooth.workflows.settings import ProtocolSettings, SynthesizeSettings  # noqa: E402

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one core, to which this process is connected."""
    os.environ |= {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_worker_niceness": "0"}
    small = {"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    made.add_node(num_cpus=1, object_store_memory=2**27)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def given(tiny_onnx: Path, photos: Path) -> dict[str, Any]:
    """Settings of 20 photos, of which one cannot be read, beside a file that is none."""
    (photos / "a" / "4.jpg").write_bytes(b"\xff\xd8\xff cut off")
    (photos / "b" / "words.txt").write_text("no picture")
    return {"paths": [str(photos)], "model": str(tiny_onnx), "batch_size": 3}


def on_ray(out: Path, given: dict[str, Any], **more: Any) -> dict[str, Any]:
    return classify.run(
        config.settle(ClassifySettings, given | {"executor": "ray", "part_size": 6, "out": str(out)} | more)
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder).to_pylist()


@pytest.fixture
def expected(given: dict[str, Any], tmp_path: Path) -> list[dict[str, Any]]:
    """What one process says."""
    classify.run(config.settle(ClassifySettings, given | {"out": str(tmp_path / "alone.parquet")}))
    return rows(tmp_path / "alone.parquet")


def test_rows(
    cluster: Cluster, given: dict[str, Any], expected: list[dict[str, Any]], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    counts = on_ray(out, given)
    assert {name: counts[name] for name in ("read", "failed", "done_before", "not_pictures")} == {
        "read": 19, "failed": 1, "done_before": 0, "not_pictures": 1,
    }  # fmt: skip
    assert rows(out) == expected and len(expected) == 20
    assert pq.read_schema(next(out.glob("[0-9]*.parquet"))).equals(pq.read_schema(tmp_path / "alone.parquet"))
    assert json.loads((out / SUCCESS).read_text()) == {"rows": 20, "parts": 4}
    with pytest.raises(ExistsError, match="already exists"):
        on_ray(out, given)

    # a command that was interrupted: one part is missing, one is of a file that changed, one of a file that can be
    # read now, and one of a file that is gone
    (out / SUCCESS).unlink()
    parts = sorted(out.glob("[0-9]*.parquet"))
    parts[2].unlink()
    (photos / "a" / "4.jpg").write_bytes((photos / "b" / "1.jpg").read_bytes())  # in the first part
    (photos / "b" / "19.jpg").unlink()  # in the last part
    (out / ".tmp-torn").write_bytes(b"PAR1")
    kept = parts[1].stat().st_mtime_ns
    with pytest.raises(ExistsError, match="unfinished rows of another model or other settings"):
        on_ray(out, given, top_k=2)
    counts = on_ray(out, given)
    assert (counts["read"], counts["failed"], counts["done_before"]) == (13, 0, 6)
    assert parts[1].stat().st_mtime_ns == kept and not (out / ".tmp-torn").exists()
    now = rows(out)
    assert [row["path"] for row in now] == [row["path"] for row in expected[:-1]]
    assert now[2]["top"] == next(row["top"] for row in expected if row["path"].endswith("b/1.jpg"))


def test_embeddings(cluster: Cluster, given: dict[str, Any], tmp_path: Path) -> None:
    both = given | {"batch_size": 4}
    alone, parts = tmp_path / "alone.parquet", tmp_path / "parts"
    embed.run(config.settle(EmbedSettings, both | {"out": str(alone)}))
    embed.run(config.settle(EmbedSettings, both | {"out": f"file://{parts}", "executor": "ray", "part_size": 8}))
    assert pq.read_table(parts).equals(pq.read_table(alone), check_metadata=False)  # bit for bit


class Struck(Classifier):
    """Is stopped once: in the second part, or in the first on another node than the first, for which that one waits."""

    def __init__(self, *given: Any, note: str, ends: str, **named: Any) -> None:
        super().__init__(*given, **named)
        self.note, self.ends = Path(note), ends

    def tables(self, items: Sequence[Source]) -> Iterator[pa.Table]:
        here = ray.get_runtime_context().get_node_id()
        while self.ends == here and not self.note.exists():
            time.sleep(0.2)
        chosen = items[0].path.endswith("a/12.jpg") if self.ends in ("process", "driver") else self.ends != here
        if chosen and not self.note.exists():
            self.note.write_text(here)
            if self.ends == "process":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        yield from super().tables(items)


def strike(given: dict[str, Any], out: Path, note: Path, ends: str) -> dict[str, Any]:
    settings = config.settle(ClassifySettings, given | {"executor": "ray", "part_size": 6, "out": str(out)})
    kind = functools.partial(Struck, note=str(note), ends=ends)
    return shared.run(settings, "classify", kind, {"top_k": 5}, classify._made_with)


def test_a_killed_process_loses_nothing(
    cluster: Cluster, given: dict[str, Any], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert strike(given, tmp_path / "parts", tmp_path / "note", "process")["read"] == 19
    assert (tmp_path / "note").exists()
    assert rows(tmp_path / "parts") == expected


def test_a_killed_driver_goes_on(
    cluster: Cluster, given: dict[str, Any], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    out, note = tmp_path / "parts", tmp_path / "note"
    script = tmp_path / "driver.py"
    script.write_text(
        f"import sys, runpy, ray\nray.init({cluster.address!r}, log_to_driver=False)\n"
        f"sys.path[:0] = {[str(HERE), str(HERE.parent / 'oracles')]!r}\nimport test_ray\n"
        "ray.cloudpickle.register_pickle_by_value(test_ray)\n"
        "from pathlib import Path\n"
        f"test_ray.strike({given | {'actors': 1}!r}, Path({str(out)!r}), Path({str(note)!r}), 'driver')\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL) as driver:
        while not note.exists():
            assert driver.poll() is None
            time.sleep(0.2)
        driver.kill()
    done = [row for part in out.glob("[0-9]*.parquet") for row in rows(part)]
    assert 0 < len(done) < 20 and not (out / SUCCESS).exists()
    counts = on_ray(out, given)
    assert counts["done_before"] == sum(row["error"] is None for row in done)
    assert counts["read"] + counts["failed"] + counts["done_before"] == 20
    assert rows(out) == expected


def test_a_killed_node_loses_nothing(
    cluster: Cluster, given: dict[str, Any], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    note = tmp_path / "note"

    def end() -> None:
        while not note.exists() or not note.read_text():
            time.sleep(0.2)
        (node,) = (one for one in cluster.list_all_nodes() if one.node_id == note.read_text())
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=end)
    killer.start()
    assert strike(given, tmp_path / "parts", note, cluster.head_node.node_id)["read"] == 19
    killer.join()
    assert rows(tmp_path / "parts") == expected


def test_pictures(cluster: Cluster, tiny_sd1: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a dog\na cat\na dog, again\n")
    given = {"run": str(tiny_sd1), "prompts_file": str(tmp_path / "prompts.txt"), "count": 3, "batch_size": 2}
    given |= {"sampling": {"steps": 2}, "seed": 5, "out": str(tmp_path / "alone")}
    manifest = generate.run(config.settle(GenerateSettings, given))
    more = {"executor": "ray", "part_size": 4, "out": str(tmp_path / "parts"), "actors": 1}
    with pytest.MonkeyPatch.context() as patch:  # no model comes into this process
        patch.setattr(generate, "load", lambda *_: pytest.fail("loaded here"))
        counts = generate.run(config.settle(GenerateSettings, given | more))
    assert counts["drawn"] == 9
    made = rows(tmp_path / "parts")
    assert [(row["path"], row["prompt"], row["seed"], row["sha256"]) for row in made] == [
        (one["file"], one["prompt"], one["seed"], one["sha256"]) for one in manifest["images"]
    ]
    assert all((tmp_path / "alone" / row["path"]).read_bytes() == row["png"] for row in made)
    with pytest.raises(SettingsError, match="`part_size=3`: is no multiple of batch_size=2"):
        generate.run(config.settle(GenerateSettings, given | more | {"part_size": 3}))


def quick(base: Path, steps: int) -> dict[str, Any]:
    return {
        "base": str(base),
        "prior": {"images": 2, "sampling_batch": 2, "sampling": {"steps": 1}},
        "samples": {"images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": 1}},
        "training": {"steps": steps, "trackers": ["csv"], "accelerator": "cpu", "checkpoint_every": 2},
        "validation": {"every": 0},
    }


def alone(name: str, photos: str, runs: Path, base: Path, steps: int) -> Path:
    """What personalize makes in this process, on one thread as a task of a cluster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    given = {"name": name, "runs": str(runs), "photos": {"paths": [photos], "class_noun": "dog"}}
    personalize.run(config.settle(PersonalizeSettings, quick(base, steps), given))
    torch.set_num_threads(threads)
    return runs / name


def hashes(folder: Path, pattern: str) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.glob(pattern))}


def test_a_subject_goes_on_when_its_task_is_killed(cluster: Cluster, tiny_base: Path, tmp_path: Path) -> None:
    runs, subjects = tmp_path / "runs", tmp_path / "subjects.jsonl"
    rows = [
        {"name": name, "photos": str(subject_photos(tmp_path / name, seed)), "class_noun": "dog"}
        for seed, name in enumerate("ab")
    ]
    subjects.write_text("\n".join(map(json.dumps, rows)))

    def kill() -> None:
        while not (runs / "a" / "checkpoints" / "step-000002").exists():
            time.sleep(0.01)
        found = psutil.Process(json.loads((runs / ".many" / "a" / ".lock").read_text())["pid"])
        found.parent().kill()
        found.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    given = {"subjects": str(subjects), "runs": str(runs), "executor": "ray", "personalize": quick(tiny_base, 40)}
    result = train_many.run(config.settle(TrainManySettings, given))
    killer.join()
    assert [one["status"] for one in result["subjects"]] == ["done", "done"]
    assert f"resuming {runs / 'a'} at step" in (runs / ".many" / "a" / "log.txt").read_text()
    for row in rows:
        made = alone(row["name"], row["photos"], tmp_path / "alone", tiny_base, 40)
        assert hashes(runs / row["name"], "model/**/*.safetensors") == hashes(made, "model/**/*.safetensors")


def test_subjects_on_a_cluster_that_begins_with_the_command(tiny_base: Path, tmp_path: Path) -> None:
    rows = [
        {"name": name, "photos": str(subject_photos(tmp_path / name, seed)), "class_noun": "dog"}
        for seed, name in enumerate("ab")
    ]
    (tmp_path / "subjects.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "config.yaml").write_text(json.dumps({"personalize": quick(tiny_base, 3)}))
    command = [sys.executable, "-m", "femtobooth", "train-many", "subjects.jsonl", "--config", "config.yaml"]
    command += ["--executor", "ray", "--runs", "runs"]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    for row in rows:
        made = alone(row["name"], row["photos"], tmp_path / "alone", tiny_base, 3)
        found = hashes(tmp_path / "runs" / row["name"], "model/**/*.safetensors")
        assert found and found == hashes(made, "model/**/*.safetensors")


def test_the_protocol_teaches_two_dogs_on_two_nodes(
    cluster: Cluster, tiny_base: Path, tiny: Path, tmp_path: Path
) -> None:
    data = tmp_path / "photos"
    for seed, name in enumerate(("rex", "pup")):
        subject_photos(data / name, seed)
    prompts = "'a {0} {1}'.format(unique_token, class_token)\n"
    lists = f"rex,dog\npup,dog\nObject Prompts\n{prompts}Live Subject Prompts\n{prompts}"
    (data / LISTS).write_text(lists)
    given = {
        "run": str(data), "protocol": "dreambooth", "encoders": [str(tiny)], "personalize": quick(tiny_base, 2),
        "count": 2, "class_count": 2, "other_classes": [], "device": "cpu", "sampling": {"steps": 1}, "region": False,
    }  # fmt: skip
    torch.set_num_threads(1)
    by_itself, on_two = (
        protocol.run(config.settle(ProtocolSettings, given | {"runs": str(tmp_path / name)} | more))
        for name, more in (("alone", {}), ("ray", {"executor": "ray"}))
    )
    assert {row["subject"] for row in on_two["subjects"]} == {"rex", "pup"}
    assert (on_two["means"], on_two["subjects"]) == (by_itself["means"], by_itself["subjects"])
    for name in ("rex", "pup"):
        made = [hashes(tmp_path / where / name, "model/**/*.safetensors") for where in ("alone", "ray")]
        assert made[0] and made[0] == made[1]


def test_synthesized(cluster: Cluster, tiny_base: Path, tiny: Path, tmp_path: Path) -> None:
    run = alone("rex", str(subject_photos(tmp_path / "rex", 0)), tmp_path / "runs", tiny_base, 2)
    given = {"runs": [str(run)], "encoder": str(tiny), "threshold": -1.0, "negatives": True, "batch_size": 4}
    given |= {"backgrounds": ["on the beach", "in the snow", ""], "styles": [""], "sampling": {"steps": 2}}
    torch.set_num_threads(1)
    synthesize.run(config.settle(SynthesizeSettings, given | {"out": str(tmp_path / "alone")}))
    with pytest.MonkeyPatch.context() as patch:  # all that is left to this process is to read
        patch.setattr(sampling, "sample", lambda *_, **__: pytest.fail("drawn here"))
        more = {"out": str(tmp_path / "shared"), "executor": "ray"}
        report = synthesize.run(config.settle(SynthesizeSettings, given | more))
    made = hashes(tmp_path / "shared", "**/*.png")
    assert (
        made == hashes(tmp_path / "alone", "**/*.png") and len(list((tmp_path / "shared" / ".drawn").iterdir())) == 12
    )
    assert report["settings"] == json.loads((tmp_path / "alone" / "synthesized.json").read_text())["settings"] | {
        "out": str(tmp_path / "shared")
    }


def test_refused(given: dict[str, Any], tmp_path: Path) -> None:
    for more, told in (
        ({"out": None}, "`executor=ray`: where shall the parts go?"),
        ({"out": "labels.csv"}, "`out=labels.csv`: executor=ray writes Parquet parts"),
        ({"part_size": 7}, "`part_size=7`: is no multiple of batch_size=3\n  -> give 6"),
        ({"paths": ["-"]}, "`executor=ray`: lists no files that stdin names"),
    ):
        with pytest.raises(SettingsError) as error:
            all_of_it = given | {"executor": "ray", "part_size": 6, "out": str(tmp_path / "parts")} | more
            classify.run(config.settle(ClassifySettings, all_of_it))
        assert str(error.value).startswith(told)
