"""Which noise process the file of a single-file checkpoint was trained for: what its tensors, its metadata and a YAML
file beside it say.

There is no one standard. Read here are the empty tensors `v_pred` and `ztsnr` (ComfyUI, A1111), ModelSpec's and kohya's
metadata, and the original code's YAML file of the same name, which goes before the others, with the keys that forks
have for zero terminal SNR.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...core.config import parse_yaml
from ...core.errors import ModelError, SettingsError
from ...core.events import note
from ..families import known

SD2_BASE_STEP = 875000  # `global_step` in the published 512-base-ema.ckpt, the one 2.x model that predicts epsilon
PREDICTIONS = {
    **dict.fromkeys(("eps", "epsilon"), "epsilon"),
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "v_pred", "vpred"), "v_prediction"),
    **dict.fromkeys(("x0", "sample"), "sample"),
}
ZERO_SNR = (
    "ztsnr",
    "zsnr",
    "zero_snr",
    "zero_terminal_snr",
    "rescale_betas_zero_snr",
    "enforce_zero_terminal_snr",
    "use_zero_snr",
)
MAX_YAML_BYTES = 1 << 20  # of a YAML file beside a model


def told(
    path: Path,
    keys: Iterable[str],
    metadata: Mapping[str, str],
    second: bool,
    step: int | None,
    pixels: int | None = None,
) -> dict[str, Any]:
    """Give the scheduler's settings that say what a file predicts: prediction_type and, for zero terminal SNR, what
    goes with it; picture size in `pixels`.

    `keys` are the names of the file's tensors, `second` is whether it is a Stable Diffusion 2.x, `pixels` the picture
    size of its kind where that is one. Raises ModelError where what is told cannot be read or is another process.
    """
    keys = set(keys)
    if any(key.startswith("edm_") for key in keys):
        raise ModelError(f"{path}: an EDM model, which scales noise in another way", f"give a {known.IN_SINGLE_FILES}")
    given = {name.rpartition(".")[2].removeprefix("ss_"): str(value) for name, value in metadata.items()}
    prediction, zero = (
        given.get("prediction_type") or given.get("predict_key"),
        any(_true(given.get(name)) for name in ZERO_SNR),
    )
    where = "its metadata"
    if not prediction and _true(given.get("v_parameterization")):
        prediction = "v"
    if not prediction and "v_pred" in keys:
        prediction, where = "v", "its tensor v_pred"
    zero = zero or "ztsnr" in keys
    schedule: dict[str, Any] = {}
    sidecar = next((one for one in (path.with_suffix(".yaml"), path.with_suffix(".yml")) if one.is_file()), None)
    if sidecar:
        said, zero_there, schedule = _read_sidecar(sidecar)
        prediction, where = (
            (said, sidecar.name) if said else (prediction or "eps", where if prediction else sidecar.name)
        )
        zero = zero if zero_there is None else zero_there
    if prediction and prediction.lower() not in PREDICTIONS:
        way_out = (
            "give a base with epsilon, v_prediction or sample, or say `parameterization: "
            "eps` (or `v`) in a YAML file beside it"
        )
        raise ModelError(f"{path}: prediction type {prediction:.80} is not supported", way_out)
    found = (
        PREDICTIONS[prediction.lower()]
        if prediction
        else "v_prediction"
        if second and step != SD2_BASE_STEP
        else "epsilon"
    )
    if not prediction and second:
        note(
            f"{path}: taken for Stable Diffusion 2.x with {found}; {path.with_suffix('.yaml').name} beside it "
            "(`parameterization: eps` or `v`) overrules"
        )
    elif found != "epsilon" or zero:
        note(f"{path}: {found}{' with zero terminal SNR' if zero else ''}, as {where} says")
    schedule |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero else {}
    resolution = re.fullmatch(r"(\d{2,4})x(\d{2,4})", given.get("resolution", ""))
    side = min(map(int, resolution.groups())) // 64 * 64 if resolution else 0
    return schedule | {
        "prediction_type": found,
        "pixels": side or pixels or (768 if second and found == "v_prediction" else 512),
    }


def _read_sidecar(path: Path) -> tuple[str | None, bool | None, dict[str, Any]]:
    """Read prediction type, zero terminal SNR and betas of a YAML file of the original code, None where it does not
    say.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ValueError
        given = parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))
        params = given["model"]["params"]
        prediction = params.get("parameterization")
        if prediction is not None and PREDICTIONS.get(str(prediction)) is None:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SettingsError):
        raise ModelError(
            f"{path}: no `model: params: parameterization: eps` (or `v`) in it", "correct it or take it away"
        ) from None
    zero = [_true(value) for key, value in _pairs(given) if key in ZERO_SNR]
    targets = " ".join(str(value) for key, value in _pairs(params) if key == "target")
    prediction = prediction or ("v" if "VScaling" in targets else "eps" if "EpsScaling" in targets else None)
    names = {"linear_start": "beta_start", "linear_end": "beta_end", "timesteps": "num_train_timesteps"}
    betas = {ours: params[theirs] for theirs, ours in names.items() if isinstance(params.get(theirs), (int, float))}
    return prediction, any(zero) if zero else None, betas


def _pairs(given: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """List keys and values of nested mappings, as deep as such files are."""
    if isinstance(given, Mapping) and depth < 8:
        for key, value in given.items():
            yield key, value
            yield from _pairs(value, depth + 1)


def _true(value: Any) -> bool:
    return str(value).lower() in ("true", "1", "yes")
