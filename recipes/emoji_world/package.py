"""Stage 7, packaging: the stages' results become one Stable Diffusion folder with its card, and a recognizer, ready to
ship.

    python -m recipes.emoji_world.package              write model/ from what the stages have exported, and check sizes
    python -m recipes.emoji_world.package --install    then put it and the recognizer into the package's assets

Between the two, measure: `python -m recipes.emoji_world.evaluate MODEL` and `--dreambooth`. The card holds what
evaluation.json and dreambooth.json say of exactly these weights, and keeps the recommended settings (front matter) of
the card that is in the package now. Without that it says that nothing was measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from string import Template
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from femtobooth.core.console import Terminal
from femtobooth.core.errors import FemtoboothError
from femtobooth.core.events import listening, note, warn
from femtobooth.core.files import atomic_folder, write_text
from femtobooth.generator import cards, locate
from femtobooth.generator.families.family import Family
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.formats.folder import load_folder, load_tokenizer, save_folder
from femtobooth.generator.settings import RECOMMENDABLE
from femtobooth.recognizer.model import weights

from . import backdrops, sprites
from .stages import commit

LARGEST = {"model": 60e6, "recognizer": 12e6}
"""Bytes that may be shipped."""
Facts = dict[str, Any]


def assemble(root: Path) -> StableDiffusion:
    """The five parts from the stages' exports under `root`. Raises FemtoboothError naming the stage that is missing."""
    trained = root / "diffusion" / "model"
    for folder, stage in (
        (root / "tokenizer", "tokenizer"),
        (root / "autoencoder" / "vae", "autoencoder"),
        (trained, "diffusion"),
    ):
        if not folder.is_dir():
            raise FemtoboothError(f"{folder}: not there", f"run `python -m recipes.emoji_world.{stage}` first")
    return StableDiffusion(
        tokenizer=load_tokenizer(root / "tokenizer"),
        text_encoder=CLIPTextModel.from_pretrained(trained / "text_encoder", dtype=torch.float32),
        vae=AutoencoderKL.from_pretrained(root / "autoencoder" / "vae", torch_dtype=torch.float32),
        unet=UNet2DConditionModel.from_pretrained(trained / "unet", torch_dtype=torch.float32),
        scheduler=DDIMScheduler.from_pretrained(trained / "scheduler"),
        source="emoji world",
        hash="",
    )


def card(model: Family, root: Path) -> str:
    """The model card: what it is, what it cost, what was measured of it; `model` as it was loaded from its folder."""
    world, present = sprites.load(root), locate.bundled_folder() / "README.md"
    front = _front_matter(present)
    unet, vae, text_encoder = model.denoiser, model.vae, model.text_encoders["text_encoder"]
    text = text_encoder.config
    vae_facts, cost, words = (
        _read(root / name) for name in ("autoencoder/vae.json", "diffusion/diffusion.json", "tokenizer.json")
    )
    side = unet.config.sample_size
    parts = {
        "tokenizer": f"CLIP format, {len(model.tokenizer):,} entries, "
        f"{model.tokenizer.model_max_length} tokens a prompt; "
        "single rare tokens: sks zwx xjy qvk ohwx vtq wzz kjq",
        "text_encoder": (
            f"`CLIPTextModel`, {text.num_hidden_layers} layers of width {text.hidden_size}, {_millions(text_encoder)}"
        ),
        "vae": f"`AutoencoderKL`, factor {model.vae_factor}, {vae.config.latent_channels} channels, {_millions(vae)}, "
        f"{vae_facts['psnr']:.1f} dB PSNR",
        "unet": f"`UNet2DConditionModel`, widths {'-'.join(map(str, unet.config.block_out_channels))}, "
        f"{_millions(unet)}, "
        f"{side}x{side}x{unet.config.in_channels} latents",
        "scheduler": f"{model.process.prediction_type.replace('_', '-')}, zero terminal SNR, trailing spacing",
    }
    return Template(Path(__file__).with_name("card.md").read_text(encoding="utf-8")).substitute(
        front=front,
        parts="\n".join(f"| {name} | {text} |" for name, text in parts.items()),
        cost=f"autoencoder {vae_facts['step']:,} steps; text encoder and U-Net "
        f"{cost['images']:,} pictures; on CPU cores; "
        "moving-average weights.",
        commit=commit(),
        concepts=len(world.concepts),
        styles=", ".join(world.styles),
        places=len(backdrops.PLACES),
        words=f"{words['words']:,}",
        measured=measured(
            model.hash, cards.parse_card(front, present, RECOMMENDABLE).get("personalize", {}), root / "evaluation"
        ),
    )


def measured(hash: str, recommended: Facts, results: Path) -> str:
    """The tables of what was measured of the weights with this hash, and of DreamBooth with these recommended
    settings.
    """
    facts, dreambooth = (_read(results / name, {}) for name in ("evaluation.json", "dreambooth.json"))
    facts, dreambooth = (found if found and found["model"]["hash"] == hash else {} for found in (facts, dreambooth))
    if dreambooth and (dreambooth["tried"] or dreambooth["recommended"] != recommended):
        warn(f"{results / 'dreambooth.json'}: of other settings than the card's, left out")
        dreambooth = {}
    if not facts:
        return "Nothing yet: `python -m recipes.emoji_world.evaluate`."
    size, vae, speed, distance = facts["size"], facts["autoencoder"], facts["speed"], facts["kid"]
    columns = facts["prompts"]
    told = [
        f"Of {size['prompts']} held-out prompts x {size['seeds']} seeds ({facts['sampling']['steps']} steps, guidance "
        f"{facts['sampling']['guidance']:g}), judged by a recognizer of an "
        "independent training run: the share that is right where it was asked "
        "for (95 % interval), of the real scenes that the "
        "prompts were written for, and of the same pictures under shuffled prompts.",
        _table(
            ["", "pictures", "real scenes", "shuffled", "prompts"],
            [
                [
                    name,
                    *(_share(columns[column], name) for column in ("generated", "real", "shuffled")),
                    f"{values['prompts']}",
                ]
                for name, values in columns["generated"].items()
            ],
        ),
    ]
    if facts["novel"]:
        rows = [
            [
                f"concept and {kind}",
                *(_share(found[column], "together") for column in ("novel", "seen", "novel, real", "seen, real")),
            ]
            for kind, found in facts["novel"].items()
        ]
        told += [
            "Both right, for combinations that training never showed and for others:",
            _table(["", "never seen", "seen", "real, never seen", "real, seen"], rows),
        ]
    told.append(
        f"Autoencoder on unseen scenes: {vae['psnr']:.1f} dB PSNR, SSIM "
        f"{vae['ssim']:.3f}. KID in the judge's embedding: "
        f"{distance['generated']:.3f} (real scenes through the autoencoder "
        f"{distance['autoencoder']:.3f}, other real scenes "
        f"{distance['real']:.3f}). 16 pictures take {speed['seconds_for_16']:.1f} "
        f"s with {speed['threads']} CPU threads. "
        f"Measured at commit {facts['commit']}."
    )
    if dreambooth:
        told += [
            "DreamBooth with the settings above; those marked * were not looked at "
            "when the settings were chosen. How recognition is "
            "defined: `recipes/emoji_world/subjects.py`.",
            _table(
                [
                    "subject",
                    "class",
                    "recognised",
                    "backdrop right",
                    "class before → after",
                    "its photos recognised",
                    "seconds",
                ],
                [
                    [
                        name + ("" if one["tuned"] else " *"),
                        one["class_noun"],
                        *(f"{one[key]:.0%}" for key in ("recognised", "backdrop")),
                        f"{one['class_before']:.0%} → {one['class_after']:.0%}",
                        f"{one['photos_recognised']:.0%}",
                        f"{one['seconds']:.0f}",
                    ]
                    for name, one in dreambooth["subjects"].items()
                ],
            ),
        ]
    return "\n\n".join(told)


def _share(found: dict[str, Any], name: str) -> str:
    if name not in found:
        return "-"
    return "{share:.1%} ({low:.0%} to {high:.0%})".format(**found[name])


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows))


def _millions(module: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f} M parameters"


def _front_matter(path: Path) -> str:
    """The card's front matter with its fences. Raises FemtoboothError where there is none."""
    text = path.read_text(encoding="utf-8")
    if not text.startswith("---\n") or "\n---\n" not in text:
        raise FemtoboothError(
            f"{path}: no front matter", "its `femtobooth:` part holds the recommended settings; put the file back"
        )
    return text[: text.index("\n---\n") + 5]


def _read(path: Path, otherwise: Facts | None = None) -> Facts:
    if otherwise is not None and not path.is_file():
        return otherwise
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError:
        raise FemtoboothError(f"{path}: not there", "run the stage that writes it first (README.md)") from None


def check_size(folder: Path, what: str) -> None:
    """Raise FemtoboothError where a folder is larger than may be shipped."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    note(f"{folder}: {size / 1e6:.1f} MB")
    if size > LARGEST[what]:
        raise FemtoboothError(f"{folder}: {size / 1e6:.1f} MB, but at most {LARGEST[what] / 1e6:.0f} MB are shipped")


def install(folder: Path, target: Path) -> None:
    """Replace `target` by the files of `folder`, readable by everyone."""
    with atomic_folder(target, overwrite=True) as temporary:
        shutil.copytree(folder, temporary, copy_function=shutil.copyfile, dirs_exist_ok=True)
    note(f"installed {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="what the smoke run has made; cannot be installed")
    parser.add_argument("--install", action="store_true", help="replace the assets of the package")
    given = parser.parse_args()
    if given.smoke and given.install:
        parser.error("--smoke --install: the smoke run's model is not for shipping")
    root = sprites.folder() / "smoke" if given.smoke else sprites.folder()
    folder, recognizer = root / "model", root / "recognizer" / "model"
    save_folder(assemble(root), folder, "", torch.float16, overwrite=True)
    model = load_folder(StableDiffusion, folder)
    text = card(model, root)
    write_text(folder / "README.md", text)
    check_size(folder, "model")
    if recognizer.is_dir():
        check_size(recognizer, "recognizer")
    else:
        warn(f"{recognizer}: not there yet; `python -m recipes.emoji_world.recognizer` makes it")
    if "Nothing yet" in text:
        warn(f"the card holds no figures: `python -m recipes.emoji_world.evaluate {folder}` measures this model")
    if given.install:
        install(folder, locate.bundled_folder())
        if recognizer.is_dir():
            install(recognizer, weights.bundled_folder())


if __name__ == "__main__":
    with listening(Terminal()):
        main()
