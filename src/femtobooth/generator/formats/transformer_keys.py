"""What layers of transformers are called in their original code, as kohya's and ComfyUI's files have them: of Stable
Diffusion 3 and FLUX.1, and of Z-Image, whose other layers are called as ours.

    ours     transformer_blocks.0.attn.to_q, .to_k, .to_v         transformer_blocks.0.attn.to_out.0
    theirs   joint_blocks.0.x_block.attn.qkv                      joint_blocks.0.x_block.attn.proj

Several of ours are one of theirs: an adapter's `lora_up` of that is cut into these, its `lora_down` is that of all.
Layers whose outputs are in another order there have no name here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, ZImageTransformer2DModel
from torch import nn

_WHOLE = {
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
}
_IN_BLOCK = {
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
}
_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_IN_FLUX = {  # by block, whose names there are the first
    ("double_blocks", "transformer_blocks"): {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "img_attn.proj": ("attn.to_out.0",),
        "img_mlp.0": ("ff.net.0.proj",),
        "img_mlp.2": ("ff.net.2",),
        "img_mod.lin": ("norm1.linear",),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "txt_attn.proj": ("attn.to_add_out",),
        "txt_mlp.0": ("ff_context.net.0.proj",),
        "txt_mlp.2": ("ff_context.net.2",),
        "txt_mod.lin": ("norm1_context.linear",),
    },
    ("single_blocks", "single_transformer_blocks"): {
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear2": ("proj_out",),
        "modulation.lin": ("norm.linear",),
    },
}


Names = Iterator[tuple[str, tuple[str, ...]]]


def names(network: Any) -> Names:
    """List the original code's layers that a transformer has, each with ours that it is made of: one, or several; none
    of other networks.
    """
    if isinstance(network, SD3Transformer2DModel):
        return _of_sd3(network)
    if isinstance(network, FluxTransformer2DModel):
        return _of_flux(network)
    return _of_z_image(network) if isinstance(network, ZImageTransformer2DModel) else iter(())


def _of_z_image(transformer: ZImageTransformer2DModel) -> Names:
    for kind in ("noise_refiner", "context_refiner", "layers"):
        for block in range(len(getattr(transformer, kind))):
            attention = f"{kind}.{block}.attention."
            yield f"{attention}qkv", tuple(f"{attention}to_{one}" for one in "qkv")
            yield f"{attention}out", (f"{attention}to_out.0",)


def _of_flux(transformer: FluxTransformer2DModel) -> Names:
    for (theirs, ours), table in _IN_FLUX.items():
        for block in range(len(getattr(transformer, ours))):
            for name, several in table.items():
                yield f"{theirs}.{block}.{name}", tuple(f"{ours}.{block}.{one}" for one in several)


def _of_sd3(transformer: SD3Transformer2DModel) -> Names:
    own = {name for name, layer in transformer.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    last = len(transformer.transformer_blocks) - 1
    table: list[tuple[str, tuple[str, ...]]] = [(theirs, (ours,)) for ours, theirs in _WHOLE.items()]
    for block in range(last + 1):
        ours, theirs = f"transformer_blocks.{block}.", f"joint_blocks.{block}."
        table += [(theirs + name, (ours + one,)) for name, one in _IN_BLOCK.items()]
        table += [(theirs + name, tuple(ours + one for one in several)) for name, several in _FUSED.items()]
    turned = f"joint_blocks.{last}.context_block.adaLN_modulation.1"  # scale and shift change places
    return ((theirs, several) for theirs, several in table if set(several) <= own and theirs != turned)
