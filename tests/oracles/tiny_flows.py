"""Tiny models of the families that flow, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_models
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from femtobooth.generator.families.flux import Flux
from femtobooth.generator.families.stable_diffusion_3 import StableDiffusion3, StableDiffusion3WithoutT5
from femtobooth.generator.families.z_image import ZImage
from femtobooth.generator.formats.folder import save_folder


def t5_tokenizer() -> T5TokenizerFast:
    """A vocabulary in T5's kind: pieces of words by their probability, "</s>" at the end."""
    letters = "abcdefghijklmnopqrstuvwxyz,.▁"
    words = ["▁a", "▁photo", "▁of", "▁robot", "▁dog", "▁sks", "▁on", "▁the", "▁beach", "▁glossy"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0)]
    vocabulary += [(one, -2.0) for one in words] + [(one, -6.0) for one in letters]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def flow_vae(shift: float, scale: float) -> AutoencoderKL:
    """Make an autoencoder as flows have it: 16 latent channels, whose numbers are shifted and scaled."""
    quantized = {"use_quant_conv": False, "use_post_quant_conv": False}
    return tiny_models.vae(latent_channels=16, shift_factor=shift, scaling_factor=scale, **quantized)


def sd3(folder: Path, t5: bool = True) -> Path:
    """Write a folder in the shape of Stable Diffusion 3.5, with T5 or without."""
    torch.manual_seed(7)
    first, second = tiny_models.clip_tokenizer(), tiny_models.clip_tokenizer()
    second.pad_token = second.convert_ids_to_tokens(0)
    texts = [tiny_models.clip_config(first, 2, False), tiny_models.clip_config(second, 3, True, width=48)]
    texts[1].projection_dim = 40
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=96,
        caption_projection_dim=32,
        pooled_projection_dim=32 + 40,
        pos_embed_max_size=12,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    parts: dict[str, Any] = {
        "tokenizer": first,
        "tokenizer_2": second,
        "text_encoder": CLIPTextModelWithProjection(texts[0]).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(texts[1]).eval(),
        "vae": flow_vae(0.0609, 1.5305),
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "source": folder.name,
        "hash": "",
    }  # fmt: skip
    if not t5:
        save_folder(StableDiffusion3WithoutT5(**parts), folder, card="# tiny\n")
        return folder
    tokenizer = t5_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=96, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    parts |= {"tokenizer_3": tokenizer, "text_encoder_3": T5EncoderModel(config).eval()}
    save_folder(StableDiffusion3(**parts), folder, card="# tiny\n")
    return folder


def flux(folder: Path, guided: bool = True) -> Path:
    """Write a folder in the shape of FLUX.1-dev, or of FLUX.1-schnell, whose transformer is told no guidance."""
    torch.manual_seed(7)
    clip, t5 = tiny_models.clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=32, guidance_embeds=guided, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    for name, one in transformer.named_parameters():
        if name.startswith(("proj_out", "norm_out", "time_text_embed")):
            torch.nn.init.normal_(one, std=0.2)
    text = T5Config(
        vocab_size=len(t5), d_model=24, d_kv=12, d_ff=48, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )  # fmt: skip
    vae = flow_vae(0.1159, 0.3611)
    model = Flux(
        tokenizer=clip,
        tokenizer_2=t5,
        text_encoder=CLIPTextModel(tiny_models.clip_config(clip, 2, False)).eval(),
        text_encoder_2=T5EncoderModel(text).eval(),
        vae=vae,
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if guided else 1.0, use_dynamic_shifting=guided),
        source=folder.name,
        hash="",
    )
    save_folder(model, folder, card="# tiny\n")
    return folder


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A vocabulary in Qwen's kind: bytes and whole words after a space, in a chat."""
    words = ["a", "photo", "of", "robot", "dog", "sks", "zkq", "xvt", "on", "the", "beach", "red", "big"]
    pieces = [chr(number) for number in range(33, 127)] + ["Ġ", "Ċ"]
    merges: list[tuple[str, str]] = []
    for word in words:
        whole = "Ġ"
        for letter in word:
            merges.append((whole, letter))
            whole += letter
            pieces.append(whole)
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=[*dict.fromkeys(merges)], unk_token=None, pad_token="<|endoftext|>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = (
        "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def z_image(folder: Path) -> Path:
    """Write a folder in the shape of Z-Image."""
    torch.manual_seed(7)
    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=24,
        axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    for name, one in transformer.named_parameters():
        if one.ndim > 1 or "pad_token" in name:
            torch.nn.init.normal_(one, std=0.2)
    words = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=12, max_position_embeddings=1024,
    )  # fmt: skip
    vae = flow_vae(0.1159, 0.3611)
    model = ZImage(
        tokenizer=tokenizer,
        text_encoder=Qwen3Model(words).eval(),
        vae=vae,
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        source=folder.name,
        hash="",
    )
    save_folder(model, folder, card="# tiny\n")
    return folder
