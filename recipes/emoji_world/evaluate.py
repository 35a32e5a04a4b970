"""Stage 6, evaluation: what the base draws, judged by a recognizer that has no part in its training; tables and JSON.

    python -m recipes.emoji_world.evaluate [MODEL]                    500 prompts x 2 seeds, novel combinations,
    autoencoder, KID, speed python -m recipes.emoji_world.evaluate --fast                     60 prompts x 1 seed python
    -m recipes.emoji_world.evaluate --dreambooth DATASET       personalize six unseen subjects instead (subjects.py)

MODEL is a Stable Diffusion folder; the bundled base if not given. Prompts are captions of scenes that no stage trains
on, drawn with 25 steps, guidance 4. A prompt counts for what it names: the concept only where its name is said and not
just its class, the style and the backdrop only where a word for them stands there. Beside the pictures stand the scenes
that the captions were written for (`real`, the ceiling) and the same pictures judged by another prompt (`shuffled`, the
floor). Writes evaluation/evaluation.json and samples.png.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, note, progress_bar, table
from femtobooth.core.files import atomic_file, write_json
from femtobooth.core.machine import environment
from femtobooth.generator import locate
from femtobooth.generator.families.family import Family
from femtobooth.generator.load import load
from femtobooth.generator.sampling import sample, to_pixels

from . import backdrops, sprites
from .autoencoder import UNSEEN_SEED, psnr, reconstruct, unseen
from .diffusion import SAMPLING
from .judge import Judge, Shares, asked, kid, shares
from .scenes import Scene, Unseen, contact_sheet, held_out, held_out_style, places_for, stream
from .stages import commit

PROMPT_SEED, SEEN_SEED, REFERENCE_SEED = UNSEEN_SEED + 1, UNSEEN_SEED + 2, UNSEEN_SEED + 3
"""Streams of scenes: for the prompts, for the seen counterparts of novel ones, and what KID compares with."""
SIZES = {
    "full": {"prompts": 500, "seeds": 2, "novel": 200, "pictures": 512, "kid": 1000, "steps": 25},
    "fast": {"prompts": 60, "seeds": 1, "novel": 24, "pictures": 128, "kid": 256, "steps": 25},
    "smoke": {"prompts": 4, "seeds": 2, "novel": 2, "pictures": 4, "kid": 16, "steps": 2},
}


def prompts(world: sprites.World, seed: int, count: int) -> list[Scene]:
    """Scenes with something in them and a caption."""
    return list(islice((made for made in stream(world, seed) if made.items and made.caption), count))


def novel_prompts(world: sprites.World, kind: Unseen, novel: bool, count: int) -> list[Scene]:
    """Scenes of one thing in a place whose captions name the concept, and the backdrop or the style (`kind`).

    Novel ones show a combination of the two that training never shows; of the others every pair may have been trained,
    and the concepts are those for which there is a novel combination too, so that only novelty tells the two apart.
    """

    def fits(made: Scene) -> bool:
        wanted = asked(world, made)
        if (
            len(made.items) != 1
            or made.backdrop not in backdrops.PLACES
            or not wanted.concepts
            or not getattr(wanted, kind)
        ):
            return False
        name = world.concepts[made.items[0].concept].name
        return kind == "backdrop" or any(held_out_style(name, style) for style in world.styles)

    seed = PROMPT_SEED if novel else SEEN_SEED
    return list(islice((made for made in stream(world, seed, kind if novel else "") if fits(made)), count))


def draw(model: Family, wanted: list[Scene], size: dict[str, int], what: str) -> np.ndarray:
    """Pictures (prompts x seeds, 64, 64, 3) uint8 of captions, all seeds of one beside each other; seed s of prompt i
    is i + 100,000 s.
    """
    seeds, sampling = size["seeds"], SAMPLING.model_copy(update={"steps": size["steps"]})
    texts = [made.caption for made in wanted for _ in range(seeds)]
    numbers = [index + 100_000 * number for index in range(len(wanted)) for number in range(seeds)]
    with progress_bar(what, len(texts) * sampling.steps) as bar:
        return sample(model, texts, numbers, sampling, batch_size=16, bar=bar)


def pixels(made: list[Scene]) -> np.ndarray:
    return np.stack([one.pixels for one in made])


def evaluate(model: Family, world: sprites.World, judge: Judge, size: dict[str, int], out: Path) -> dict[str, Any]:
    """Measure everything but DreamBooth; returns what evaluation.json holds and draws samples.png into `out`."""
    seeds, sampling = size["seeds"], SAMPLING.model_copy(update={"steps": size["steps"]})
    facts: dict[str, Any] = {
        "model": {"source": model.source, "hash": model.hash},
        "commit": commit(),
        "judge": judge.recognizer.hash,
        "size": size,
        "sampling": sampling.model_dump(),
        "environment": environment(),
    }
    times = []
    for _ in range(3):
        began = time.perf_counter()
        sample(model, ["a robot on the moon"] * 16, list(range(16)), sampling, batch_size=16)
        times.append(time.perf_counter() - began)
    facts["speed"] = {"seconds_for_16": round(statistics.median(times), 2), "threads": torch.get_num_threads()}

    pictures = unseen(world, size["pictures"])
    made = reconstruct(model.vae, pictures)
    overall, each = psnr(pictures, made)
    likeness = float(structural_similarity_index_measure(made, pictures, data_range=2.0))
    facts["autoencoder"] = {
        "psnr": round(overall, 2),
        "psnr_each": round(each, 2),
        "ssim": round(likeness, 4),
        "scenes": len(pictures),
    }

    wanted = prompts(world, PROMPT_SEED, size["prompts"])
    questions = [asked(world, one) for one in wanted for _ in range(seeds)]
    drawn = draw(model, wanted, size, "prompts")
    logits, embeddings = judge.look(drawn)
    somewhere, scenes = judge.somewhere(drawn), pixels(wanted)
    facts["prompts"] = {
        "generated": shares(judge.verdicts(logits, questions, somewhere), seeds),
        "real": shares(judge.verdicts(judge.look(scenes)[0], questions[::seeds], judge.somewhere(scenes))),
        "shuffled": shares(judge.verdicts(logits, questions[seeds:] + questions[:seeds], somewhere), seeds),
    }
    others = pixels(prompts(world, REFERENCE_SEED, size["kid"]))
    reference, more = (judge.look(part)[1] for part in np.array_split(others, 2))
    through = (
        (reconstruct(model.vae, to_pixels(others[: len(reference)])) / 2 + 0.5)
        .mul(255)
        .round()
        .byte()
        .permute(0, 2, 3, 1)
        .numpy()
    )
    facts["kid"] = {
        "generated": round(kid(embeddings, reference), 5),
        "autoencoder": round(kid(judge.look(through)[1], more), 5),
        "real": round(kid(more, reference), 5),
    }
    facts["novel"] = {
        kind: _novel(model, world, judge, kind, size) for kind in ("backdrop", "style") if places_for(world, kind)
    }

    grid = [Scene(picture, one.caption) for one, picture in zip(wanted, drawn[::seeds], strict=True)][:64]
    with atomic_file(out / "samples.png") as temporary:
        contact_sheet(grid).save(temporary, format="PNG")
    return facts


def _novel(model: Family, world: sprites.World, judge: Judge, kind: Unseen, size: dict[str, int]) -> dict[str, Any]:
    """Combinations of concept and backdrop (or style) never seen in training against such as may have been."""
    found: dict[str, Any] = {}
    for novel in (True, False):
        wanted = novel_prompts(world, kind, novel, size["novel"])
        names = [world.concepts[one.items[0].concept].name for one in wanted]
        right = all(held_out(n, one.backdrop) == novel for n, one in zip(names, wanted, strict=True))
        assert kind != "backdrop" or right  # noqa: S101
        questions = [asked(world, one) for one in wanted]
        repeated = [one for one in questions for _ in range(size["seeds"])]
        name = "novel" if novel else "seen"
        drawn = judge.verdicts(judge.look(draw(model, wanted, size, f"{kind}s, {name}"))[0], repeated)
        real = judge.verdicts(judge.look(pixels(wanted))[0], questions)
        for verdicts in (drawn, real):
            verdicts["together"] = verdicts["concept"] * verdicts[kind]
        keep = ("concept", "concept in 5", kind, "together")
        found[name] = shares({key: drawn[key] for key in keep}, size["seeds"])
        found[f"{name}, real"] = shares({key: real[key] for key in keep})
    return found


def show(facts: dict[str, Any]) -> None:
    """The tables for people."""

    def cell(found: Shares, name: str) -> str:
        return "{share:.1%} ({low:.0%} to {high:.0%})".format(**found[name]) if name in found else "-"

    columns = facts["prompts"]
    rows = [
        (name, *(cell(columns[column], name) for column in columns), values["prompts"])
        for name, values in columns["generated"].items()
    ]
    table(
        "Held-out prompts: what the judge sees", ["asked for", *(f">{column}" for column in columns), ">prompts"], rows
    )
    for kind, found in facts["novel"].items():
        rows = [(name, *(cell(found[column], name) for column in found)) for name in found["novel"]]
        table(
            f"Concept x {kind}: never seen in training, and seen", ["right", *(f">{column}" for column in found)], rows
        )
    vae, speed, distance = facts["autoencoder"], facts["speed"], facts["kid"]
    note(f"autoencoder on {vae['scenes']} unseen scenes: {vae['psnr']} dB PSNR, SSIM {vae['ssim']}")
    note(
        f"KID to real scenes: generated {distance['generated']}, real scenes "
        f"through the autoencoder {distance['autoencoder']},"
    )
    note(f"  other real scenes {distance['real']}")
    steps, pace = facts["sampling"]["steps"], 16 / speed["seconds_for_16"]
    note(
        f"16 pictures of {steps} steps: {speed['seconds_for_16']} s, {pace:.1f} "
        f"a second, with {speed['threads']} threads"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", nargs="?", type=Path, metavar="MODEL", help="a Stable Diffusion folder [the bundled base]"
    )
    parser.add_argument("--fast", action="store_true", help="fewer prompts: a first impression in a minute or two")
    parser.add_argument("--smoke", action="store_true", help="a handful, on what the smoke run has made")
    parser.add_argument(
        "--judge", type=Path, metavar="FOLDER", help="a recognizer artifact [judge/model of the recipe]"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results go [evaluation/ of the recipe]")
    parser.add_argument(
        "--dreambooth", type=Path, metavar="DATASET", help="personalize instead; the folder of DreamBooth's dataset"
    )
    parser.add_argument("--subjects", default="", help="with --dreambooth: only these, as in femto,clock")
    parser.add_argument("--config", type=Path, metavar="YAML", help="with --dreambooth: settings of personalize to try")
    given = parser.parse_args()
    root = sprites.folder() / "smoke" if given.smoke else sprites.folder()
    out, world = given.out or root / "evaluation", sprites.load(root)
    folder = given.model or (root / "model" if given.smoke else locate.bundled_folder())
    judge = Judge(world, given.judge or root / "judge" / "model")
    if given.dreambooth:
        from . import subjects

        only = [name for name in given.subjects.split(",") if name]
        subjects.show(
            subjects.evaluate(folder, judge, out, sprites.folder(), given.dreambooth, only, given.config, given.smoke)
        )
        note(f"wrote {out / 'dreambooth.json'} and {out / 'subjects.png'}")
        return
    size = SIZES["smoke" if given.smoke else "fast" if given.fast else "full"]
    facts = evaluate(load(str(folder)), world, judge, size, out)
    write_json(out / "evaluation.json", facts)
    show(facts)
    note(f"wrote {out / 'evaluation.json'} and {out / 'samples.png'}")


if __name__ == "__main__":
    with listening(Terminal()):
        main()
