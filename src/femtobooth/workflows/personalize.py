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

from dataclasses import dataclass, replace
from pathlib import Path

from lightning.pytorch import Trainer

from ..core import config, locks, older_runs
from ..core.errors import PhotoError, SettingsError, command
from ..core.event_log import remembering
from ..core.events import note, stage, table, warn
from ..core.files import sha256_of, sweep, write_json, write_text
from ..core.names import shown, stored
from ..core.paths import expanded
from ..core.processes import rank
from ..core.run import SETTINGS_FILE, Progress
from ..generator import kohya_folders, locate, prior, sampling, tokens
from ..generator.captions import class_captions, fitted, of_class
from ..generator.dreambooth import DreamBooth
from ..generator.families.family import Family
from ..generator.latents import Latents
from ..generator.load import load
from ..generator.memory import peak_memory
from ..generator.photos import Photo, hold_out, load_photos
from ..generator.prompts import filled, warn_of_unseen
from ..generator.run import SUBJECT, PersonalizedRun, Subject
from ..generator.samples import Samples
from ..generator.settings import PersonalizeSettings
from ..generator.stored_photos import crops_sheet, mask_place, store_photos
from ..generator.subject_crops import CROPS
from ..judging.encoders import Encoder
from ..pictures.images import find_pictures
from ..pictures.squares import Shape, shapes_of
from ..training import averages, trainer
from ..training.optimizers import KINDS
from ..training.session import fit
from ..training.settings import ResumeSettings
from . import report
from .personalizing import outcome, told, validation, verdicts
from .personalizing.training_data import latents


@dataclass(frozen=True)
class Task:
    """All that training needs: found before it, or read from the run that goes on."""

    settings: PersonalizeSettings
    model: Family
    token: str
    photos: list[Photo]
    held_out: list[Photo]
    size: int
    encoder: Encoder | None
    """What scores during training, in the first process."""

    def fill(self, prompt: str) -> str:
        """Put identifier and class noun into a prompt."""
        return filled(prompt, self.token, self.settings.photos.class_noun)


@remembering
def run(settings: PersonalizeSettings) -> PersonalizedRun:
    """Personalize a base from the start; returns the run, finished where this is its first process.

    Raises InputError kinds before anything is written.
    """
    settings = _settled(settings)
    output, noun = PersonalizedRun.place(settings), settings.photos.class_noun
    if rank() == 0:
        output.check()
    if settings.base == locate.BUNDLED:
        note(f"{verdicts.UNKNOWN_BASE}\n")
    with stage("base"):
        model = load(settings.base, settings.tokenizer)
        _check(settings, model)
    size = settings.size or model.size
    with stage("photos"):
        for line in kohya_folders.told(settings.photos.paths, settings.prior.folder):
            note(line)
        photos, preflight = load_photos(settings.photos, size, _shapes(settings, model, size))
        photos, held_out = hold_out(photos, settings.photos.hold_out)
        told.shapes(settings, photos)
        encoder = _encoder(settings, [*photos, *held_out])
        _warn_of_masks(settings, photos)
    with stage("identifier"):
        token = _identifier(model, settings)
    photos = _fitted(photos, model, token, noun)
    _check_of_class(photos, settings, model, token)
    _warn_of_unseen(model, settings, token)
    task = Task(settings, model, token, photos, held_out, size, encoder)
    if rank():
        return _train(output.path, None, task)
    for row in preflight:
        row["status"] = "held out" if row["file"] in {stored(photo.path) for photo in held_out} else row["status"]

    def begin(folder: Path) -> None:
        write_text(folder / SETTINGS_FILE, config.dump(settings.model_copy(update={"overwrite": False})))
        write_json(folder / "preflight.json", preflight)
        often = [photo.repeats for photo in photos]
        places = [path.relative_to(folder) for path in store_photos(photos, folder / "photos")]
        masks = [mask_place(path) for path, photo in zip(places, photos, strict=True) if photo.mask is not None]
        kept, masked = ([path.as_posix() for path in some] for some in (places, masks))
        if held_out:
            store_photos(held_out, folder / "held_out")
        PersonalizedRun.create(
            folder,
            settings,
            subjects={
                SUBJECT: Subject(
                    token=token,
                    class_noun=noun,
                    photos=kept,
                    repeats=often if set(often) != {1} else [],
                    masks=masked,
                )
            },
            base=settings.base,
            base_hash=model.hash,
            size=size,
            held_out=[photo.path.name for photo in held_out],
            progress=Progress(steps=settings.training.steps),
        )
        crops_sheet([*photos, *held_out], settings.loss.background).save(folder / CROPS)

    with output.claimed(begin) as folder, PersonalizedRun.open(folder).working() as run:
        if held_out:
            note(f"kept out of training, to score against: {', '.join(shown(photo.path.name) for photo in held_out)}\n")
        note(f"run folder: {folder}")
        note(f"the photos as they are trained on: {folder / CROPS}\n")
        return _train(folder, run, task)


def resume(settings: ResumeSettings) -> PersonalizedRun:
    """Go on with an interrupted run exactly where its newest good checkpoint stands."""
    folder = Path(settings.run)
    run = PersonalizedRun.open(folder)
    if run.status == "done":
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
            return _train(folder, run, _task_of(run))


def _task_of(run: PersonalizedRun) -> Task:
    settings = run.settings_to_resume(PersonalizeSettings)
    model, photos, held_out = run.load_base(settings), run.photos(), run.held_out_photos()
    encoder = _encoder(settings, [*photos, *held_out])
    return Task(settings, model, run.subject.token, photos, held_out, run.size, encoder)


def _settled(settings: PersonalizeSettings) -> PersonalizeSettings:
    """Make paths absolute, so that config.yaml means the same from any folder; and leave out a prior that could teach
    nothing.
    """

    def absolute(text: str | None) -> str | None:
        return str(expanded(text).resolve()) if text and expanded(text).exists() and text != locate.BUNDLED else text

    given = settings.photos
    update = {"paths": [absolute(path) for path in given.paths], "mask_model": absolute(given.mask_model)}
    photos = given.model_copy(update=update)
    prior = settings.prior.model_copy(update={"folder": absolute(settings.prior.folder)})
    if settings.train.parts == ["token"] and prior.weight:
        note("class preservation: none, as class prompts do not hold the only word that trains")
        prior = prior.model_copy(update={"weight": 0.0})
    paths = {"base": absolute(settings.base), "tokenizer": absolute(settings.tokenizer)}
    return settings.model_copy(update={"photos": photos, "prior": prior, **paths})


def _check(settings: PersonalizeSettings, model: Family) -> None:
    """Raise what else would be found only when class images are drawn or training begins."""
    settings.refuse_at_once()
    trainer.check(settings.training)
    sampling.check(model, settings.samples.sampling, "samples.sampling")
    if settings.prior.uses_images and (settings.prior.folder is None or settings.prior.other_classes):
        sampling.check(model, settings.prior.sampling, "prior.sampling")
    if validation.interval(settings):
        sampling.check(model, validation.image_settings(settings).sampling, "validation")
    _refuse_too_strong_a_pull(settings)
    second = [name for name in settings.rates if "text_encoder_2" in name]
    if second and "text_encoder_2" not in model.text_encoders:
        raise SettingsError(f"`{second[0]}`: {settings.base} has one text encoder", "leave it out")
    if settings.prior.uses_images and settings.prior.folder:
        pictures = find_pictures([settings.prior.folder])[0]
        if not pictures:
            raise PhotoError(
                f"`prior.folder={settings.prior.folder}`: no picture in it", "leave it out to have class images drawn"
            )
        class_captions(pictures)


def _shapes(settings: PersonalizeSettings, model: Family, size: int) -> list[Shape]:
    """List the buckets that photos may be put in; none where all become squares. Raises SettingsError for the square
    alone.
    """
    if settings.photos.shapes == "square":
        return []
    found = shapes_of(size, model.step, settings.photos.max_aspect)
    if len(found) == 1:
        raise SettingsError(
            f"`photos.shapes=buckets`: at {size} px, in steps of this base's {model.step}, there is no shape but the "
            f"square up to {settings.photos.max_aspect:g}:1",
            "give a larger `size` or `photos.max_aspect`, or leave it out",
        )
    return found


def _refuse_too_strong_a_pull(settings: PersonalizeSettings) -> None:
    """Raise SettingsError where every step would take all that was learned away again."""
    name, rate = max(settings.rates.items(), key=lambda item: item[1])
    if not KINDS[settings.training.optimizer].multiplies and settings.prior.weights * rate >= 1:
        raise SettingsError(
            f"`prior.weights={settings.prior.weights:g}`: with `{name}={rate:g}` every step takes back "
            "all that was learned",
            f"give far less than {1 / rate:g}, such as {0.01 / rate:.1g}",
        )


def _check_of_class(photos: list[Photo], settings: PersonalizeSettings, model: Family, token: str) -> None:
    """Tell the captions that photos have as pictures of their class, where that is asked for. Raises PhotoError."""
    if settings.prior.weight and settings.prior.target == "photos":
        named = [(photo.path, photo.captions) for photo in photos]
        found = of_class(named, model.tokenizer, token, settings.photos.class_noun)
        texts = list(dict.fromkeys(text for own in found for text in own))
        more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
        note(f"the photos as any {settings.photos.class_noun}: {'; '.join(map(repr, texts[:3]))}{more}\n")


def _encoder(settings: PersonalizeSettings, photos: list[Photo]) -> Encoder | None:
    """Open what scores during training, in the first process.

    Raises ModelError where it is missing or was trained on these photos.
    """
    encoder = validation.chosen_encoder(settings) if rank() == 0 else None
    if encoder:
        encoder.refuse_trained_on(sha256_of(photo.path) for photo in photos)
    return encoder


def _fitted(photos: list[Photo], model: Family, token: str, noun: str) -> list[Photo]:
    """Fit the captions of photos, so that the text encoder reads the identifier."""
    captions = fitted([(photo.path, photo.captions) for photo in photos], model.tokenizer, token, noun)
    return [replace(photo, captions=ours) for photo, ours in zip(photos, captions, strict=True)]


def _warn_of_masks(settings: PersonalizeSettings, photos: list[Photo]) -> None:
    """Say which photos count whole, where others have masks, or where a weight outside of masks was set."""
    whole = [shown(photo.path.name) for photo in photos if photo.mask is None]
    if settings.loss.background == "class" or not whole:
        return
    if len(whole) < len(photos):
        warn(f"without a mask, so that all of it counts: {', '.join(whole)}")
    elif settings.loss.unmasked_weight:
        warn("`loss.unmasked_weight` has no effect: no photo has a mask")


def _warn_of_unseen(model: Family, settings: PersonalizeSettings, token: str) -> None:
    """Name the words of the class noun and of what will be drawn that a small base has never seen."""
    noun = settings.photos.class_noun
    texts = [noun, *settings.samples.prompts, *settings.validation.prompts, *prior.prompts(settings.prior, noun)]
    texts += validation.outside_prompts(settings) if validation.interval(settings) else []
    warn_of_unseen([filled(text, "", noun) for text in texts], model.tokenizer)


def _identifier(model: Family, settings: PersonalizeSettings) -> str:
    noun, wanted = settings.photos.class_noun, settings.identifier.token
    if wanted != "auto":
        found = tokens.check(model, wanted, noun)
        adds_it = "token" in settings.train.parts and len(found.pieces) > 1
        for text in [] if adds_it else found.warnings:
            warn(text)
        return wanted
    best = tokens.choose(model, noun)
    table(
        "Identifier: rare single tokens, least meaning first (1 = the effect of an everyday word)",
        ["token", ">response"],
        [(one.token, f"{one.response:.2f}") for one in best],
    )
    return best[0].token


def _train(folder: Path, run: PersonalizedRun | None, task: Task) -> PersonalizedRun:
    """Train the model from the newest checkpoint or from the start, then write the result; `run` is the first
    process's.
    """
    settings, training = task.settings, task.settings.training

    def prepare(lightning: Trainer) -> tuple[Latents, Latents | None]:
        return latents(lightning, settings, task.model, task.token, task.photos, task.size)

    module = DreamBooth(task.model, settings, task.token, prepare)
    told.what_trains(module)
    prompts = [task.fill(prompt) for prompt in settings.samples.prompts]
    average = averages.average_of(training)
    scored = [photo.pixels for photo in task.held_out or task.photos]
    validator = validation.Validator(
        folder / "validation", settings, task.encoder, scored, task.fill, task.size, average
    )
    samples = Samples(folder / "samples", prompts, settings.samples, task.size, average)
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
        if run is None:
            return PersonalizedRun.open(folder)
        run.update(
            trained_steps=fitted.step,
            peak_memory_gib=round(peak_memory(fitted.device) / 2**30, 2),
        )
        with stage("result"):
            return outcome.write(run, settings, module, fitted, validator, task.photos, prompts)


def _calmer(settings: PersonalizeSettings) -> str:
    """Say what to try where training left the finite numbers."""
    named = [f"`{name}` (it was {rate:g})" for name, rate in settings.rates.items()]
    return f"train again with a lower {' or '.join(named)}, or fewer steps"
