"""Scores the weights every N steps of a training, keeps those that may become the model, and ends it when it is done.

RUN/validation/validation.json   the curve: fidelity, drift and prompt fidelity at each scored step, the deterministic
                                 loss, what it cost
               curve.svg         the same as charts
               step-000050/      validation images: a row for each prompt, the class last; step-000000 is the untuned
                                 base
               outside/          the same of things outside the class
               weights/          what trains, at the steps on the Pareto front; gone when the run is done
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import load_file, save_file

from ...core import machine
from ...core.errors import NotFiniteError, SettingsError
from ...core.events import note, warn
from ...core.files import atomic_file, write_json
from ...generator.deterministic import deterministic_loss
from ...generator.prompts import bare
from ...generator.samples import as_it_is, generate_samples, save_samples
from ...generator.settings import PersonalizeSettings, SampleSettings
from ...judging import scores, selection
from ...judging.encoders import Encoder, open_encoder, usable
from ...judging.selection import Choice, Point
from ...pages import validation as charts
from ...pictures.regions import without_subject
from ...training.averages import Average, ScheduleFree, trained
from ...training.callbacks import StepCallback
from ...training.tracking import log_picture

POINTS = 6  # scorings of a run by default, half of it where they decide nothing
MIN_STEPS = 30  # optimizer steps from which on a run is scored
WINDOW = 100  # optimizer steps over which DVAR looks back


def interval(settings: PersonalizeSettings) -> int:
    """Give the optimizer steps between scorings; 0 without validation.

    Raises SettingsError for stop_when_done without any.
    """
    steps, given = settings.training.steps, settings.validation
    every = given.every
    if every is None:
        points = POINTS if given.select == "best" or given.stop_when_done else POINTS // 2
        every = -(-steps // points) if steps >= MIN_STEPS else 0
    if given.stop_when_done and not every:
        raise SettingsError(
            "`validation.stop_when_done`: this run has no validation",
            "give such as `validation.every=50`",
        )
    return every


def chosen_encoder(settings: PersonalizeSettings) -> Encoder | None:
    """Choose the encoder that scores; None without validation. Raises ModelError where it is not available."""
    return open_encoder(settings.validation.encoder or usable(())[0]) if interval(settings) else None


def image_settings(settings: PersonalizeSettings) -> SampleSettings:
    """Say how validation images are sampled; prompts are templates, the class last."""
    given = settings.validation
    sampling = settings.samples.sampling.model_copy(update={"sampler": given.sampler, "steps": given.steps})
    prompts = [*given.prompts, settings.prior.prompt]
    return settings.samples.model_copy(
        update={"prompts": prompts, "images": given.images, "seed": given.seed, "sampling": sampling}
    )


def outside_prompts(settings: PersonalizeSettings) -> list[str]:
    """Give the prompts of things outside the class: those that name none of the class noun's words."""
    words = "|".join(map(re.escape, settings.photos.class_noun.split()))
    named = re.compile(rf"(?<!\w)(?:{words})(?:e?s)?(?!\w)", re.IGNORECASE)
    return [prompt for prompt in settings.validation.outside if not named.search(prompt)]


class Validator(StepCallback):
    """Scores every `interval` steps and after the last, in the first process only. Its state travels in the
    checkpoints.

    `fill` makes a prompt of a template, `photos` (H, W, 3) is what pictures of the subject are compared with.
    """

    def __init__(
        self,
        folder: Path,
        settings: PersonalizeSettings,
        encoder: Encoder | None,
        photos: Sequence[np.ndarray],
        fill: Callable[[str], str],
        size: int,
        average: Average | None,
    ) -> None:
        self.folder, self.settings, self.encoder, self.size, self.average = folder, settings, encoder, size, average
        self.every, self.images = interval(settings), image_settings(settings)
        self.prompts = [fill(prompt) for prompt in self.images.prompts]
        self.texts = [fill(bare(prompt)) for prompt in settings.validation.prompts]
        self.outside = outside_prompts(settings)
        self.photos = list(photos)
        self.points: list[Point] = []
        self.base: torch.Tensor | None = None  # (2P + 1, S, D) what `_embedded` makes of the untuned base's pictures
        self.base_outside: torch.Tensor | None = None  # (Q S, D) its pictures of things outside the class
        self.losses: list[tuple[int, float]] = []
        self.seconds = {"validation": 0.0, "training": 0.0}

    # --- what a checkpoint holds

    def state_dict(self) -> dict[str, Any]:
        points = [
            {name: list(value) if isinstance(value, tuple) else value for name, value in point._asdict().items()}
            for point in self.points
        ]
        return {
            "points": points,
            "base": self.base,
            "base_outside": self.base_outside,
            "losses": [list(row) for row in self.losses],
            "seconds": dict(self.seconds),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = [
            Point(row["step"], tuple(row["fidelity"]), tuple(row["prompt"]), row["drift"], *map(tuple, rest))
            for row in state_dict["points"]
            for rest in [(row.get("moved", ()), row.get("outside", ()))]
        ]
        self.base_outside = state_dict.get("base_outside")
        if self.points and self.base_outside is None:  # a run that was started without them
            self.outside = []
        self.base, self.seconds = state_dict["base"], dict(state_dict["seconds"])
        self.losses = [(int(step), float(loss)) for step, loss in state_dict["losses"]]

    def restore(self, callbacks: Mapping[str, Any]) -> None:
        """Take up what the last checkpoint holds, where no training does that; runs of older versions hold nothing."""
        if state := callbacks.get(self.state_key):
            self.load_state_dict(state)

    # --- when it is called

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.encoder is not None:
            self.encoder.to(pl_module.device)
        if trainer.global_step and self.every and self.base is None:
            warn("validation: this run was started without it, and the untuned base is gone; going on without")
            self.every = 0
        self._end_if_done(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.every and trainer.is_global_zero and trainer.global_step == 0 and not self.points:
            self._announce(trainer, pl_module)
            self._measure(trainer, pl_module, 0, score=True)
        self._since = time.monotonic()

    def _announce(self, trainer: Trainer, module: LightningModule) -> None:
        assert self.encoder is not None  # noqa: S101
        text = f"validation every {self.every} steps by {self.encoder.name}"
        if self.settings.validation.select == "best":
            each = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
            each *= machine.dtype(self.settings.save_precision).itemsize
            text += (
                f"; keeps up to {(int(trainer.max_steps) - 1) // self.every} x "
                f"{each / 2**20:.0f} MiB of weights until it is done"
            )
        note(text)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any = None, *_: Any) -> None:
        self.seconds["training"] += time.monotonic() - self._since
        super().on_train_batch_end(trainer, pl_module, outputs)

    def on_optimizer_step(self, trainer: Trainer, module: LightningModule, step: int, outputs: Any) -> None:
        if not self.every:
            return
        due = step % self.every == 0 or step >= trainer.max_steps
        if trainer.is_global_zero:
            self._measure(trainer, module, step, score=due)
        if due:
            self._end_if_done(trainer)

    def _measure(self, trainer: Trainer, module: LightningModule, step: int, score: bool) -> None:
        began, every = time.monotonic(), self.settings.validation.loss_every
        if every and (step % every == 0 or step >= trainer.max_steps):
            self._take_loss(trainer, module, step)
        if score:
            self._score(trainer, module, step)
        self.seconds["validation"] += time.monotonic() - began

    def _end_if_done(self, trainer: Trainer) -> None:
        done = self.settings.validation.stop_when_done and selection.finished(
            self.points, self.settings.validation.patience
        )
        if trainer.strategy.broadcast(done) and trainer.global_step < trainer.max_steps:
            note(f"step {trainer.global_step}: fidelity has stopped growing while the class drifts on; ending here")
            trainer.should_stop = True

    # --- what is measured

    def _take_loss(self, trainer: Trainer, module: Any, step: int) -> None:
        # Where schedule-free AdamW takes gradients is no model; beside a moving average what trains is one.
        seen = self.average.applied(module) if isinstance(self.average, ScheduleFree) else nullcontext()
        with seen:
            self.losses.append((step, deterministic_loss(module)))
        values = [loss for _, loss in self.losses]
        if not math.isfinite(values[-1]):
            raise NotFiniteError(f"training: the deterministic loss is {values[-1]} after step {step}")
        ratio = selection.variance_ratio(values, self._window)
        for logger in trainer.loggers:
            logger.log_metrics({"deterministic/loss": values[-1], "deterministic/variance_ratio": ratio}, step)

    def _score(self, trainer: Trainer, module: Any, step: int) -> None:
        with as_it_is(module, self.average if step else None) as model:
            pictures = generate_samples(model, self.prompts, self.images, self.size, "validation")
            # Apart, so that the others are sampled in the same batches with and without them.
            outside = self.outside and generate_samples(
                model, self.outside, self.images, self.size, "outside the class"
            )
        name = f"step-{step:06d}"
        sheet = save_samples(self.folder, name, self.prompts, pictures)
        log_picture(trainer, "validation", sheet, step, self.folder / f"{name}.png")
        embedded = self._embedded(pictures)
        if step == 0:
            self.base = torch.from_numpy(embedded)
        point = self._point(step, embedded)._replace(outside=self._outside(step, np.array(outside)))
        self.points = [*(known for known in self.points if known.step != step), point]
        measured = {
            "fidelity": float(np.mean(point.fidelity)),
            "prompt": float(np.mean(point.prompt)),
            "drift": point.drift,
        }
        if point.outside:
            measured["outside"] = float(np.mean(point.outside))
        for logger in trainer.loggers:
            logger.log_metrics({f"validation/{name}": value for name, value in measured.items()}, step)
        if step and self.settings.validation.select == "best":
            self._keep(trainer, module, step)
        self.write()

    @property
    def _window(self) -> int:
        """Deterministic losses that DVAR looks back at."""
        return max(2, WINDOW // max(self.settings.validation.loss_every, 1))

    @cached_property
    def _real(self) -> np.ndarray:
        """(N, D) embeddings of the photos."""
        assert self.encoder is not None  # noqa: S101
        return self.encoder.images(self.photos)

    def _embedded(self, pictures: np.ndarray) -> np.ndarray:
        """Embed pictures (P + 1, S, H, W, 3), the class last, as (2P + 1, S, D): last come those of the subject without
        their subject.
        """
        assert self.encoder is not None  # noqa: S101
        surroundings = np.array([[without_subject(one) for one in row] for row in pictures[:-1]])
        shown = np.concatenate([pictures, surroundings])
        return self.encoder.images(list(shown.reshape(-1, *shown.shape[2:]))).reshape(*shown.shape[:2], -1)

    def _outside(self, step: int, pictures: np.ndarray) -> tuple[float, ...]:
        """Save pictures of things outside the class (Q, S, H, W, 3), and measure how far each has moved from the
        base's; () without any.
        """
        if len(pictures):
            assert self.encoder is not None  # noqa: S101
            save_samples(self.folder / "outside", f"step-{step:06d}", self.outside, pictures)
            embedded = self.encoder.images(list(pictures.reshape(-1, *pictures.shape[2:])))
            if step == 0:
                self.base_outside = torch.from_numpy(embedded)
            assert self.base_outside is not None  # noqa: S101
            return _moved(embedded, self.base_outside.numpy())
        return ()

    def _point(self, step: int, embedded: np.ndarray) -> Point:
        assert self.encoder is not None  # noqa: S101
        assert self.base is not None  # noqa: S101
        base, prompts, seeds = self.base.numpy(), len(embedded) // 2, embedded.shape[1]
        subject = embedded[:prompts].reshape(prompts * seeds, -1)
        if self.encoder.texts:
            prompt = scores.prompt_fidelity(subject, np.repeat(self.encoder.texts(self.texts), seeds, axis=0))
        elif prompts > 1 and seeds > 1:
            # Whole pictures, most of which is now the subject, would match by what the base happened to put there.
            prompt = scores.prompt_match(embedded[prompts + 1 :], base[prompts + 1 :]).ravel()
        else:
            prompt = np.ones(prompts * seeds)  # one prompt or one seed: nothing to tell prompts apart by
        fidelity = scores.subject_fidelity(subject, self._real)
        moved = _moved(embedded[prompts], base[prompts])
        return Point(step, tuple(map(float, fidelity)), tuple(map(float, prompt)), float(np.array(moved).mean()), moved)

    # --- weights that may become the model

    def _weights(self, step: int) -> Path:
        return self.folder / "weights" / f"step-{step:06d}.safetensors"

    def _keep(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Keep the weights of this step if it is on the front, and drop those it has beaten; the last step's are in its
        checkpoint.
        """
        front = {point.step for point in selection.pareto_front(self.points[1:])}
        if step in front and step < trainer.max_steps:
            held = self.average.weights(module) if self.average is not None else trained(module).items()
            dtype = machine.dtype(self.settings.save_precision)
            kept = {name: value.detach().cpu().to(dtype).contiguous() for name, value in held}
            with atomic_file(self._weights(step)) as temporary:
                save_file(kept, temporary)
        for path in self._weights(0).parent.glob("step-*.safetensors"):
            if int(path.stem.removeprefix("step-")) not in front:
                path.unlink()

    def choose(self, last: int) -> Choice:
        """Choose the step whose weights become the model; `last` is the last step that was trained."""
        if self.settings.validation.select == "final":
            return Choice(last, "select final takes the last step", ())
        if not any(point.step for point in self.points):
            return Choice(last, "the run had no validation", ())
        held = [point for point in self.points if point.step in (0, last) or self._weights(point.step).is_file()]
        lost = {point.step for point in selection.pareto_front(self.points[1:])} - {point.step for point in held}
        if lost:
            warn(
                f"{self._weights(0).parent}: the weights of step {', '.join(map(str, sorted(lost)))} "
                "are gone; choosing from the others"
            )
        return selection.choose(held)

    def weights(self, step: int) -> dict[str, torch.Tensor] | None:
        """Read the kept weights of a step; None, with a warning, where they cannot be read."""
        try:
            return load_file(self._weights(step))
        except Exception as error:  # the file may be damaged in many ways
            warn(f"{self._weights(step)}: cannot be read ({type(error).__name__}); taking the last step instead")
            return None

    def remove_weights(self) -> None:
        """Remove the kept weights: once the model is written, the other steps on the front are no longer needed."""
        shutil.rmtree(self._weights(0).parent, ignore_errors=True)

    # --- what is written

    def curve(self) -> dict[str, Any]:
        """Give what validation.json holds."""
        assert self.encoder is not None  # noqa: S101
        encoder = self.encoder
        count = selection.converged([loss for _, loss in self.losses], self._window)
        return {
            "encoder": encoder.name,
            "weights": encoder.source,
            "prompts": self.prompts,
            "outside": self.outside,
            "prompt_fidelity": "prompt fidelity (CLIP-T)" if encoder.texts else "prompt match, without region",
            "photos": len(self.photos),
            "ceiling": float(scores.leave_one_out(self._real).mean()) if len(self.photos) > 1 else None,
            "points": self.state_dict()["points"],
            "deterministic": self.state_dict()["losses"],
            "dvar_step": self.losses[count - 1][0] if count else None,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }

    def summary(self) -> dict[str, Any] | None:
        """Give what run.json says of it: `share` is the time it took over that of the optimizer steps."""
        if not self.points:
            return None
        curve = self.curve()
        cost, training = self.seconds["validation"], self.seconds["training"]
        return {
            **{name: curve[name] for name in ("encoder", "prompt_fidelity", "photos", "dvar_step")},
            "every": self.every,
            "scored": len(self.points),
            "seconds": round(cost, 2),
            "share": round(cost / training, 4) if training else None,
        }

    def write(self, choice: Choice | None = None) -> Mapping[str, Any]:
        """Write validation.json and curve.svg; returns the former."""
        curve = self.curve()
        write_json(self.folder / "validation.json", curve)
        charts.write(self.folder / "curve.svg", curve, choice)
        return curve


def _moved(now: np.ndarray, before: np.ndarray) -> tuple[float, ...]:
    """Measure 1 - cosine of each row of `now` (N, D) with its own of `before`, from 0."""
    return tuple(map(float, np.maximum(1 - np.diag(scores.cosines(now, before)), 0.0)))
