"""What the studio refuses, with the status that HTTP has for it; and any error as JSON."""

from __future__ import annotations

import re
from typing import Any

from ..core.errors import ExistsError, FemtoboothError, InputError, SettingsError, StorageError
from ..core.names import shown

SETTING = re.compile(r"`([a-z_]+(?:\.[a-z_]+)*)(?:=[^`]*)?`")


class Refusal(InputError):
    """What cannot be answered, and why."""

    status = 400

    def __init__(self, problem: str, way_out: str | None = None, status: int = 400) -> None:
        super().__init__(problem, way_out)
        self.status = status


class Missing(Refusal):
    """What is not there."""

    def __init__(self, what: str) -> None:
        super().__init__(f"no such {what}", "it may have been deleted; load the list again", 404)


class Busy(Refusal):
    """What has to wait; `seconds` says how long."""

    def __init__(self, problem: str, way_out: str = "try again later", status: int = 503, seconds: int = 10) -> None:
        super().__init__(problem, way_out, status)
        self.seconds = seconds


def status_of(error: FemtoboothError) -> int:
    """Say which status of HTTP an error has."""
    if isinstance(error, Refusal):
        return error.status
    if isinstance(error, ExistsError):
        return 409
    if isinstance(error, StorageError):
        return 507
    return 422 if isinstance(error, InputError) else 500


def described(error: FemtoboothError) -> dict[str, Any]:
    """Tell an error as JSON: `error` for people, `errors` one for each setting."""
    faults = list(error.faults) if isinstance(error, SettingsError) else []
    found = SETTING.search(error.problem)
    setting = faults[0][0] if faults else found[1] if found else None
    # A way out that was found for several settings together stands in none of them.
    told = _problem(setting, error.problem, error.way_out)
    each = [_problem(*fault) for fault in faults] or [told]
    return {"error": told if len(each) == 1 else {**told, "setting": None}, "errors": each}


def as_read_by(path: str, status: int, told: dict[str, Any]) -> dict[str, Any]:
    """Give an error as the clients of an address read it, beside our own fields where there is room for both."""
    error = told["error"]
    text = f"{error['problem']}{'; ' if error['way_out'] else ''}{error['way_out'] or ''}"
    if path.startswith("/v1/"):
        kind = "server_error" if status >= 500 else "invalid_request_error"
        openais = {"message": text, "type": kind, "param": error["setting"], "code": None}
        return {**told, "error": {**error, **openais}}
    if path.startswith("/sdapi/"):
        return {**told, "detail": text}
    return {"error": text} if path.startswith("/v2/") else told


def _problem(setting: str | None, problem: str, way_out: str | None) -> dict[str, str | None]:
    return {
        "setting": setting or None,
        "problem": shown(problem),
        "way_out": shown(way_out) if way_out else None,
    }
