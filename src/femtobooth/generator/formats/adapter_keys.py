"""What an adapter's tensors are called in files: a layer's name, then the kind of tensor.

    ours        text_encoder.encoder.layers.0.mlp.fc1                           lora_down
    kohya       lora_te_text_model_encoder_layers_0_mlp_fc1                     .lora_down.weight
    diffusers   text_encoder.text_model.encoder.layers.0.mlp.fc1                .lora_A.weight
    ComfyUI     text_encoders.clip_l.transformer.text_model.encoder.layers.…    .lora_A.weight

Of Stable Diffusion XL kohya's files call text encoders `lora_te1_` and `lora_te2_`, and the UNet's layers as the
original code does: `lora_unet_input_blocks_4_1_…`. Of Stable Diffusion 3 they call them `lora_unet_joint_blocks_…`,
where three of ours are one (`transformer_keys`); what is written has our layers, as OneTrainer and ComfyUI call them:
`lora_transformer_transformer_blocks_…`.

Files call a CLIP text encoder's layers `text_model.…`, which transformers 5 has dropped. What is read is looked up in a
table of all names that a layer of this model goes by, so that nothing is guessed from a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from diffusers import UNet2DConditionModel
from torch import Tensor

from ..adapters import layers
from ..families.family import Family
from ..families.stable_diffusion import StableDiffusion
from . import ldm_keys, transformer_keys
from .part_folder import TEXT_MODEL

_TENSORS = (
    ("lora_down", r"\.lora_down\.weight|\.lora_A(\.default)?(\.weight)?|[._]lora\.down\.weight"),
    ("lora_down", r"\.lora_linear_layer\.down\.weight"),
    ("lora_up", r"\.lora_up\.weight|\.lora_B(\.default)?(\.weight)?|[._]lora\.up\.weight"),
    ("lora_up", r"\.lora_linear_layer\.up\.weight"),
    ("lora_mid", r"\.lora_mid\.weight"),
    ("magnitude", r"\.lora_magnitude_vector(\.default)?(\.weight)?"),
    ("oft_R", r"\.oft_R(\.default)?(\.weight)?"),
    ("", r"\.(alpha|dora_scale|rescale|oft_blocks|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](_[ab])?|lokr_t[12])"),
)  # by kind, the ends of tensors' names in files; without one the kind is the end itself
_ENDS = [(kind, re.compile(rf"(?:{end})$")) for kind, end in _TENSORS]
_OTHER_FAMILIES = (
    ("FLUX.1 or a model like it", r"double_blocks|single_blocks|single_transformer_blocks"),
    ("Stable Diffusion 3", r"joint_blocks|text_encoder_3\."),
    ("Stable Diffusion 3 or FLUX.1", r"^lora_te3_"),  # T5's
    ("Stable Diffusion 3 or a transformer like it", r"^(lora_)?transformer[._]transformer_blocks"),
    ("Stable Diffusion XL", r"^lora_te2_|text_encoder_2\.|clip_g\.|^lora_unet_label_emb|add_embedding"),
    ("Stable Diffusion XL", r"(attentions|put_blocks|middle_block|mid_block).*transformer_blocks[._][1-9]"),
    ("Stable Cascade", r"^lora_prior_"),
    ("Z-Image", r"^lora_unet_(layers|noise_refiner|context_refiner)_|(layers|refiner)\.\d+\.attention\.(to_q|qkv)"),
    ("a diffusion transformer", r"^transformer\.|^lora_transformer_|^diffusion_model\.(layers|blocks|transformer)"),
)
_OTHER_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


# Writing


def in_files(name: str) -> str:
    """Give a layer's name as files have it, with dots: `unet.…`, `text_encoder.text_model.…`."""
    network, _, path = name.partition(".")
    wrapped = network != "text_encoder" or path.startswith(TEXT_MODEL)  # by classes with a projection
    return f"{network}.{'' if wrapped else TEXT_MODEL}{path}"


def kohya(name: str, family: type[Family] = StableDiffusion) -> str:
    """Give a layer's name in kohya's files, where that is made of its own."""
    network, _, path = in_files(name).partition(".")
    return family.KOHYA[network] + path.replace(".", "_")


def kohya_names(model: Family) -> dict[str, str]:
    """Give the names that all layers of this model have in kohya's files."""
    ldm = _ldm_names(model) if model.IN_ORIGINAL_NAMES else {}
    return {
        name: f"lora_unet_{ldm[name]}".replace(".", "_") if name in ldm else kohya(name, type(model))
        for name, _ in layers(model)
    }


def kohya_tensor(kind: str) -> str:
    """Give the end of a tensor's name in kohya's files: `.lora_down.weight`, `.alpha`, `.hada_w1_a`."""
    return f".{kind}.weight" if kind in ("lora_down", "lora_up", "lora_mid", "oft_R") else f".{kind}"


# Reading


def split(key: str) -> tuple[str, str] | None:
    """Split the name of a tensor in a file into that of its layer and our name of its kind; None for no adapter's."""
    for kind, end in _ENDS:
        if found := end.search(key):
            return key[: found.start()], kind or found[0][1:]
    return None


def names(model: Family) -> dict[str, str]:
    """Give every name that a layer of this model goes by in files, and our name of it."""
    ldm, family = _ldm_names(model) | _transformer_names(model), type(model)
    return {alias: name for name, _ in layers(model) for alias in _aliases(name, family, ldm)} if family.KOHYA else {}


def _ldm_names(model: Family) -> dict[str, str]:
    """Give our names of the UNet's layers and those of the original code; nothing where they have none."""
    found: dict[str, str] = {}
    for network, part in model.trainable.items():
        if isinstance(part, UNet2DConditionModel):
            try:
                places = ldm_keys.places(part)
            except KeyError:
                continue
            found |= {
                f"{network}.{name.removesuffix('.weight')}": place.key.removeprefix(ldm_keys.UNET)
                for name, place in places.items()
                if name.endswith(".weight")
            }
    return {ours: theirs.removesuffix(".weight") for ours, theirs in found.items()}


def fused(model: Family) -> dict[str, tuple[str, ...]]:
    """Give the names of layers in files that are several of ours, by which each starts, and those in their order."""
    return {
        start + (name if "." in start else name.replace(".", "_")): tuple(f"{network}.{one}" for one in several)
        for network, part in model.trainable.items()
        for name, several in transformer_keys.names(part)
        if len(several) > 1
        for start in ("diffusion_model.", "lora_unet_")
    }


def _transformer_names(model: Family) -> dict[str, str]:
    """Give our names of a transformer's layers and those of the original code, where these are one."""
    found = ((network, one) for network, part in model.trainable.items() for one in transformer_keys.names(part))
    return {f"{network}.{ours[0]}": theirs for network, (theirs, ours) in found if len(ours) == 1}


def _aliases(name: str, family: type[Family], ldm: Mapping[str, str]) -> Iterator[str]:
    network, _, path = name.partition(".")
    yield kohya(name, family)
    yield in_files(name)
    if network in family.TEXT_ENCODERS and network in family.KOHYA:
        full = in_files(name).partition(".")[2]
        yield name  # as transformers 5 has it, which diffusers then saves
        yield f"{family.KOHYA[network]}{path}".replace(".", "_")
        if len(family.TEXT_ENCODERS) == 1:  # else they do not tell which
            for each in (path, full):
                yield f"base_model.model.{each}"  # peft's own files, one a network
                yield f"lora_te1_{each}".replace(".", "_")  # diffusers' converter
        for clip in family.CLIPS.get(network, ()):
            yield f"text_encoders.{clip}.transformer.{full}"
        if old := re.fullmatch(r"(.*\.self_attn\.)(q|k|v|out)_proj", full):
            yield f"{network}.{old[1]}to_{old[2]}"  # of 2023
        return
    yield f"base_model.model.{path}"
    plain = path.replace(".", "_")
    yield from (path, f"lycoris_{plain}", f"oft_unet_{plain}")
    if network != "unet":  # ai-toolkit's, which is ComfyUI's for what has no names of its own
        yield f"diffusion_model.{path}"
        yield f"lora_unet_{plain}"
    if ".attn" in path:  # of 2023, which kept them in attention processors
        old_path = path.replace(".to_", ".processor.to_").removesuffix(".0")
        yield from (old_path, f"unet.{old_path}", path.removesuffix(".0"), f"unet.{path.removesuffix('.0')}")
    if name in ldm:
        yield f"diffusion_model.{ldm[name]}"
        yield f"lora_unet_{ldm[name]}".replace(".", "_")


def other_family(keys: Iterable[str], own: str = "") -> str | None:
    """Name the family of models, not `own`, that a file is for by its tensors' names; None where they do not tell."""
    keys = list(keys)
    others = ((family, pattern) for family, pattern in _OTHER_FAMILIES if not own or own not in family)
    found = (family for family, pattern in others if any(re.search(pattern, key) for key in keys))
    return next(found, None)


def text_width(modules: Mapping[str, Mapping[str, Tensor]]) -> int | None:
    """Read how wide the text is that an adapter's cross-attention reads, where that is plain to see."""
    for name, tensors in modules.items():
        if name.endswith((".attn2.to_k", ".attn2.to_v")):
            for kind in ("lora_down", "hada_w1_b"):
                if kind in tensors and tensors[kind].ndim > 1:
                    return tensors[kind].shape[1]
    return None


def family_of_width(width: int) -> str:
    """Name the family whose text is this wide."""
    return _OTHER_WIDTHS.get(width, f"a model whose text is {width} wide")
