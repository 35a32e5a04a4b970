"""Tiny models with random weights: the Stable Diffusions with a UNet, in the real layout of blocks, and a recognizer.

They are written by `conftest.py`'s fixtures, which import this file when it is needed: a process that only hands out
tests to others starts without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from femtobooth.generator import locate
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.families.stable_diffusion_xl import StableDiffusionXL
from femtobooth.generator.formats.folder import load_tokenizer, save_folder
from femtobooth.recognizer.exporting import graph
from femtobooth.recognizer.model import artifact
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess

TOKENS = 77
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def clip_tokenizer() -> CLIPTokenizer:
    """Open the bundled one, for as many tokens as published models read."""
    tokenizer = load_tokenizer(locate.bundled_folder() / "tokenizer")
    tokenizer.model_max_length = TOKENS
    return tokenizer


def clip_config(tokenizer: CLIPTokenizer, layers: int, open_clip: bool, width: int = 32) -> CLIPTextConfig:
    """Describe a text encoder."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        hidden_act="gelu" if open_clip else "quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def vae(layers: int = 2, **more: Any) -> AutoencoderKL:
    """Make an autoencoder of factor 8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=layers,
        norm_num_groups=4,
        sample_size=64,
        **more,
    ).eval()


def stable_diffusion(folder: Path, *, second: bool, blocks: int = 4, layers: int = 2) -> Path:
    """Write a folder in the shape of Stable Diffusion 1.x, or of 2.x."""
    torch.manual_seed(7)
    tokenizer = clip_tokenizer()
    text_encoder = CLIPTextModel(clip_config(tokenizer, 3 if second else 2, second))
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64, 64)[-blocks:],
        down_block_types=("CrossAttnDownBlock2D",) * (blocks - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (blocks - 1),
        layers_per_block=layers,
        cross_attention_dim=32,
        attention_head_dim=(2, 2, 4, 4) if second else 2,
        use_linear_projection=second,
        norm_num_groups=8,
    )
    scheduler = (
        DDIMScheduler(**SCHEDULE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
        if second
        else PNDMScheduler(**SCHEDULE, skip_prk_steps=True)
    )
    model = StableDiffusion(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=vae(layers),
        unet=unet.eval(),
        scheduler=scheduler,
        source=folder.name,
        hash="",
    )
    save_folder(model, folder, card="# tiny\n")
    return folder


def stable_diffusion_xl(folder: Path) -> Path:
    """Write a folder in the shape of Stable Diffusion XL: three levels, two text encoders of widths 32 and 48, the second
    padded with "!", six numbers of 8 each beside its projection of 40; 64x64 pixels.
    """
    torch.manual_seed(7)
    first, second = clip_tokenizer(), clip_tokenizer()
    second.pad_token = second.convert_ids_to_tokens(0)
    of_second = clip_config(second, 3, True, width=48)
    of_second.projection_dim = 40
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=32 + 48,
        attention_head_dim=(2, 2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=40 + 6 * 8,
        norm_num_groups=8,
    )
    model = StableDiffusionXL(
        tokenizer=first,
        tokenizer_2=second,
        text_encoder=CLIPTextModel(clip_config(first, 2, False)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(of_second).eval(),
        vae=vae(scaling_factor=0.13025),
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(**SCHEDULE),
        source=folder.name,
        hash="",
    )
    save_folder(model, folder, card="# tiny\n")
    return folder


def recognizer(folder: Path) -> Path:
    """Write a ConvNeXt of 5 classes that reads 64x64 pixels, its weights random but not nearly 0."""
    torch.manual_seed(3)
    labels = Labels(("ant", "bee", "cat", "dog", "elk"), ("n01", "n02", "n03", "n04", "n05"))
    made = Recognizer.create("test_convnext", labels, Preprocess((64, 64)), depths=[1, 1, 1, 1])
    torch.nn.init.normal_(made.model.head.fc.weight, std=2)
    made.temperature = 2.0
    made.freeze().save(folder)
    return folder


def exported(artifact_folder: Path, folder: Path) -> Path:
    """Export a recognizer to ONNX."""
    opened = Recognizer.load(artifact_folder)
    folder.mkdir()
    graph.write_onnx(graph.to_onnx(graph.Graph(opened, inside=False)), folder, opened.describe())
    artifact.write(opened.describe(), folder)
    return folder


def subject_photos(folder: Path, seed: int) -> Path:
    """Draw three photos, of 96x96 pixels, of a subject; each seed is another one."""
    folder.mkdir(parents=True)
    for index in range(3):
        pixels = np.random.default_rng(10 * seed + index).integers(0, 90, (96, 96, 3)).astype(np.uint8)
        pixels[20 + 8 * index : 70, 20:70] = (250 - 80 * seed, 60 * index, 30)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder
