"""What commands cost before they do what they are for: processor seconds of the smallest thing that each can do.

    python benchmarks/start.py [--repeats 5] [--only classify,runs] [--against ../before/src]

Every command is a new process, in turns with the others, so that what else runs on this machine counts alike for all;
`import torch` alone is the yardstick. `all` is user and system time of the process, `imports` the part of it that
Python spent in imports, with one thread; medians. What was downloaded, exported or cached before is there (the page
cache too), but nothing is kept in memory from one process to the next. `--against` measures another version beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, table

PHOTOS = Path(__file__).parents[1] / "examples" / "mascot"
PHOTO = PHOTOS / "femto_1.jpg"
COUNTED = """
import importlib._bootstrap as machinery, sys, time
real, depth, spent = machinery._find_and_load, 0, 0.0
def find_and_load(name, import_):
    global depth, spent
    began, depth = time.process_time(), depth + 1
    try:
        return real(name, import_)
    finally:
        depth -= 1
        if not depth:
            spent += time.process_time() - began
code, place = sys.argv.pop(1), sys.argv.pop(1)
machinery._find_and_load = find_and_load
try:
    exec(code)
finally:
    with open(place, "w") as told:
        told.write(f"{spent} {len(sys.modules)}")
"""
COMMAND = "from femtobooth.cli import main; main()"


def commands(scratch: Path) -> dict[str, tuple[str, list[object]]]:
    """Map what a line of the table is called to Python, and to its arguments; a new folder each time."""
    onnx, openvino, data = scratch / "onnx", scratch / "openvino", scratch / "data"
    run = ["--class-noun", "robot", "--steps", 1, "--class-images", 2, "--validate-every", 0, "--trackers", "csv"]
    once = [part for name in ("prior", "samples") for part in ("--set", f"{name}.sampling.steps=1")]
    new = Path(tempfile.mkdtemp(dir=scratch))
    lines: dict[str, list[object]] = {
        "classify, ONNX": ["classify", PHOTO, "--model", onnx],
        "classify, OpenVINO": ["classify", PHOTO, "--model", openvino],
        "classify, PyTorch": ["classify", PHOTO, "--model", "bundled", "--engine", "torch"],
        "embed, PyTorch": ["embed", PHOTO, "--model", "bundled", "--engine", "torch", "--out", new / "e.npz"],
        "generate": ["generate", "bundled", "a robot", "-n", 1, "--steps", 1, "--out", new / "g"],
        "personalize": ["personalize", PHOTOS, *run, *once, "--runs", new],
        "finetune": ["finetune", data, "--model", "bundled", "--steps", 1, "--runs", new],
        "report": ["report", next((scratch / "runs").glob("*"), scratch / "runs")],
        "runs": ["runs", "--runs", scratch / "runs"],
        "models": ["models", "--runs", scratch / "runs"],
    }
    return {"import torch": ("import torch", [])} | {name: (COMMAND, given) for name, given in lines.items()}


def prepare(scratch: Path, wanted: Callable[[str], bool]) -> None:
    """Make what the commands need: a folder of two classes, two exports, a run."""
    for part, files in {"left": sorted(PHOTOS.glob("*.jpg")), "right": sorted(PHOTOS.glob("*.jpg"))}.items():
        folder = scratch / "data" / part
        folder.mkdir(parents=True)
        for number, file in enumerate(files * 2):
            shown = subprocess.run(
                [sys.executable, "-c", MADE, file, str(number), part], capture_output=True, check=True
            )
            (folder / f"{number}.png").write_bytes(shown.stdout)
    for format in ("onnx", "openvino") if wanted("classify") else ():
        femtobooth("export", "bundled", "--format", format, "--no-parity", "--out", scratch / format)
    (scratch / "runs").mkdir()
    if wanted("report"):
        _, given = commands(scratch)["personalize"]
        femtobooth(*given[:-1], scratch / "runs")


MADE = """
import io, sys
from PIL import Image, ImageOps
image = Image.open(sys.argv[1]).convert("RGB").resize((96, 96)).rotate(7 * int(sys.argv[2]))
image = ImageOps.invert(image) if sys.argv[3] == "right" else image
image.save(made := io.BytesIO(), "png")
sys.stdout.buffer.write(made.getvalue())
"""


def femtobooth(*arguments: object) -> None:
    words = [sys.executable, "-m", "femtobooth", "-q", *map(str, arguments)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def measure(code: str, arguments: list[object], told: Path, source: Path | None) -> tuple[float, float, int]:
    """Run it; processor seconds, those of imports, and modules."""
    words = [sys.executable, "-c", COUNTED, code, str(told), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(source)} if source else {})
    with (told.parent / "said").open("w+") as said:
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(words[3:])}\n{said.read()}")
    imports, modules = told.read_text().split()
    return used.ru_utime + used.ru_stime, float(imports), int(modules)


def main(repeats: int, only: list[str], against: Path | None) -> None:
    def wanted(name: str) -> bool:
        return not only or name == "import torch" or name.partition(",")[0] in only

    sources = [None, *([against.resolve()] if against else [])]
    measured: dict[str, list[list[tuple[float, float, int]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        prepare(scratch, wanted)
        for _ in range(repeats):
            for name in filter(wanted, commands(scratch)):
                found = [measure(*commands(scratch)[name], scratch / "told", source) for source in sources]
                measured.setdefault(name, []).append(found)
    rows = []
    for name, turns in measured.items():
        columns = [
            [statistics.median(one) for one in zip(*version, strict=True)] for version in zip(*turns, strict=True)
        ]
        rows.append((name, *(f"{value:.2f} s" for ours in columns for value in ours[:2]), f"{columns[0][2]:.0f}"))
    title = f"Processor seconds, medians of {repeats}, one thread"
    heads = [">all", ">imports", *([">all before", ">imports before"] if against else [])]
    table(title, ["command", *heads, ">modules"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="commands, with commas between them; all if not given")
    parser.add_argument("--against", type=Path, help="src/ of another version, which is measured in turns with this")
    given = parser.parse_args()
    with listening(Terminal()):
        main(given.repeats, [name for name in given.only.split(",") if name], given.against)
