"""An adapter in training: layers of peft's inside the networks of a model, which can be switched off.

    install(model, settings.lora, seed)     # only the adapter trains, from the same start whatever was random before
    with switched_off(model): ...           # the very same networks are the base, to the bit
    adapter = read(model)                   # what was learned, by the names of our modules
    remove(model)                           # the base's own layers are back

peft names a layer's parts `base_layer` and, say, `lora_A.default`: those names stand in checkpoints, nowhere else.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import SettingsError
from ..training.randomness import generator
from . import frozen, tokens
from .adapters import Adapter
from .families.family import Family
from .train_settings import LoraSettings

NAME = "default"  # of the one adapter, as peft has it


def install(model: Family, settings: LoraSettings, seed: int) -> None:
    """Freeze the networks that can train and put the layers of an adapter into them, fp32, as far as it reaches.

    They begin as the base: what they add is 0. Raises SettingsError where the model has no such layers.
    """
    from peft import inject_adapter_in_model

    for name, network in model.trainable.items():
        network.requires_grad_(False)
        if name != model.DENOISER and not settings.text_encoder:
            continue
        if name not in model.ADAPTED:
            raise SettingsError("`train.parts=lora`: this family of models has no adapters yet", "name another part")
        wanted = targets(network, settings, model.ADAPTED[name][settings.targets])
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(generator(seed, "adapter", name).initial_seed())  # from which peft draws, layer by layer
            warnings.simplefilter("ignore")  # oft's blocks get the nearest size that divides a layer
            with nullcontext() if model.held == "fp32" else frozen.looking_plain(network):
                inject_adapter_in_model(_config(settings, wanted), network, NAME)
        for _, layer in layers(network) if settings.kind == "dora" and model.held != "fp32" else ():
            norms, down, up = layer.lora_magnitude_vector[NAME], layer.lora_A[NAME], layer.lora_B[NAME]
            how = {"base_layer": layer.get_base_layer(), "scaling": layer.scaling[NAME]}
            norms.update_layer(**how, lora_A=down.weight, lora_B=up.weight)  # of the weights that are there


def targets(network: nn.Module, settings: LoraSettings, wanted: str) -> str:
    """Name the layers that get an adapter, as a regular expression; oft turns the inputs of Linear layers alone, as
    peft's of convolutions is another than that of programs that read its files.
    """
    found = {name: part for name, part in network.named_modules() if re.fullmatch(wanted, name)}
    names = [name for name, part in found.items() if settings.kind != "oft" or isinstance(part, nn.Linear)]
    return "|".join(map(re.escape, names))


def _config(settings: LoraSettings, targets: str) -> Any:
    """Say in peft's words what to put where; `targets` is a regular expression over the names of layers."""
    import peft

    rank, kind = settings.rank, settings.kind
    alpha: Any = scaled_alpha(settings)
    if kind == "oft":  # blocks of `rank` inputs each
        return peft.OFTConfig(r=0, oft_block_size=rank, use_cayley_neumann=False, target_modules=targets)
    if kind in ("lora", "dora"):
        return peft.LoraConfig(r=rank, lora_alpha=alpha, use_dora=kind == "dora", target_modules=targets)
    made = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[kind]
    return made(r=rank, alpha=alpha, target_modules=targets)


def scaled_alpha(settings: LoraSettings) -> float:
    """Give the alpha by whose quotient with the rank an adapter's change is scaled, as files have it.

    Rank-stabilised scaling, alpha / sqrt(rank) (arXiv 2312.03732), is a larger alpha.
    """
    alpha = float(settings.rank) if settings.alpha is None else settings.alpha
    return alpha * math.sqrt(settings.rank) if settings.rank_stabilised else alpha


def layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """List the layers of a network that an adapter is in, by the names of the base's layers that they stand for."""
    for name, module in network.named_modules():
        if _is_adapted(module):
            yield name, module


def parameters(network: nn.Module) -> set[str]:
    """Name the parameters of a network that belong to an adapter, whose layers list them."""
    found = set()
    for path, module in network.named_modules():
        for name in getattr(module, "adapter_layer_names", ()):
            if isinstance(part := getattr(module, name, None), nn.Module):
                found |= {f"{path}.{name}.{inside}".lstrip(".") for inside, _ in part.named_parameters()}
    return found


def _is_adapted(module: nn.Module) -> bool:
    return "base_layer" in module._modules  # asked of every module in every step, so without a failing getattr


@contextmanager
def switched_off(model: Family) -> Iterator[None]:
    """Make the networks the frozen base that they were before an adapter came, for the time inside: no dropout, no
    adapter, and the word that trains as it was. A model without an adapter stays as it is.
    """
    parts = [part for network in model.trainable.values() for part in network.modules()]
    found = [part for part in parts if _is_adapted(part)]
    if not found:
        yield
        return
    training = [part for part in parts if part.training]
    words = [part for part in parts if isinstance(part, tokens.TokenEmbedding)]
    _switch(found, words, training, on=False)
    try:
        yield
    finally:
        _switch(found, words, training, on=True)


def _switch(found: list[Any], words: list[tokens.TokenEmbedding], training: list[nn.Module], on: bool) -> None:
    for layer in found:
        layer._disable_adapters = not on  # as `enable_adapters` does, which also walks through all that trains
    for word in words:
        word.is_on = on
    for part in training:
        part.training = on


def read(model: Family) -> Adapter:
    """Copy what an adapter has learned, fp32 on the CPU, by the names of our modules and kohya's of their tensors."""
    return Adapter(
        {
            f"{name}.{path}": {
                kind: tensor.detach().cpu().float().clone().contiguous() for kind, tensor in tensors(layer).items()
            }
            for name, network in model.trainable.items()
            for path, layer in layers(network)
        }
    )


def tensors(layer: Any) -> dict[str, Tensor]:
    """Give the tensors of one layer by kohya's names for their kinds."""
    if hasattr(layer, "oft_R"):
        return {"oft_R": layer.oft_R[NAME].weight}
    scale = torch.tensor(float(layer.scaling[NAME]) * layer.r[NAME])  # alpha
    if hasattr(layer, "lora_A"):
        found = {"lora_down": layer.lora_A[NAME].weight, "lora_up": layer.lora_B[NAME].weight, "alpha": scale}
        if NAME in (layer.lora_magnitude_vector or {}):
            norms = layer.lora_magnitude_vector[NAME].weight  # (out,), or (1, out, 1, 1) of a convolution
            found["dora_scale"] = norms.reshape(-1, *(1,) * (layer.get_base_layer().weight.ndim - 1))
        return found
    found = {kind: getattr(layer, kind)[NAME] for kind in layer.adapter_layer_names if NAME in getattr(layer, kind)}
    if {"lokr_w1", "lokr_w2"} <= set(found):  # without a rank, alpha would say nothing to who reads the file
        return {"lokr_w1": found["lokr_w1"] * layer.scaling[NAME], "lokr_w2": found["lokr_w2"]}
    return {**found, "alpha": scale}


def remove(model: Family) -> None:
    """Put the base's own layers back into the networks; what the adapter has learned is gone."""
    for network in model.trainable.values():
        for name, layer in [*layers(network)]:
            network.set_submodule(name, layer.get_base_layer())
        network.__dict__.pop("peft_config", None)
