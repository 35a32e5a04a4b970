"""Write the page of `export`: how far an exported model is from the original, how fast, and how it was quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..recognizer.exporting import parity
from .html import Page, Tile, render

VERDICTS = {
    "within": ("good", "within tolerance"),
    "not shown": ("warn", "not shown to be within tolerance"),
    "exceeded": ("bad", "misses the tolerance"),
    "not compared": ("warn", "not compared"),
}
"""Verdict: mood of the page, and words."""
COLUMNS = ["", ">PyTorch fp32", ">exported", ">change"]


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Hold how 8-bit ranges were chosen, and what that cost, as texts."""

    summary: str
    trials: list[tuple[str, str, str, str]]
    """Name, signal to noise [dB], points lost, whether it was taken."""
    layers: list[tuple[str, str, str, str, str]]
    """Name, kind, signal to noise alone [dB], share of the work, number format; the most sensitive first."""


@dataclass(frozen=True, kw_only=True)
class ExportPage(Page):
    """Hold what the page shows."""

    tiles: list[Tile]
    mood: str
    verdict: str
    remarks: list[str]
    rows: list[tuple[str, str, str, str]]
    quantization: Quantization | None
    environment: list[tuple[str, str]]
    command: str
    """What builds the export where its runtime is; empty where it is built."""


def export_page(report: dict[str, Any]) -> str:
    """Write the whole page from what parity.json holds."""
    mood, verdict = VERDICTS[report["verdict"]]
    said = report["misses"] + report["unshown"]
    page = ExportPage(
        title=f"{report['model']} as {report['format']}, {report['precision']}",
        kind="export",
        lead=f"{report['status']}: {verdict}.",
        tiles=_tiles(report),
        mood=mood,
        verdict=f"{verdict}{': ' + '; '.join(said) if said else ''}",
        remarks=report["remarks"],
        rows=rows(report),
        quantization=_quantization(report["quantization"]) if report.get("quantization") else None,
        environment=[*{**report["environment"], "processor": report["processor"]}.items()],
        command=report.get("command") or "",
    )
    return render("export.html", page)


def rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Make the lines of the comparison: what, original, exported, change."""
    lines = [
        (
            "size on disk",
            _megabytes(report["size"]["original"]),
            _megabytes(report["size"]["exported"]),
            _times(*report["size"].values()),
        )
    ]
    figures = report.get("figures")
    if not figures:
        return lines
    accuracy, speed = figures["accuracy"], figures["speed"]
    if accuracy:
        change = [100 * value for value in accuracy["change"]]
        lines.append(
            (
                f"top-1 accuracy ({accuracy['pictures']} photos)",
                f"{100 * accuracy['original'][0]:.1f} %",
                f"{100 * accuracy['exported'][0]:.1f} %",
                f"{change[0]:+.1f} points ({change[1]:+.1f} to {change[2]:+.1f})",
            )
        )
    value, low, high = (100 * part for part in figures["agreement"])
    what = "agreement in all labels" if figures.get("of") == "all labels" else "top-1 agreement"
    lines.append(
        (
            f"{what} ({figures['pictures']} photos)",
            "",
            f"{value:.1f} %",
            f"{low:.1f} to {high:.1f} %",
        )
    )
    error = figures["logit_error"]
    for name in ("p50", "p99", "max"):
        lines.append(
            (f"logit error, {name}", "", f"{error[name]:.2g}", f"{error[name] / error['spread']:.1e} of their spread")
        )
    for name, cosine in figures["cosine"].items():
        lines.append((f"cosine of {name}, mean / least", "", f"{cosine['mean']:.6f} / {cosine['min']:.6f}", ""))
    for batch, (value, low, high) in speed["ratio"].items():
        first, second = (_milliseconds(speed["latency_ms"][side][batch]) for side in ("original", "exported"))
        lines.append((f"latency, batch {batch}", first, second, f"{value:.2f}x ({low:.2f} to {high:.2f})"))
    first, second = speed["throughput"].values()
    lines.append(("throughput", f"{first:.1f} /s", f"{second:.1f} /s", _times(second, first)))
    return lines


def _tiles(report: dict[str, Any]) -> list[Tile]:
    tiles = [Tile("status", report["status"], f"{report['runtime']}, {report['threads']} threads")]
    if figures := report.get("figures"):
        fallen, worst, _ = parity.lost_points(figures)
        judged = "change of top-1 accuracy" if figures["judged_by"] == "accuracy" else "top-1 agreement lost"
        speed = figures["speed"]
        batch, (times, low, high) = next(iter(speed["ratio"].items()))
        first, second = (speed["latency_ms"][side][batch] for side in ("original", "exported"))
        allowed = f"at worst {0 - worst:+.1f} on {figures['pictures']} photos; {-report['max_drop']:g} is allowed"
        faster = f"original: {first[0]:.1f} ms; {times:.2f}x as fast ({low:.2f} to {high:.2f})"
        tiles += [
            Tile(judged, f"{0 - fallen:+.1f} points", allowed),
            Tile("one photo", f"{second[0]:.1f} ms", faster),
        ]
    size = report["size"]
    return [*tiles, Tile("size", _megabytes(size["exported"]), f"original: {_megabytes(size['original'])}")]


def _quantization(report: dict[str, Any]) -> Quantization:
    chosen = f"{report['activation_ranges']} ranges{', bias correction' if report['bias_corrected'] else ''}"
    layers = report["layers"]
    return Quantization(
        summary=f"{chosen}; {len(report['kept_in_float'])} of {len(layers)} layers in float; "
        f"ranges set on {report['pictures']} photos",
        trials=[
            (one["name"], f"{one['snr']:.1f}", f"{one['lost']:.1f}", "taken" if one["taken"] else "")
            for one in report["trials"]
        ],
        layers=[
            (
                layer["name"],
                layer["kind"],
                f"{layer['snr']:.1f}",
                f"{100 * layer['share']:.1f} %",
                "float" if layer["kept"] else "int8",
            )
            for layer in layers
        ],
    )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB"


def _milliseconds(value: list[float]) -> str:
    return f"{value[0]:.1f} ms ({value[1]:.1f} to {value[2]:.1f})"


def _times(first: float, second: float) -> str:
    return f"{first / second:.2f}x"
