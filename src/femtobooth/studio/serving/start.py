"""femtobooth serve: find the runs, have Ray Serve hold their bases, and answer until it is stopped.

Nothing of the extras is imported before it is known to be here.
"""

from __future__ import annotations

import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType
from typing import Any

from ...core.errors import InputError, needs
from ...core.events import note, stage
from ...workflows.settings import ServeSettings
from .. import start


def run(settings: ServeSettings) -> None:
    """Serve pictures of runs until it is stopped.

    Raises InputError where an extra is missing, a run cannot be served, there is no cluster, or the address is taken.
    """
    from .runs import Runs

    runs = Runs(settings.runs)
    missing = [name for name in start.NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"serve: {', '.join(missing)} not installed", needs("studio"))
    if missing := [name for name in ("ray", "grpc_reflection") if find_spec(name) is None]:
        raise InputError(f"serve: {', '.join(missing)} not installed", needs("ray"))
    from ..security import is_loopback
    from .bases import deploying
    from .front import Server, create_app

    own = is_loopback(settings.host)
    token = settings.token or (None if own else secrets.token_urlsafe(24))
    with start.listening(settings.host, settings.port) as listener, deploying(settings) as bases:
        needed = [base for base in runs.bases() if base]
        with stage("starting the replicas"):
            bases.begin(needed)
        port = listener.getsockname()[1]
        server = Server(settings.host, port, token, settings.names, runs, bases)
        every = settings.host in ("0.0.0.0", "::")  # noqa: S104
        name = "localhost" if own else socket.gethostname() if every else settings.host
        address = f"http://{f'[{name}]' if ':' in name else name}:{port}/v1"
        count = len(runs.names())
        held = f"{count} model{'s' * (count != 1)}, {len(needed)} base{'s' * (len(needed) != 1)} in memory"
        note(f"serve: {address}{f'   token: {token}' if token else ''}   ({held}; Ctrl-C stops it)")
        _answer(create_app(server), listener)


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
