"""The optimizers: how each is made, the state it keeps, what it needs, and what it makes no sense with.

adamw          Loshchilov and Hutter, arXiv 1711.05101; torch's
adamw8bit      the same with 8-bit averages (Dettmers et al., arXiv 2110.02861); bitsandbytes', on NVIDIA's GPUs
adafactor      Shazeer and Stern, arXiv 1804.04235; torch's, with AdamW's rates and without a gradient average
prodigy        Mishchenko and Defazio, arXiv 2306.06101; prodigyopt's. It finds its own rate d: what is given as a
               learning rate multiplies it
schedulefree   Defazio et al., arXiv 2405.15682; AdamW that averages its steps and so needs no schedule: the average is
               the result (averages.py)

No torch is imported before an optimizer is made.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from ..core.errors import SettingsError, needs
from ..core.machine import may_accelerate

if TYPE_CHECKING:
    import torch


class Wanted(Protocol):
    """What is read of TrainingSettings, which asks here for what makes no sense."""

    @property
    def optimizer(self) -> str: ...
    @property
    def accelerator(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def epsilon(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


Groups = list[dict[str, Any]]
"""What trains: dicts of `params` and `lr`, and for some `weight_decay`."""
FLOAT = 4  # bytes
MULTIPLIERS = (0.01, 100.0)
"""The least and the greatest that a learning rate can mean as a multiple of the one that Prodigy finds."""


@dataclass(frozen=True)
class Kind:
    """What is known of an optimizer."""

    make: Callable[[Wanted, Groups], torch.optim.Optimizer]
    state: Callable[[Sequence[int]], int]
    """Bytes of state that it keeps for a parameter of this shape."""
    package: str = ""
    extra: str = ""
    """The extra of femtobooth's that installs the package."""
    cuda: bool = False
    """Whether it computes on NVIDIA's GPUs only."""
    unused: tuple[str, ...] = ()
    """Settings that it makes no use of."""
    instead: Mapping[str, Any] = field(default_factory=dict)
    """Settings that can only be as here, which they are where they are not given; and why, in `why`."""
    why: str = ""
    at_once: bool = False
    """Whether it counts steps for all that trains together, which must then start together."""
    multiplies: bool = False
    """Whether learning rates multiply one that it finds, the same for everything that trains; 1 where not given."""


def _betas(settings: Wanted) -> dict[str, Any]:
    """Give what all that descend from Adam take."""
    return {
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
        "weight_decay": settings.weight_decay,
    }


def _adamw(settings: Wanted, groups: Groups) -> torch.optim.Optimizer:
    from torch.optim import AdamW

    fused = can_fuse(settings, groups)
    made = AdamW(groups, **_betas(settings), fused=fused)
    if fused:  # without a loss scaler it unscales nothing, so that Lightning may clip what it steps with
        made._step_supports_amp_scaling = False
    return made


def can_fuse(settings: Wanted, groups: Groups) -> bool | None:
    """Tell whether AdamW takes its step in one kernel, which rounds otherwise; None leaves it as torch has it.

    Not on a CPU, whose results are to stay what they are, nor in fp16, where clipping needs unscaled gradients.
    """
    return True if _on_cuda(groups) and settings.precision != "fp16" else None


def _on_cuda(groups: Groups) -> bool:
    return {parameter.device.type for group in groups for parameter in group["params"]} == {"cuda"}


def _adamw8bit(settings: Wanted, groups: Groups) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(groups, **_betas(settings))
    return made


def _adafactor(settings: Wanted, groups: Groups) -> torch.optim.Optimizer:
    """Make torch's Adafactor take rates as AdamW does.

    It takes steps of lr times the RMS of a weight, which is at least its second epsilon: at 1, steps are of lr itself.
    Its first epsilon is torch's 1.2e-7 no longer, under whose square it takes squared gradients for zero: those of
    Stable Diffusion are smaller. (1e-16 is the least whose square fp32 holds.)
    """
    from torch.optim import Adafactor

    return Adafactor(groups, eps=(1e-16, 1.0), weight_decay=settings.weight_decay)


def _prodigy(settings: Wanted, groups: Groups) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # where it says that there is weight decay
        made: torch.optim.Optimizer = Prodigy(
            groups, lr=1.0, **_betas(settings), use_bias_correction=True, safeguard_warmup=True
        )
    return made


def _schedulefree(settings: Wanted, groups: Groups) -> torch.optim.Optimizer:
    """Make schedule-free AdamW, always in training mode: what is evaluated is computed beside it."""
    from schedulefree import AdamWScheduleFree

    made = AdamWScheduleFree(groups, **_betas(settings), foreach=_on_cuda(groups))
    made.train()
    return made


def _floats(count: int) -> Callable[[Sequence[int]], int]:
    return lambda shape: count * FLOAT * math.prod(shape)


def _factors(shape: Sequence[int]) -> int:
    """Count the bytes of Adafactor's averages: sums over the last and over the last but one axis; of vectors, all."""
    size = math.prod(shape)
    return FLOAT * (size // shape[-1] + size // shape[-2] if len(shape) > 1 else size)


KINDS: dict[str, Kind] = {
    "adamw": Kind(_adamw, _floats(2)),
    "adamw8bit": Kind(_adamw8bit, lambda shape: 2 * math.prod(shape), "bitsandbytes", "8bit", cuda=True),
    "adafactor": Kind(_adafactor, _factors, unused=("beta1", "beta2", "epsilon")),
    "prodigy": Kind(_prodigy, _floats(4), "prodigyopt", "optimizers", at_once=True, multiplies=True),
    "schedulefree": Kind(
        _schedulefree,
        _floats(2),
        "schedulefree",
        "optimizers",
        instead={"schedule": "constant", "ema": 0.0},
        at_once=True,
        why="schedule-free AdamW averages its steps in the place of both",
    ),
}


def make(settings: Wanted, groups: Groups) -> torch.optim.Optimizer:
    """Make the optimizer of `settings.optimizer` over parameter groups, each with its own `lr`.

    Raises SettingsError where its package is missing.
    """
    _refuse_missing(settings)
    listed = [group | {"params": list(group["params"])} for group in groups]
    return KINDS[settings.optimizer].make(settings, listed)


def state_bytes(optimizer: str, shapes: Iterable[Sequence[int]]) -> int:
    """Count the bytes of state that an optimizer keeps for parameters of these shapes."""
    return sum(map(KINDS[optimizer].state, shapes))


def effective_rate(group: Mapping[str, Any]) -> float:
    """Give the learning rate of an optimizer's group: with Prodigy, times the d that it has found by now."""
    return float(group["lr"] * group.get("d", 1.0))


def _refuse_missing(settings: Wanted) -> None:
    kind = KINDS[settings.optimizer]
    if kind.package and find_spec(kind.package) is None:
        raise SettingsError(
            f"`training.optimizer`: {kind.package} is not installed", f"{needs(kind.extra)}, or use adamw"
        )


def refuse(settings: Wanted) -> None:
    """Raise SettingsError for a package or hardware that is missing, and for settings that make no sense together."""
    _refuse_missing(settings)
    name, kind = settings.optimizer, KINDS[settings.optimizer]
    if kind.cuda and (settings.accelerator in ("cpu", "mps") or not may_accelerate()):
        raise SettingsError(
            f"`training.optimizer={name}`: computes on NVIDIA's GPUs only, and trains on none here",
            "use adafactor, which also spends less memory, or adamw",
        )
    for setting, value in kind.instead.items():
        if (given := getattr(settings, setting)) != value:
            raise SettingsError(
                f"`training.{setting}={given}`: {kind.why}", f"leave it out, or use another optimizer than {name}"
            )
    if name == "schedulefree" and settings.beta1 == 0:
        raise SettingsError("`training.beta1=0`: schedule-free AdamW averages with it", "give 0.9")


def refuse_rates(optimizer: str, rates: Mapping[str, float]) -> None:
    """Raise SettingsError for learning rates, by setting, that an optimizer can do nothing with."""
    if not KINDS[optimizer].multiplies:
        return
    least, most = MULTIPLIERS
    for name, rate in rates.items():
        if not least <= rate <= most:
            raise SettingsError(
                f"`{name}={rate:g}`: multiplies the learning rate that {optimizer} finds by itself",
                f"give 1, or something from {least:g} to {most:g}; where none is given it is 1",
            )
    if len(set(rates.values())) > 1:
        named = " ".join(f"`{name}={rate:g}`" for name, rate in rates.items())
        raise SettingsError(
            f"{named}: {optimizer} finds one learning rate for all", "give them the same, or leave them out"
        )
