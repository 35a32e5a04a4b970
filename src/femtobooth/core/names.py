"""Names of files and classes: as they are in files, and made visible where a terminal or a page would act on them.

In memory a name is what the file system says, in which bytes that are no UTF-8 are surrogates (PEP 383). `shown` is for
people, and applied where text is printed (`console`, `cli`, `pages`), not by those who write the text. `stored` is for
files, and `restored` reads it back.
"""

from __future__ import annotations

import os
import re
import sys

# Control characters (escape sequences begin with one), line separators, bidirectional overrides and isolates,
# surrogates. Nothing else: spaces of all widths, joiners and marks are part of how a name is written.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UTF8 = sys.getfilesystemencoding().lower() == "utf-8"  # unless an old locale says otherwise
_FOREIGN = re.compile("[\ud800-\udfff]")
_STORED = re.compile(r"\\x[89a-f][0-9a-f]|\\ud[89a-f][0-9a-f]{2}")


def shown(text: object, keep: str = "") -> str:
    """Make text that can be printed: what moves a cursor, ends a line or turns text around stands there as its escape.

    Characters in `keep` stay as they are.
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _escaped(found), str(text))


def stored(path: os.PathLike[str] | str) -> str:
    r"""Give a name as a file of UTF-8 holds it: itself.

    Only a name with bytes that are no UTF-8 (or with text that looks like what follows) has these as ``\xff`` and its
    backslashes doubled, so that `restored` gives back every name.
    """
    name = _told_in_utf8(os.fspath(path))
    if not _FOREIGN.search(name) and not _STORED.search(name):
        return name
    return _FOREIGN.sub(_escaped, name.replace("\\", "\\\\"))


def _told_in_utf8(name: str) -> str:
    """Give the name as a process sees it whose file system is in UTF-8, as the bytes of names are nearly everywhere."""
    return name if _UTF8 else os.fsencode(name).decode("utf-8", "surrogateescape")


def _escaped(found: re.Match[str]) -> str:
    byte = ord(found[0]) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else found[0].encode("unicode_escape").decode()


def restored(name: str) -> str:
    """Give the name that `stored` was given."""
    if _STORED.search(name):
        name = re.sub(rf"\\\\|{_STORED.pattern}", _restored, name)
    return name if _UTF8 else os.fsdecode(name.encode("utf-8", "surrogateescape"))


def _restored(found: re.Match[str]) -> str:
    kind, digits = found[0][1], found[0][2:]
    return "\\" if kind == "\\" else chr(0xDC00 + int(digits, 16) if kind == "x" else int(digits, 16))
