"""One training on two hosts (network namespaces) that share no disk, started by torchrun on each (gloo)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import quick_start
import torch
from PIL import Image
from safetensors.torch import load_file

from femtobooth.core.files import sha256_of
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess

STEPS, CLASS_IMAGES, DIES_AFTER = 4, 5, 2
# A process on a host: -c HOST NETWORK, the folder that is its disk, where it is mounted, and what is to run.
HOST = """
import ctypes, os, sys, quick_start
def call(name, *arguments):
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), name)
network, own, disk, *words = sys.argv[1:]
call("setns", os.open(f"/run/netns/{network}", os.O_RDONLY), 0x40000000)
call("unshare", 0x20000)
call("mount", None, b"/", None, 0x44000, None)  # what is mounted from here on is nobody else's
call("mount", own.encode(), disk.encode(), None, 0x1000, None)
os.chdir(disk)
quick_start.start_more()
quick_start.run_words(words)
"""
# torchrun, whose processes start as fast as others here.
TORCHRUN = """
import sys, quick_start
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
subprocess_handler.Popen = quick_start.start
run.main(sys.argv[1:])
"""
# The command; the process of rank $DIES is killed after a step.
WORKER = f"""
import os, signal, sys, quick_start
os.setsid()
from femtobooth.training.trainer import StepBar
def step(self, trainer, module, step, outputs):
    if step == {DIES_AFTER} and os.environ["RANK"] == os.environ.get("DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
StepBar.on_optimizer_step = step
sys.argv[0] = "femtobooth"
from femtobooth import cli
cli.main()
"""


class Hosts:
    """Two hosts, `a` and `b`, with a cable between them and a disk each, which both see as `disk`."""

    def __init__(self, folder: Path) -> None:
        self.networks = [f"fb{os.getpid()}{name}" for name in "ab"]
        self.disks, self.disk = [folder / name for name in "ab"], folder / "disk"
        for path in (*self.disks, self.disk):
            path.mkdir()
        a, b = self.networks
        for name in self.networks:
            _ip("netns", "add", name)
        _ip("link", "add", "cable", "netns", a, "type", "veth", "peer", "name", "cable", "netns", b)
        for number, name in enumerate(self.networks, 1):
            _ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", name, "link", "set", device, "up")

    def remove(self) -> None:
        for name in self.networks:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def train(self, *words: str | Path, **environment: str) -> list[subprocess.CompletedProcess[str]]:
        """Start a command on both hosts, with one process each; returns how torchrun ended on each."""
        started = []
        for number, (network, own) in enumerate(zip(self.networks, self.disks, strict=True)):
            host = [sys.executable, "-c", HOST, network, str(own), str(self.disk), "-c", TORCHRUN]
            host += [
                "--nnodes",
                "2",
                "--node-rank",
                f"{number}",
                "--master-addr",
                "10.77.0.1",
                "--master-port",
                "29500",
            ]
            host += ["--monitor-interval", "0.1", "--no-python", sys.executable, "-c", WORKER, *map(str, words)]
            given = {**os.environ, "OMP_NUM_THREADS": "1", "FEMTOBOOTH_CACHE": f"{self.disk}/cache", **environment}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(quick_start.start(host, env=given, **pipes))
        ended = []
        for process in started[::-1]:
            try:
                out, errors = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                for one in started:
                    one.kill()
                out, errors = process.communicate()
            ended.insert(0, subprocess.CompletedProcess(process.args, process.returncode, out, errors))
        return ended

    def class_images(self, number: int) -> dict[str, str]:
        """Give the SHA-256 of each class image on a host's disk, by its place in the cache."""
        cache = self.disks[number] / "cache"
        return {path.relative_to(cache).as_posix(): sha256_of(path) for path in cache.rglob("*.png")}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    try:
        made = Hosts(tmp_path_factory.mktemp("hosts"))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}")
    yield made
    made.remove()


@pytest.fixture(scope="module")
def command(hosts: Hosts, tiny_base: Path, photos: Path) -> list[str]:
    """personalize, of a base that is on both disks and of photos that are on the first host's."""
    for own in hosts.disks:
        shutil.copytree(tiny_base, own / "base")
    shutil.copytree(photos, hosts.disks[0] / "photos")
    sets = {
        "training.trackers": "csv", "prior.images": CLASS_IMAGES, "prior.sampling_batch": 1, "prior.sampling.steps": 1,
        "samples.images": 1, "samples.sampling.steps": 1, "samples.prompts": "a [V] {class}",
        "train.unet_learning_rate": "1e-3",
    }  # fmt: skip
    words = ["personalize", "photos", "--class-noun", "robot", "--base", "base", "--steps", f"{STEPS}"]
    words += ["--batch-size", "1", "--checkpoint-every", "1", "--accelerator", "cpu", "--strategy", "ddp"]
    words += ["--nodes", "2", "--runs", "runs"]
    return words + [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def whole(hosts: Hosts, command: list[str]) -> Path:
    """A run that nothing disturbed, on the first host's disk; it has no name, which the hosts need not agree on."""
    ended = hosts.train(*command)
    assert [one.returncode for one in ended] == [0, 0], [one.stderr[-3000:] for one in ended]
    (run,) = (hosts.disks[0] / "runs").iterdir()
    return run


def test_what_two_hosts_train_together_is_on_the_first_alone(hosts: Hosts, whole: Path) -> None:
    facts = json.loads((whole / "run.json").read_text())
    assert (facts["status"], facts["steps"]) == ("done", STEPS)
    assert not (hosts.disks[1] / "runs").exists()
    assert not (hosts.disks[1] / "photos").exists()


def test_class_images_travel(hosts: Hosts, whole: Path) -> None:
    first, second = hosts.class_images(0), hosts.class_images(1)
    assert len(first) == CLASS_IMAGES
    assert first == second


def test_the_others_end_when_one_is_killed_and_all_go_on_to_the_same_bits(
    hosts: Hosts, command: list[str], whole: Path, weights: Callable[[Path], dict[str, torch.Tensor]]
) -> None:
    shutil.rmtree(hosts.disks[1] / "cache")
    began = time.monotonic()
    first, second = hosts.train(*command, "--name", "broken", DIES="1")
    assert time.monotonic() - began < 60
    assert (first.returncode, second.returncode) == (1, 1)
    said = [line for line in first.stderr.splitlines() if line.startswith("femtobooth: ")]
    assert said == ["femtobooth: process 1 of 2 is gone: it was killed, or its machine cannot be reached"]
    assert "  -> femtobooth personalize --resume runs/broken, on every machine" in first.stderr
    run = hosts.disks[0] / "runs" / "broken"
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert hosts.class_images(1) == hosts.class_images(0)

    resumed = hosts.train("personalize", "--resume", "runs/broken")
    assert [one.returncode for one in resumed] == [0, 0], [one.stderr[-3000:] for one in resumed]
    assert f"at step {DIES_AFTER}" in resumed[0].stderr
    expected, found = weights(whole / "model"), weights(run / "model")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_what_another_host_lacks_is_told(hosts: Hosts, command: list[str]) -> None:
    (hosts.disks[1] / "base").rename(hosts.disks[1] / "away")
    try:
        first, second = hosts.train(*command, "--name", "lacking")
    finally:
        (hosts.disks[1] / "away").rename(hosts.disks[1] / "base")
    assert (first.returncode, second.returncode) == (1, 1)  # torchrun's, whatever its processes say
    assert "femtobooth: process 1 on " in first.stderr
    assert "base: no such" in first.stderr
    assert "base: no such" in second.stderr


@pytest.fixture(scope="module")
def finetune(hosts: Hosts, tiny: Path) -> list[str]:
    """finetune, of pictures that lie elsewhere on the second host, and of a recognizer that is on both."""
    for index in range(8):
        label = ["red", "blue"][index % 2]
        for number, place in enumerate(("pictures", "elsewhere")):
            picture(hosts.disks[number] / place / label / f"{index}.png", index)
    for own, place in zip(hosts.disks, ("pictures", "elsewhere"), strict=True):
        shutil.copytree(tiny, own / "recognizer")
        (own / "data").symlink_to(place)
    words = ["finetune", "data", "--model", "recognizer", "--strategy", "ddp", "--accelerator", "cpu", "--runs", "runs"]
    return [*words, "--steps", "2", "--batch-size", "2", "--trackers", "csv", "--result", "finetuned"]


def picture(path: Path, seed: int) -> None:
    """Write a picture that is reddish or bluish, by its number."""
    colour = np.array([[150, 20, 20], [20, 20, 150]][seed % 2])
    blocks = np.random.default_rng(seed).integers(0, 90, (6, 6, 3)) + colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks.astype(np.uint8)).resize((72, 60), Image.Resampling.BICUBIC).save(path)


def test_finetune_reads_the_pictures_of_each_host_and_they_must_be_the_same(hosts: Hosts, finetune: list[str]) -> None:
    words = [*finetune, "--nodes", "2"]
    changed = {path: path.read_bytes() for path in (hosts.disks[1] / "elsewhere" / "red").iterdir()}
    for path, kept in changed.items():
        path.write_bytes(kept + b"more")
    first, second = hosts.train(*words, "--name", "changed")
    assert (first.returncode, second.returncode) == (1, 1)
    assert "femtobooth: process 1 on " in first.stderr
    assert "elsewhere/red/" in first.stderr
    assert "gone or changed since the run began" in first.stderr
    for path, kept in changed.items():
        path.write_bytes(kept)
    ended = hosts.train(*words, "--name", "same")
    assert [one.returncode for one in ended] == [0, 0], [one.stderr[-3000:] for one in ended]
    run = hosts.disks[0] / "runs" / "same"
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    assert not (hosts.disks[1] / "runs").exists()


def test_a_teacher_teaches_two_hosts_as_it_teaches_two_processes_of_one(hosts: Hosts, finetune: list[str]) -> None:
    """It, and the pictures without labels, are each host's own, and must be the same."""
    torch.manual_seed(1)
    made = Recognizer.create("test_efficientnet", Labels(("red", "blue")), Preprocess((48, 48)))
    made.provenance = {"licence": "mit"}
    made.freeze().save(hosts.disks[0] / "teacher")
    shutil.copytree(hosts.disks[0] / "teacher", hosts.disks[1] / "another")
    (hosts.disks[1] / "teacher").symlink_to("another")
    for index in range(10, 14):
        picture(hosts.disks[0] / "without" / f"{index}.png", index)
    shutil.copytree(hosts.disks[0] / "without", hosts.disks[1] / "labels")
    for own, place in zip(hosts.disks, ("without", "labels"), strict=True):
        (own / "more").symlink_to(place)
    words = [*finetune, "--teacher", "teacher", "--unlabelled", "more"]
    ended = hosts.train(*words, "--nodes", "2", "--name", "taught")
    assert [one.returncode for one in ended] == [0, 0], [one.stderr[-3000:] for one in ended]
    alone = [sys.executable, "-c", quick_start.RANKS, "-m", "femtobooth", *words, "--devices", "2", "--name", "alone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    one = quick_start.run(alone, env=environment, cwd=hosts.disks[0], capture_output=True, text=True, timeout=240)
    assert one.returncode == 0, one.stderr[-3000:]
    runs = hosts.disks[0] / "runs"
    assert json.loads((runs / "taught" / "run.json").read_text())["teacher"]["unlabelled"] == 4
    taught, expected = (load_file(runs / name / "model" / "model.safetensors") for name in ("taught", "alone"))
    before = load_file(hosts.disks[0] / "recognizer" / "model.safetensors")
    assert all(torch.equal(taught[name], expected[name]) for name in expected)
    shared = [name for name in before if before[name].shape == taught[name].shape]
    assert sum(not torch.equal(taught[name], before[name]) for name in shared) > len(shared) / 2

    lost = hosts.disks[1] / "labels" / "10.png"
    picture(lost, 99)
    first, _ = hosts.train(*words, "--nodes", "2", "--name", "other")
    assert "labels/10.png: gone or changed since the run began" in first.stderr
    picture(lost, 10)
    Recognizer.create("test_efficientnet", Labels(("red", "blue")), Preprocess((48, 48))).freeze().save(
        hosts.disks[1] / "another", overwrite=True
    )
    first, _ = hosts.train(*words, "--nodes", "2", "--name", "another")
    assert "another: not the teacher of the first machine" in first.stderr
