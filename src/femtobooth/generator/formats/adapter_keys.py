"""What an adapter's tensors are called in files: a layer's name, then the kind of tensor.

    ours        text_encoder.encoder.layers.0.mlp.fc1                           lora_down
    kohya       lora_te_text_model_encoder_layers_0_mlp_fc1                     .lora_down.weight
    diffusers   text_encoder.text_model.encoder.layers.0.mlp.fc1                .lora_A.weight

Files call a CLIP text encoder's layers `text_model.…`, which transformers 5 has dropped.
"""

from __future__ import annotations

from .part_folder import TEXT_MODEL

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
"""How the names of a network's layers begin in kohya's files."""


def in_files(name: str) -> str:
    """Give a layer's name as files have it, with dots: `unet.…`, `text_encoder.text_model.…`."""
    network, _, path = name.partition(".")
    return f"{network}.{TEXT_MODEL if network == 'text_encoder' else ''}{path}"


def kohya(name: str) -> str:
    """Give a layer's name in kohya's files."""
    network, _, path = in_files(name).partition(".")
    return KOHYA[network] + path.replace(".", "_")


def kohya_tensor(kind: str) -> str:
    """Give the end of a tensor's name in kohya's files: `.lora_down.weight`, `.alpha`, `.hada_w1_a`."""
    return f".{kind}.weight" if kind in ("lora_down", "lora_up", "lora_mid") else f".{kind}"
