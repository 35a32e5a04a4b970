"""Names: as they are in files, and only what a terminal acts on is made visible."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Iterator

import pytest
from rich.console import Console

from femtobooth.core import console, events
from femtobooth.core.names import restored, shown, stored

# As real files are called, by macOS (U+202F before AM), phones, word processors, and in many languages.
REAL = [
    "Screenshot 2025-01-02 at 9.41.00\u202fAM.png",
    "caf\u00e9 \u00a0no-break.jpg",
    unicodedata.normalize("NFD", "café.jpg"),
    "👩\u200d👩\u200d👧 family.jpg",
    "全角\u3000空白.jpg",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645.jpg",  # Persian, with a zero-width non-joiner
    "עברית\u200f.jpg",
    "soft\u00adhyphen \ufeffmark.jpg",
    "🫩.jpg",  # newer than this Python's tables
    "[edited] :dog: [/] [bold red]x[/].jpg",
    "back\\slash \\n.jpg",
]
HOSTILE = {
    "\x1b[2J": "\\x1b[2J",
    "\x9b31m": "\\x9b31m",
    "a\nb\tc\rd\x07\x08": "a\\nb\\tc\\rd\\x07\\x08",
    "photo\u202egpj.exe": "photo\\u202egpj.exe",
    "\u2066iso\u2069": "\\u2066iso\\u2069",
    "line\u2028para\u2029next\x85": "line\\u2028para\\u2029next\\x85",
    "\x7f": "\\x7f",
    os.fsdecode(b"caf\xe9"): "caf\\xe9",
}


@pytest.mark.parametrize("name", REAL, ids=ascii)
def test_real_names_are_printed_and_stored_as_they_are(name: str) -> None:
    assert shown(name) == stored(name) == restored(name) == name


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_what_a_terminal_acts_on_is_made_visible(name: str) -> None:
    assert shown(name) == HOSTILE[name] == shown(HOSTILE[name])
    assert restored(stored(name)) == name
    stored(name).encode("utf-8")


@pytest.mark.parametrize(
    "raw",
    [b"\xff\xfe.png", b"a\\b\xe9", b"\\xff", b"\\\\xff", b"a\\\\\xff\\", b"\\udcff", b"caf\xc3\xa9\xe9", b"\\x7f"],
)
def test_every_name_can_be_had_back(raw: bytes) -> None:
    name = os.fsdecode(raw)
    assert os.fsencode(restored(stored(name))) == raw
    stored(name).encode("utf-8")


def test_no_two_names_are_stored_alike() -> None:
    parts = [b"\xff", b"\\", b"\\xff", b"x", b"ff", b"\\\\"]
    names = {a + b + c for a in parts for b in parts for c in parts}
    assert len({stored(os.fsdecode(name)) for name in names}) == len(names)


@pytest.fixture
def printed() -> Iterator[io.StringIO]:
    """What a terminal would be sent."""
    buffer = io.StringIO()
    screen = Console(file=buffer, force_terminal=True, width=400, color_system=None, **console.STYLE)  # type: ignore[arg-type]
    with events.listening(console.Terminal(console=screen)):
        yield buffer


@pytest.mark.parametrize("name", [*REAL, *HOSTILE], ids=ascii)
def test_nothing_that_is_printed_takes_data_for_markup_or_lets_it_act(name: str, printed: io.StringIO) -> None:
    events.note(name)
    events.warn(name)
    events.table(name, [name, f">{name}"], [[name, 1]])
    with events.progress_bar(name, 2) as bar:
        bar.advance(1, note=name)
    text = printed.getvalue()
    wanted = shown(name, keep="\n\t") if name in HOSTILE else name
    assert text.count(wanted.splitlines()[0]) >= 6
    raw = [c for c in name if shown(c) != c and c not in "\n\t\r\x1b"]  # Rich itself writes these four
    assert not any(c in text for c in raw)
    assert name.startswith("\x1b") is False or name not in text
