"""recognizer -> artifact of another runtime, and a report of how far it is from the original on real photos.

OUT/model.*          the model (see recognizer/exporting/graph.py)
    recognizer.json  preprocessing, labels, temperature, rejection, provenance: what `classify` needs beside it
    parity.json      every figure of the comparison
    parity.html      the same for people
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core import busy
from ..core.claims import Output
from ..core.errors import ParityError, PhotoError, SettingsError
from ..core.events import conclude, note, table, warn
from ..core.files import sha256_of, write_json, write_text
from ..core.machine import environment, processor
from ..core.names import shown
from ..core.paths import expanded
from ..core.run import is_run
from ..pages import export as page
from ..pictures.images import Picture, decode, find_pictures
from ..recognizer import evaluation
from ..recognizer.exporting import foreign, graph, parity
from ..recognizer.finetuning import dataset, splitting
from ..recognizer.inference import child
from ..recognizer.inference.engines import open_engine
from ..recognizer.inference.predict import workers_for
from ..recognizer.model import artifact
from ..recognizer.model.backbone import Recognizer
from ..recognizer.model.engine import Engine
from ..recognizer.model.formats import BATCH, CONVERTED, FORMATS
from ..recognizer.model.labels import Labels
from ..recognizer.model.preprocess import Preprocess
from ..recognizer.settings import ExportSettings

FEWEST = 8  # photos to calibrate with
Seen = tuple[np.ndarray, int | None, Path]  # pixels (H, W, 3), class and file of a photo
STATUS = {True: "executed", False: "converted only"}


@dataclass(frozen=True)
class Photos:
    """Files and their true classes (index within the model's first group, None if not known)."""

    paths: list[Path]
    classes: list[int | None]

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, chosen: Any) -> Photos:
        return Photos([self.paths[i] for i in chosen], [self.classes[i] for i in chosen])


def run(settings: ExportSettings) -> dict[str, Any]:
    """Export; returns what parity.json holds.

    Raises InputError kinds before anything is written, and ParityError after it.
    """
    _check(settings)
    source = Path(settings.model)
    out = Path(settings.out) if settings.out else _place(settings, source)
    output = Output(out, "export", settings.overwrite, inputs=[settings.model, settings.data, settings.calibration])
    output.check()
    recognizer = Recognizer.load(settings.model)
    calibration, data = _photos(settings, source, recognizer.labels)
    _refuse_too_few(settings, calibration, data)
    seen = _calibrating(calibration, recognizer.preprocess) if settings.precision == "int8" else []
    threads = workers_for(settings.threads)
    facts = {"format": settings.format, "precision": settings.precision, "normalizes": settings.normalize}
    report: dict[str, Any] = {"model": settings.model, **facts, "threads": threads, "max_drop": settings.max_drop}
    report |= {
        "out": str(out),
        "environment": environment(),
        "processor": processor(),
        "command": None,
        "quantization": None,
    }
    report["remarks"] = _remarks(settings, recognizer, data)
    with output.folder() as folder:
        report["quantization"] = _write(settings, recognizer, folder, seen, threads, graph.describe(recognizer, facts))
        stored = [
            file.stat().st_size
            for file in folder.rglob("*")
            if file.is_file() and file.name.startswith(("model", "weight"))
        ]
        tensors = recognizer.model.state_dict().values()
        report["size"] = {
            "original": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            "exported": sum(stored),
        }
        if settings.format == "tensorrt":
            report["command"] = graph.trtexec(out, recognizer, settings.precision, settings.normalize)
        if settings.parity:
            note("opening the export and the original")
        engine = _opened(settings, folder, threads) if settings.parity else None
        if settings.parity and engine is None:
            report["remarks"].append(f"{settings.format} cannot run on {platform.system()}: nothing was compared.")
        report["runtime"] = engine.name if engine else settings.format
        report["status"] = STATUS[engine is not None and settings.format != "tensorrt"]
        report["figures"] = None
        if engine:
            batches = parity.BATCHES if settings.format not in CONVERTED else (BATCH,)
            original = open_engine(settings.model, "torch", threads, "cpu")
            pictures = ((pixels, label) for pixels, label, _ in _pixels(data, recognizer.preprocess))
            report["figures"] = parity.measure(original, engine, pictures, len(data), batches)
            if said := busy.remark(report["figures"]["speed"]["others"]):
                report["remarks"].append(said)
        figures = report["figures"]
        if figures and figures["accuracy"] and figures["judged_by"] == "agreement":
            report["remarks"].append(
                "The original is right on too few of these photos for accuracy to judge by: agreement does."
            )
        report |= _verdict(settings, figures)
        write_json(folder / "parity.json", report)
        write_text(folder / "parity.html", page.export_page(report))
    _tell(report, out)
    if report["misses"]:
        raise ParityError(
            f"{out}: {'; '.join(report['misses'])}",
            "see parity.html there; --max-drop and --tolerance say what is allowed",
        )
    return report


def _check(settings: ExportSettings) -> None:
    able = FORMATS[settings.format].precisions
    if settings.precision not in able:
        raise SettingsError(
            f"--precision {settings.precision}: not made for {settings.format}", f"--precision {' or '.join(able)}"
        )
    if settings.python and settings.format not in CONVERTED:
        raise SettingsError(
            f"--python: {settings.format} is converted by this interpreter",
            f"leave it out, or use {', '.join(CONVERTED)}",
        )


def _place(settings: ExportSettings, source: Path) -> Path:
    kind = f"{settings.format}-{settings.precision}"
    if is_run(source):
        return source / "exports" / kind
    return Path("exports") / f"{source.stem if source.is_file() else source.name}-{kind}"


# Photos


def _photos(settings: ExportSettings, source: Path, labels: Labels) -> tuple[Photos, Photos]:
    """Photos to calibrate with, and others to compare on."""
    split = source / "split.csv"
    rows = splitting.read_split(split) if split.is_file() else []
    own = {
        part: _labelled([(Path(r["path"]), r["label"]) for r in rows if r["split"] == part], labels)
        for part in ("train", "val")
    }
    quantized = settings.precision == "int8"
    same = bool(
        settings.data and settings.calibration and Path(settings.data).resolve() == Path(settings.calibration).resolve()
    )
    given = _read(settings.calibration, labels) if settings.calibration else None
    data = _read(settings.data, labels) if settings.data and not same else None
    if not quantized:
        return Photos([], []), next((photos for photos in (data, given, own["val"]) if photos is not None), own["val"])
    if given is not None and data is None:
        calibration = _limited(given.where(range(0, len(given), 2)), settings)
        return calibration, _unseen(calibration, given.where(range(1, len(given), 2)))
    calibration = given if given is not None else own["train"]
    if not len(calibration):
        raise SettingsError(
            "--precision int8: no photos to calibrate with", "add --calibration FOLDER with 100 or more photos"
        )
    calibration = _limited(calibration, settings)
    return calibration, _unseen(calibration, data if data is not None else own["val"])


def _limited(photos: Photos, settings: ExportSettings) -> Photos:
    count = min(len(photos), settings.calibration_photos)
    return photos.where([i * len(photos) // count for i in range(count)])


def _unseen(calibration: Photos, data: Photos) -> Photos:
    """`data` without the files that calibrate, whatever their names."""
    used = {sha256_of(path) for path in calibration.paths if path.is_file()}
    kept = [i for i, path in enumerate(data.paths) if not path.is_file() or sha256_of(path) not in used]
    if len(kept) < len(data):
        warn(f"{len(data) - len(kept)} photos are among those that calibrate; they are not compared on")
    return data.where(kept)


def _read(given: str, labels: Labels) -> Photos:
    """Labelled or unlabelled photos of a folder or CSV file. Raises PhotoError."""
    source = expanded(given)
    if dataset.is_labelled(source):
        examples, remarks = dataset.read(source).to_measure()
        for remark in remarks:
            note(remark)
        return _labelled([(example.path, example.label) for example in examples], labels)
    paths, _ = find_pictures([source], recursive=True)
    return Photos(paths, [None] * len(paths))


def _labelled(rows: list[tuple[Path, str]], labels: Labels) -> Photos:
    index = evaluation.classes_of(labels, list(dict.fromkeys(label for _, label in rows)))
    return Photos([path for path, _ in rows], [index[label] for _, label in rows])


def _refuse_too_few(settings: ExportSettings, calibration: Photos, data: Photos) -> None:
    if settings.precision == "int8" and len(calibration) < FEWEST:
        raise PhotoError(
            f"{len(calibration)} photos to calibrate with, fewer than {FEWEST}",
            "add --calibration FOLDER with 100 or more",
        )
    if settings.parity and not len(data):
        raise SettingsError(
            "no photos to compare on", "add --data FOLDER, or --no-parity for an export that nothing vouches for"
        )
    if settings.parity and not any(isinstance(decode(path), Picture) for path in data.paths):
        raise PhotoError(
            f"none of the {len(data)} photos to compare on can be read, such as {data.paths[0]}", "give others (--data)"
        )


def _calibrating(photos: Photos, preprocess: Preprocess) -> list[Seen]:
    """The photos that set the ranges, decoded. Raises PhotoError where too few of them can be read."""
    note(f"reading {len(photos)} photos to calibrate with")
    read = list(_pixels(photos, preprocess))
    if len(read) < FEWEST:
        raise PhotoError(
            f"{len(read)} of {len(photos)} photos to calibrate with can be read, fewer than {FEWEST}",
            "add --calibration FOLDER with 100 or more",
        )
    return read


def _pixels(photos: Photos, preprocess: Preprocess) -> Iterator[Seen]:
    """Decoded and resized (H, W, 3) photos with their classes and files. Raises PhotoError if none can be read."""
    failed = []
    for path, label in zip(photos.paths, photos.classes, strict=True):
        decoded = decode(path)
        if isinstance(decoded, Picture):
            yield preprocess.pixels(decoded.image), label, path
        else:
            failed.append(f"{shown(path)}: {decoded.reason}")
    if failed and len(failed) == len(photos):
        raise PhotoError(f"none of {len(failed)} photos can be read; the first: {failed[0]}", "give others")
    if failed:
        warn(f"{len(failed)} of {len(photos)} photos cannot be read; the first: {failed[0]}")


# Writing and opening


def _write(
    settings: ExportSettings,
    recognizer: Recognizer,
    folder: Path,
    calibration: list[Seen],
    threads: int,
    described: artifact.Description,
) -> dict[str, Any] | None:
    """Write model and recognizer.json into `folder`; returns the report of quantization, if there was one."""
    half, report = settings.precision == "fp16", None
    note(f"converting to {settings.format}")
    if settings.format in CONVERTED:
        with tempfile.TemporaryDirectory() as temporary:
            recognizer.save(Path(temporary) / "model")
            foreign.convert(
                settings.format,
                Path(temporary) / "model",
                folder,
                settings.precision,
                settings.normalize,
                settings.python,
            )
    elif settings.format == "torchscript":
        graph.write_torchscript(graph.Graph(recognizer, settings.normalize, half), folder, described)
    else:
        stays_single = settings.format == "openvino"  # whose own compression of the weights is what `half` means there
        model = graph.to_onnx(graph.Graph(recognizer, settings.normalize, half and not stays_single))
        if settings.precision == "int8":
            model, report, digests = _quantized(settings, recognizer, model, calibration, threads)
            ranges = {"calibration": {"photos": len(digests), "sha256": sorted(digests)}}
            described = replace(
                described, provenance=described.provenance | {"export": described.provenance["export"] | ranges}
            )
        if settings.format == "openvino":
            graph.write_openvino(model, folder, described, half)
        else:
            graph.write_onnx(model, folder, described)
    file = folder / FORMATS[settings.format].file
    if settings.precision != "fp32":
        described = replace(
            described, hash=sha256_of(file.with_suffix(".bin") if settings.format == "openvino" else _largest(file))
        )
    artifact.write(described, folder)
    return report


def _largest(path: Path) -> Path:
    """A file itself; of a package (Core ML), its largest file."""
    return (
        path
        if path.is_file()
        else max((part for part in path.rglob("*") if part.is_file()), key=lambda part: part.stat().st_size)
    )


def _quantized(
    settings: ExportSettings, recognizer: Recognizer, model: Any, read: list[Seen], threads: int
) -> tuple[Any, dict[str, Any], list[str]]:
    """The model in 8 bits, what is reported of it, and the SHA-256 of the photos that set its ranges."""
    from ..recognizer.exporting import quantize

    if quantize.saturates() and not settings.reduce_range:
        warn(
            "this processor has no VNNI: sums of 8-bit products may overflow here in silence; --reduce-range avoids it"
        )
    note(f"calibrating on {len(read)} photos")
    pixels, truth = (
        np.stack([one for one, _, _ in read]),
        np.array([-1 if label is None else label for _, label, _ in read]),
    )
    main = recognizer.labels.main

    def lost(before: np.ndarray, after: np.ndarray) -> float:
        return parity.lost(before[:, main].argmax(axis=1), after[:, main].argmax(axis=1), truth)[0]

    scheme = quantize.Scheme(
        calibrators=quantize.CALIBRATORS if settings.calibrator == "best" else (settings.calibrator,),
        reduce_range=settings.reduce_range,
        symmetric=settings.format == "tensorrt",
    )
    inputs = pixels if settings.normalize else recognizer.preprocess.normalize(pixels)
    made = quantize.quantize(model, inputs, lost, settings.max_drop, scheme, threads)
    return made.model, made.report() | {"pictures": len(read)}, [sha256_of(path) for *_, path in read]


def _opened(settings: ExportSettings, folder: Path, threads: int) -> Engine | None:
    """What runs the export here; None where nothing can."""
    if settings.format in CONVERTED:
        try:
            return child.opened(settings.format, folder, threads, settings.python)
        except child.CannotRunHereError:
            return None
    return open_engine(folder, "auto", threads, reduced=settings.reduced, trust=True)  # made here, a moment ago


# Telling


def _verdict(settings: ExportSettings, figures: dict[str, Any] | None) -> dict[str, Any]:
    """verdict: within, not shown, exceeded or not compared; passed: true for the first, false for the third, null for
    others.
    """
    missed, unshown = (
        parity.judged(figures, settings.precision, settings.tolerance, settings.max_drop) if figures else ([], [])
    )
    verdict = "not compared" if not figures else "exceeded" if missed else "not shown" if unshown else "within"
    passed = {"within": True, "exceeded": False}.get(verdict)
    return {"verdict": verdict, "passed": passed, "misses": missed, "unshown": unshown}


def _remarks(settings: ExportSettings, recognizer: Recognizer, data: Photos) -> list[str]:
    remarks = []
    trained_on = set(recognizer.provenance.get("trained_on") or ())
    seen = sum(sha256_of(path) in trained_on for path in data.paths if path.is_file()) if trained_on else 0
    if seen:
        remarks.append(f"{seen} of {len(data)} photos were trained on: accuracy on them is flattered, for both alike.")
    if settings.format == "tensorrt":
        remarks.append("TensorRT itself was not run: figures are of the same ONNX file in ONNX Runtime.")
    if settings.reduced:
        remarks.append("OpenVINO was free to compute in bf16.")
    if settings.precision == "int8" and settings.reduce_range:
        remarks.append("Weights have 7 bits, for processors without VNNI.")
    unnamed = sum(label is None for label in data.classes)
    if 0 < unnamed < len(data):
        remarks.append(
            f"{unnamed} of {len(data)} photos are of classes that the model "
            "does not know: they count for agreement only."
        )
    return remarks


def _tell(report: dict[str, Any], out: Path) -> None:
    table(
        f"{report['model']} as {report['format']}, {report['precision']}: {report['status']}",
        page.COLUMNS,
        page.rows(report),
    )
    quantization = report["quantization"]
    if quantization:
        kept = quantization["kept_in_float"]
        note(
            f"int8: {quantization['calibrator']} ranges, bias correction "
            f"{'kept' if quantization['bias_corrected'] else 'did not help'}, "
            f"{len(kept)} of {len(quantization['layers'])} layers in float"
        )
    for remark in report["remarks"]:
        note(remark)
    if report["figures"]:
        said = "; ".join(report["misses"] + report["unshown"])
        conclude(f"{page.VERDICTS[report['verdict']][1]}{': ' if said else ''}{said}")
    if report["command"]:
        note(f"converted, not executed; build it where TensorRT is:\n  {report['command']}")
    conclude(f"written: {out}")
