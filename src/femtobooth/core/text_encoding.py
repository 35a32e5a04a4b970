"""Tell the encoding of a text file by its first bytes: UTF-8, or UTF-16 and UTF-32 as Windows' programs write them."""

from __future__ import annotations

import codecs

MARKS: list[tuple[bytes, str | None]] = [
    (codecs.BOM_UTF8, None),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # its mark begins with that of UTF-16-LE, so it comes first
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]


def wide_encoding(start: bytes) -> tuple[str | None, bytes]:
    """Find UTF-16 or UTF-32 by the first bytes of a text; None for bytes of one letter each, such as UTF-8.

    Returns the byte order mark that `start` begins with, b"" where it has none, beside it. Without a mark UTF-16 shows
    by its line ends, or in a single line that holds a path by every second byte being NUL.
    """
    return next(((encoding, mark) for mark, encoding in MARKS if start.startswith(mark)), (_unmarked(start), b""))


def _unmarked(start: bytes) -> str | None:
    nulls, units = start.count(0), {start[place : place + 2] for place in range(0, len(start), 2)}
    if nulls > 2 * start.count(b"\n"):
        for end, encoding in ((b"\n\0", "utf-16-le"), (b"\0\n", "utf-16-be")):
            if end in units:
                return encoding
    # One line; a list that NUL ends would have names of one letter.
    if 3 * nulls > len(start) and (b"/" in start or b"." in start):
        for first, encoding in ((0, "utf-16-le"), (1, "utf-16-be")):
            if not start[first::2].count(0):
                return encoding
    return None
