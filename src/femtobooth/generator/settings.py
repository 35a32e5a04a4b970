"""Settings of `personalize` and `generate`. The text under each field is its help on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from ..core.bulk.settings import BulkSettings
from ..core.config import Seed, Settings
from ..core.errors import shortened
from ..core.fields import Argument, Flag, Flags
from ..core.machine import FloatPrecision, WeightPrecision, size_in_bytes
from ..core.processes import world
from ..training.optimizers import KINDS, refuse_rates
from ..training.settings import HostSettings, TrainingSettings
from . import locate
from .cards import Recommendable
from .lora_reference import Loras
from .loss_settings import LossSettings, PriorSettings
from .prompts import ONLY, names_subject
from .sampling_settings import Sampler, SamplingSettings
from .subject_settings import (
    IdentifierSettings,
    PhotoSettings,
    SubjectSettings,
    empty_faults,
    implied_by_folders,
    plain_names,
    refuse_missing_photos,
    without_parents,
)
from .train_settings import RATE, LoraSettings, TrainSettings, learning_rates, with_rates


class SampleSettings(Settings):
    every: Annotated[int, Flag("--sample-every", unit="steps")] = Field(100, ge=0)
    """Optimizer steps between sample sheets; 0 makes only the first and the last."""
    prompts: list[str] = [
        "a photo of a [V] {class}",
        "a [V] {class} on the beach",
        "a [V] {class} on the moon",
        "a photo of a {class}",
    ]
    """What the sample sheets show; [V] stands for the subject."""
    seed: Seed = 1000
    """Seed of the first column; each further column adds one."""
    images: Annotated[int, Flag(unit="pictures")] = Field(4, ge=1)
    """Pictures for each prompt."""
    batch_size: Annotated[int, Flag(unit="pictures")] = Field(4, ge=1)
    """Pictures sampled at a time, beside the optimizer's memory."""
    sampling: Annotated[SamplingSettings, Flags("samples", none=True)] = SamplingSettings()


class ValidationSettings(Settings):
    every: Annotated[int | None, Flag("--validate-every", unit="steps")] = Field(None, ge=0)
    """Optimizer steps between scorings of the weights; a sixth of the steps if not given, a third where select is final
    and stop_when_done is not set (runs under 30 steps are not scored); 0 never.
    """
    encoder: Annotated[str | None, Flag("--validation-encoder", names="path")] = None
    """What scores, as an encoder of `femtobooth evaluate`: if not given, tf_efficientnet_lite0 where its package is
    installed, else bundled.
    """
    select: Annotated[Literal["best", "final"], Flag("--select")] = "best"
    """What becomes model/: best is the checkpoint on the Pareto front by the rule in the report, final the last one."""
    stop_when_done: Annotated[bool, Flag("--stop-when-done")] = False
    """End training once fidelity has stopped growing while the class drifts on."""
    patience: Annotated[int, Flag(unit="scorings")] = Field(3, ge=1)
    """Scorings without a gain in fidelity before training may end; it can dip and recover."""
    prompts: list[str] = Field(
        ["a [V] {class}", "a [V] {class} on the grass", "a [V] {class} in the city"], min_length=1
    )
    """What is generated and scored, beside pictures of the class (prior.prompt)."""
    outside: list[str] = ["a red apple on a table", "a house in the snow"]
    """What is generated to see whether things outside the class stay as they are; prompts that name the class are
    left out.
    """
    images: Annotated[int, Flag(unit="pictures")] = Field(2, ge=1)
    """Pictures for each prompt."""
    seed: Seed = 2000
    """Seed of the first picture; picture i of each prompt has seed + i."""
    sampler: Sampler = "dpmpp-2m"
    """Solver; guidance, its rescaling and the negative prompt are those of the samples."""
    steps: Annotated[int, Flag(unit="steps")] = Field(6, ge=1, le=999)
    """Denoising steps; few, as the same noise is drawn from every time."""
    loss_every: Annotated[int, Flag(unit="steps")] = Field(20, ge=0)
    """Optimizer steps between values of the deterministic loss (fixed photos, noise and timesteps) of a run with
    validation; 0 takes none.
    """

    @field_validator("outside")
    @classmethod
    def _outside(cls, prompts: list[str]) -> list[str]:
        for prompt in prompts:
            if names_subject(prompt) or "{class}" in prompt or "{token}" in prompt:
                raise ValueError(f"{shortened(repr(prompt))} names the subject or the class, and is to be outside it")
        return prompts

    def without_effect(self) -> dict[str, str]:
        """Name the setting of how long to wait with what is not done."""
        return (
            {} if self.stop_when_done else dict.fromkeys({"patience"} & self.model_fields_set, "without stop_when_done")
        )


class PersonalizeSettings(HostSettings):
    base: Annotated[str, Flag("--base", common=True, group="model", names="base")] = "bundled"
    """Model to start from: bundled, a folder, a single .safetensors or .ckpt file, or a hub id."""
    tokenizer: Annotated[str | None, Flag("--tokenizer", group="model", names="path")] = None
    """Tokenizer folder or hub id, for a single-file model without one."""
    size: Annotated[int | None, Flag("--size", unit="pixels", group="model")] = Field(None, ge=8, multiple_of=8)
    """Picture width and height in pixels; the base's own size if not given."""
    name: Annotated[str | None, Flag("--name", common=True, group="output")] = Field(None, pattern=r"^[^./\\][^/\\]*$")
    """Name of the run; made from class noun and time if not given."""
    runs: Annotated[str, Flag("--runs", group="output", names="path")] = "runs"
    """Folder that holds the runs."""
    overwrite: Annotated[bool, Flag("--overwrite", group="output")] = False
    """Replace a run of the same name; nothing that femtobooth did not write."""
    save_precision: Annotated[WeightPrecision, Flag("--save-precision", group="output")] = "fp32"
    """Number format of the weights in model/: fp32 loads anywhere as it is, fp16 is half the size."""
    plan: Annotated[bool, Flag("--plan", group="memory")] = Field(False, exclude=True)
    """Train nothing: say what each part and phase would need of memory, before any weights are loaded."""
    memory: Annotated[str | None, Flag("--memory", unit="size", group="memory")] = Field(None, exclude=True)
    """Memory to fit into, such as 8GiB: a plan then names the cheapest sets of savings that do."""
    subjects: Annotated[dict[str, SubjectSettings], Flag("--subject", unit="name=path:noun", group="subject")] = {}
    """Several subjects in one run, by the names that stand for them in prompts, as [V:rex]; in place of `photos.paths`
    and `photos.class_noun`.
    """
    photos: Annotated[PhotoSettings, Flags("subject")]
    identifier: Annotated[IdentifierSettings, Flags("subject")] = IdentifierSettings()
    prior: Annotated[PriorSettings, Flags("class images")] = PriorSettings()
    loss: Annotated[LossSettings, Flags("loss")] = LossSettings()
    train: Annotated[TrainSettings, Flags("what trains")] = TrainSettings()
    lora: Annotated[LoraSettings, Flags("LoRA (--train lora)")] = LoraSettings()
    samples: Annotated[SampleSettings, Flags("samples")] = SampleSettings()
    validation: Annotated[ValidationSettings, Flags("validation")] = ValidationSettings()
    training: Annotated[TrainingSettings, Flags("training")] = TrainingSettings()

    @model_validator(mode="before")
    @classmethod
    def _without_photos_of_one(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not given.get("subjects"):
            return given
        photos = given.get("photos", {})
        none = {"paths": [], "class_noun": ""}
        if isinstance(photos, Mapping):
            photos = {**none, **without_parents(photos, given["subjects"])}
        return {**given, "photos": photos}

    @field_validator("subjects")
    @classmethod
    def _plain_names(cls, subjects: dict[str, SubjectSettings]) -> dict[str, SubjectSettings]:
        plain_names(subjects)
        return subjects

    @field_validator("photos", mode="wrap")
    @classmethod
    def _of_one(cls, given: Any, handler: Callable[[Any], PhotoSettings], info: ValidationInfo) -> PhotoSettings:
        several = info.data.get("subjects", {"wrong": None})
        faults: list[Any] = [] if several or not isinstance(given, Mapping) else empty_faults(given)
        try:
            photos = handler(given)
        except ValidationError as error:
            faults += [{"ctx": {}, **one} for one in error.errors(include_url=False)]
        if faults:
            raise ValidationError.from_exception_data("photos", faults)
        if several and (photos.paths or photos.class_noun) and "wrong" not in several:
            raise ValueError("`subjects` says the photos and the noun of each; give these without others")
        return photos

    @field_validator("memory")
    @classmethod
    def _a_size(cls, memory: str | None) -> str | None:
        if memory is not None:
            size_in_bytes(memory)
        return memory

    @model_validator(mode="after")
    def _captions_hold_what_trains(self) -> PersonalizeSettings:
        if self.photos.caption_dropout and self.train.parts == ["token"]:
            raise ValueError("`photos.caption_dropout`: without a caption nothing reaches the word that trains")
        return self

    def without_effect(self) -> dict[str, str]:
        """Name everything about a LoRA, where none trains, and what masks bring, where there are none."""
        found = super().without_effect()
        if self.photos.mask == "none" and self.loss.background == "photos" and self.loss.unmasked_weight:
            found["loss.unmasked_weight"] = "with `photos.mask=none` and `loss.background=photos`"
        if self.subjects and self.identifier.token != IdentifierSettings().token:
            found["identifier.token"] = "beside `subjects`, each of which has its own (`token`)"
        if self.memory and not self.plan:
            found["memory"] = "without plan"
        if "lora" not in self.train.parts:
            found = {path: why for path, why in found.items() if not path.startswith("lora.")}
            found |= {f"lora.{name}": "without lora in train.parts" for name in sorted(self.lora.model_fields_set)}
        return found

    @model_validator(mode="after")
    def _rates_as_the_optimizer_wants(self) -> PersonalizeSettings:
        if KINDS[self.training.optimizer].multiplies:
            self.train, self.lora = with_rates(self.train, 1.0), with_rates(self.lora, 1.0)
        return self

    @property
    def each(self) -> dict[str, PersonalizeSettings]:
        """Give what each subject alone would be trained with, by name; `V` is the name of one without any."""
        if not self.subjects:
            return {ONLY: self}
        return {
            name: self.model_copy(
                update={
                    "subjects": {},
                    "photos": self.photos.model_copy(update={"paths": one.paths, "class_noun": one.class_noun}),
                    "identifier": IdentifierSettings(token=one.token),
                }
            )
            for name, one in self.subjects.items()
        }

    @property
    def nouns(self) -> list[str]:
        """List the class nouns, each once."""
        return list(dict.fromkeys(one.photos.class_noun for one in self.each.values()))

    @property
    def rates(self) -> dict[str, float]:
        """Give the learning rates of what trains, by their dotted names."""
        return learning_rates(self.train, self.lora)

    def refuse_at_once(self) -> None:
        """Raise InputError for what cannot be done here, and for learning rates that the optimizer cannot take."""
        super().refuse_at_once()
        refuse_rates(self.training.optimizer, self.rates)
        if world() == 1:  # else the first process reads them, and they travel
            refuse_missing_photos(self.subjects)

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Read what the base's own card says, but for what it says of another optimizer than the one that is given."""
        kind = KINDS[given.get("training", {}).get("optimizer", "adamw")]
        return {
            group: {
                name: value
                for name, value in values.items()
                if not (kind.multiplies and name.endswith(RATE)) and not (group == "training" and name in kind.instead)
            }
            if isinstance(values, Mapping)
            else values
            for group, values in of_card(given.get("base"), "personalize").items()
        }

    @classmethod
    def implied(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Read what kohya's folders say in their names. Raises SettingsError where that is not what is given."""
        return implied_by_folders(given)


class GenerateSettings(BulkSettings):
    run: Annotated[str, Argument("?", names="base", needed=True)] = Field(min_length=1)
    """A run folder, its model/, or anything that can be a base."""
    tokenizer: Annotated[str | None, Flag("--tokenizer", group="model", names="path")] = None
    """Tokenizer folder or hub id, for a single-file model without one."""
    loras: Annotated[Loras, Flag("--lora", common=True, group="model", names="path")] = []
    """A LoRA to sample with, and how strongly: FILE:0.8, or 1 without a number; a run that trained one does. Several
    add up.
    """
    prompts: Annotated[list[str], Argument("*", needed=True, unless="prompts_file")] = []
    """What to generate; [V] stands for the subject."""
    prompts_file: Annotated[str | None, Flag("--prompts", common=True, group="pictures", names="file")] = None
    """Text file with one prompt a line."""
    count: Annotated[int, Flag("-n", common=True, unit="pictures", group="pictures")] = Field(4, ge=1)
    """Pictures for each prompt."""
    seed: Annotated[Seed, Flag("--seed", common=True, group="pictures")] = 0
    """Seed of the first picture of each prompt; picture i has seed + i, whatever the batch."""
    batch_size: Annotated[int, Flag("--batch-size", unit="pictures", group="hardware")] = Field(4, ge=1)
    """Pictures sampled at a time; does not change them."""
    size: Annotated[str | None, Flag("--size", unit="pixels", group="pictures")] = None
    """Picture width and height in pixels, such as 768x512, or 512 for a square; the model's own if not given."""
    init_image: Annotated[str | None, Flag("--init-image", group="start picture", names="file")] = None
    """Picture to start from (img2img)."""
    strength: Annotated[float, Flag("--strength", unit="share", group="start picture")] = Field(0.7, gt=0, le=1)
    """How much of the start picture may change: towards 0 nothing, 1 everything."""
    mask: Annotated[str | None, Flag("--mask", group="start picture", names="file")] = None
    """Picture whose white parts are redrawn in `init_image` (inpainting), or `init_image` itself with a transparent
    hole.
    """
    precision: Annotated[FloatPrecision, Flag("--precision", group="hardware")] = "fp32"
    """Number format of the computation: fp32, fp16 or bf16."""
    device: Annotated[str, Flag("--device", common=True, group="hardware")] = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    out: Annotated[str | None, Flag("--out", common=True, group="output", names="path")] = None
    """Folder for the pictures; a new one under the run's images/ if not given."""
    overwrite: Annotated[bool, Flag("--overwrite", group="output")] = False
    """Replace a folder of pictures that generate wrote, and nothing else."""
    part_size: Annotated[int, Flag("--part-size", unit="pictures", group="cluster")] = Field(64, ge=1)
    """Pictures of one part: what a kill may lose, and is done again."""
    sampling: Annotated[SamplingSettings, Flags("sampling")] = SamplingSettings()

    @field_validator("size", mode="before")
    @classmethod
    def _width_and_height(cls, size: Any) -> Any:
        text = str(size) if isinstance(size, int) and not isinstance(size, bool) else size
        if not isinstance(text, str):
            return text
        found = re.fullmatch(r"([1-9]\d{0,4})(?:[xX]([1-9]\d{0,4}))?", text.strip())
        if found is None or int(found[1]) % 8 or int(found[2] or found[1]) % 8:
            raise ValueError(f"{shortened(repr(text))} is neither WIDTHxHEIGHT nor one side, in multiples of 8 pixels")
        return f"{found[1]}x{found[2] or found[1]}"

    def pixels(self, side: int) -> tuple[int, int]:
        """Give width and height in pixels: as wanted, or a square of this side where nothing is."""
        width, _, height = (self.size or f"{side}x{side}").partition("x")
        return int(width), int(height)

    def without_effect(self) -> dict[str, str]:
        """Name what a start picture brings, where there is none or nothing is left of it; and what sampling does not
        use.
        """
        found = super().without_effect()
        if not self.init_image:
            given = {"strength"} & self.model_fields_set
            return found | dict.fromkeys(given, "without a picture to start from (`init_image`)")
        if self.strength == 1 and not self.mask:
            found["init_image"] = "at strength 1, which leaves nothing of it"
        return found

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Read what the model's own card says."""
        return of_card(given.get("run"), "generate")


class AgainSettings(Settings):
    """What `generate` takes in place of its settings."""

    image: Annotated[str, Flag("--from", common=True, names="file")] = Field(min_length=1)
    """Generate the picture of a PNG again, from what is stored in it."""
    run: Annotated[str | None, Argument("?", names="base")] = None
    """Where the model that drew it is now; where the picture says if not given."""
    out: Annotated[str | None, Flag("--out", names="path")] = None
    """Folder for the picture; a new one under the run's images/ if not given."""
    overwrite: Annotated[bool, Flag("--overwrite")] = False
    """Replace a picture that generate wrote, and nothing else."""


# What a card may recommend, command by command: numbers, choices and prompts of sampling, training, prior and crops.
# Not what decides where something is read or written, what is replaced, what runs where or who is told of it; `*`
# stands for every setting of a group.
RECOMMENDABLE = (
    Recommendable(
        "personalize",
        PersonalizeSettings,
        (
            "size",
            *(f"photos.{key}" for key in ("crop", "flip", "captions", "caption_dropout")),
            *(f"prior.{key}" for key in ("weight", "weights", "images", "prompt", "target")),
            *(f"prior.{key}" for key in ("batch_size", "sampling.*")),
            "loss.*",
            "train.*",
            "lora.*",
            *(f"samples.{key}" for key in ("every", "prompts", "images", "sampling.*")),
            *(
                f"validation.{key}"
                for key in ("every", "select", "stop_when_done", "patience", "prompts", "outside", "images")
            ),
            *(f"validation.{key}" for key in ("sampler", "steps")),
            *(f"training.{key}" for key in ("steps", "batch_size", "accumulate", "clip", "schedule", "warmup", "ema")),
            *(f"training.{key}" for key in ("beta1", "beta2", "weight_decay", "epsilon")),
        ),
    ),
    Recommendable("generate", GenerateSettings, ("size", "sampling.*")),
)


def of_card(reference: Any, command: str) -> Mapping[str, Any]:
    """Read what the card of a model, of the bundled base where none is given, recommends to a command."""
    return locate.recommended(str(reference or locate.BUNDLED), command, RECOMMENDABLE)
