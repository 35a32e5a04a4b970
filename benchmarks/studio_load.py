"""The studio beside a training: readers of its events, pages one after the other, and what both cost.

    python benchmarks/studio_load.py                                 # five minutes on two cores
    python benchmarks/studio_load.py --readers 50 --pages 200 --events 10000 --rounds 4 --steps 12

Starts `femtobooth studio` over a temporary folder and teaches the bundled base the mascot there, as a job. Rounds of
--steps optimizer steps are measured in turn without anybody and beside --readers readers of its events and --pages
pages in all, spread over the rounds; what differs is the slowdown. Wall time tells what a person notices, processor
time what it costs, also on a machine that is busy with other things. Then as many readers each read a finished run of
--events events, and the server's memory is looked at before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, note, table
from femtobooth.studio.library import id_of

MASCOT = Path(__file__).parents[1] / "examples" / "mascot"
AT_EASE = 0.25  # seconds between two pages, as a person who is in a hurry asks for them


class Server:
    """A studio in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "femtobooth", "studio", "--no-browser", "--port", "0", "--folder", str(folder)]
        self.child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        lines = iter(self.child.stderr or [])
        said = next(found for line in lines if (found := re.search(r"http://localhost:(\d+)", line)))
        self.address, self.port = said[0], int(said[1])
        self.process = psutil.Process(self.child.pid)

    def get(self, path: str, body: bytes | None = None, kind: str = "application/json") -> Any:
        """Ask, and give what is answered, as JSON where it is some."""
        with urlopen(Request(self.address + path, body, {"content-type": kind})) as answer:  # noqa: S310
            text = answer.read()
            return json.loads(text) if "json" in answer.headers["content-type"] else text

    def cpu(self) -> float:
        """Seconds of processor that it has taken."""
        return sum(self.process.cpu_times()[:2])

    def memory(self) -> float:
        """MiB that it holds."""
        return float(self.process.memory_info().rss) / 2**20


async def read(port: int, run_id: str, heard: list[int]) -> None:
    """Read a run's events until they end; counts them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    writer.write(f"GET /api/v1/runs/{run_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    try:
        while line := await reader.readline():
            heard[0] += line.startswith(b"data: ")
            if line.startswith(b"event: end"):
                return
    finally:
        writer.close()


def begin(server: Server) -> tuple[str, psutil.Process]:
    """Submit a training, which is stopped in the end; returns its run's id and its process once it takes steps."""
    mark = "----femtobooth"
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{one.name}"\r\n\r\n'.encode()
        + one.read_bytes()
        for one in sorted(MASCOT.glob("*.jpg"))
    ]
    body = b"\r\n".join([*parts, f"--{mark}--\r\n".encode()])
    sent = server.get("/api/v1/uploads", body, f"multipart/form-data; boundary={mark}")["uploads"]
    settings = {
        "name": "femto",
        "photos": {"paths": [one["reference"] for one in sent], "class_noun": "robot"},
        "prior": {"images": 8, "sampling": {"steps": 10}},
        "training": {"steps": 10_000, "checkpoint_every": 0, "trackers": ["csv"]},
        "samples": {"every": 0, "images": 1, "sampling": {"steps": 5}},
        "validation": {"every": 0},
    }
    server.get("/api/v1/jobs", json.dumps({"command": "personalize", "settings": settings}).encode())
    run_id = id_of("femto")
    while True:
        time.sleep(2)
        (job,) = server.get("/api/v1/jobs")["jobs"]
        if job["status"] not in ("queued", "running"):
            raise SystemExit(f"the training did not begin: {job['error']}")
        if len(steps_taken(server.folder / "femto")) >= 3:
            known = json.loads((server.folder / "femto" / "run.json").read_text())
            return run_id, psutil.Process(known["process"]["pid"])


def steps_taken(run: Path) -> list[tuple[float, int]]:
    """When which step was measured."""
    told = (run / "events.jsonl").read_text() if (run / "events.jsonl").exists() else ""
    lines = (json.loads(line) for line in told.splitlines() if '"metrics"' in line)
    return [(one["time"], one["step"]) for one in lines if "loss/instance" in one["values"]]


async def wait_for(run: Path, steps: int) -> tuple[float, int]:
    """Wait until so many more steps are done; gives the seconds that one took, and how many there were."""
    first = steps_taken(run)[-1]
    while True:
        await asyncio.sleep(1)
        last = steps_taken(run)[-1]
        if last[1] >= first[1] + steps:
            return (last[0] - first[0]) / (last[1] - first[1]), last[1] - first[1]


async def ask(server: Server, pages: list[str], count: int) -> list[float]:
    """Ask for pages one after the other; gives the seconds that each took."""
    took = []
    for number in range(count):
        began = time.perf_counter()
        await asyncio.to_thread(server.get, pages[number % len(pages)])
        took.append(time.perf_counter() - began)
        await asyncio.sleep(AT_EASE)
    return took


async def measure(server: Server, folder: Path, arguments: argparse.Namespace) -> None:
    """Measure all of it, and tell."""
    rounds = 2 * arguments.rounds
    run_id, trains = begin(server)
    run, pages = folder / "femto", [f"/runs/{run_id}", "/", f"/runs/{run_id}/state", "/settings", "/cards", "/compare"]
    for page in pages:  # whatever is read once
        server.get(page)
    walls: dict[bool, list[float]] = {False: [], True: []}
    costs: dict[bool, list[float]] = {False: [], True: []}
    took: list[float] = []
    heard, of_readers, of_pages = [0], 0.0, 0.0
    for number in range(rounds):
        beside = bool(number % 2)
        readers = [asyncio.create_task(read(server.port, run_id, heard)) for _ in range(arguments.readers * beside)]
        await asyncio.sleep(2.0 * beside)  # until they have what was told before
        began, mine = sum(trains.cpu_times()[:2]), server.cpu()
        asking = asyncio.create_task(ask(server, pages, arguments.pages // arguments.rounds if beside else 0))
        wall, steps = await wait_for(run, arguments.steps)
        costs[beside].append((sum(trains.cpu_times()[:2]) - began) / steps)
        of_pages += (server.cpu() - mine) * beside
        walls[beside].append(wall)
        took += await asking
        for reader in readers:
            reader.cancel()
        note(f"round {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}")
    before = server.cpu()
    alone = await ask(server, pages, 60)
    each = (server.cpu() - before) / 60
    server.get(f"/api/v1/runs/{run_id}/stop", b"")
    while server.get("/api/v1/jobs")["jobs"][0]["status"] in ("running", "stopping"):
        await asyncio.sleep(1)

    line = json.dumps(
        {"seq": 0, "time": 0.0, "kind": "metrics", "stage": [], "step": 0, "values": {"loss/instance": 0.5}}
    )
    shutil.copytree(run, folder / "long", ignore=shutil.ignore_patterns("checkpoints", ".lock"))
    long = "".join(line.replace(": 0,", f": {number},") + "\n" for number in range(1, arguments.events + 1))
    (folder / "long" / "events.jsonl").write_text(long)
    memory = [server.memory()]
    for _ in range(3):
        began, heard = server.cpu(), [0]
        await asyncio.gather(*(read(server.port, id_of("long"), heard) for _ in range(arguments.readers)))
        of_readers = server.cpu() - began
        server.get(f"/runs/{id_of('long')}/state")
        memory.append(server.memory())

    def share(values: dict[bool, list[float]]) -> str:
        with_, without = statistics.median(values[True]), statistics.median(values[False])
        return f"{without * 1000:.0f} ms alone, {with_ * 1000:.0f} ms beside: {with_ / without - 1:+.1%}"

    half, most = 1000 * statistics.median(took), 1000 * statistics.quantiles(took, n=20)[18]
    rows = [
        ("a page beside readers and training, wall", f"half within {half:.0f} ms, 95 % within {most:.0f} ms"),
        ("a page, processor of the server", f"{1000 * each:.1f} ms ({1000 * statistics.median(alone):.0f} ms wall)"),
        ("the server beside a round of readers and pages", f"{of_pages / arguments.rounds:.2f} s of processor"),
        ("a step of training, wall", share(walls)),
        ("a step of training, processor", share(costs)),
        (f"{arguments.readers} readers of {arguments.events} events each", f"{of_readers:.2f} s of processor"),
        ("events that they heard", f"{heard[0]}"),
        ("memory of the server before that, and after each of three times", " ".join(f"{one:.0f}" for one in memory)),
        ("load of the machine", f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"),
    ]
    table("The studio under load", ["what", "measured"], rows, result=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("readers", 50), ("pages", 200), ("events", 10_000), ("rounds", 4), ("steps", 12)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    with listening(Terminal()), tempfile.TemporaryDirectory() as name:
        server = Server(Path(name))
        os.nice(19)  # readers are other machines' work: what they take here is no part of what is measured
        try:
            asyncio.run(measure(server, Path(name), parser.parse_args()))
        finally:
            for job in server.get("/api/v1/jobs")["jobs"]:  # which would outlive the server
                if job["status"] in ("running", "stopping"):
                    server.get(f"/api/v1/jobs/{job['id']}/stop", b"")
                    time.sleep(5)
            server.child.terminate()
            server.child.wait(30)


if __name__ == "__main__":
    main()
