"""One job in a process of its own: the command line, with what happens and how it ended kept in the job's folder.

JOB/settings.yaml   what it was asked to do
    events.jsonl    what happens (docs/events.md), also before there is a run
    log.txt         what the command line says
    result.json     what it answers
    end.json        its exit code, once it has ended by itself
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from ..core import locks
from ..core.event_log import FILE as EVENTS
from ..core.event_log import EventLog
from ..core.events import listening
from ..core.files import write_json

END, LOG, RESULT, SETTINGS = "end.json", "log.txt", "result.json", "settings.yaml"


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
