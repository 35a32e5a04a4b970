"""What `femtobooth evaluate` says of several subjects: each between its untuned base and the photo that was held out.

    python benchmarks/evaluate_subjects.py --data ../shared/data/dreambooth --runs /tmp/subjects [--fast]

Every subject of the dataset (google/dreambooth's layout) is personalized with one photo held out, unless its run is
there already, and evaluated with the other subjects as its gallery. `--fast` trains and draws next to nothing: it shows
that the script works. Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from femtobooth.core.run import is_run
from femtobooth.workflows.protocol import LISTS, read_lists

FAST_TRAINING = ["--steps", "20", "--class-images", "8", "--sample-every", "0", "--set", "samples.sampling.steps=10"]
FAST_DRAWING = ["-n", "2", "--class-pictures", "4", "--steps", "10", "--other-classes", "cat"]
COLUMNS = {
    "subject fidelity": "fidelity",
    "subject fidelity, region": "region",
    "first of": "first in gallery",
    "prompt match, by example, without region": "prompt match",
    "prior preservation (PRES)": "PRES",
    "drift of its class (KID)": "drift",
}


def femtobooth(*arguments: str) -> dict[str, Any]:
    """What a command prints as JSON; its progress goes to stderr as ever."""
    command = [sys.executable, "-m", "femtobooth", *arguments, "--json"]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def cell(row: dict[str, Any] | None) -> str:
    """base -> tuned (95 % interval), and what real photos get."""
    if row is None:
        return "-"
    (value, low, high), ceiling = row["tuned"], row["ceiling"]
    return f"{row['base']:.2f} → {value:.2f} ({low:.2f} to {high:.2f})" + (
        "" if ceiling is None else f", photos {ceiling:.2f}"
    )


def main(data: Path, runs: Path, fast: bool, training: list[str]) -> None:
    started, lines = time.monotonic(), []
    classes, _, _ = read_lists(data / LISTS)
    for name in (name for name in classes if (data / name).is_dir()):
        run = runs / name
        if not is_run(run):
            small = FAST_TRAINING if fast else []
            where = ["--class-noun", classes[name], "--runs", str(runs), "--name", name, "--hold-out", "1"]
            femtobooth("personalize", str(data / name), *where, *small, *training)
        elif not (run / "model").is_dir():
            femtobooth("personalize", "--resume", str(run))
        result = femtobooth("evaluate", str(run), "--gallery", str(data), *(FAST_DRAWING if fast else []))
        for encoder in dict.fromkeys(row["encoder"] for row in result["scores"]):
            own = [row for row in result["scores"] if row["encoder"] == encoder]
            found = [
                next((row for row in own if row["score"] == score or row["score"].startswith(f"{score} ")), None)
                for score in COLUMNS
            ]
            if any(found):
                copies = f"{result['near_copies']['count']} of {result['near_copies']['of']}"
                lines.append([f"{name}, {result['steps']} steps", encoder, *map(cell, found), copies])
    print(
        f"{time.monotonic() - started:.0f} s; untuned base → tuned (95 % "
        "interval); photos: what real photos get, the ceiling\n"
    )
    print("| subject | encoder | " + " | ".join(COLUMNS.values()) + " | near-copies |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for line in lines:
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of subjects, as google/dreambooth's `dataset`")
    parser.add_argument("--runs", type=Path, required=True, help="where the runs are, or go")
    parser.add_argument("--fast", action="store_true", help="next to nothing is trained and drawn")
    arguments, rest = parser.parse_known_args()
    main(arguments.data, arguments.runs, arguments.fast, rest)
