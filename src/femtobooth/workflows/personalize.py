"""photos -> class images -> DreamBooth training -> run folder with a model that draws the subject.

runs/NAME/config.yaml       every setting, resolved; `--config` with it repeats the run
          run.json          what was found and done: identifier, base, photos, versions, status
          photos/           the photos as they are trained on, with captions and masks
          preflight.json    what was found in the photo folder
          logs/             metrics.csv, TensorBoard
          samples/          the same prompts and seeds every N steps
          validation/       how alike, how obedient and how drifted the model was at every N steps, and the curve of it
          held_out/         photos that were kept out of training (photos.hold_out)
          checkpoints/      to resume from
          overview.png      photos, before, after
          report.html       all of it on one page
          model/            the result: in diffusers' layout, or an adapter (generator/adapted_folder.py)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from ..core import config, locks, older_runs
from ..core.errors import ModelError, PhotoError, command
from ..core.event_log import remembering
from ..core.events import note, stage, warn
from ..core.files import sha256_of, sweep, write_json, write_text
from ..core.names import shown, stored
from ..core.paths import expanded
from ..core.processes import rank
from ..core.run import SETTINGS_FILE, Progress
from ..generator import kohya_folders, locate, prior, taught
from ..generator.dreambooth import DreamBooth
from ..generator.families.family import Family
from ..generator.latents import Latents
from ..generator.load import load
from ..generator.memory import peak_memory
from ..generator.photos import Photo, hold_out, load_photos
from ..generator.prompts import Prompt, bare, filled, of_templates, warn_of_unseen
from ..generator.run import PersonalizedRun, Subject
from ..generator.samples import Samples
from ..generator.settings import PersonalizeSettings
from ..generator.stored_photos import crops_sheet, mask_place, store_photos
from ..generator.subject_crops import CROPS
from ..generator.taught import Taught
from ..judging.encoders import Encoder
from ..pictures.crops import Shape
from ..pictures.sheets import stacked
from ..training import averages, team, trainer
from ..training.session import Fitted, fit
from ..training.settings import ResumeSettings
from ..training.team import Team
from . import report, training_on_ray
from .personalizing import checks, outcome, scored, told, validation, verdicts
from .personalizing.training_data import latents


@dataclass(frozen=True)
class Task:
    """All that training needs: found before it, or read from the run that goes on."""

    settings: PersonalizeSettings
    model: Family
    subjects: dict[str, Taught]
    """By name."""
    size: int
    encoder: Encoder | None
    """What scores during training, in the first process."""

    @property
    def photos(self) -> list[Photo]:
        """Those of all subjects that are trained on."""
        return [photo for one in self.subjects.values() for photo in one.photos]

    @property
    def held_out(self) -> list[Photo]:
        """Those of all subjects that are kept out of training."""
        return [photo for one in self.subjects.values() for photo in one.held_out]


@dataclass(frozen=True)
class Sent:
    """What the first process of several tells the others, which need nothing of its disk but the base."""

    folder: Path
    settings: PersonalizeSettings
    base_hash: str
    subjects: dict[str, Taught]
    size: int


@remembering
def run(settings: PersonalizeSettings) -> PersonalizedRun:
    """Personalize a base from the start; returns the run, finished unless Lightning started this process.

    Raises InputError kinds before anything is written.
    """
    with training_on_ray.started("personalize", settings):
        return team.trained(
            partial(_begin, settings), Sent, lambda sent: _follow(sent, _settled(settings)), PersonalizedRun
        )


def _begin(settings: PersonalizeSettings, ours: Team) -> PersonalizedRun:
    settings = _settled(settings)
    output = PersonalizedRun.place(settings)
    if rank() == 0:
        output.check()
    if settings.base == locate.BUNDLED:
        note(f"{verdicts.UNKNOWN_BASE}\n")
    with stage("base"):
        model = load(settings.base, settings.tokenizer, held=settings.train.held)
        checks.check(settings, model)
    size = settings.size or model.size
    with stage("photos"):
        found, preflight = _photos(settings, size, checks.shapes(settings, model, size))
        photos, held_out = ([photo for pair in found.values() for photo in pair[which]] for which in (0, 1))
        told.shapes(settings, photos)
        encoder = _encoder(settings, [*photos, *held_out])
        _warn_of_masks(settings, photos)
    with stage("identifier"):
        tokens = taught.identifiers(model, settings)
    subjects = {name: Taught(one, tokens[name], *found[name]) for name, one in settings.each.items()}
    subjects = taught.captioned(model, subjects)
    taught.tell_of_class(model, subjects)
    _warn_of_unseen(model, settings)
    task = Task(settings, model, subjects, size, encoder)
    _prompts_of(task)
    if rank():
        return _train(output.path, None, task)

    def begin(folder: Path) -> None:
        write_text(folder / SETTINGS_FILE, config.dump(settings.model_copy(update={"overwrite": False})))
        write_json(folder / "preflight.json", preflight)
        PersonalizedRun.create(
            folder,
            settings,
            subjects=_stored(folder, subjects),
            base=settings.base,
            base_hash=model.hash,
            size=size,
            held_out=[photo.path.name for photo in held_out],
            progress=Progress(steps=settings.training.steps),
        )
        sheets = [crops_sheet([*one.photos, *one.held_out], settings.loss.background) for one in task.subjects.values()]
        (stacked(sheets) if len(sheets) > 1 else sheets[0]).save(folder / CROPS)

    with output.claimed(begin) as folder, PersonalizedRun.open(folder).working() as run:
        if held_out:
            note(f"kept out of training, to score against: {', '.join(shown(photo.path.name) for photo in held_out)}\n")
        note(f"run folder: {folder}")
        note(f"the photos as they are trained on: {folder / CROPS}\n")
        ours.share(Sent(folder, settings, model.hash, subjects, size))
        return _train(folder, run, task)


def _follow(sent: Sent | None, own: PersonalizeSettings | None = None) -> None:
    """Train as the first process says, with the base of this machine. Raises ModelError where that is another."""
    if sent is None:  # the run is finished
        return
    own = own or sent.settings
    model = load(own.base, own.tokenizer, held=sent.settings.train.held)
    if model.hash != sent.base_hash:
        raise ModelError(f"{own.base}: not the base of the first machine", "put the same files on every machine")
    with _trained(sent.folder, None, Task(sent.settings, model, sent.subjects, sent.size, None)):
        pass  # the rest is the first process's


def resume(settings: ResumeSettings) -> PersonalizedRun:
    """Go on with an interrupted run exactly where its newest good checkpoint stands."""
    with training_on_ray.resumed(settings, PersonalizedRun, PersonalizeSettings):
        return team.trained(partial(_go_on, Path(settings.run)), Sent, _follow, PersonalizedRun)


def _go_on(folder: Path, ours: Team) -> PersonalizedRun:
    run = PersonalizedRun.open(folder)
    if run.status == "done":
        ours.share(None)
        note(f"{folder} is finished already; its model is in {folder / 'model'}")
        if not (folder / "report.html").is_file():  # it was stopped in the last moment
            report.write(folder)
        return run
    if rank():
        return _train(folder, None, _task_of(run))
    with locks.held(folder):
        sweep(folder)
        older_runs.bring_up(folder)
        with PersonalizedRun.open(folder).working() as run:
            task = _task_of(run)
            ours.share(Sent(folder, task.settings, run.base_hash, task.subjects, task.size))
            return _train(folder, run, task)


def _task_of(run: PersonalizedRun) -> Task:
    settings = run.settings_to_resume(PersonalizeSettings)
    model, photos = run.load_base(settings, settings.train.held), run.photos_of_each()
    encoder = _encoder(settings, [photo for pair in photos.values() for some in pair for photo in some])
    each = settings.each
    subjects = {name: Taught(each[name], one.token, *photos[name]) for name, one in run.subjects.items()}
    return Task(settings, model, subjects, run.size, encoder)


def _photos(
    settings: PersonalizeSettings, size: int, shapes: Sequence[Shape]
) -> tuple[dict[str, tuple[list[Photo], list[Photo]]], list[dict[str, Any]]]:
    """Load the photos of each subject: those to train on and those kept out of it; and the rows of all their files.

    Raises PhotoError where two subjects share a photo.
    """
    found, rows = {}, []
    whose: dict[bytes, str] = {}
    for name, one in settings.each.items():
        for line in kohya_folders.told(one.photos.paths, settings.prior.folder):
            note(line)
        title = f"photos of {name}" if settings.subjects else "photos"
        photos, preflight = load_photos(one.photos, size, shapes, title)
        if name in settings.subjects:
            often = settings.subjects[name].repeats
            photos = [replace(photo, repeats=photo.repeats * often) for photo in photos]
        for photo in photos if settings.subjects else ():
            if (other := whose.setdefault(photo.pixels.tobytes(), name)) != name:
                raise PhotoError(
                    f"{shown(photo.path.name)}: is a photo of {other} and of {name}", "give it to one of them"
                )
        found[name] = hold_out(photos, settings.photos.hold_out)
        kept = {stored(photo.path) for photo in found[name][1]}
        for row in preflight:
            row["status"] = "held out" if row["file"] in kept else row["status"]
        rows += [{**row, "subject": name} for row in preflight] if settings.subjects else preflight
    return found, rows


def _stored(folder: Path, subjects: Mapping[str, Taught]) -> dict[str, Subject]:
    """Write the photos of all subjects into a run folder; returns what run.json says of them."""
    photos, held_out = (
        [photo for one in subjects.values() for photo in some(one)]
        for some in (lambda one: one.photos, lambda one: one.held_out)
    )
    places = iter(store_photos(photos, folder / "photos"))
    kept = iter(store_photos(held_out, folder / "held_out") if held_out else [])
    found = {}
    for name, one in subjects.items():
        ours = [(next(places).relative_to(folder), photo) for photo in one.photos]
        often = [photo.repeats for photo in one.photos]
        found[name] = Subject(
            token=one.token,
            class_noun=one.called.noun,
            photos=[path.as_posix() for path, _ in ours],
            repeats=often if set(often) != {1} else [],
            masks=[mask_place(path).as_posix() for path, photo in ours if photo.mask is not None],
            held_out=[next(kept).relative_to(folder).as_posix() for _ in one.held_out],
        )
    return found


def _settled(settings: PersonalizeSettings) -> PersonalizeSettings:
    """Make paths absolute, so that config.yaml means the same from any folder; and leave out a prior that could teach
    nothing.
    """

    def absolute(text: str | None) -> str | None:
        return str(expanded(text).resolve()) if text and expanded(text).exists() and text != locate.BUNDLED else text

    given = settings.photos
    update = {"paths": [absolute(path) for path in given.paths], "mask_model": absolute(given.mask_model)}
    photos = given.model_copy(update=update)
    subjects = {
        name: one.model_copy(update={"paths": [absolute(path) for path in one.paths]})
        for name, one in settings.subjects.items()
    }
    prior = settings.prior.model_copy(update={"folder": absolute(settings.prior.folder)})
    if settings.train.parts == ["token"] and prior.weight:
        note("class preservation: none, as class prompts do not hold the only word that trains")
        prior = prior.model_copy(update={"weight": 0.0})
    paths = {"base": absolute(settings.base), "tokenizer": absolute(settings.tokenizer)}
    return settings.model_copy(update={"subjects": subjects, "photos": photos, "prior": prior, **paths})


def _encoder(settings: PersonalizeSettings, photos: list[Photo]) -> Encoder | None:
    """Open what scores during training, in the first process.

    Raises ModelError where it is missing or was trained on these photos.
    """
    encoder = scored.chosen_encoder(settings) if rank() == 0 else None
    if encoder:
        encoder.refuse_trained_on(sha256_of(photo.path) for photo in photos)
    return encoder


def _warn_of_masks(settings: PersonalizeSettings, photos: list[Photo]) -> None:
    """Say which photos count whole, where others have masks, or where a weight outside of masks was set."""
    whole = [shown(photo.path.name) for photo in photos if photo.mask is None]
    if settings.loss.background == "class" or not whole:
        return
    if len(whole) < len(photos):
        warn(f"without a mask, so that all of it counts: {', '.join(whole)}")
    elif settings.loss.unmasked_weight:
        warn("`loss.unmasked_weight` has no effect: no photo has a mask")


def _warn_of_unseen(model: Family, settings: PersonalizeSettings) -> None:
    """Name the words of the class nouns and of what will be drawn that a small base has never seen."""
    texts = []
    for noun in settings.nouns:
        prompts = [*settings.samples.prompts, *settings.validation.prompts, *prior.prompts(settings.prior, noun)]
        texts += [filled(bare(text), "", noun) for text in (noun, *prompts)]
    texts += scored.outside_prompts(settings) if scored.interval(settings) else []
    warn_of_unseen(texts, model.tokenizer)


def _prompts_of(task: Task) -> list[Prompt]:
    """Make the prompts of the samples. Raises SettingsError for one that could mean any of several subjects."""
    return of_templates(task.settings.samples.prompts, taught.called(task.subjects))


def _train(folder: Path, run: PersonalizedRun | None, task: Task) -> PersonalizedRun:
    """Train the model, then write the result; `run` is the first process's."""
    with _trained(folder, run, task) as made:
        if run is None:
            return PersonalizedRun.open(folder)
        module, fitted, validator, prompts = made
        run.update(
            trained_steps=fitted.step,
            peak_memory_gib=round(peak_memory(fitted.device) / 2**30, 2),
        )
        with stage("result"):
            return outcome.write(run, task.settings, module, fitted, validator, task.subjects, prompts)


@contextmanager
def _trained(
    folder: Path, run: PersonalizedRun | None, task: Task
) -> Iterator[tuple[DreamBooth, Fitted, validation.Validator, list[Prompt]]]:
    """Train the model from the newest checkpoint or from the start; yields it with what that came to."""
    settings, training = task.settings, task.settings.training

    def prepare(lightning: Trainer) -> tuple[Latents, Latents | None]:
        return latents(lightning, settings, task.model, [*task.subjects.values()], task.size)

    module = DreamBooth(task.model, settings, {one.token: one.called.noun for one in task.subjects.values()}, prepare)
    told.what_trains(module)
    prompts, average = _prompts_of(task), averages.average_of(training)
    validator = validation.Validator(folder / "validation", settings, task.encoder, task.subjects, task.size, average)
    samples = Samples(folder / "samples", [one.text for one in prompts], settings.samples, task.size, average)
    with fit(
        module,
        training,
        folder,
        [*([average] if average else []), validator],
        [samples, trainer.StepBar()],
        way_out=command("personalize", "--resume", folder),
        calmer=_calmer(settings),
        run=run,
        hyperparameters=settings.model_dump(),
    ) as fitted:
        yield module, fitted, validator, prompts


def _calmer(settings: PersonalizeSettings) -> str:
    """Say what to try where training left the finite numbers."""
    named = [f"`{name}` (it was {rate:g})" for name, rate in settings.rates.items()]
    return f"train again with a lower {' or '.join(named)}, or fewer steps"
