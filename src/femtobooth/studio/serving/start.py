"""femtobooth serve: find the runs, have Ray Serve hold their bases, and answer until it is stopped.

Nothing of the extras is imported before it is known to be here.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from ...core.bulk import cluster
from ...core.errors import FemtoboothError, InputError, ModelError, SettingsError, first_line, needs
from ...core.events import note, stage
from ...core.files import read_object
from ...core.paths import expanded
from ...core.run import FILE, is_run, run_of
from ...generator.locate import SUBJECT_FILE, adapter_in, is_model, locate
from ...workflows.settings import ServeSettings
from .. import start

WAITING = 16
"""Requests that may wait for each replica."""
SHUTDOWN = 5.0  # seconds that a replica has to end what it draws


def run(settings: ServeSettings) -> None:
    """Serve pictures of runs until it is stopped.

    Raises InputError where an extra is missing, a run cannot be served, there is no cluster, or the address is taken.
    """
    models = runs_by_name(settings.runs)
    bases = by_base(models)
    missing = [name for name in start.NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"serve: {', '.join(missing)} not installed", needs("studio"))
    if missing := [name for name in ("ray", "grpc_reflection") if find_spec(name) is None]:
        raise InputError(f"serve: {', '.join(missing)} not installed", needs("ray"))
    from ..security import is_loopback
    from .front import Server, create_app

    own = is_loopback(settings.host)
    token = settings.token or (None if own else secrets.token_urlsafe(24))
    with start.listening(settings.host, settings.port) as listener, deployed(settings, bases) as handles:
        port = listener.getsockname()[1]
        server = Server(settings.host, port, token, settings.names, models, handles)
        every = settings.host in ("0.0.0.0", "::")  # noqa: S104
        name = "localhost" if own else socket.gethostname() if every else settings.host
        address = f"http://{f'[{name}]' if ':' in name else name}:{port}/v1"
        held = f"{len(models)} model{'s' * (len(models) > 1)} of {len(bases)} base{'s' * (len(bases) > 1)}"
        note(f"serve: {address}{f'   token: {token}' if token else ''}   ({held}; Ctrl-C stops it)")
        _answer(create_app(server), listener)


def runs_by_name(given: list[str]) -> dict[str, str]:
    """Name the runs that can be served, and those of folders of runs, by their folders.

    Raises ModelError for one that is no run with an adapter, SettingsError for two of one name.
    """
    found: dict[str, str] = {}
    for reference in given:
        for one in _runs_in(reference):
            name = run_of(expanded(one)).resolve().name
            if name in found:
                raise SettingsError(f"`runs`: {found[name]} and {one} are both called {name}", "give one of them")
            found[name] = one
    return found


def _runs_in(reference: str) -> list[str]:
    folder = expanded(reference)
    if folder.is_dir() and not is_run(folder) and not is_model(folder) and not is_model(folder / "model"):
        inside = sorted(place.parent for place in folder.glob(f"*/{FILE}"))
        usable = [str(one) for one in inside if adapter_in(one / "model")]
        if not usable:
            raise ModelError(
                f"{reference}: no run in it has an adapter", "give runs of personalize with train.parts=lora"
            )
        if others := len(inside) - len(usable):
            note(f"{reference}: {others} runs without an adapter are passed over")
        return usable
    place = locate(reference)
    if not place.is_dir() or adapter_in(place) is None:
        raise ModelError(
            f"{reference}: is a whole model, no adapter that shares its base with others",
            "serve it by `femtobooth studio`, or give runs of personalize with train.parts=lora",
        )
    return [reference]


def by_base(models: Mapping[str, str]) -> list[dict[str, str]]:
    """Put runs of the same base together."""
    found: dict[str, dict[str, str]] = {}
    for name, reference in models.items():
        place = locate(reference)
        wanted = read_object(place / SUBJECT_FILE).get("base_hash")
        run = read_object(place.parent / FILE)
        tokenizer = (run.get("settings") or {}).get("tokenizer")
        found.setdefault(f"{wanted}\0{tokenizer}", {})[name] = reference
    return list(found.values())


@contextmanager
def deployed(settings: ServeSettings, bases: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Have Ray Serve hold each base; yields the handle that draws with each model, and ends all with the block.

    Raises SettingsError where there is no cluster or no room in it, and ModelError where a base cannot be loaded.
    """
    with cluster.connected(settings):
        from ray import serve
        from ray.serve.exceptions import RayServeException

        from .replica import unit

        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        room = cluster.room(settings.threads, settings.gpus_per_replica, "gpus_per_replica") // len(bases)
        least, most = settings.least_and_most()
        if room < least:
            raise SettingsError(
                f"`replicas={settings.replicas}`: {len(bases)} bases with {least} each do not fit the cluster",
                "give fewer, or fewer `threads`",
            )
        kept: dict[str, Any] = {}
        names = [f"femtobooth-{os.getpid()}-{index}" for index in range(len(bases))]
        try:
            with stage("starting the replicas"), cluster.unheard(), _failures_told():
                serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
                for name, runs in zip(names, bases, strict=True):
                    app = serve.deployment(
                        unit(settings.adapters),
                        name="base",
                        ray_actor_options={"num_cpus": settings.threads, "num_gpus": settings.gpus_per_replica},
                        autoscaling_config={
                            "min_replicas": least,
                            "max_replicas": max(least, min(most, room)),
                            "target_ongoing_requests": settings.target_requests,
                        },
                        max_ongoing_requests=max(2, 2 * settings.target_requests),
                        max_queued_requests=WAITING * max(least, min(most, room)),
                        graceful_shutdown_timeout_s=SHUTDOWN,
                    ).bind(runs, settings.threads, Path.cwd())
                    handle = serve.run(app, name=name, route_prefix=None)
                    if error := handle.ready.remote().result():
                        raise error
                    kept |= dict.fromkeys(runs, handle)
            yield kept
        finally:
            with cluster.unheard(), suppress(RayServeException):  # where Serve has not begun
                for blocking in (False, True):
                    for name in names:
                        serve.delete(name, _blocking=blocking)


@contextmanager
def _failures_told() -> Iterator[None]:
    """Raise FemtoboothError for what Serve says of a process that ended, or never began."""
    from ray.exceptions import RayError

    try:
        yield
    except (RuntimeError, RayError) as error:
        raise FemtoboothError(
            f"serve: the replicas did not start ({first_line(error)})", "the logs of Ray say more"
        ) from None


def _answer(app: Any, listener: socket.socket) -> None:
    """Answer until SIGINT or SIGTERM comes, which then has done its work: the replicas are to be ended after it."""
    import uvicorn

    class Stopped(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            def stop(number: int, frame: FrameType | None) -> None:
                self.should_exit = True

            before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for one, handler in before.items():
                    signal.signal(one, handler)

    Stopped(start.configured(app)).run(sockets=[listener])
