"""One job in a process of its own: the command line, with what happens and how it ended kept in the job's folder.

JOB/settings.yaml   what it was asked to do
    events.jsonl    what happens (docs/events.md), also before there is a run
    log.txt         what the command line says
    result.json     what it answers
    end.json        its exit code, once it has ended by itself

`start` begins one, in whatever program; the studio and `train-many` do.
"""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from . import children, locks, requests
from .event_log import FILE as EVENTS
from .event_log import EventLog
from .events import listening
from .files import read_object, write_json
from .locks import Holder
from .run import is_run

END, LOG, RESULT, SETTINGS = "end.json", "log.txt", "result.json", "settings.yaml"
TAIL = 20_000  # bytes of a log that may hold why a job failed
KILLED = "its process ended without a word, as if it was killed or the machine was restarted"


def start(place: Path, arguments: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
    """Start the process of a job: a command line with its arguments, and more variables. Raises OSError."""
    (place / END).unlink(missing_ok=True)
    with open(place / RESULT, "wb") as result, open(place / LOG, "ab") as log:
        return subprocess.Popen(  # noqa: S603
            children.command("femtobooth.core.job", str(place), *arguments),
            stdin=subprocess.DEVNULL,
            stdout=result,
            stderr=log,
            env=children.environment(**environment),
            start_new_session=True,  # Ctrl-C in the terminal of who starts it is not for it
        )


def ended(place: Path) -> int | None:
    """Give the exit code of a job that has ended; None where its process was killed."""
    code = read_object(place / END).get("code")
    return code if isinstance(code, int) else None


def stop(process: Holder | None, run: Path | None) -> None:
    """Ask the process that works on a job, or on a run, to save and end. A second time it ends at once.

    One on another machine finds the request in the folder of its run, and so does one on Windows, which knows no signal
    that another console's process could be sent.
    """
    if process is None or process.gone:
        return
    if process.elsewhere or sys.platform == "win32":
        if run is not None and is_run(run) and not requests.asked(run, "stop"):
            requests.ask(run, "stop")
        elif not process.elsewhere:
            psutil.Process(process.pid).terminate()
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGINT)


class Words(NamedTuple):
    """What a command line said last: its problem, in one line, and the way out."""

    problem: str
    way_out: str | None


def last_words(log: Path) -> Words:
    """Read why a job failed, as its command line said it: with flags."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - TAIL, 0))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    starts = [number for number, line in enumerate(lines) if line.startswith("femtobooth: ")]
    if not starts:
        last = children.last_line("\n".join(lines).encode(), "its process said nothing")
        return Words(last, "its log has the rest")
    first, *rest = lines[starts[-1] :]
    ways = [line.strip().removeprefix("-> ") for line in rest if re.match(r"\s+-> ", line)]
    details = [line.strip() for line in rest if re.match(r"\s+(?!-> )\S", line)]
    return Words(" ".join([first.removeprefix("femtobooth: "), *details]), ways[0] if ways else None)


def main() -> None:
    """Run `femtobooth ARGUMENTS` as the command line does, from `FOLDER ARGUMENTS...`."""
    folder, sys.argv = Path(sys.argv[1]), ["femtobooth", *sys.argv[2:]]
    code: object = 1
    with locks.held(folder), listening(EventLog(folder / EVENTS)):
        try:
            runpy.run_module("femtobooth", run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except KeyboardInterrupt:  # before the command line could catch it
            code = 130
        finally:
            write_json(folder / END, {"code": code if isinstance(code, int) else 1})
    sys.exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
