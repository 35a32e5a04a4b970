"""What stands for the subject in prompts and captions, [V] in either case, and what takes its place.

Importing it needs no torch, so that those who only fill in prompts can do without.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..core.events import warn

SUBJECT = "[V]"
_ANY_CASE = re.compile(re.escape(SUBJECT), re.IGNORECASE)


def names_subject(text: str) -> bool:
    """Tell whether [V] stands in a prompt or caption."""
    return _ANY_CASE.search(text) is not None


def with_subject(text: str, word: str) -> str:
    """Put a word for [V] into a prompt or caption."""
    return _ANY_CASE.sub(lambda _: word, text)


def filled(text: str, token: str, noun: str) -> str:
    """Put the identifier for [V] or {token}, and the class noun for {class}, into a prompt or caption."""
    return with_subject(text, token).replace("{token}", token).replace("{class}", noun)


def bare(text: str) -> str:
    """Give a prompt without [V]: what it asks for in words that an encoder, or the untuned base, knows."""
    return " ".join(with_subject(text, "").split())


SMALL_VOCABULARY = (
    10_000  # entries: a tokenizer with fewer was made for the captions of one training, CLIP's has 49,408
)


def unseen_words(text: str, tokenizer: Any) -> list[str]:
    """List the words of a prompt that a base of a small vocabulary has never seen: its tokenizer has each word of its
    captions whole.
    """
    if len(tokenizer) > SMALL_VOCABULARY:
        return []
    words = dict.fromkeys(re.findall(r"[^\W\d_]+", text.lower()))
    return [word for word in words if len(tokenizer(word, add_special_tokens=False).input_ids) > 1]


def warn_of_unseen(texts: Iterable[str], tokenizer: Any) -> None:
    """Name the words of prompts that the base has never seen, and so cannot draw."""
    unseen = list(dict.fromkeys(word for text in texts for word in unseen_words(text, tokenizer)))
    if unseen:
        warn(f"this base has never seen {', '.join(unseen)}: a prompt draws what its other words say")
