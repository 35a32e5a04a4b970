"""The HTTP side: OpenAI's images API as the studio speaks it, one model for each run, behind the studio's guard."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request

from ... import __version__
from ...core.errors import FemtoboothError
from ...generator.adapter_base import Base
from ..app import tell_errors
from ..asked import REFUSALS
from ..facades import openai_images
from ..facades.openai_images import Images
from ..references import refuse_text
from ..refusals import Busy, Missing, Refusal
from ..security import Guard
from .bases import Bases
from .runs import Model, Runs


@dataclass
class Server:
    """Where it answers, with which models, and who draws."""

    host: str
    port: int
    token: str | None
    names: Sequence[str]
    runs: Runs
    bases: Bases
    beginning: dict[Base | None, asyncio.Future[Any]] = field(default_factory=dict)
    """Handles of bases that are being loaded."""


def create_app(server: Server) -> FastAPI:
    """Make the application that answers for a cluster's replicas. What looks at disks has threads of its own."""
    app = FastAPI(title="femtobooth serve", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, studio=server)
    tell_errors(app)

    @app.get("/v1/models", responses=REFUSALS)
    def listed() -> dict[str, Any]:
        """List the models."""
        return {"object": "list", "data": [openai_images.described(name) for name in server.runs.names()]}

    @app.get("/v1/models/{name}", responses=REFUSALS)
    def model(name: str) -> dict[str, Any]:
        """Tell of one model."""
        if name not in server.runs.names():
            raise Missing("model")
        return openai_images.described(name)

    @app.post("/v1/images/generations", responses=REFUSALS)
    async def generations(asked: Images, request: Request) -> dict[str, Any]:
        """Generate pictures."""
        if asked.response_format == "url":
            raise Refusal("`response_format`: pictures are not kept here", "ask for b64_json, or leave it out", 422)
        model, settings = await asyncio.to_thread(_found, server, asked)
        handle = server.bases.known(model.base) or await _begun(server, model.base)
        called = f"{model.stamp} {model.reference}"
        made = await _drawn(handle.options(multiplexed_model_id=called).remote(settings), request)
        data = [{"b64_json": base64.b64encode(png).decode()} for png in made["pictures"]]
        return {"created": int(time.time()), "data": data, "output_format": "png", "size": made["size"]}

    return app


def _found(server: Server, asked: Images) -> tuple[Model, dict[str, Any]]:
    """Find the model that is asked for, and the settings of `generate`. Raises Refusal."""
    name = asked.model
    model = server.runs.find(name) if name else None
    names = [] if model else server.runs.names()
    if name is None and len(names) == 1:
        name = names[0]
        model = server.runs.find(name)
    if name is None:
        raise Refusal(f"`model`: there are {len(names)}", f"one of {', '.join(names[:10])}" if names else None, 422)
    known = {name: model.reference} if model else dict.fromkeys((one for one in names if one != name), "")
    settings = openai_images.settings_of(asked.model_copy(update={"model": name}), known)
    refuse_text(settings)
    assert model  # noqa: S101  (else that was refused)
    return model, settings


async def _begun(server: Server, base: Base | None) -> Any:
    """Give what draws with a base that nothing holds yet, and which is loaded once for all who ask for it meanwhile."""
    if base not in server.beginning:
        load = asyncio.to_thread(lambda: server.bases.handle(base, [*server.runs.bases()]))
        server.beginning[base] = asyncio.ensure_future(load)
        server.beginning[base].add_done_callback(lambda _: server.beginning.pop(base))
    return await asyncio.shield(server.beginning[base])


async def _drawn(drawing: Any, request: Request) -> dict[str, Any]:
    """Wait for what a replica draws, unless whoever asked for it goes before its turn has come.

    Raises what the replica tells, and Busy where none has room or it died.
    """
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    gone = asyncio.ensure_future(_disconnected(request))
    made = asyncio.ensure_future(_result(drawing))
    try:
        await asyncio.wait({gone, made}, return_when=asyncio.FIRST_COMPLETED)
        if not made.done():
            drawing.cancel()
            await asyncio.gather(made, return_exceptions=True)
            raise Refusal("nobody waits for it any longer", None, 499)
        found = await made
    except BackPressureError:
        raise Busy("too many requests wait already") from None
    except (RayActorError, DeploymentUnavailableError):
        raise Busy("the process that drew it has ended; another one begins") from None
    finally:
        gone.cancel()
        made.cancel()
    if isinstance(found, FemtoboothError):
        raise found
    return found


async def _result(drawing: Any) -> Any:
    return await drawing


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
