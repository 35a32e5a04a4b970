"""Many subjects by `femtobooth serve` against a process for each request: speed, and memory of the replica.

    python benchmarks/serving.py runs/rex --adapters 100 --requests 200 --at-once 4 --alone 5
    python benchmarks/serving.py runs/rex --looks 1000       # only what it costs to see what there is

RUN has trained a LoRA. Its adapter is copied under other names, moved a little at random; requests of one picture each
are dealt to the copies at random, after one to each that loads it, which is measured apart. Pictures are compared, too.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path

import httpx
import psutil
import torch
from safetensors.torch import load_file, save_file

from femtobooth.studio.serving.runs import Runs

PROMPT = "a photo"


def copies(run: Path, folder: Path, count: int) -> list[str]:
    """Copy a run, each time with other numbers in its adapter; gives the names."""
    (weights,) = (one.name for one in (run / "model").glob("*.safetensors") if not one.name.startswith("pytorch_"))
    adapter = load_file(run / "model" / weights)
    names = [f"subject-{index:03}" for index in range(count)]
    for index, name in enumerate(names):
        place = folder / name
        shutil.copytree(run / "model", place / "model", ignore=shutil.ignore_patterns("pytorch_*", weights))
        shutil.copyfile(run / "run.json", place / "run.json")
        torch.manual_seed(index)
        moved = {key: one + 0.01 * torch.randn_like(one) if one.ndim else one for key, one in adapter.items()}
        save_file(moved, place / "model" / weights)
    return names


def told(what: str, seconds: Sequence[float], whole: float) -> str:
    """Say how quick requests were, which took so long together."""
    p95 = sorted(seconds)[ceil(0.95 * len(seconds)) - 1]
    return f"{what}: {len(seconds) / whole:.3f} requests/s, p95 {p95:.2f} s, {len(seconds)} requests"


def look(folder: Path, names: Sequence[str]) -> None:
    """Say what it costs to see which of many runs there are."""
    runs = Runs([str(folder)])

    def milliseconds(function: Callable[[], object], times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            function()
        return (time.perf_counter() - began) / times * 1000

    runs.find(names[0])
    print(f"list {len(names)} runs: {milliseconds(runs.names, 10):.0f} ms", flush=True)
    print(f"find one that is known: {milliseconds(lambda: runs.find(names[0]), 100):.2f} ms", flush=True)
    print(f"look for one that is not there: {milliseconds(lambda: runs.find('none'), 10):.0f} ms", flush=True)


def understood() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--replicas", default="1")
    parser.add_argument("--alone", type=int, default=5)
    parser.add_argument("--looks", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Measure, and print a line each."""
    asked = understood()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    femtobooth = [sys.executable, "-m", "femtobooth"]
    print("load of the machine:", " ".join(f"{one:.1f}" for one in os.getloadavg()), flush=True)
    served: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs"
        names = copies(asked.run, folder, asked.looks or asked.adapters)
        if asked.looks:
            look(folder, names)
            return
        command = [
            *femtobooth,
            "serve",
            str(folder),
            "--port",
            "0",
            "--replicas",
            asked.replicas,
            "--adapters",
            str(len(names)),
        ]
        began = time.perf_counter()
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stderr  # noqa: S101
            said = next(line for line in process.stderr if "/v1" in line)
            print(f"ready after {time.perf_counter() - began:.1f} s", flush=True)
            with httpx.Client(base_url=re.findall(r"http://\S+", said)[0], timeout=600) as client:

                def ask(name: str) -> float:
                    began = time.perf_counter()
                    asked = {"model": name, "prompt": PROMPT, "seed": 0}
                    answer = client.post("/images/generations", json=asked).raise_for_status().json()
                    served[name] = b64decode(answer["data"][0]["b64_json"])
                    return time.perf_counter() - began

                def memory() -> str:
                    replicas = [
                        one.memory_full_info().uss / 2**20
                        for one in psutil.Process(process.pid).children(recursive=True)
                        if "ServeReplica" in "".join(one.cmdline()[:1])
                    ]
                    return f"{sum(replicas):.0f} MiB in {len(replicas)}"

                def several(dealt: list[str], what: str) -> None:
                    began = time.perf_counter()
                    with ThreadPoolExecutor(asked.at_once) as pool:
                        seconds = list(pool.map(ask, dealt))
                    print(told(what, seconds, time.perf_counter() - began), flush=True)

                ask(names[0])
                first = memory()
                several(names[1:], "first request of each")
                random.seed(0)
                several(random.choices(names, k=asked.requests), "all loaded")
                print(f"replicas: {first} with one adapter, {memory()} with {len(names)}", flush=True)
            process.send_signal(signal.SIGTERM)
        seconds = []
        for name in names[: asked.alone]:
            began = time.perf_counter()
            line = ["generate", str(folder / name), PROMPT, "-n", "1", "--out", str(Path(place) / name), "-q"]
            subprocess.run([*femtobooth, *line], check=True, env=environment)
            seconds.append(time.perf_counter() - began)
            (picture,) = (Path(place) / name).glob("*-seed0.png")
            if picture.read_bytes() != served[name]:
                sys.exit(f"{name}: the picture that was served is another one than {picture}")
        print(told("a process for each, one after another", seconds, sum(seconds)), flush=True)
    print("load of the machine:", " ".join(f"{one:.1f}" for one in os.getloadavg()), flush=True)


if __name__ == "__main__":
    main()
