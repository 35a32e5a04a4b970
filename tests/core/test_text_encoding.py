"""UTF-16 and UTF-32 are told by their mark, or without one by their line ends; UTF-8 and lists that NUL ends are not."""

from __future__ import annotations

import codecs

import pytest

from femtobooth.core.text_encoding import wide_encoding

TEXT = "path,label\na/жук.png,жук\n"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_by_its_mark(encoding: str) -> None:
    mark = "\ufeff".encode(encoding)
    assert wide_encoding(mark + TEXT.encode(encoding)) == (encoding, mark)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [TEXT, "pictures/one.png"])
def test_without_a_mark(text: str, encoding: str) -> None:
    assert wide_encoding(text.encode(encoding)) == (encoding, b"")


@pytest.mark.parametrize(
    ("start", "mark"),
    [
        (TEXT.encode(), b""),
        (codecs.BOM_UTF8 + TEXT.encode(), codecs.BOM_UTF8),
        (b"a/1.png\0a/2.png\0", b""),
        ("ü.png".encode("cp1252"), b""),
        (b"", b""),
    ],
)
def test_one_byte_a_letter(start: bytes, mark: bytes) -> None:
    assert wide_encoding(start) == (None, mark)
