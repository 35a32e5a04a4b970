"""femtobooth personalize --plan: what a training would need of memory, and with what it fits into less."""

from __future__ import annotations

import shlex
from typing import Any

from ..core import machine
from ..core.errors import SettingsError
from ..core.events import note, stage, table
from ..generator import locate
from ..generator.load import load
from ..generator.memory import told
from ..generator.settings import PersonalizeSettings
from .personalizing import savings
from .personalizing.planning import Plan, Planner, Where
from .personalizing.told import tell_parts

PLACES: dict[Where, str] = {"accelerator": "on the accelerator", "process": "in main memory, on a CPU"}


def run(settings: PersonalizeSettings) -> dict[str, Any]:
    """Plan a run: what each part and each phase of it would hold, and the cheapest savings that fit `memory`.

    No weights are loaded, and no device of that memory is needed. Raises SettingsError where nothing fits.
    """
    where = place(settings)
    with stage("plan"):
        base = load(settings.base, settings.tokenizer, weights=False)
        planner = Planner(base, settings.size or base.size, locate.locate(settings.base))
        plan = planner.plan(settings)
    tell_parts(plan.parts, settings)
    peak = plan.peak(where)
    table(
        f"Most that is held at a time, {planner.size} pixels, batch {settings.training.batch_size}",
        ["phase", ">passing through", *(f">{text}" for text in PLACES.values())],
        [(one.name, told(one.passing), told(one.accelerator), told(one.process)) for one in plan.phases],
        result=True,
    )
    needed = int(getattr(peak, where))
    note(f"needs {told(needed)} {PLACES[where]} ({peak.name}); what passes through is estimated, the rest is exact")
    found = {"base": settings.base, "size": planner.size, "where": where, "peak": needed, **plan.plain()}
    if not settings.memory:
        return found
    return found | _fit(planner, settings, where, plan)


def place(settings: PersonalizeSettings) -> Where:
    """Say what would hold the training: the accelerator that it asks for or that is here, else main memory."""
    kind = settings.training.accelerator
    here = machine.device("auto").type if kind == "auto" else kind
    return "process" if here == "cpu" else "accelerator"


def _fit(planner: Planner, settings: PersonalizeSettings, where: Where, plan: Plan) -> dict[str, Any]:
    """Tell the savings with which a run fits. Raises SettingsError where none does."""
    memory = machine.size_in_bytes(settings.memory or "")
    with stage("savings"):
        choices = savings.cheapest(planner, settings, memory, where)
    if not choices:
        least = savings.smallest(planner, settings, where)
        raise SettingsError(
            f"`memory={settings.memory}`: nothing that can be saved makes it fit",
            f"the least is {told(least.peak)}, with {shlex.join(least.flags)}; a smaller `size` takes less",
        )
    fits = not choices[0].savings
    if fits:
        note(f"fits into {settings.memory} as it is")
    else:
        table(
            f"What makes it fit into {settings.memory}, the cheapest first",
            [">needs", "=add", "costs"],
            [
                (told(one.peak), shlex.join(one.flags), "; ".join(saving.told for saving in one.savings))
                for one in choices
            ],
            result=True,
        )
    listed = [
        {"flags": one.flags, "peak": one.peak, "costs": [saving.told for saving in one.savings]} for one in choices
    ]
    return {"memory": memory, "fits": fits, "savings": [] if fits else listed}
