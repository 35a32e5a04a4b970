"""Which models there are to serve: those that were given, and the runs that lie in folders now.

A model is looked at whenever it is asked for. What it is known by is its base and a stamp of its files, so that a run
that was trained anew is another model, and one that came or went since the last look is seen.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import InputError, SettingsError
from ...core.events import warn
from ...core.paths import existing, expanded
from ...core.run import FILE, is_run, run_of
from ...generator.adapter_base import Base
from ...generator.locate import adapter_in, is_model, locate
from ..refusals import Busy
from ..warm import fingerprint

MOMENT = 0.2
"""Seconds for which a model's folder may be away while another takes its place."""


@dataclass(frozen=True)
class Model:
    """What is served under a name."""

    reference: str
    base: Base | None
    """What its adapter belongs to; None for a whole model."""
    stamp: str
    """Of its files."""


class Runs:
    """The models, by name: that of the run's folder. For any thread."""

    def __init__(self, given: Sequence[str]) -> None:
        """Look for the first time. Raises ModelError for what can be no model, SettingsError for two of one name."""
        self._given, self._known = list(given), dict[str, Model]()
        self._folders = {one for one in given if _holds_runs(expanded(one))}
        self._elsewhere = {one for one in given if existing(one) is None}  # bundled, or on the hub
        for one in given:
            if one not in self._folders:
                _read(one)
        for references in self._look().values():
            _only(references)

    def names(self) -> list[str]:
        """Name all models that are there now."""
        return list(self._look())

    def bases(self) -> dict[Base | None, None]:
        """List what must be in memory for them, in their order."""
        found: dict[Base | None, None] = {}
        for name, references in self._look().items():
            try:
                if model := self._known_now(name) or self._learn(name, references):
                    found.setdefault(model.base)
            except InputError as error:
                warn(f"{name}: cannot be served: {error.problem}")
        return found

    def find(self, name: str) -> Model | None:
        """Find a model as it is now; None where there is none of that name.

        Raises ModelError where it is damaged, and SettingsError where several came that are called so.
        """
        known = self._known_now(name)
        if known is None:
            references = self._look().get(name)
            if name in self._known and not references:
                time.sleep(MOMENT)
                references = self._look().get(name)
            known = self._learn(name, references)
        return known

    def _known_now(self, name: str) -> Model | None:
        """Give what was found under a name, where its files are the same still."""
        known = self._known.get(name)
        return known if known and stamp_of(known.reference) == known.stamp else None

    def _learn(self, name: str, references: Sequence[str] | None) -> Model | None:
        """Read what lies under a name now, and know it from now on."""
        self._known.pop(name, None)
        model = _read(_only(references)) if references else None
        if model:
            self._known[name] = model
        return model

    def _look(self) -> dict[str, list[str]]:
        """List references by name."""
        found: dict[str, list[str]] = {}
        for given in self._given:
            if given in self._folders:
                inside = sorted(place.parent for place in expanded(given).glob(f"[!.]*/{FILE}"))
                there = [str(run) for run in inside if is_model(run / "model")]
            else:
                there = [given] if given in self._elsewhere or existing(given) else []
            for one in there:
                found.setdefault(run_of(expanded(one)).resolve().name, []).append(one)
        return found


def stamp_of(reference: str) -> str:
    """Tell the files of a model from what they were before a change."""
    return hashlib.sha256(repr(fingerprint(reference)).encode()).hexdigest()[:16]


def refuse_changed(reference: str, stamp: str) -> None:
    """Raise Busy where the files of a model are no longer those of its stamp."""
    if stamp_of(reference) != stamp:
        raise Busy(
            f"{reference}: its files are being changed, or are others here than where the request came in",
            "ask again; runs lie on a disk that all machines of the cluster share",
            seconds=1,
        )


def _read(reference: str) -> Model:
    """Read what a model needs in memory. Raises ModelError."""
    stamp = stamp_of(reference)
    place = locate(reference)
    adapted = place.is_dir() and adapter_in(place) is not None
    return Model(reference, Base.of(place) if adapted else None, stamp)


def _only(references: Sequence[str]) -> str:
    if len(references) > 1:
        names = " and ".join(references[:2])
        name = run_of(expanded(references[0])).resolve().name
        raise SettingsError(f"`runs`: {names} are both called {name}", "give one of them")
    return references[0]


def _holds_runs(folder: Path) -> bool:
    return folder.is_dir() and not is_run(folder) and not is_model(folder) and not is_model(folder / "model")
