"""Bases in a cluster: a deployment of Ray Serve for each, and one for whole models, begun when they are needed."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...core.bulk import cluster
from ...core.errors import FemtoboothError, SettingsError, first_line
from ...core.events import note
from ...generator.adapter_base import Base
from ...workflows.settings import ServeSettings
from ..refusals import Busy

WAITING = 16
"""Requests that may wait for each replica."""
SHUTDOWN = 5.0  # seconds that a replica has to end what it draws
TOLD = 2.0  # seconds after which it is said what is waited for
AGAIN = 30.0  # seconds until it is said again
POLL = 0.5


class Bases:
    """What holds bases, and how to reach it. For any thread."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self._handles: dict[Base | None, Any] = {}
        self._names: dict[Base | None, str] = {}
        self._began = 0
        self._lock = threading.Lock()

    def begin(self, needed: Sequence[Base | None]) -> None:
        """Have replicas hold bases before anything is asked for. Raises SettingsError where they can never fit, and
        ModelError where one cannot be loaded.
        """
        room = self._room()
        least, _ = self.settings.least_and_most()
        if room < least * len(needed):
            raise SettingsError(
                f"`replicas={self.settings.replicas}`: {least * len(needed)} in all do not fit the cluster, "
                f"which has room for {room}",
                "give fewer, or fewer `threads`",
            )
        for base in needed:
            self._begin(base, room // len(needed))

    def handle(self, base: Base | None, needed: Sequence[Base | None]) -> Any:
        """Give the handle that draws with a base; `needed` are all that have runs now, of which others may have to go.

        Raises Busy where there is no room for it now, and ModelError where it cannot be loaded.
        """
        with self._lock:
            if base not in self._handles:
                least, _ = self.settings.least_and_most()
                for other in [one for one in self._handles if one not in needed]:
                    self._end(other)
                if lacking := self._lacking(least):
                    raise Busy(f"no room for another base: {lacking}", seconds=60)
                self._begin(base, self._room() // len(needed))
            return self._handles[base]

    def known(self, base: Base | None) -> Any:
        """Give the handle of a base that is held already; None where it is not."""
        return self._handles.get(base)

    def _room(self) -> int:
        return cluster.room(self.settings.threads, self.settings.gpus_per_replica, "gpus_per_replica")

    def _lacking(self, replicas: int) -> str:
        """Say what is not free that so many replicas need; "" where all is."""
        import ray

        free, there = ray.available_resources(), ray.cluster_resources()
        needs = {"CPU": self.settings.threads, "GPU": self.settings.gpus_per_replica}
        return " and ".join(
            f"{replicas} replica{'s' * (replicas > 1)} of {each:g} {name} need{'s' * (replicas < 2)} "
            f"{replicas * each:g}, and {free.get(name, 0):g} of the cluster's {there.get(name, 0):g} are free"
            for name, each in needs.items()
            if free.get(name, 0) < replicas * each
        )

    def _begin(self, base: Base | None, most: int) -> None:
        from ray import serve
        from ray.serve.api import RunTarget

        from .replica import unit

        settings = self.settings
        least, wanted = settings.least_and_most()
        most = max(least, min(wanted, most))
        name = self._names[base] = f"femtobooth-{os.getpid()}-{self._began}"
        self._began += 1
        lacking = self._lacking(least)
        app = serve.deployment(
            unit(settings.adapters if base else settings.models),
            name="base",
            ray_actor_options={"num_cpus": settings.threads, "num_gpus": settings.gpus_per_replica},
            autoscaling_config={
                "min_replicas": least,
                "max_replicas": most,
                "target_ongoing_requests": settings.target_requests,
            },
            max_ongoing_requests=max(2, 2 * settings.target_requests),
            max_queued_requests=WAITING * most,
            graceful_shutdown_timeout_s=SHUTDOWN,
        ).bind(base, settings.precision, settings.threads, Path.cwd())
        try:
            with _failures_told():
                with cluster.unheard():
                    target = RunTarget(target=app, name=name, route_prefix=None)
                    (handle,) = serve.run_many([target], wait_for_applications_running=False)
                _wait(name, lacking)
                if error := handle.ready.remote().result():
                    raise error
        except BaseException:
            self._end(base)
            raise
        self._handles[base] = handle

    def _end(self, base: Base | None, blocking: bool = True) -> None:
        from ray import serve
        from ray.serve.exceptions import RayServeException

        self._handles.pop(base, None)
        with cluster.unheard(), suppress(RayServeException):  # where Serve has not begun
            serve.delete(self._names[base], _blocking=blocking)

    def end(self) -> None:
        """End all replicas."""
        for blocking in (False, True):
            for base in self._names:
                self._end(base, blocking)


@contextmanager
def deploying(settings: ServeSettings) -> Iterator[Bases]:
    """Connect to the cluster and begin Ray Serve in it; what was begun ends with the block.

    Raises SettingsError where there is no cluster.
    """
    with cluster.connected(settings):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        with _failures_told(), cluster.unheard():
            serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        bases = Bases(settings)
        try:
            yield bases
        finally:
            bases.end()


def _wait(name: str, lacking: str) -> None:
    """Wait until an application runs, and say what is waited for: `lacking`, where that has been missing."""
    from ray import serve

    began, told = time.monotonic(), 0.0
    while (app := serve.status().applications[name]).status != "RUNNING":
        if app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise RuntimeError(next((one.message for one in app.deployments.values() if one.message), app.message))
        waited = time.monotonic() - began
        if waited >= (told + AGAIN if told else TOLD if lacking else AGAIN):
            told = waited
            what = f"room in the cluster: {lacking}" if lacking else "a base to be loaded"
            note(f"serve: waiting for {what} ({waited:.0f} s so far; Ctrl-C stops it)")
        time.sleep(POLL)


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
