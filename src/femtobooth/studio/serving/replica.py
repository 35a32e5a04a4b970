"""What a replica does: it holds one base, reads the adapters that are asked for, and draws with one at a time.

Everything that touches the base runs in one thread, in turn. Pictures of several requests are never put into one batch:
what is beside a picture in a batch moves its last bits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...core import config
from ...core.bulk import cluster
from ...core.errors import FemtoboothError
from ...generator.settings import GenerateSettings

if TYPE_CHECKING:
    from ...generator.shared_base import Fitted

Result = TypeVar("Result")


class Artist:
    """Holds the base of some runs, for one process of a cluster."""

    def __init__(self, runs: Mapping[str, str], threads: int, place: Path) -> None:
        """Load the base; `runs` are references by the names of models, `place` the folder that they are relative to.

        Raises ModelError.
        """
        import torch

        cluster.enter(place)
        self.runs = runs
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self._base = self._thread.submit(self._open).result()

    def _open(self) -> Any:
        from ...generator.shared_base import SharedBase

        return SharedBase(next(iter(self.runs.values())))

    async def read(self, name: str) -> Fitted:
        """Read the adapter of a model. Raises ModelError."""
        return await self._in_turn(lambda: self._base.read(self.runs[name]))

    async def draw(self, fitted: Fitted, given: Mapping[str, Any]) -> dict[str, Any]:
        """Generate what settings of `generate` say with an adapter; gives the size, and the pictures' PNG files, which
        are those that `generate` writes. Raises InputError kinds.
        """
        return await self._in_turn(lambda: self._drawn(fitted, given))

    async def _in_turn(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _drawn(self, fitted: Fitted, given: Mapping[str, Any]) -> dict[str, Any]:
        from ...generator.start_picture import fit, read_start
        from ...workflows import generate
        from ..drawing import refuse_much

        settings = config.settle(GenerateSettings, given)
        refuse_much(settings)
        model, settings = generate.load(settings, self._base.merge(fitted))
        prompts = generate.as_read(settings.prompts, settings, model)
        drawer = generate.Drawer.of(settings, model, fit(read_start(settings), settings))
        seeds = range(settings.seed, settings.seed + settings.count)
        jobs = [(prompt, seed, "") for prompt in prompts for seed in seeds]
        pictures = [png for table in drawer.tables(jobs) for png in table["png"].to_pylist()]
        return {"size": settings.size, "pictures": pictures}


def unit(adapters: int) -> type:
    """Make the class of what Ray Serve replicates; each holds `adapters` at most, and lets the least recently used go.

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

        @serve.multiplexed(max_num_models_per_replica=adapters)
        async def adapter(self, name: str) -> Fitted:
            assert isinstance(self.artist, Artist)  # noqa: S101
            return await self.artist.read(name)

        async def ready(self) -> FemtoboothError | None:
            return None if isinstance(self.artist, Artist) else self.artist

        async def held(self) -> dict[str, Any]:
            """Tell which adapters are here, the least recently used first, and how much memory all takes."""
            import psutil

            held = getattr(self, "__serve_multiplex_wrapper", None)
            return {"adapters": list(held.models) if held else [], "bytes": psutil.Process().memory_info().rss}

        async def __call__(self, given: Mapping[str, Any]) -> Any:
            if not isinstance(self.artist, Artist):
                return self.artist
            try:
                return await self.artist.draw(await self.adapter(serve.get_multiplexed_model_id()), given)
            except FemtoboothError as error:
                return error

    return Replica
