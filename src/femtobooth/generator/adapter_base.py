"""Which base the adapter in a folder was made for, and where that may lie: told without importing torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ModelError
from ..core.files import read_object
from ..core.run import FILE
from .locate import DAMAGED, SUBJECT_FILE, adapter_in

if TYPE_CHECKING:
    from .families.family import Family


@dataclass(frozen=True)
class Base:
    """The base of an adapter; two are the same where they have the same files and tokenizer."""

    hash: str
    tokenizer: str | None
    places: tuple[str, ...] = field(compare=False)
    """Where it may lie."""
    name: str = field(compare=False)
    """What the adapter's folder calls it."""
    told: Path = field(compare=False)
    """The file that may say where it lies."""

    @staticmethod
    def of(folder: Path, tokenizer: str | None = None) -> Base:
        """Read which one a folder, or the run whose model/ it is, says; with another tokenizer, where one is given.

        Raises ModelError where it says none.
        """
        described, wanted = adapter_in(folder), read_object(folder / SUBJECT_FILE).get("base_hash")
        if described is None or not isinstance(wanted, str):
            raise ModelError(f"{folder / SUBJECT_FILE}: says too little of its adapter, or is damaged", DAMAGED)
        run = read_object(folder.parent / FILE)
        tokenizer = tokenizer or (run.get("settings") or {}).get("tokenizer")
        places = dict.fromkeys(str(place) for place in (described.get("base"), run.get("base")) if place)
        return Base(wanted, tokenizer, tuple(places), str(described.get("base")), folder / SUBJECT_FILE)

    def load(self, source: str, load_base: Callable[[str, str | None], Family]) -> Family:
        """Load it, for the adapter of `source`. Raises ModelError."""
        why = "nothing says where that is"
        for place in self.places:
            try:
                base = load_base(place, self.tokenizer)
            except ModelError as error:
                why = f"which is not there: {error.problem}"
                continue
            if base.hash in ("", self.hash):
                return base
            why = f"but {place} is another one (hash {base.hash[:12]})"
        way_out = f"put that base there, or write where it is as `base` of `adapter` into {self.told}"
        raise ModelError(f"{source}: made for the base {self.name} (hash {self.hash[:12]}), {why}", way_out)
