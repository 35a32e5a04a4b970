"""A studio in a process of its own, or in this one, and a browser in front of it."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import quick_start
import uvicorn

from femtobooth import cli
from femtobooth.core.event_log import FILE as EVENTS
from femtobooth.core.event_log import EventLog
from femtobooth.core.events import listening
from femtobooth.core.files import write_json
from femtobooth.core.job import END
from femtobooth.studio.app import create_app
from femtobooth.studio.state import Studio

Found = TypeVar("Found")
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
FAR = 180.0  # seconds, on a machine that is busy with other tests
STUDIO = """
import subprocess, sys, types, quick_start
quick_start.start_more()
from femtobooth.core import job
job.subprocess = types.SimpleNamespace(Popen=quick_start.start, DEVNULL=subprocess.DEVNULL)
quick_start.run_words(sys.argv[1:])
"""


class Server:
    """`femtobooth studio` over a folder, its jobs' processes begun quickly; begun again, it answers at the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.begin()

    def begin(self) -> None:
        """Start it, and wait until it says where it answers."""
        command = [sys.executable, "-c", STUDIO, "-m", "femtobooth", "studio", "--no-browser"]
        self.log = self.folder.parent / "studio.log"
        with self.log.open("w") as log:
            self.process = quick_start.start(
                [*command, "--folder", str(self.folder), "--port", str(self.port)],
                stderr=log,
                stdout=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        found = until(lambda: re.search(r"http://localhost:(\d+)/", self.log.read_text()))
        self.port = int(found[1])
        self.address = f"http://localhost:{self.port}"

    def kill(self) -> None:
        """End it as kill -9 does."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Stop it as Ctrl-C does."""
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def serving(studio: Studio) -> Iterator[str]:
    """Answer from a thread of this process; gives the address."""
    server = uvicorn.Server(uvicorn.Config(create_app(studio), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


class JobHere:
    """A job that a thread of this process does, which has imported everything already: the same command line with the
    same settings, to the same files.
    """

    pid = os.getpid()

    def __init__(self, place: Path, arguments: list[str]) -> None:
        self.place, self.arguments = place, arguments
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self) -> None:
        """Do it."""
        code: object = 0
        with listening(EventLog(self.place / EVENTS)):
            try:
                cli.main(self.arguments)
            except SystemExit as stop:
                code = stop.code or 0
        write_json(self.place / END, {"code": code})

    def poll(self) -> int | None:
        """Say whether it has ended."""
        return None if self.thread.is_alive() else 0


def until(look: Callable[[], Found | None], seconds: float = FAR) -> Found:
    """Wait until something is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError(f"still not so after {seconds:.0f} s: {look}")


class Watched:
    """A page of which everything that goes wrong is kept."""

    def __init__(self, page: Any) -> None:
        self.page, self.wrong = page, list[str]()
        page.on("pageerror", lambda error: self.wrong.append(f"{page.url}: {error}"))
        page.on("console", self._hear)
        page.set_default_timeout(FAR * 1000)

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"{self.page.url}: {message.text}")
