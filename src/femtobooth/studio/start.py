"""femtobooth studio: check what it needs, say where it answers, and serve until it is stopped.

Nothing of the extra `studio` is imported before it is known to be here.
"""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import locks
from ..core.errors import InputError, SettingsError, needs
from ..core.events import note
from ..core.files import writing
from ..workflows.settings import StudioSettings

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

NEEDED = ("fastapi", "uvicorn", "python_multipart")
BACKLOG = 128


def run(settings: StudioSettings) -> None:
    """Serve the studio until it is stopped. Raises InputError where the extra is missing or the address is taken."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"studio: {', '.join(missing)} not installed", needs("studio"))
    import uvicorn

    from .app import create_app
    from .security import is_loopback
    from .state import Studio

    place = Path(settings.folder).absolute()
    private = place / ".studio"
    with writing(place):
        private.mkdir(parents=True, exist_ok=True)
    own = is_loopback(settings.host)
    token = settings.token or (None if own else secrets.token_urlsafe(24))
    with locks.held(private, "stop it, or give another `folder`"), listening(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
        studio = Studio(settings, host=settings.host, port=port, token=token)
        every = settings.host in ("0.0.0.0", "::")  # noqa: S104
        names = ["localhost"] if own else ["localhost", socket.gethostname()] if every else [settings.host]
        login = f"login?token={token}" if token else ""
        addresses = [f"http://{f'[{name}]' if ':' in name else name}:{port}/{login}" for name in names]
        note(f"studio: {', '.join(addresses)}   (Ctrl-C stops it; jobs go on)")
        if settings.browser:
            timer = threading.Timer(1.0, webbrowser.open, addresses[:1])
            timer.daemon = True
            timer.start()
        uvicorn.Server(configured(create_app(studio))).run(sockets=[listener])


def configured(app: ASGIApp) -> uvicorn.Config:
    """Say how a server of ours reads and answers; by h11, whose limits these are, also where httptools is there."""
    import uvicorn

    return uvicorn.Config(
        app,
        http="h11",
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=32 * 1024,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=3,
    )


def listening(host: str, port: int) -> socket.socket:
    """Open the socket. Raises SettingsError where that cannot be done."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(BACKLOG)  # who reads the address and asks at once waits, and is not refused
        return listener
    except OSError as error:
        problem = f"`host={host}`, `port={port}`: cannot be listened on ({error.strerror or error})"
        raise SettingsError(problem, "give another `port`; 0 takes any that is free") from None
