"""The page of `export`: how far an exported model is from the original, how fast, and how it was quantized."""

from __future__ import annotations

from typing import Any

from ..recognizer.exporting import parity
from .html import Html, callout, code, markup, page, section, table, tiles

VERDICTS = {
    "within": ("good", "within tolerance"),
    "not shown": ("warn", "not shown to be within tolerance"),
    "exceeded": ("bad", "misses the tolerance"),
    "not compared": ("warn", "not compared"),
}
"""Verdict: mood of the page, and words."""
COLUMNS = ["", ">PyTorch fp32", ">exported", ">change"]


def rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The comparison as lines of a table: what, original, exported, change."""
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
    lines.append(
        (f"top-1 agreement ({figures['pictures']} photos)", "", f"{value:.1f} %", f"{low:.1f} to {high:.1f} %")
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


def export_page(report: dict[str, Any]) -> Html:
    """The whole page."""
    figures, quantization = report.get("figures"), report.get("quantization")
    mood, verdict = VERDICTS[report["verdict"]]
    said = report["misses"] + report["unshown"]
    facts = [("status", report["status"], f"{report['runtime']}, {report['threads']} threads")]
    if figures:
        fallen, worst, _ = parity.lost_points(figures)
        judged = "change of top-1 accuracy" if figures["judged_by"] == "accuracy" else "top-1 agreement lost"
        speed = figures["speed"]
        batch, (times, low, high) = next(iter(speed["ratio"].items()))
        first, second = (speed["latency_ms"][side][batch] for side in ("original", "exported"))
        allowed = f"at worst {0 - worst:+.1f} on {figures['pictures']} photos; {-report['max_drop']:g} is allowed"
        facts += [
            (judged, f"{0 - fallen:+.1f} points", allowed),
            (
                "one photo",
                f"{second[0]:.1f} ms",
                f"original: {first[0]:.1f} ms; {times:.2f}x as fast ({low:.2f} to {high:.2f})",
            ),
        ]
    facts.append(
        ("size", _megabytes(report["size"]["exported"]), f"original: {_megabytes(report['size']['original'])}")
    )
    parts = [
        tiles(*facts),
        callout(f"{verdict}{': ' + '; '.join(said) if said else ''}", mood),
        *(callout(remark, "warn") for remark in report["remarks"]),
        section(
            "Side by side",
            table(
                ["", ">original (PyTorch fp32)", ">exported", ">change"], rows(report), "The same photos through both"
            ),
        ),
    ]
    if quantization:
        parts.append(_quantization(quantization))
    described = [
        (name, markup(value)) for name, value in {**report["environment"], "processor": report["processor"]}.items()
    ]
    parts.append(section("How this was measured", table(["", ""], described, "Software and machine")))
    if report.get("command"):
        parts.append(section("Build it there", code(report["command"])))
    return page(
        f"{report['model']} as {report['format']}, {report['precision']}",
        *parts,
        lead=f"{report['status']}: {verdict}.",
        kind="export",
    )


def _quantization(report: dict[str, Any]) -> Html:
    chosen = f"{report['calibrator']} ranges{', bias correction' if report['bias_corrected'] else ''}"
    trials = [
        (one["name"], f"{one['snr']:.1f}", f"{one['lost']:.1f}", "taken" if one["taken"] else "")
        for one in report["trials"]
    ]
    layers = [
        (
            layer["name"],
            layer["kind"],
            f"{layer['snr']:.1f}",
            f"{100 * layer['share']:.1f} %",
            "float" if layer["kept"] else "int8",
        )
        for layer in report["layers"]
    ]
    return section(
        "How it was quantized",
        callout(
            f"{chosen}; {len(report['kept_in_float'])} of {len(layers)} layers in "
            f"float; calibrated on {report['pictures']} photos"
        ),
        table(["tried", ">signal to noise [dB]", ">points lost", ""], trials, "Variants, on the calibration photos"),
        table(
            ["layer", "kind", ">signal to noise alone [dB]", ">of the work", "kept"],
            layers,
            "Layers, the most sensitive first",
        ),
    )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB"


def _milliseconds(value: list[float]) -> str:
    return f"{value[0]:.1f} ms ({value[1]:.1f} to {value[2]:.1f})"


def _times(first: float, second: float) -> str:
    return f"{first / second:.2f}x"
