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
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import load_file, save_file

from ...core import machine
from ...core.errors import NotFiniteError
from ...core.events import note, warn
from ...core.files import atomic_file, write_json
from ...generator import taught
from ...generator.deterministic import deterministic_loss
from ...generator.prompts import of_templates
from ...generator.samples import as_it_is, generate_samples, save_samples
from ...generator.settings import PersonalizeSettings
from ...generator.taught import Taught
from ...judging import scores, selection
from ...judging.encoders import Encoder
from ...judging.selection import Choice, Point
from ...pages import validation as charts
from ...pictures.regions import without_subject
from ...training.averages import Average, ScheduleFree, trained
from ...training.callbacks import StepCallback
from ...training.tracking import log_picture
from .scored import Scored, image_settings, interval, outside_prompts, scored_of

WINDOW = 100  # optimizer steps over which DVAR looks back


class Validator(StepCallback):
    """Scores every `interval` steps and after the last, in the first process only. Its state travels in the
    checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        settings: PersonalizeSettings,
        encoder: Encoder | None,
        subjects: Mapping[str, Taught],
        size: int,
        average: Average | None,
    ) -> None:
        self.folder, self.settings, self.encoder, self.size, self.average = folder, settings, encoder, size, average
        self.every, self.images = interval(settings), image_settings(settings)
        self.subjects = scored_of(settings, subjects) if self.every else []
        self.classes = [one.text for one in of_templates([settings.prior.prompt], taught.called(subjects))]
        self.prompts = [*(prompt.text for one in self.subjects for prompt in one.prompts), *self.classes]
        self.outside = outside_prompts(settings)
        self.points: list[Point] = []
        self.base: torch.Tensor | None = None  # (2P + C, S, D) what `_embedded` makes of the untuned base's pictures
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
        self.points = [selection.point_of(row) for row in state_dict["points"]]
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
        if len(self.subjects) > 1:
            each = zip(self.subjects, point.split(point.fidelity), strict=True)
            measured |= {f"fidelity of {one.name}": float(part.mean()) for one, part in each}
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
    def _real(self) -> list[np.ndarray]:
        """(N, D) embeddings of the photos of each subject."""
        assert self.encoder is not None  # noqa: S101
        return [self.encoder.images(one.photos) for one in self.subjects]

    @cached_property
    def _ceilings(self) -> list[float | None]:
        """How alike the photos of each subject are; None for one photo."""
        assert self.encoder is not None  # noqa: S101
        found: list[float | None] = []
        for one, real in zip(self.subjects, self._real, strict=True):
            alone = float(scores.leave_one_out(real).mean()) if len(real) > 1 else None
            others = self.encoder.images(one.others) if one.others else None
            found.append(alone if others is None else float(scores.subject_fidelity(others, real).mean()))
        return found

    def _embedded(self, pictures: np.ndarray) -> np.ndarray:
        """Embed pictures (P + C, S, H, W, 3), the classes last, as (2P + C, S, D): last come those of subjects without
        their subject.
        """
        assert self.encoder is not None  # noqa: S101
        of_subjects = pictures[: -len(self.classes)]
        surroundings = np.array([[without_subject(one) for one in row] for row in of_subjects])
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
        base = self.base.numpy()
        fidelity: list[np.ndarray] = []
        prompt: list[np.ndarray] = []
        of: list[tuple[int, float, float]] = []
        total = len(self.prompts) - len(self.classes)
        apart, first = len(self.prompts), 0  # where pictures without their subject begin
        for one, real, ceiling in zip(self.subjects, self._real, self._ceilings, strict=True):
            rows = slice(first, first := first + len(one.prompts))
            around = slice(apart + rows.start, apart + rows.stop)
            likeness = scores.subject_fidelity(_flat(embedded[rows]), real)
            floor = float(scores.subject_fidelity(_flat(base[rows]), real).mean())
            fidelity.append(likeness)
            prompt.append(self._prompt_fidelity(one, embedded[rows], embedded[around], base[around]))
            of.append((len(likeness), floor, (1.0 if ceiling is None else ceiling) - floor))
        moved = [_moved(embedded[row], base[row]) for row in range(total, total + len(self.classes))]
        return Point(
            step,
            tuple(map(float, np.concatenate(fidelity))),
            tuple(map(float, np.concatenate(prompt))),
            max(float(np.array(part).mean()) for part in moved),
            tuple(one for part in moved for one in part),
            of=tuple(of) if len(of) > 1 else (),
        )

    def _prompt_fidelity(
        self, subject: Scored, pictures: np.ndarray, around: np.ndarray, around_base: np.ndarray
    ) -> np.ndarray:
        """Measure how far each picture of a subject shows what its prompt asks for: (P, S, D) -> (P S,)."""
        assert self.encoder is not None  # noqa: S101
        prompts, seeds = pictures.shape[:2]
        if self.encoder.texts:
            texts = self.encoder.texts([one.bare for one in subject.prompts])
            return scores.prompt_fidelity(_flat(pictures), np.repeat(texts, seeds, axis=0))
        if prompts > 1 and seeds > 1:
            # Whole pictures, most of which is now the subject, would match by what the base happened to put there.
            return scores.prompt_match(around, around_base).ravel()
        return np.ones(prompts * seeds)  # one prompt or one seed: nothing to tell prompts apart by

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
            "photos": sum(len(one.photos) for one in self.subjects),
            "ceiling": self._ceilings[0] if len(self.subjects) == 1 else None,
            **({"subjects": self._told()} if len(self.subjects) > 1 else {}),
            "points": self.state_dict()["points"],
            "deterministic": self.state_dict()["losses"],
            "dvar_step": self.losses[count - 1][0] if count else None,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }

    def _told(self) -> list[dict[str, Any]]:
        """Say of each of several subjects what its charts need to know."""
        return [
            {"name": one.name, "prompts": len(one.prompts), "photos": len(one.photos), "ceiling": ceiling}
            for one, ceiling in zip(self.subjects, self._ceilings, strict=True)
        ]

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


def _flat(grid: np.ndarray) -> np.ndarray:
    """Reshape (P, S, D) to (P S, D)."""
    return grid.reshape(-1, grid.shape[-1])


def _moved(now: np.ndarray, before: np.ndarray) -> tuple[float, ...]:
    """Measure 1 - cosine of each row of `now` (N, D) with its own of `before`, from 0."""
    return tuple(map(float, np.maximum(1 - np.diag(scores.cosines(now, before)), 0.0)))
