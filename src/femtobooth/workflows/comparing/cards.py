"""What the files of compared models say of them: precision, licence, training data and cost, settings."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...core.errors import SettingsError
from ...core.files import read_json
from ...core.older_runs import read_settings
from ...core.run import FILE
from ...generator.formats.weight_files import header
from ...generator.run import PersonalizedRun
from ...recognizer.finetuning.run import FinetunedRun
from .candidates import GENERATOR, Candidate
from .figures import Figure, How
from .pictures import Measured

DTYPES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "I8": "int8", "U8": "int8"}
NOTHING = "\u2013"


def precision(one: Measured) -> Figure:
    export = one.facts.get("provenance", {}).get("export") or {}
    if export:
        return Figure(
            str(export["precision"]),
            from_file(one.candidate.path / "recognizer.json", "as it was exported"),
            export["precision"],
        )
    counts: Counter[str] = Counter()
    for file in one.candidate.files:
        if file.suffix == ".safetensors":
            for name, tensor in header(file).items():
                if name != "__metadata__":
                    counts[DTYPES.get(tensor["dtype"], tensor["dtype"])] += int(np.prod(tensor["shape"]))
    if counts:
        most = counts.most_common(1)[0][0]
        return Figure(
            most, from_file(one.candidate.path, "what most of its tensors are stored in; computed in fp32 here"), most
        )
    each = one.candidate.size / max(one.facts["parameters"], 1)
    return Figure(
        f"{each:.1f} bytes each",
        from_file(one.candidate.path, "file size over parameters; computed in fp32 here"),
        each,
    )


def licence(one: Measured, models: Sequence[Measured]) -> Figure:
    text = str(one.facts.get("provenance", {}).get("licence") or "")
    if one.candidate.task == GENERATOR:
        found = re.search(r"^license:\s*(.+)$", one.facts["readme"], re.MULTILINE)
        text = found[1].strip() if found else ""
        base = one.facts["subject"].get("base_hash")
        if not text and base:
            origin = next((other for other in models if other.facts["weights_hash"] == base), None)
            found = re.search(r"^license:\s*(.+)$", origin.facts["readme"], re.MULTILINE) if origin else None
            text = f"that of its base{f': {found[1].strip()}' if found else ''}"
    return Figure(text, _card(one), text) if text else missing(How("not known", "its card states none"))


def trained_on(one: Measured) -> Figure:
    provenance = one.facts.get("provenance", {})
    if one.candidate.task == GENERATOR:
        text = _from_card(one.facts["readme"], "Data")
        if one.facts["subject"]:
            photos = read_json(one.candidate.run / "preflight.json") if one.candidate.run else None
            used = sum(row.get("status") == "used" for row in photos) if isinstance(photos, list) else None
            run = PersonalizedRun.peek(one.candidate.run)
            text = f"{used or 'its'} photos of the subject, on {Path(run.base).name if run else 'its base'}"
    else:
        count = len(provenance.get("trained_on") or ())
        tuned = FinetunedRun.peek(one.candidate.run)
        classes = f" of {len(tuned.classes)} classes" if tuned else ""
        text = f"{count} pictures{classes}" if count else str(provenance.get("source") or "")
    return Figure(text, _card(one), text) if text else missing(How("not known", "its card does not say"))


def cost(one: Measured) -> Figure:
    run = (PersonalizedRun if one.candidate.task == GENERATOR else FinetunedRun).peek(one.candidate.run)
    if run and run.status == "done":
        what, seconds = f"{run.steps} steps", run.seconds
        if isinstance(run, FinetunedRun) and run.result:
            what = "linear probe" if run.result == "probe" else what
            seconds = run.costs[run.result]["seconds"]
        text = f"{what}, {seconds:.0f} s"
        if isinstance(run, PersonalizedRun) and run.peak_memory_gib:
            text += f", peak {run.peak_memory_gib:.1f} GiB"
        return Figure(text, from_file(run.folder / FILE, "as the run recorded it, on its machine"), seconds)
    text = _from_card(one.facts.get("readme", ""), "Training")
    return Figure(text, _card(one), text) if text else missing(How("not known", "neither a run nor its card says"))


def _from_card(readme: str, topic: str) -> str:
    """Return the first sentence of the card's paragraph that begins with **topic**."""
    found = re.search(rf"^\*\*{topic}\*\*:\s*(.+?)(?:\n\n|\Z)", readme, re.MULTILINE | re.DOTALL)
    return re.split(r"(?<=[^.])\.\s", " ".join(found[1].split()), maxsplit=1)[0].removesuffix(".") if found else ""


def _card(one: Measured) -> How:
    folder = one.candidate.path if one.candidate.path.is_dir() else one.candidate.path.parent
    name = "README.md" if one.candidate.task == GENERATOR else "recognizer.json"
    return from_file(
        folder / name if (folder / name).is_file() else one.candidate.path, "what its card or the package says"
    )


def from_file(path: Path, what: str) -> How:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime)) if path.exists() else ""
    return How("read from a file", what, data=str(path), when=when)


def settings_that_differ(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """List settings in which runs of the same command differ, as rows: setting, and its value in each run."""
    runs: dict[str, dict[str, str]] = {}
    for one in candidates:
        if one.run and (one.run / "config.yaml").is_file():
            try:
                runs[one.name] = {key: _yaml(value) for key, value in _flat(read_settings(one.run / "config.yaml"))}
            except SettingsError:
                continue
    keys = list(dict.fromkeys(key for settings in runs.values() for key in settings))
    if len(runs) < 2:
        return []
    values = {key: {name: settings.get(key, NOTHING) for name, settings in runs.items()} for key in keys}
    return [{"setting": key, "values": own} for key, own in values.items() if len(set(own.values())) > 1]


def _yaml(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("\n...\n").strip()
    )


def missing(how: How) -> Figure:
    return Figure(NOTHING, how)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """List dotted names and values."""
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + str(name), value)]
    return found
