"""What stands for the subject in prompts and captions, [V] in either case, and what takes its place.

Importing it needs no torch, so that those who only fill in prompts can do without.
"""

from __future__ import annotations

import re

SUBJECT = "[V]"
_ANY_CASE = re.compile(re.escape(SUBJECT), re.IGNORECASE)


def names_subject(text: str) -> bool:
    """Whether [V] stands in a prompt or caption."""
    return _ANY_CASE.search(text) is not None


def with_subject(text: str, word: str) -> str:
    """A prompt or caption with a word for [V]."""
    return _ANY_CASE.sub(lambda _: word, text)


def filled(text: str, token: str, noun: str) -> str:
    """A prompt or caption with the identifier for [V] or {token}, and the class noun for {class}."""
    return with_subject(text, token).replace("{token}", token).replace("{class}", noun)


def bare(text: str) -> str:
    """A prompt without [V]: what it asks for in words that an encoder, or the untuned base, knows."""
    return " ".join(with_subject(text, "").split())
