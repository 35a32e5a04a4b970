"""What trains of a model: whole networks, the denoiser's attention layers, or one word's embedding; and how fast."""

from __future__ import annotations

from typing import Any

from .families.family import Family
from .settings import PersonalizeSettings, TrainSettings
from .tokens import TokenEmbedding


def select(model: Family, settings: PersonalizeSettings, token: str) -> None:
    """Switch gradients and training mode on for what `settings.train` names, in place, and off for everything else."""
    wanted, denoiser = settings.train.parts, model.denoiser
    denoiser.requires_grad_("unet" in wanted).train("unet" in wanted or "attention" in wanted)
    if "attention" in wanted:
        for name, parameter in denoiser.named_parameters():
            parameter.requires_grad_(any(part in name for part in model.ATTENTION))
    for text_encoder in model.text_encoders.values():
        text_encoder.requires_grad_("text_encoder" in wanted).train("text_encoder" in wanted)
    if "token" in wanted:
        TokenEmbedding.install(model, token, settings.photos.class_noun)
    if settings.training.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
        for text_encoder in model.text_encoders.values():
            text_encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def optimizer_groups(model: Family, train: TrainSettings) -> list[dict[str, Any]]:
    """Give the optimizer groups, one a network in which something trains: name, params, lr."""
    text_rate = train.token_learning_rate if "token" in train.parts else train.text_encoder_learning_rate
    found = []
    for name, network in model.trainable.items():
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if trained:
            rate = train.unet_learning_rate if name == model.DENOISER else text_rate
            found.append({"name": name, "params": trained, "lr": rate})
    return found


def learning_rates(train: TrainSettings) -> dict[str, float]:
    """Give the settings of the learning rates that what trains has, by name."""
    names = {part: f"{part}_learning_rate" for part in train.parts} | {"attention": "unet_learning_rate"}
    return {name: getattr(train, name) for name in dict.fromkeys(names[part] for part in train.parts)}


def needs_teacher(settings: PersonalizeSettings) -> bool:
    """Tell whether any target of the loss is the teacher's prediction."""
    taught = settings.prior.target in ("base", "photos") or settings.loss.background == "class"
    return taught and settings.prior.weight > 0
