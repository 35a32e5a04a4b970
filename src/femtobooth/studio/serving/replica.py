"""What a replica does: it holds one base, reads the adapters that are asked for, and draws with one at a time. One for
whole models holds a few of these.

Everything that touches a model runs in one thread, in turn. Pictures of several requests are never put into one batch:
what is beside a picture in a batch moves its last bits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ...core import config
from ...core.bulk import cluster
from ...core.errors import FemtoboothError
from ...core.machine import FloatPrecision
from ...generator.adapter_base import Base
from ...generator.settings import GenerateSettings
from .runs import refuse_changed

Result = TypeVar("Result")


class Artist:
    """Holds what some runs share, for one process of a cluster."""

    def __init__(self, base: Base | None, precision: FloatPrecision, threads: int, place: Path) -> None:
        """Load the base that they share, if any; references are relative to `place`. Raises ModelError."""
        import torch

        cluster.enter(place)
        self.precision = precision
        self.drawn = 0
        """Requests so far."""
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self._models = self._thread.submit(self._open, base).result()

    def _open(self, base: Base | None) -> Any:
        from ...generator.shared_base import SharedBase, Unshared

        return Unshared() if base is None else SharedBase(base, self.precision)

    async def read(self, reference: str, stamp: str) -> Any:
        """Read a model, or what it has beside the base. Raises ModelError, and Busy where its files are changing."""
        return await self._in_turn(lambda: self._read(reference, stamp))

    async def draw(self, fitted: Any, stamp: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Generate what settings of `generate` say with what was read; gives the size, and the pictures' PNG files,
        which are those that `generate` writes. Raises InputError kinds.
        """
        return await self._in_turn(lambda: self._draw(fitted, stamp, given))

    async def _in_turn(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _read(self, reference: str, stamp: str) -> Any:
        try:
            return self._models.read(reference)
        finally:
            refuse_changed(reference, stamp)

    def _draw(self, fitted: Any, stamp: str, given: Mapping[str, Any]) -> dict[str, Any]:
        from ...generator.start_picture import fit, read_start
        from ...workflows import generate
        from ..drawing import refuse_much

        self.drawn += 1
        settings = config.settle(GenerateSettings, {**given, "precision": self.precision})
        refuse_changed(settings.run, stamp)  # whose card says how to draw
        refuse_much(settings)
        model, settings = generate.load(settings, self._models.merge(fitted))
        prompts = generate.as_read(settings.prompts, settings, model)
        drawer = generate.LoadedDrawer(settings, model, fit(read_start(settings), settings))
        seeds = range(settings.seed, settings.seed + settings.count)
        jobs = [(prompt, seed, "") for prompt in prompts for seed in seeds]
        pictures = [png for table in drawer.tables(jobs) for png in table["png"].to_pylist()]
        return {"size": settings.size, "pictures": pictures}


def unit(models: int) -> type:
    """Make the class of what Ray Serve replicates; each holds so many models at most beside what they share, and lets
    the least recently used go. A model is called by its stamp, a space and its reference.

    Calls give what `Artist.draw` does, or the FemtoboothError that was raised, which travels better as a value.
    """
    from ray import serve

    class Replica:
        def __init__(self, *given: Any) -> None:
            self.artist: Artist | FemtoboothError
            try:
                self.artist = Artist(*given)
            except FemtoboothError as error:
                self.artist = error

        @serve.multiplexed(max_num_models_per_replica=models)
        async def model(self, called: str) -> Any:
            assert isinstance(self.artist, Artist)  # noqa: S101
            stamp, _, reference = called.partition(" ")
            return await self.artist.read(reference, stamp)

        async def ready(self) -> FemtoboothError | None:
            return None if isinstance(self.artist, Artist) else self.artist

        async def held(self) -> dict[str, Any]:
            """Tell which models are here, the least recently used first, how many requests were drawn, and how much
            memory all takes.
            """
            import psutil

            held = getattr(self, "__serve_multiplex_wrapper", None)
            models = [called.partition(" ")[2] for called in held.models] if held else []
            drawn = self.artist.drawn if isinstance(self.artist, Artist) else 0
            return {"models": models, "drawn": drawn, "bytes": psutil.Process().memory_info().rss}

        async def __call__(self, given: Mapping[str, Any]) -> Any:
            if not isinstance(self.artist, Artist):
                return self.artist
            called = serve.get_multiplexed_model_id()
            try:
                return await self.artist.draw(await self.model(called), called.partition(" ")[0], given)
            except FemtoboothError as error:
                return error

    return Replica
