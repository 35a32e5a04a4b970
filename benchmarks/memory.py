"""What `personalize --plan` says beside what a training of Stable Diffusion 1.5's size takes on this CPU.

    python benchmarks/memory.py --train attention
    python benchmarks/memory.py --train lora --frozen-precision bf16 --rank 16 --no-lora-text-encoder

Builds a base of that size with random weights in a temporary folder (4.3 GB; nothing is fetched), plans a run of it and
trains that for one step at 512 pixels, batch 1, with gradient checkpointing, as commands of their own. Flags are those
of `femtobooth personalize`. What was measured is the process's peak resident set, by the kernel's count.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from sd15_step import stable_diffusion_15

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, table
from femtobooth.generator import locate
from femtobooth.generator.formats.folder import load_tokenizer, save_folder
from femtobooth.generator.memory import told

STEP = [
    *("--steps", "1", "--gradient-checkpointing", "--batch-size", "1", "--prior-weight", "0", "--class-noun", "robot"),
    *("--accelerator", "cpu", "--checkpoint-every", "0", "--validate-every", "0", "--sample-every", "0"),
    *("--set", "samples.images=1", "--set", "samples.prompts=a [V] {class}", "--set", "samples.batch_size=1"),
    *("--set", "samples.sampling.steps=1", "--trackers", "csv", "--save-precision", "fp16"),
]
POLLED = 0.2  # seconds between looks at what the process holds


def build(folder: Path) -> None:
    """Write the base; its tokenizer is the bundled one with as many entries as the text encoder knows."""
    model = stable_diffusion_15()
    entries = json.loads((locate.bundled_folder() / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    more = {f"filler{number}</w>": number for number in range(len(entries), model.text_encoder.config.vocab_size)}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "vocab.json").write_text(json.dumps(entries | more), encoding="utf-8")
        for file in ("merges.txt", "tokenizer_config.json"):
            shutil.copy(locate.bundled_folder() / "tokenizer" / file, place)
        model.tokenizer = load_tokenizer(place)
    model.tokenizer.model_max_length = model.text_encoder.config.max_position_embeddings
    save_folder(model, folder, card="# random weights\n")


def command(*words: str, **options: object) -> subprocess.Popen[str]:
    """Start a command of femtobooth."""
    return subprocess.Popen([sys.executable, "-m", "femtobooth", *words], text=True, **options)  # type: ignore[call-overload]


@contextmanager
def watched(process: subprocess.Popen[str]) -> Iterator[list[tuple[float, int]]]:
    """Note what a process holds, and when, until it ends."""
    seen: list[tuple[float, int]] = []

    def look() -> None:
        one = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                seen.append((time.time(), one.memory_info().rss))
            except psutil.Error:
                break
            time.sleep(POLLED)

    thread = threading.Thread(target=look)
    thread.start()
    yield seen
    thread.join()


def by_stage(seen: list[tuple[float, int]], run: Path) -> dict[str, int]:
    """Give the most that was held in each stage of a run, as its events tell."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    told_at = [(line["time"], "/".join(line.get("stage") or ["-"])) for line in lines]
    most: dict[str, int] = {}
    for when, held in seen:
        name = next((name for at, name in reversed(told_at) if at <= when), "before the run folder")
        most[name] = max(most.get(name, 0), held)
    return most


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if os.fork() == 0:  # so that what building takes is given back
            build(scratch / "base")
            os._exit(0)
        os.wait()
        photos = str(Path(__file__).parent.parent / "examples" / "mascot")
        words = ["personalize", photos, "--base", str(scratch / "base"), "--runs", str(scratch / "runs")]
        words += ["--name", "run", *STEP, *sys.argv[1:]]
        plan = json.loads(command(*words, "--plan", "--json", stdout=subprocess.PIPE).communicate()[0])
        began = time.monotonic()
        process = command(*words)
        with watched(process) as seen:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began
        measured = used.ru_maxrss * 1024
        rows = [(one["name"], told(one["process"]), "") for one in plan["phases"]]
        rows += [(f"measured: {stage}", "", told(held)) for stage, held in by_stage(seen, scratch / "runs/run").items()]
        rows += [("peak", told(plan["peak"]), f"{told(measured)} ({measured / plan['peak'] - 1:+.1%})")]
        table(f"{' '.join(sys.argv[1:])}; {seconds:.0f} s", ["", ">planned", ">measured"], rows)
        if process.returncode:
            sys.exit(process.returncode)


if __name__ == "__main__":
    with listening(Terminal()):
        main()
