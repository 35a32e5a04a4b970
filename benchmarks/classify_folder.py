"""JPEG folder -> labels, whole processes: `femtobooth classify` against the same model run the ordinary way.

    python benchmarks/classify_folder.py ../shared/data/imagenet-sample [--count 1000] [--large 60] [--repeats 3]

The ordinary way is the structure of timm's own inference script: `create_transform`, a DataLoader with as many workers
as cores, eager PyTorch with as many threads, or OpenVINO in its place. All have the same weights and cores, start cold,
take turns, and write a CSV; what is printed are medians. The exports to ONNX, in 32 and in 8 bits (ranges set by the
photos), which are done once, are made before and their time printed.
CPU seconds are those of the process and its children: unlike wall time they bear a busy machine.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from femtobooth.core import machine
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, note, table

ORDINARY = """
import csv, sys
import timm, torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset
from pathlib import Path
from femtobooth.recognizer.model.backbone import Recognizer

reference, folder, out, cores, runtime = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
torch.set_num_threads(cores)

class Photos(Dataset):
    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB"))

recognizer = Recognizer.load(reference)
model, labels = recognizer.model.eval(), recognizer.labels
paths = sorted(folder.glob("*.jpg"))
photos = Photos(paths, create_transform(**recognizer.preprocess.to_timm()))
loader = DataLoader(photos, batch_size=64, num_workers=cores)
if runtime == "openvino":
    import openvino
    example = torch.zeros(1, 3, *recognizer.preprocess.size)
    hints = {"INFERENCE_NUM_THREADS": cores, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.convert_model(model, example_input=example), "CPU", hints)
    model = lambda batch: torch.from_numpy(compiled(batch.numpy())[0])
found = []
with torch.inference_mode():
    for batch in loader:
        confidence, index = model(batch)[:, labels.main].softmax(-1).topk(5)
        found += [(row[0].item(), score[0].item()) for row, score in zip(index, confidence)]
with open(out, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["path", "label", "confidence"])
    writer.writerows((path, labels.names[labels.main][index], score) for path, (index, score) in zip(paths, found))
"""


@dataclass
class Measured:
    wall: float
    cpu: float
    memory: float
    """Largest resident size of one process, MB."""
    labels: dict[str, str]


def measure(command: list[str], out: Path) -> Measured:
    """Run a whole process; what it took, and the labels it wrote."""
    out.unlink(missing_ok=True)
    began = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command[:4])} ...")
    with out.open(newline="", encoding="utf-8") as file:
        labels = {Path(row["path"]).name: row["label"] for row in csv.DictReader(file)}
    return Measured(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, labels)


def ours(model: str, folder: Path, out: Path, *flags: str) -> list[str]:
    program = "from femtobooth.cli import main; main()"
    return [sys.executable, "-c", program, "classify", str(folder), "--model", model, "--out", str(out), *flags]


def compare(title: str, ways: dict[str, tuple[list[str], Path]], repeats: int) -> None:
    """Run all ways in turn, `repeats` times; print medians, and agreement with the first way."""
    runs: dict[str, list[Measured]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (command, out) in ways.items():
            runs[name].append(measure(command, out))
    base, rows = next(iter(runs.values())), []
    for name, measured in runs.items():
        wall = statistics.median(one.wall for one in measured)
        ratio = statistics.median(first.wall / one.wall for first, one in zip(base, measured, strict=True))
        cpu = statistics.median(first.cpu / one.cpu for first, one in zip(base, measured, strict=True))
        expected, labels = base[0].labels, measured[0].labels
        same = sum(labels.get(path) == label for path, label in expected.items())
        memory = max(one.memory for one in measured)
        rows.append(
            (
                name,
                f"{wall:.1f}",
                f"{len(labels) / wall:.0f}",
                f"{ratio:.2f}x",
                f"{cpu:.2f}x",
                f"{memory:.0f}",
                f"{same}/{len(expected)}",
            )
        )
    columns = ["", ">wall s", ">photos/s", ">wall ratio", ">CPU ratio", ">MB", ">same top-1"]
    table(f"{title}, load {os.getloadavg()[0]:.1f}", columns, rows)


def replicate(photos: list[Path], folder: Path, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        source = photos[index % len(photos)]
        shutil.copyfile(source, folder / f"{index:05}-{source.name}")


def enlarge(photos: list[Path], folder: Path, count: int) -> None:
    """12-megapixel versions (4000x3000 or 3000x4000), quality 92, as cameras write them."""
    folder.mkdir()
    for index, source in enumerate(photos[:count]):
        image = Image.open(source).convert("RGB")
        size = (4000, 3000) if image.width >= image.height else (3000, 4000)
        image.resize(size, Image.Resampling.LANCZOS).save(folder / f"{index:05}-{source.name}", quality=92)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of JPEGs")
    parser.add_argument(
        "--model", default="tf_efficientnet_lite0", help="anything `femtobooth classify --model` takes, with weights"
    )
    parser.add_argument("--count", type=int, default=1000, help="small photos, repeated from the folder [1000]")
    parser.add_argument("--large", type=int, default=60, help="12-megapixel photos [60]")
    parser.add_argument("--repeats", type=int, default=3, help="turns that each way gets [3]")
    options = parser.parse_args()
    cores = machine.cores()
    photos = sorted(options.photos.glob("*.jpg"))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["FEMTOBOOTH_CACHE"] = str(scratch / "cache")
        (scratch / "ordinary.py").write_text(ORDINARY)
        replicate(photos, scratch / "small", options.count)
        enlarge(photos, scratch / "large", options.large)
        replicate(photos, scratch / "double", 2 * options.count)
        out = scratch / "labels.csv"

        def ordinary(folder: str, runtime: str = "torch") -> tuple[list[str], Path]:
            program = [sys.executable, str(scratch / "ordinary.py"), options.model, str(scratch / folder)]
            return [*program, str(out), str(cores), runtime], out

        def quick(folder: str, *flags: str, model: str = options.model) -> tuple[list[str], Path]:
            return ours(model, scratch / folder, out, "--overwrite", *flags), out

        one = sorted((scratch / "small").iterdir())[0]
        first = measure(ours(options.model, one, out, "--engine", "ort"), out)
        note(f"{options.model}, {cores} cores; export, once: {first.wall:.1f} s ({first.cpu:.1f} s CPU)\n")
        int8 = str(scratch / "int8")
        export = ["export", options.model, "--precision", "int8", "--representative-data", str(options.photos)]
        began = time.monotonic()
        femtobooth = [sys.executable, "-m", "femtobooth", "-q"]
        subprocess.run([*femtobooth, *export, "--no-parity", "--out", int8], check=True, stdout=subprocess.DEVNULL)
        note(f"export in 8 bits, once: {time.monotonic() - began:.1f} s\n")
        cold = {
            "ort, exported before": quick(f"small/{one.name}"),
            "torch": quick(f"small/{one.name}", "--engine", "torch"),
        }
        compare("one photo, cold process", cold, options.repeats)
        ways = {
            "ordinary": ordinary("small"),
            "ordinary, OpenVINO": ordinary("small", "openvino"),
            "classify": quick("small", "--engine", "ort"),
            "classify, torch": quick("small", "--engine", "torch"),
            "classify, OpenVINO": quick("small", "--engine", "openvino"),
            "classify, int8": quick("small", model=int8),
            "classify, int8, OpenVINO": quick("small", "--engine", "openvino", model=int8),
        }
        compare(f"{options.count} photos as they are", ways, options.repeats)
        compare("memory: twice as many", {"classify": quick("double")}, 1)
        large = {
            "ordinary": ordinary("large"),
            "classify": quick("large"),
            "classify --decode fast": quick("large", "--decode", "fast"),
        }
        compare(f"{options.large} photos of 12 megapixels", large, options.repeats)


if __name__ == "__main__":
    with listening(Terminal()):
        main()
