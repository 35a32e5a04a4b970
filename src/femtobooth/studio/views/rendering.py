"""Render templates, and say times, sizes and addresses as pages show them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi.responses import HTMLResponse, RedirectResponse, Response

from ...pages.html import environment, visible
from ..library import id_of

TITLES = {404: "Not here", 413: "Too large", 429: "Too much at a time", 500: "That is our fault", 503: "Busy"}
NOT_HERE = ("Not here", "There is nothing at this address: it may have been deleted.")


def page(template: str, *, status_code: int = 200, **values: Any) -> HTMLResponse:
    """Render a template as a page or a part of one."""
    return HTMLResponse(_environment.get_template(template).render(**values), status_code)


def newer(template: str, seen: str, values: Mapping[str, Any]) -> Response:
    """Render a part of a page for one that has `seen` an older state of it; nothing where it is still that state."""
    return Response(status_code=204) if values["seen"] == seen else page(template, **values)


def ask_no_more() -> Response:
    """Tell a page that what it asks for every few seconds is gone."""
    return Response(status_code=286)  # which htmx reads so


def go(address: str) -> RedirectResponse:
    """Send the browser to another page after a form was sent."""
    return RedirectResponse(address, 303)


def error_page(status: int, title: str, text: str, way_out: str | None = None) -> HTMLResponse:
    """Say on a page of its own what went wrong."""
    return page("error.html", status_code=status, title=title, text=text, way_out=way_out, here="")


def login_page(error: str) -> HTMLResponse:
    """Ask a person for the token."""
    return page("login.html", status_code=401, title="Come in", here="login", error=error)


def not_here() -> HTMLResponse:
    """Say that there is nothing at this address."""
    return error_page(404, *NOT_HERE)


def file_address(run_id: str, name: str) -> str:
    """Give the address of a file of a run, by its name in the run folder."""
    return f"/api/v1/runs/{run_id}/artifacts/{id_of(name)}"


def ago(time: datetime) -> str:
    """Say how long ago something was: ``just now``, ``5 minutes ago``, ``on 3 May 2026``."""
    gone = datetime.now(UTC) - time
    if gone < timedelta(minutes=1):
        return "just now"
    if gone < timedelta(hours=1):
        return _count(int(gone.total_seconds() // 60), "minute") + " ago"
    if gone < timedelta(days=1):
        return _count(int(gone.total_seconds() // 3600), "hour") + " ago"
    if gone < timedelta(days=8):
        return _count(gone.days, "day") + " ago"
    local = time.astimezone()
    return f"on {local.day} {local:%B %Y}"


def duration(seconds: float) -> str:
    """Say how long something takes: ``40 seconds``, ``3 minutes``, ``1 hour 20 minutes``."""
    if seconds < 90:
        return _count(max(1, round(seconds)), "second")
    minutes = round(seconds / 60)
    if minutes < 90:
        return _count(minutes, "minute")
    hours, rest = divmod(minutes, 60)
    return _count(hours, "hour") + (f" {_count(rest, 'minute')}" if rest else "")


def size(count: float) -> str:
    """Say how large a file is: ``3.4 MB``."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _visible(value: Any) -> Any:
    return visible(value) if type(value) is str else value


_environment = environment("femtobooth.studio", "templates", finalize=_visible)
_environment.globals.update(file_address=file_address)
_environment.filters.update(ago=ago, duration=duration, size=size, count=_count)


def plain(values: Mapping[str, Any], key: str, otherwise: Any = None) -> Any:
    """Read a value at a dotted key of nested mappings."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return otherwise if found is None else found
