"""One story, with a real server and a real training: the job is killed, the server is killed, and nothing is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from studio_client import png

from femtobooth import personalize
from femtobooth.core.files import content_hash, read_object
from femtobooth.studio.library import id_of

STEPS = 16
SETTINGS = {
    "name": "rex",
    "identifier": {"token": "sks"},
    "prior": {"weight": 0.0},
    "training": {"steps": STEPS, "checkpoint_every": 2, "trackers": ["csv"]},
    "samples": {"every": 0, "images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": 1}},
    "validation": {"every": 0},
}


@contextmanager
def serving(runs: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Start `femtobooth studio`; yields its process and a client of it."""
    command = [sys.executable, "-m", "femtobooth", "studio", "--no-browser", "--port", "0", "--folder", str(runs)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if found := re.search(r"http://localhost:\d+/", line):
                break
        else:
            raise AssertionError("the studio did not say where it is")
        with httpx.Client(base_url=found[0], timeout=30) as client:
            wait_for(lambda: _answers(client))
            yield server, client
    finally:
        server.terminate()
        server.wait(10)


def _answers(client: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return client.get("/v2/health/live").status_code == 200
    return False


def wait_for(true: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)


def until_step(client: httpx.Client, run_id: str, step: int, after: int = 0) -> int:
    """Follow the events of a run until it has taken this step; returns the number of the last one."""
    address = f"/api/v1/runs/{run_id}/events"
    with client.stream("GET", address, headers={"last-event-id": str(after)}, timeout=60) as answer:
        number = after
        for line in answer.iter_lines():
            if line.startswith("id: "):
                assert int(line[4:]) > number
                number = int(line[4:])
            if line.startswith("data: "):
                event = json.loads(line[6:])
                if event.get("kind") == "metrics" and event["step"] >= step:
                    return number
    raise AssertionError(f"the events ended before step {step}")


def test_nothing_is_lost(tiny_sd1: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "models").mkdir(parents=True)
    (runs / "models" / "tiny").symlink_to(tiny_sd1)
    run, run_id = runs / "rex", id_of("rex")
    with serving(runs) as (server, client):
        files = [("files", (f"{seed}.png", png(96, seed))) for seed in range(3)]
        sent = client.post("/api/v1/uploads", files=files).json()["uploads"]
        photos = {"paths": [one["reference"] for one in sent], "class_noun": "dog"}
        settings: dict[str, Any] = {**SETTINGS, "base": f"model:{id_of('tiny')}", "photos": photos}
        job = client.post("/api/v1/jobs", json={"command": "personalize", "settings": settings}).json()
        address = f"/api/v1/jobs/{job['id']}"
        wait_for((run / "events.jsonl").exists)

        last = until_step(client, run_id, 3)
        os.kill(read_object(run / "run.json")["process"]["pid"], signal.SIGKILL)
        wait_for(lambda: client.get(address).json()["status"] == "interrupted")
        told = client.get(address).json()
        assert told["error"]["problem"].startswith("its process ended without a word")
        assert told["resumable"]
        assert client.post(f"{address}/resume").json()["status"] == "queued"
        until_step(client, run_id, 6, last)
        server.kill()
        server.wait()

    worker = psutil.Process(read_object(run / "run.json")["process"]["pid"])
    assert worker.is_running()
    with serving(runs) as (server, client):
        (told,) = client.get("/api/v1/jobs").json()["jobs"]
        assert told["status"] == "running", "it was not adopted"
        until_step(client, run_id, STEPS)
        wait_for(lambda: client.get(address).json()["status"] == "done")
        told = client.get(address).json()
        assert (told["progress"], told["error"]) == ({"step": STEPS, "steps": STEPS}, None)
        assert client.get(f"{address}/result").json()["status"] == "done"

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        paths = [str(runs / ".studio" / "uploads" / f"{one['id']}.png") for one in sent]
        same = {name: value for name, value in SETTINGS.items() if name != "name"}
        whole = personalize({**photos, "paths": paths}, base=str(runs / "models" / "tiny"), runs=str(tmp_path), **same)
    finally:
        torch.set_num_threads(threads)
    found = [content_hash((place / "model").rglob("*.safetensors"), place) for place in (run, whole.run.folder)]
    assert found[0] == found[1]
