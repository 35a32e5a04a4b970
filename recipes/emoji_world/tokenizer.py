"""Stage 2, tokenizer: byte-pair encoding in CLIP's format, for the words of this world.

    python -m recipes.emoji_world.tokenizer [--smoke]

Every word that captions use is one token, so are a few rare identifiers for DreamBooth; any other text splits into
known pieces, at worst into bytes. Writes ``tokenizer/``: tokenizer.json, vocab.json, merges.txt.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTokenizer

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, note
from femtobooth.core.files import atomic_folder, write_json
from femtobooth.generator.formats.folder import save_tokenizer

from . import backdrops, captions, sprites
from .scenes import scene

END = "</w>"
LENGTH = 24
"""Tokens a prompt, with start and end; the longest of 20,000 captions has 22."""
RARE = ("sks", "zwx", "xjy", "qvk", "ohwx", "vtq", "wzz", "kjq")
"""Identifiers that mean nothing: whole tokens at the rare end of the vocabulary that no training caption contains."""
MERGES = 1400
"""Merges learned from captions, before those that complete words and identifiers."""


def words(world: sprites.World) -> list[str]:
    """Every word that a caption can contain, and those of icon and category names, each once, in order."""
    texts = [
        *captions.OPENINGS,
        *captions.COUNTS.values(),
        *(word for size in captions.SIZES for word in size),
        "close-up empty nothing",
    ]
    texts += [
        *sprites.COLOUR_WORDS,
        *backdrops.COLOURS,
        *backdrops.names(),
        *(word for some in captions.STYLE_WORDS.values() for word in some),
    ]
    texts += [phrase for _, phrases in backdrops.PLACES.values() for phrase in phrases]
    texts += [
        (
            "an and next to with left right of above over below under on the at "
            "top bottom a gradient striped dotted background"
        )
    ]
    for concept in world.concepts:
        names = [concept.name, *concept.also, *([concept.kind] if concept.kind else [])]
        texts += [*names, *(captions.plural(name) for name in names), concept.category.lower(), concept.icon]
    return list(dict.fromkeys(re.findall(r"[a-z]+", " ".join(texts))))


def build(texts: Iterable[str], whole: Iterable[str], merges: int = MERGES) -> CLIPTokenizer:
    """Learn `merges` merges from `texts`, then add those that make each of the words `whole`, and RARE, one token."""
    learner = CLIPTokenizer().backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges, initial_alphabet=alphabet, end_of_word_suffix=END, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    pairs = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    for word in (*whole, *RARE):  # the identifiers last: the rare end of a vocabulary
        parts = encode(word, pairs)
        while len(parts) > 1:
            pairs.append((parts[0], parts[1]))
            parts = encode(word, pairs)
    entries = [
        *alphabet,
        *(byte + END for byte in alphabet),
        *("".join(pair) for pair in pairs),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(pairs), model_max_length=LENGTH)


def encode(word: str, pairs: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding of an ASCII word, plainly: the earliest merge first."""
    order = {pair: number for number, pair in enumerate(pairs)}
    parts = [*word[:-1], word[-1] + END]
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda k: order.get((parts[k], parts[k + 1]), len(order)))
        if (parts[best], parts[best + 1]) not in order:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def make(where: Path, world: sprites.World, count: int) -> CLIPTokenizer:
    """Learn from the captions of `count` scenes and write `where`/tokenizer; replaces an earlier one."""
    vocabulary = words(world)
    said = [scene(world, 0, index).caption for index in range(count)]
    tokenizer = build([*said, *vocabulary], vocabulary)
    with atomic_folder(where / "tokenizer", overwrite=True) as temporary:
        save_tokenizer(tokenizer, temporary)
    lengths = sorted(len(tokenizer(caption).input_ids) for caption in said)
    measured = {
        "entries": len(tokenizer),
        "words": len(vocabulary),
        "longest": lengths[-1],
        "median": lengths[len(lengths) // 2],
    }
    write_json(where / "tokenizer.json", measured)
    note(
        f"{measured['entries']} entries; captions have {measured['median']} tokens "
        f"in the middle and {measured['longest']} at most"
    )
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="from few captions of the smoke run's sprites")
    given = parser.parse_args()
    where = sprites.folder() / "smoke" if given.smoke else sprites.folder()
    make(where, sprites.load(where), 200 if given.smoke else 20_000)


if __name__ == "__main__":
    with listening(Terminal()):
        main()
