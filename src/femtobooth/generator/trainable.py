"""What trains of a model: whole networks, the denoiser's attention layers, an adapter, or one word's embedding; and how
fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..core.errors import SettingsError
from . import adapter_layers
from .families.family import Family
from .settings import PersonalizeSettings
from .tokens import TokenEmbedding
from .train_settings import RATE


def select(model: Family, settings: PersonalizeSettings, nouns: Mapping[str, str]) -> None:
    """Switch gradients and training mode on for what `settings.train` names, in place, and off for everything else.

    `nouns` has the class noun of each identifier.
    """
    wanted, denoiser = settings.train.parts, model.denoiser
    for part, what in (("token", model.token_tables()), ("text_encoder", model.can_train()[1:])):
        if part in wanted and not what:
            raise SettingsError(
                f"`train.parts={','.join(wanted)}`: this base's text encoder is a language model, which never trains",
                "name other parts: lora, unet or attention",
            )
    denoiser.requires_grad_("unet" in wanted).train(bool({"unet", "attention", "lora"} & set(wanted)))
    if "attention" in wanted:
        for name, parameter in denoiser.named_parameters():
            parameter.requires_grad_(any(part in name for part in model.ATTENTION))
    for name, text_encoder in model.text_encoders.items():
        trains = "text_encoder" in wanted and name not in model.FROZEN
        adapted = "lora" in wanted and settings.lora.text_encoder and name not in model.FROZEN
        text_encoder.requires_grad_(trains).train(trains or adapted)
    if "lora" in wanted:
        adapter_layers.install(model, settings.lora, settings.training.seed)
    if "token" in wanted:
        TokenEmbedding.install_all(model, nouns)
    for name, network in model.trainable.items():
        for path, parameter in network.named_parameters():
            if f"{name}.{path}".startswith(model.unread()):
                parameter.requires_grad_(False)
    if settings.training.gradient_checkpointing:
        checkpoint(model)


def checkpoint(model: Family) -> None:
    """Let the backward pass compute activations again instead of keeping them."""
    model.denoiser.enable_gradient_checkpointing()
    for name in set(model.can_train()) - {model.DENOISER}:
        getattr(model, name).activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def optimizer_groups(model: Family, settings: PersonalizeSettings) -> list[dict[str, Any]]:
    """Give the optimizer groups, one a network in which something trains: name, params, lr.

    Where a word trains in a text encoder beside something else, it has a group of its own, `token`.
    """
    train, adapted = settings.train, "lora" in settings.train.parts
    rates = settings.lora if adapted else train
    found: list[dict[str, Any]] = []
    for name, network in model.trainable.items():
        words = _words(network)
        others = [one for one in network.parameters() if one.requires_grad and all(one is not word for word in words)]
        own = getattr(rates, f"{name}{RATE}", None) or rates.text_encoder_learning_rate
        rate = rates.unet_learning_rate if name == model.DENOISER else own
        if others:
            found.append({"name": name, "params": others, "lr": rate})
        if words:
            found.append({"name": "token" if others else name, "params": words, "lr": train.token_learning_rate})
    return found


def _words(network: nn.Module) -> list[nn.Parameter]:
    """List the rows of a network's token embeddings that train."""
    return [part.row for part in network.modules() if isinstance(part, TokenEmbedding)]


def teacher(model: Family, settings: PersonalizeSettings) -> Family | None:
    """Give what says the targets that are not the truth, frozen; None where no target is.

    It is the base: a copy of `model` as it is now, or, where an adapter trains, `model` itself, which is the base while
    the adapter is switched off.
    """
    if not needs_teacher(settings):
        return None
    return model if "lora" in settings.train.parts else model.teacher()


def needs_teacher(settings: PersonalizeSettings) -> bool:
    """Tell whether any target of the loss is the teacher's prediction."""
    taught = settings.prior.target in ("base", "photos") or settings.loss.background == "class"
    return taught and settings.prior.weight > 0
