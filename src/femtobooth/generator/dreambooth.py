"""DreamBooth (Ruiz et al., arXiv 2208.12242): the loss as pure functions, and the module that trains with it.

    loss = mean over photos of w(t) |target - prediction|^2 + lambda * the same over class images        (eq. 2)

Each of the two means is over its own samples, so lambda means the same for every batch size, accumulation and
number of processes.

Photos hold more than their subject, and the identifier learns all of it. With `loss.surroundings` "class" photos count
only where the subject is, and a third of the class images that are drawn have the identifier in their captions, count
only beside what they show, and ask there for what the base itself predicts. The subject then comes from the photos, and
what is around it from the base.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..core.events import progress
from ..pictures.regions import subject_masks
from ..training.module import NumberedSteps
from ..training.randomness import generator, shuffled_indices
from .families.stable_diffusion import StableDiffusion
from .memory import peak_memory
from .sampling import to_pixels
from .settings import PersonalizeSettings
from .tokens import TokenEmbedding

Part = Literal["all", "subject", "surroundings"]
BANDS = 4  # equal parts of the noise schedule, whose losses are logged apart


def min_snr_weights(snr: Tensor, prediction_type: str, gamma: float | None, floor: float = 0.0) -> Tensor:
    """Min-SNR-gamma weights (arXiv 2303.09556, sec. 3.4), (B,) from signal-to-noise ratios (B,).

    The paper weighs the error of x0 by min(SNR, gamma); the same weighting of the error that is measured here is
    min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v, / 1 for x0. `floor` keeps the last step of a
    zero-terminal-SNR schedule training, where the v and x0 weights vanish; it holds where noise prevails (SNR < 1),
    not for almost clean steps, whose small weights are the point. `gamma` None weighs all alike.
    """
    if gamma is None:
        return torch.ones_like(snr)
    clipped = snr.clamp(max=gamma)
    if prediction_type == "epsilon":  # 0/0 at zero SNR, whose limit is 1
        weights = torch.where(snr > 0, clipped / snr.clamp(min=1e-20), torch.ones_like(snr))
    elif prediction_type == "v_prediction":
        weights = clipped / (snr + 1)
    else:
        weights = clipped
    return torch.where(snr < 1, weights.clamp(min=floor), weights)


def signal_to_noise(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """SNR(t) = abar_t / (1 - abar_t), (B,)."""
    abar = alphas_cumprod.to(timesteps.device)[timesteps]
    return abar / (1 - abar).clamp(min=1e-20)


def training_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the UNet should predict, (B, c, h, w): the noise, v = sqrt(abar) noise - sqrt(1 - abar) x0, or x0."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    return scheduler.get_velocity(latents, noise, timesteps) if kind == "v_prediction" else latents


def sample_losses(prediction: Tensor, target: Tensor, weights: Tensor, places: Tensor) -> Tensor:
    """Weighted mean squared error of each sample: (B, c, h, w), (B, c, h, w), (B,), (B, 1, h, w) -> (B,), in
    float32.
    """
    return weights * (places * (prediction.float() - target.float()).square()).mean(dim=(1, 2, 3))


def places(pictures: np.ndarray, factor: int, part: Part) -> Tensor:
    """How much each latent of uint8 (N, H, W, 3) pictures counts where only `part` of them does; float32 (N, 1, H /
    factor, W / factor).

    The subject is what `core.regions` finds in all of them and what touches it; the surroundings are everything else.
    The mean is 1, so that a smaller subject is learned as fast as a large one; but nothing counts more than 5 times, as
    tiny ones show too little to be learned from.
    """
    if part == "all":
        return torch.ones(len(pictures), 1, pictures.shape[1] // factor, pictures.shape[2] // factor)
    masks = torch.from_numpy(np.stack(subject_masks(list(pictures)))).float()[:, None]  # (N, 1, H, W)
    subject = functional.max_pool2d(functional.max_pool2d(masks, factor), 3, stride=1, padding=1)
    wanted = subject if part == "subject" else 1 - subject
    return wanted / wanted.mean(dim=(1, 2, 3), keepdim=True).clamp(min=0.2)


@dataclass
class LatentSet:
    """Pictures as the VAE sees them, encoded once: posterior mean and log-variance, and their captions."""

    mean: Tensor  # (N, F, c, h, w); F is 2 with mirrored copies, else 1
    log_variance: Tensor  # (N, F, c, h, w)
    token_ids: Tensor  # (N, K, L): K captions each, one of which is drawn
    places: Tensor  # (N, F, 1, h, w): how much each place counts in the loss
    imitated: Tensor  # (N,) bool: whether the target is the base's own prediction

    def __add__(self, other: LatentSet) -> LatentSet:
        """The pictures of both, which have as many views and captions each."""
        return LatentSet(
            *(torch.cat([getattr(one, field.name) for one in (self, other)]) for field in fields(LatentSet))
        )

    def surroundings(self, model: StableDiffusion, pictures: np.ndarray, caption: str) -> LatentSet:
        """The first n of these, whose pixels are `pictures` uint8 (n, H, W, 3), by another caption, imitated beside
        what they show.
        """
        count = len(pictures)
        ids = model.token_ids([caption] * count)[:, None]
        where = places(pictures, model.vae_factor, "surroundings")[:, None]
        return LatentSet(self.mean[:count], self.log_variance[:count], ids, where, torch.ones(count, dtype=torch.bool))


@dataclass
class Draw:
    """The random part of one micro-step for one set of pictures."""

    latents: Tensor  # (B, c, h, w) scaled posterior samples
    noise: Tensor  # (B, c, h, w)
    timesteps: Tensor  # (B,)
    token_ids: Tensor  # (B, L)
    places: Tensor  # (B, 1, h, w)
    imitated: Tensor  # (B,) bool


@torch.no_grad()
def encode(
    model: StableDiffusion,
    pictures: np.ndarray,
    captions: Sequence[Sequence[str]],
    mirrored: bool = False,
    part: Part = "all",
    imitated: bool = False,
    batch: int = 4,
) -> LatentSet:
    """Encode (N, H, W, 3) uint8 pictures with the frozen VAE, on the device it is on; the result is on the CPU.

    Each of the N has its own captions. Only `part` of every picture will count in the loss, whose target is the truth
    or, if `imitated`, the base's own prediction.
    """
    views = [pictures, pictures[:, :, ::-1]] if mirrored else [pictures]
    means, variances = [], []
    for start in progress(range(0, len(pictures), batch), "encoding"):
        posteriors = [
            model.vae.encode(to_pixels(view[start : start + batch]).to(model.vae.device)).latent_dist for view in views
        ]
        means.append(torch.stack([posterior.mean for posterior in posteriors], dim=1).cpu())
        variances.append(torch.stack([posterior.logvar for posterior in posteriors], dim=1).cpu())
    most = max(map(len, captions))
    ids = torch.stack([model.token_ids([own[turn % len(own)] for turn in range(most)]) for own in captions])
    where = torch.stack([places(view, model.vae_factor, part) for view in views], dim=1)
    return LatentSet(torch.cat(means), torch.cat(variances), ids, where, torch.full((len(pictures),), imitated))


def draw(
    pictures: LatentSet,
    purpose: str,
    seed: int,
    micro_step: int,
    rank: int,
    world: int,
    batch: int,
    scale: float,
    steps: int,
) -> Draw:
    """Everything random in a micro-step, as a function of its arguments alone.

    `scale` is the VAE's scaling factor, `steps` the number of training timesteps. The processes of one micro-step
    take neighbouring entries of one shuffled order, each with its own noise.
    """
    first = (micro_step * world + rank) * batch
    indices = torch.tensor(shuffled_indices(seed, purpose, len(pictures.mean), first, batch))
    random = generator(seed, purpose, micro_step, rank)
    views = torch.randint(pictures.mean.shape[1], (batch,), generator=random)
    captions = torch.randint(pictures.token_ids.shape[1], (batch,), generator=random)
    mean, log_variance = pictures.mean[indices, views], pictures.log_variance[indices, views]
    posterior_noise = torch.randn(mean.shape, generator=random)
    return Draw(
        latents=(mean + torch.exp(0.5 * log_variance) * posterior_noise) * scale,
        noise=torch.randn(mean.shape, generator=random),
        timesteps=torch.randint(steps, (batch,), generator=random),
        token_ids=pictures.token_ids[indices, captions],
        places=pictures.places[indices, views],
        imitated=pictures.imitated[indices],
    )


class DreamBooth(NumberedSteps):
    """Fine-tunes UNet and text encoder (or parts of them) of `model` in place; the VAE takes no part.

    `instance` and `prior` are what `prepare` returns, called once in every process before the first step.
    """

    def __init__(
        self, model: StableDiffusion, settings: PersonalizeSettings, token: str, prepare: Callable[..., Any]
    ) -> None:
        super().__init__(settings.training)
        self.strict_loading = False  # checkpoints hold only what trains; the rest comes from the base
        self.settings, self.token, self.prepare = settings, token, prepare
        self.parts = [model]  # in a list, so that the VAE is no submodule
        self.unet, self.text_encoder = model.unet, model.text_encoder
        self._select_trained()
        self._sums = torch.zeros(2, BANDS, 2, dtype=torch.float64)  # (instance|prior, band, sum|count)
        self._logged_at = (0, time.monotonic())

    @property
    def model(self) -> StableDiffusion:
        return self.parts[0]

    def _select_trained(self) -> None:
        wanted = self.settings.train.parts
        self.unet.requires_grad_("unet" in wanted).train("unet" in wanted or "attention" in wanted)
        self.text_encoder.requires_grad_("text_encoder" in wanted).train("text_encoder" in wanted)
        if "attention" in wanted:
            for name, parameter in self.unet.named_parameters():
                parameter.requires_grad_(".attn1." in name or ".attn2." in name)
        if "token" in wanted:
            TokenEmbedding.install(self.model, self.token, self.settings.photos.class_noun)
        if self.settings.training.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.text_encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # The frozen base, which is imitated around the subject and where the prior asks for it; hidden in a tuple like
        # the VAE.
        imitates = self.settings.prior.target == "base" or self.settings.loss.surroundings == "class"
        wants_base = imitates and self.settings.prior.weight > 0
        self.frozen: tuple[Any, ...] = (
            tuple(_base_of(module) for module in (self.unet, self.text_encoder)) if wants_base else ()
        )

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups, one a trained part: name, lr, params."""
        train = self.settings.train
        rates = {
            "unet": (self.unet, train.unet_learning_rate),
            "text_encoder": (
                self.text_encoder,
                train.token_learning_rate if "token" in train.parts else train.text_encoder_learning_rate,
            ),
        }
        found = []
        for name, (module, rate) in rates.items():
            trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
            if trained:
                found.append({"name": name, "params": trained, "lr": rate})
        return found

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device
        self.model.to(device)
        self.instance, self.prior = self.prepare(self.trainer)
        self.model.vae.to("cpu")
        for module in self.frozen:
            module.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}

    def training_step(self, micro_step: int) -> Tensor:
        training, prior = self.settings.training, self.settings.prior
        scheduler = self.model.scheduler
        common = (training.seed, micro_step, self.global_rank, self.trainer.world_size)
        scale, steps = float(self.model.vae.config.scaling_factor), int(scheduler.config.num_train_timesteps)
        draws = [draw(self.instance, "instance", *common, training.batch_size, scale, steps)]
        if self.prior is not None:
            draws.append(draw(self.prior, "prior", *common, prior.batch_size or training.batch_size, scale, steps))
        count = len(draws[0].timesteps)
        latents, noise, timesteps, ids, places = (
            torch.cat([getattr(part, name) for part in draws]).to(self.device)
            for name in ("latents", "noise", "timesteps", "token_ids", "places")
        )
        noisy = scheduler.add_noise(latents, noise, timesteps)  # (B, c, h, w)
        prediction = predict(self.unet, self.text_encoder, noisy, timesteps, ids)
        target = training_target(scheduler, latents, noise, timesteps)
        imitated = torch.cat([part.imitated for part in draws]).nonzero().flatten()  # on the CPU: no GPU is waited for
        if len(imitated):
            imitated = imitated.to(self.device)
            with torch.no_grad():
                seen = predict(self.frozen[0], self.frozen[1], noisy[imitated], timesteps[imitated], ids[imitated])
            target[imitated] = seen.to(target.dtype)
        losses = self.weighted_losses(prediction, target, timesteps, places)
        self._add_to_log(losses.detach(), timesteps, count, steps)
        loss = losses[:count].mean()
        return loss + prior.weight * losses[count:].mean() if len(draws) > 1 else loss

    def weighted_losses(self, prediction: Tensor, target: Tensor, timesteps: Tensor, places: Tensor) -> Tensor:
        """The loss of each sample (B,), weighted as `settings.loss` says."""
        snr, loss = signal_to_noise(self.model.scheduler.alphas_cumprod, timesteps), self.settings.loss
        weights = min_snr_weights(snr, self.model.prediction_type, loss.snr_gamma, loss.snr_floor)
        return sample_losses(prediction, target, weights, places)

    def _add_to_log(self, losses: Tensor, timesteps: Tensor, count: int, steps: int) -> None:
        bands = (timesteps * BANDS // steps).cpu()
        for index, (loss, band) in enumerate(zip(losses.cpu().double(), bands, strict=True)):
            self._sums[int(index >= count), band] += torch.stack([loss, torch.ones_like(loss)])

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Log right after the step, so that the row is there when a callback saves a checkpoint."""
        super().optimizer_step(*arguments, **options)
        step = self.global_step + 1
        sums, self._sums = self._sums, torch.zeros_like(self._sums)
        if step % self.settings.training.log_every and step != self.trainer.max_steps:
            return
        if self.trainer.world_size > 1:
            sums = self.all_gather(sums.float().to(self.device)).reshape(-1, *sums.shape).sum(dim=0).double().cpu()
        metrics = self._metrics(sums, step)
        for logger in self.loggers:
            logger.log_metrics(metrics, step)

    def _metrics(self, sums: Tensor, step: int) -> dict[str, float]:
        timesteps = int(self.model.scheduler.config.num_train_timesteps)
        metrics: dict[str, float] = {}
        for term, bands in zip(("instance", "prior"), sums, strict=True):
            for band, (total, count) in enumerate(bands.tolist()):
                if count:
                    metrics[f"{term}/t{band * timesteps // BANDS:03d}-{(band + 1) * timesteps // BANDS - 1:03d}"] = (
                        total / count
                    )
            total, count = bands.sum(dim=0).tolist()
            if count:
                metrics[f"loss/{term}"] = total / count
        metrics["loss/total"] = metrics["loss/instance"] + self.settings.prior.weight * metrics.get("loss/prior", 0.0)
        optimizer: Any = self.optimizers()
        metrics |= {f"learning_rate/{group['name']}": group["lr"] for group in optimizer.param_groups}
        metrics["gradient_norm"] = self.gradient_norm
        (before, then), now = self._logged_at, time.monotonic()
        training = self.settings.training
        if before:
            photos = (step - before) * training.batch_size * training.accumulate * self.trainer.world_size
            metrics["photos_per_second"] = photos / (now - then)
        self._logged_at = (step, now)
        metrics["peak_memory_gib"] = peak_memory(self.device) / 2**30
        return metrics


def _base_of(module: torch.nn.Module) -> torch.nn.Module:
    """The module as it is before training: a frozen copy, or itself where nothing of it trains."""
    trains = any(parameter.requires_grad for parameter in module.parameters())
    return copy.deepcopy(module).eval().requires_grad_(False) if trains else module


def predict(unet: Any, text_encoder: Any, noisy: Tensor, timesteps: Tensor, token_ids: Tensor) -> Tensor:
    """The UNet's output (B, c, h, w) for noisy latents (B, c, h, w) and captions (B, L).

    Each different caption goes through the text encoder once: class images all share theirs.
    """
    different, which = torch.unique(token_ids, dim=0, return_inverse=True)
    states = text_encoder(different).last_hidden_state[which]  # (B, L, D)
    return unet(noisy, timesteps, states).sample
