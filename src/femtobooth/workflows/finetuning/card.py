"""Write the card (README.md) of a fine-tuned model: what it knows, how good it is, and how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ...core.errors import command
from ...core.names import shown
from ...pages.finetune import headline
from ...recognizer.finetuning.comparison import shares
from ...recognizer.finetuning.run import FinetunedRun
from ...recognizer.model.backbone import Recognizer
from ...recognizer.settings import FinetuneSettings

MOST = 200
"""Classes that a card lists."""


def write(
    folder: Path, model: Recognizer, run: FinetunedRun, report: dict[str, Any], settings: FinetuneSettings
) -> None:
    """Write README.md into the folder of a model, with the front matter that the hub reads."""
    measured, several = report["judged"]["measured"], bool(model.labels.free)
    scores = _scores(measured, several) if measured else []
    facts: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "femtobooth"],
    }
    if licence := model.provenance.get("licence"):
        facts["license"] = licence
    if measured:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": report["judged"]["by"], "type": "images"},
            "metrics": [{"type": kind, "name": name, "value": round(values[0], 4)} for kind, name, values in scores],
        }
        facts["model-index"] = [{"name": run.name, "results": [result]}]
    front = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    text = f"---\n{front}---\n\n{_body(model, run, report, settings, scores)}"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _scores(measured: dict[str, Any], several: bool) -> list[tuple[str, str, list[float]]]:
    if not several:
        return [("accuracy", "accuracy", measured["accuracy"])]
    names = {"map": "mean average precision", "micro_f1": "F1 over all labels", "exact": "all labels right"}
    kinds = {"map": "mean_average_precision", "micro_f1": "f1", "exact": "accuracy"}
    return [(kinds[key], name, measured[key]) for key, name in names.items() if measured[key]]


def _origin(report: dict[str, Any], settings: FinetuneSettings) -> str:
    own, taught = shown(Path(settings.model).name), report.get("teacher")
    return f"{own}, taught by {shown(Path(taught['model']).name)}" if taught else own


def _body(
    model: Recognizer,
    run: FinetunedRun,
    report: dict[str, Any],
    settings: FinetuneSettings,
    scores: list[tuple[str, str, list[float]]],
) -> str:
    names, data = [shown(name) for name in model.labels.names], report["data"]
    rows = "".join(f"| {name} | {shares(values)} |\n" for _, name, values in scores)
    table = f"\n| on {report['judged']['by']} | (95 % interval) |\n|---|---|\n{rows}" if rows else ""
    said = (
        "a sigmoid a label; `labels` in recognizer.json holds scale, offset and threshold of each"
        if model.labels.free
        else f"a softmax; probabilities are calibrated at temperature {model.temperature:.3f}"
    )
    listed = ", ".join(f"`{name}`" for name in names[:MOST]) + (" ..." if len(names) > MOST else "")
    return f"""# {shown(run.name)}

{headline(report)}
{table}
{model.architecture}, {len(names)} labels, from {_origin(report, settings)}; {data["pictures"]} pictures.
{report["comparison"]["verdict"][:1].upper()}{report["comparison"]["verdict"][1:]}. Outputs are logits ({said}).

## Use

```python
import timm, torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()  # or hf-hub:OWNER/NAME
transform = create_transform(**resolve_model_data_config(model))
with torch.inference_mode():
    logits = model(transform(Image.open("photo.jpg").convert("RGB"))[None])
```

or `{command("classify", "photo.jpg", "--model", "THIS_FOLDER")}`, which applies calibration, thresholds and
rejection, too.

## Labels

{listed}
"""
