"""The noise schedule that a Stable Diffusion was trained with, read from the config of whatever scheduler lies beside
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin

from ...core.errors import ModelError, first_line
from ...core.tensors import DAMAGED

SCHEDULES = (  # schedulers over the betas of Stable Diffusion 1.x and 2.x, without `Scheduler`
    "DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE", "DEISMultistep",
    "UniPCMultistep", "SASolver", "DDIMInverse", "LCM", "TCD",
)  # fmt: skip
PREDICTIONS = ("epsilon", "v_prediction", "sample")
MAX_TIMESTEPS = 10_000


def load_scheduler(config: Mapping[str, Any], where: object) -> SchedulerMixin:
    """Read the noise schedule as DDIM, which every Stable Diffusion schedule can be read as.

    Raises ModelError for any other kind.
    """
    way_out = f"use a base with {', '.join(PREDICTIONS[:2])} or {PREDICTIONS[2]}"
    kind = str(config.get("_class_name", "DDIMScheduler"))
    if kind.removesuffix("Scheduler").removesuffix("Parallel") not in SCHEDULES:
        what = (
            "flow matching, which no Stable Diffusion with a UNet does"
            if "Flow" in kind
            else "no Stable Diffusion noise schedule"
        )
        raise ModelError(f"{where}: {kind[:80]} is {what}", way_out)
    prediction = "flow matching" if config.get("use_flow_sigmas") else config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ModelError(f"{where}: prediction type {prediction!s:.80} is not supported", way_out)
    steps, betas = config.get("num_train_timesteps", 1000), config.get("trained_betas")
    betas_fit = betas is None or (isinstance(betas, list) and len(betas) == steps)
    if not isinstance(steps, int) or not 1 < steps <= MAX_TIMESTEPS or not betas_fit:
        raise ModelError(f"{where}: {steps!s:.80} timesteps, and not a beta for each", DAMAGED)
    try:
        # Stable Diffusion's latents leave [-1, 1]: DDIM's default of clipping them must never slip in.
        scheduler = DDIMScheduler.from_config(dict(config), clip_sample=False)
        sound = bool(scheduler.alphas_cumprod.isfinite().all())
    except Exception as error:  # whatever a library makes of values it cannot use
        raise ModelError(f"{where}: cannot be loaded ({first_line(error)})", DAMAGED) from error
    if not sound:
        raise ModelError(f"{where}: its noise schedule is not finite", DAMAGED)
    return scheduler


FLOW = "FlowMatchEulerDiscreteScheduler"
OTHER_FLOWS = ("stochastic_sampling", "invert_sigmas", "shift_terminal")
"""Kinds of flows that no family has that is known here."""


def load_flow(config: Mapping[str, Any], where: object) -> FlowMatchEulerDiscreteScheduler:
    """Read a straight flow: its timesteps, and how far they are shifted. Raises ModelError for any other kind."""
    kind = str(config.get("_class_name", FLOW))
    if kind != FLOW:
        raise ModelError(
            f"{where}: {kind[:80]} is no rectified flow, which this family is", "put its own scheduler there"
        )
    if given := next((name for name in OTHER_FLOWS if config.get(name)), None):
        raise ModelError(f"{where}: a flow with {given}, which is not supported", "give another base")
    steps, shift = config.get("num_train_timesteps", 1000), config.get("shift", 1.0)
    sound = isinstance(steps, int) and 1 < steps <= MAX_TIMESTEPS and isinstance(shift, (int, float)) and shift > 0
    if not sound:
        raise ModelError(f"{where}: {steps!s:.80} timesteps, shifted by {shift!s:.80}", DAMAGED)
    ends = [config.get(f"{end}_image_seq_len", tokens) for end, tokens in (("base", 256), ("max", 4096))]
    shifts = [config.get(name, 1.0) for name in ("base_shift", "max_shift")]
    line = all(isinstance(one, (int, float)) for one in (*ends, *shifts)) and ends[0] < ends[1] and min(shifts) > 0
    if config.get("use_dynamic_shifting") and not line:
        told = " and ".join(f"{shift!s:.80} at {tokens!s:.80}" for shift, tokens in zip(shifts, ends, strict=True))
        raise ModelError(f"{where}: a dynamic shift of {told} patches", DAMAGED)
    try:
        return FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    except Exception as error:  # whatever a library makes of values it cannot use
        raise ModelError(f"{where}: cannot be loaded ({first_line(error)})", DAMAGED) from error
