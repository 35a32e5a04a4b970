"""The HTTP side: OpenAI's images API as the studio speaks it, one model for each run, behind the studio's guard."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from ... import __version__
from ...core.errors import FemtoboothError
from ..app import tell_errors
from ..asked import REFUSALS
from ..facades import openai_images
from ..facades.openai_images import Images
from ..references import refuse_text
from ..refusals import Busy, Missing, Refusal
from ..security import Guard


@dataclass
class Server:
    """Where it answers, and who draws."""

    host: str
    port: int
    token: str | None
    names: Sequence[str]
    models: Mapping[str, str]
    """The runs, by the names of models."""
    handles: Mapping[str, Any] = field(default_factory=dict)
    """Handle of the deployment that draws with each model."""


def create_app(server: Server) -> FastAPI:
    """Make the application that answers for a cluster's replicas."""
    app = FastAPI(title="femtobooth serve", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, studio=server)
    tell_errors(app)

    @app.get("/v1/models", responses=REFUSALS)
    async def listed() -> dict[str, Any]:
        """List the models."""
        return {"object": "list", "data": [openai_images.described(name) for name in server.models]}

    @app.get("/v1/models/{name}", responses=REFUSALS)
    async def model(name: str) -> dict[str, Any]:
        """Tell of one model."""
        if name not in server.models:
            raise Missing("model")
        return openai_images.described(name)

    @app.post("/v1/images/generations", responses=REFUSALS)
    async def generations(asked: Images) -> dict[str, Any]:
        """Generate pictures."""
        if asked.response_format == "url":
            raise Refusal("`response_format`: pictures are not kept here", "ask for b64_json, or leave it out", 422)
        name = asked.model or (next(iter(server.models)) if len(server.models) == 1 else None)
        if name is None:
            raise Refusal("`model`: there are several", f"one of {', '.join(list(server.models)[:10])}", 422)
        settings = openai_images.settings_of(asked.model_copy(update={"model": name}), server.models)
        refuse_text(settings)
        made = await _drawn(server.handles[name].options(multiplexed_model_id=name), settings)
        data = [{"b64_json": base64.b64encode(png).decode()} for png in made["pictures"]]
        return {"created": int(time.time()), "data": data, "output_format": "png", "size": made["size"]}

    return app


async def _drawn(handle: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Have a replica draw. Raises what it tells, and Busy where none has room or it died."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    try:
        made = await handle.remote(settings)
    except BackPressureError:
        raise Busy("too many requests wait already") from None
    except (RayActorError, DeploymentUnavailableError):
        raise Busy("the process that drew it has ended; another one begins") from None
    if isinstance(made, FemtoboothError):
        raise made
    found: dict[str, Any] = made
    return found
