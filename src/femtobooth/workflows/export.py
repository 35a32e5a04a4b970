"""recognizer -> artifact of another runtime, and a report of how far it is from the original on real photos.

OUT/model.*          the model (see recognizer/exporting/graph.py)
    recognizer.json  preprocessing, labels, temperature, rejection, provenance: what `classify` needs beside it
    run.py           labels photos without femtobooth, where the format runs in Python here
    parity.json      every figure of the comparison
    parity.html      the same for people
"""

from __future__ import annotations

import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core import busy
from ..core.claims import Output
from ..core.errors import ParityError, SettingsError
from ..core.events import conclude, note, table, warn
from ..core.files import sha256_of, write_json, write_text
from ..core.machine import environment, processor
from ..core.run import is_run
from ..pages import export as page
from ..pictures import archive_paths
from ..recognizer.exporting import foreign, graph, parity, script
from ..recognizer.inference import child
from ..recognizer.inference.engines import open_engine
from ..recognizer.inference.predict import workers_for
from ..recognizer.model import artifact
from ..recognizer.model.backbone import Recognizer
from ..recognizer.model.engine import Engine
from ..recognizer.model.formats import BATCH, CONVERTED, FLOATS, FORMATS
from ..recognizer.settings import ExportSettings
from . import export_photos
from .export_photos import Photos, Seen

STATUS = {True: "executed", False: "converted only"}


def run(settings: ExportSettings) -> dict[str, Any]:
    """Export a recognizer; returns what parity.json holds.

    Raises InputError kinds before anything is written, and ParityError after it.
    """
    _check(settings)
    source = Path(settings.model)
    out = Path(settings.out) if settings.out else _place(settings, source)
    output = Output(
        out, "export", settings.overwrite, inputs=[settings.model, settings.data, settings.representative_data]
    )
    output.check()
    recognizer = Recognizer.load(settings.model)
    representative, data = export_photos.choose(settings, source, recognizer.labels)
    export_photos.refuse_too_few(settings, representative, data)
    seen = export_photos.representative(representative, recognizer.preprocess) if settings.precision == "int8" else []
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
            pictures = ((pixels, label) for pixels, label, _ in export_photos.pixels(data, recognizer.preprocess))
            report["figures"] = parity.measure(original, engine, pictures, len(data), batches)
            if said := busy.remark(report["figures"]["speed"]["others"]):
                report["remarks"].append(said)
        figures = report["figures"]
        if figures and figures["accuracy"] and figures["judged_by"] == "agreement":
            report["remarks"].append(
                "The original is right on too few of these photos for accuracy to judge by: agreement does."
            )
        report |= _verdict(settings, figures)
        write_text(folder / script.NAME, script.text(settings.format, artifact.read(folder), settings.normalize))
        write_json(folder / "parity.json", report)
        write_text(folder / "parity.html", page.export_page(report))
    _tell(report, out)
    if report["misses"]:
        raise ParityError(
            f"{out}: {'; '.join(report['misses'])}",
            "see parity.html there; `max_drop` and `tolerance` say what is allowed",
        )
    return report


def _check(settings: ExportSettings) -> None:
    able = FORMATS[settings.format].precisions
    if settings.precision not in able:
        raise SettingsError(
            f"`precision={settings.precision}`: not made for {settings.format}", f"use {' or '.join(able)}"
        )
    if settings.normalize and settings.format in FLOATS:
        raise SettingsError(f"`normalize`: {settings.format} reads floats only", "leave it out; run.py normalizes")
    if settings.python and settings.format not in CONVERTED:
        raise SettingsError(
            f"`python`: {settings.format} is converted by this interpreter",
            f"leave it out, or use {', '.join(CONVERTED)}",
        )


def _place(settings: ExportSettings, source: Path) -> Path:
    kind = f"{settings.format}-{settings.precision}"
    if is_run(source):
        return source / "exports" / kind
    return Path("exports") / f"{source.stem if source.is_file() else source.name}-{kind}"


# Writing and opening


def _write(
    settings: ExportSettings,
    recognizer: Recognizer,
    folder: Path,
    representative: list[Seen],
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
    elif settings.format == "pt2":
        graph.write_pt2(graph.Graph(recognizer, settings.normalize, half), folder, described)
    else:
        stays_single = settings.format == "openvino"  # whose own compression of the weights is what `half` means there
        model = graph.to_onnx(graph.Graph(recognizer, settings.normalize, half and not stays_single))
        if settings.precision == "int8":
            model, report, digests = _quantized(settings, recognizer, model, representative, threads)
            ranges = {"activation_ranges": {"photos": len(digests), "sha256": sorted(digests)}}
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
            described,
            hash=sha256_of(file.with_suffix(".bin") if settings.format in ("openvino", "ncnn") else _largest(file)),
        )
    artifact.write(described, folder)
    return report


def _largest(path: Path) -> Path:
    """Choose the file itself; of a package (Core ML), its largest file."""
    return (
        path
        if path.is_file()
        else max((part for part in path.rglob("*") if part.is_file()), key=lambda part: part.stat().st_size)
    )


def _quantized(
    settings: ExportSettings, recognizer: Recognizer, model: Any, read: list[Seen], threads: int
) -> tuple[Any, dict[str, Any], list[str]]:
    """Return the model in 8 bits, what is reported of it, and the SHA-256 of the photos that set its ranges."""
    from ..recognizer.exporting import quantize

    if quantize.saturates() and not settings.reduce_range:
        warn(
            "this processor has no VNNI: sums of 8-bit products may overflow in silence; `reduce_range=true` avoids it"
        )
    note(f"setting ranges on {len(read)} photos")
    pixels, truth = (
        np.stack([one for one, _, _ in read]),
        np.array([-1 if label is None else label for _, label, _ in read]),
    )
    answers = recognizer.labels.answers

    def lost(before: np.ndarray, after: np.ndarray) -> float:
        return parity.lost(answers(before), answers(after), truth)[0]

    scheme = quantize.Scheme(
        methods=quantize.METHODS if settings.activation_ranges == "best" else (settings.activation_ranges,),
        reduce_range=settings.reduce_range,
        symmetric=settings.format == "tensorrt",
    )
    inputs = pixels if settings.normalize else recognizer.preprocess.normalize(pixels)
    made = quantize.quantize(model, inputs, lost, settings.max_drop, scheme, threads)
    return made.model, made.report() | {"pictures": len(read)}, [archive_paths.sha256_of(path) for *_, path in read]


def _opened(settings: ExportSettings, folder: Path, threads: int) -> Engine | None:
    """Open what runs the export here; None where nothing can."""
    if settings.format in CONVERTED:
        try:
            return child.opened(settings.format, folder, threads, settings.python)
        except child.CannotRunHereError:
            return None
    return open_engine(folder, "auto", threads, reduced=settings.reduced, trust=True)  # made here, a moment ago


# Telling


def _verdict(settings: ExportSettings, figures: dict[str, Any] | None) -> dict[str, Any]:
    """Judge the figures. verdict: within, not shown, exceeded or not compared; passed: true for the first, false for
    the third, null for others.
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
    there = [path for path in data.paths if archive_paths.is_file(path)] if trained_on else []
    seen = sum(archive_paths.sha256_of(path) in trained_on for path in there)
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
            f"int8: {quantization['activation_ranges']} ranges, bias correction "
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
