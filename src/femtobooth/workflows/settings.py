"""Settings of the commands in which generator and recognizer meet. The text under each field is its help."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ..core.bulk.settings import ActorSettings
from ..core.config import Seed, Settings, Words
from ..core.fields import Argument, Flag, Flags, SettingsOf
from ..core.machine import FloatPrecision, size_in_bytes
from ..generator.locate import is_model
from ..generator.sampling_settings import SamplingSettings
from ..generator.settings import PersonalizeSettings, of_card
from .many.settings import ManySettings


class CaptionSettings(Settings):
    paths: Annotated[list[str], Argument("*", names="file", needed=True)] = Field(min_length=1)
    """Photo files or folders."""
    model: Annotated[str, Flag("--model", common=True, names="folder")] = Field(min_length=1)
    """Folder of a captioner on this machine, as transformers writes it: BLIP, GIT or Florence-2."""
    class_noun: Annotated[str | None, Flag("--class-noun", common=True)] = Field(None, min_length=1)
    """What the subject is, before which a caption gets [V]; captions stay as the model says them if not given."""
    prompt: Annotated[str | None, Flag("--prompt")] = None
    """What captions go on from (BLIP, GIT), or the task (Florence-2; <CAPTION> if not given)."""
    tokens: Annotated[int, Flag("--tokens", unit="tokens")] = Field(40, ge=1, le=1000)
    """Word pieces that a caption may have."""
    device: Annotated[str, Flag("--device", common=True, group="hardware")] = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    overwrite: Annotated[bool, Flag("--overwrite", common=True, group="output")] = False
    """Replace captions that are there, whoever wrote them."""


class EvaluateSettings(Settings):
    run: Annotated[str, Argument("?", names="run", needed=True)] = Field(min_length=1)
    """Run folder that `femtobooth personalize` made."""
    encoders: Annotated[Words, Flag("--encoders", common=True, group="scores", names="path")] = []
    """What scores: dino, clip, bundled, tf_efficientnet_lite0, a path or timm's name. If not given, those of dino and
    clip \
that are in the hub's cache, else those that need no hub."""
    photos: Annotated[list[str], Flag("--photos", common=True, group="scores", names="file")] = []
    """Photos of the subject to score against; if not given, those that the run held out of training, else those it was
    trained on.
    """
    prompts: Annotated[list[str], Argument("*")] = [
        "a [V] {class}",
        "a [V] {class} on the beach",
        "a [V] {class} in the snow",
        "a [V] {class} on the moon",
    ]
    """What to generate and score; [V] is the subject, {class} the class noun."""
    count: Annotated[int, Flag("-n", common=True, unit="pictures", group="pictures")] = Field(4, ge=1)
    """Pictures for each prompt."""
    class_prompt: Annotated[str, Flag(group="pictures")] = "a {class}"
    """Prompt of the pictures that tell how far the class has drifted."""
    class_count: Annotated[int, Flag("--class-pictures", unit="pictures", group="pictures")] = Field(16, ge=2)
    """Pictures of the class, and of each other class, by the tuned model and by the base."""
    other_classes: Annotated[Words, Flag("--other-classes", group="pictures")] = ["cat", "car"]
    """Further classes whose drift is measured."""
    gallery: Annotated[str | None, Flag("--gallery", common=True, group="scores", names="folder")] = None
    """Folder with a folder of photos for each look-alike, among which the subject is ranked."""
    together: Annotated[str, Flag("--together", group="pictures")] = "a {first} next to a {second}"
    """Prompt of pictures of two of several subjects; {first} and {second} stand for them, noun and all."""
    region: Annotated[bool, Flag("--region", group="scores")] = True
    """Also compare the subject's region alone, so that copied backgrounds earn nothing."""
    seed: Annotated[Seed, Flag("--seed", common=True, group="pictures")] = 500
    """Seed of the first picture; picture i of each prompt has seed + i."""
    batch_size: Annotated[int, Flag("--batch-size", unit="pictures", group="hardware")] = Field(4, ge=1)
    """Pictures sampled at a time."""
    device: Annotated[str, Flag("--device", common=True, group="hardware")] = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    sampling: Annotated[SamplingSettings, Flags("sampling", without=("negative", "guidance_rescale", "tiles"))] = (
        SamplingSettings()
    )

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Say how the run's own card recommends to draw."""
        return _sampling(given.get("run"))


class ProtocolSettings(EvaluateSettings, ManySettings):
    protocol: Annotated[Literal["dreambooth"], Flag("--protocol", common=True, group="dataset")]
    """dreambooth: personalize and measure every subject of a dataset by the paper's protocol, its prompts and 4
    pictures of each.
    """
    run: Annotated[str, Argument("?", names="run", needed=True)] = Field(min_length=1)
    """Run folder that `femtobooth personalize` made; with `protocol`, folder of the dataset, laid out as
    google/dreambooth's.
    """
    subjects: Annotated[Words, Flag("--subjects", group="dataset")] = []
    """Subjects of the dataset; all that are there if not given (with `protocol`)."""
    runs: Annotated[str, Flag("--runs", group="dataset", names="path")] = Field("runs/dreambooth", min_length=1)
    """Folder for the run of each subject (with `protocol`)."""
    personalize: Annotated[dict[str, Any], SettingsOf(PersonalizeSettings), Flag(group="dataset")] = {}
    """Settings of `femtobooth personalize` for every subject."""

    @classmethod
    def narrowed(cls, given: Mapping[str, Any]) -> type[Settings]:
        """Give the settings of one run, where no protocol is given."""
        return cls if "protocol" in given else EvaluateSettings

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Recommend nothing here: every subject's model has a card of its own."""
        return {} if "protocol" in given else super().recommended(given)


class SynthesizeSettings(ActorSettings):
    runs: Annotated[list[str], Argument("*", names="run", needed=True)] = Field(min_length=1)
    """Run folders that `femtobooth personalize` made; each subject of them becomes a class."""
    labels: Annotated[Words, Flag("--labels", common=True, group="output")] = []
    """Class name of each run, in order; if not given the runs' names, and those of the subjects of runs with several.
    """
    out: Annotated[str, Flag("--out", common=True, group="output", names="path")] = Field("synthesized", min_length=1)
    """Folder for the labelled pictures."""
    template: Annotated[str, Flag(group="prompts")] = "a {scale} {style} [V] {class} {background}"
    """Prompt of every picture; [V] is the subject, {class} the class noun."""
    backgrounds: Annotated[Words, Flag("--backgrounds", common=True, group="prompts")] = [
        "on the beach", "in the snow", "on the grass", "in the city", "on a wooden floor", "in the desert",
        "in the mountains", "at sunset", "under water", "on a white background", "on a blue background",
        "on a green background",
    ]  # fmt: skip
    """What stands for {background}, one after the other; the defaults are what the bundled base knows."""
    scales: Annotated[Words, Flag("--scales", group="prompts")] = ["", "small"]
    """What stands for {scale}."""
    styles: Annotated[Words, Flag("--styles", group="prompts")] = ["", "glossy"]
    """What stands for {style}."""
    count: Annotated[int, Flag("-n", common=True, unit="pictures", group="pictures")] = Field(1, ge=1)
    """Pictures for each prompt of the grid."""
    negatives: Annotated[bool, Flag("--negatives", group="pictures")] = False
    """Also keep the same prompts without the subject, drawn by the base, as a class of their own under the class noun.
    """
    encoder: Annotated[str | None, Flag("--encoder", group="filtering", names="path")] = None
    """What judges: dino, clip, bundled, tf_efficientnet_lite0, a path or timm's name; the first that works here if not
    given.
    """
    recognizer: Annotated[str | None, Flag("--recognizer", group="filtering", names="path")] = None
    """The model that will be trained on the pictures, which must not judge them."""
    passing: Annotated[float, Flag("--passing", unit="share", group="filtering")] = Field(0.05, ge=0, lt=1)
    """Share of the base's pictures without the subject that may pass; sets the threshold."""
    threshold: Annotated[float | None, Flag("--threshold", unit="cosine", group="filtering")] = Field(None, ge=-1, le=1)
    """Likeness to the photos (mean cosine) that a picture must exceed, in place of the one from `passing`."""
    seed: Annotated[Seed, Flag("--seed", common=True, group="pictures")] = 10_000
    """Seed of the first picture; every further picture has the next one."""
    batch_size: Annotated[int, Flag("--batch-size", unit="pictures", group="hardware")] = Field(4, ge=1)
    """Pictures sampled at a time."""
    device: Annotated[str, Flag("--device", common=True, group="hardware")] = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    overwrite: Annotated[bool, Flag("--overwrite", common=True, group="output")] = False
    """Choose anew in a folder that is finished, or was begun with other settings; only what synthesize wrote there is
    replaced.
    """
    sampling: Annotated[SamplingSettings, Flags("sampling", without=("negative", "guidance_rescale", "tiles"))] = (
        SamplingSettings()
    )

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Say how the first run's own card recommends to draw."""
        return _sampling(next(iter(given.get("runs") or ()), None))


class ReportSettings(Settings):
    run: Annotated[str, Argument("?", names="run", needed=True)] = Field(min_length=1)
    """Run folder, finished or not."""


class RunsSettings(Settings):
    runs: Annotated[str, Flag("--runs", names="path")] = "runs"
    """Folder that holds the runs."""


class ModelsSettings(Settings):
    bases: Annotated[list[str], Argument("*", names="base")] = []
    """Bases to tell of beside those that are here: folders, single files, runs, hub ids. Nothing is fetched."""
    runs: Annotated[str, Flag("--runs", names="path")] = "runs"
    """Folder that holds the runs."""


class DemoSettings(Settings):
    runs: Annotated[str, Flag("--runs", names="path")] = "runs"
    """Folder that holds the runs."""


class StudioSettings(Settings):
    host: Annotated[str, Flag("--host", common=True)] = Field("127.0.0.1", min_length=1)
    """Address to answer at; from any other than this machine's own a token is asked for."""
    port: Annotated[int, Flag("--port", common=True, unit="port")] = Field(8765, ge=0, le=65535)
    """Port to answer at; 0 takes any that is free."""
    names: Annotated[Words, Flag("--names")] = []
    """Names under which a network, or a proxy in front, knows this machine, beside its own."""
    folder: Annotated[str, Flag("--folder", common=True, names="path")] = Field("runs", min_length=1)
    """Folder of the runs that are shown and made; uploads and the queue lie there too, in .studio/."""
    browser: Annotated[bool, Flag("--browser", common=True)] = True
    """Open the studio in a browser."""
    token: Annotated[str | None, Flag("--token")] = Field(None, min_length=16, pattern=r"^[A-Za-z0-9_.~-]+$")
    """Secret that every request must bring; made up where the address needs one and none is given."""
    jobs: Annotated[int, Flag("--jobs", unit="jobs")] = Field(1, ge=1, le=64)
    """Jobs that may compute on one device at a time."""
    memory: Annotated[str, Flag("--memory", unit="size")] = "4GiB"
    """Memory for models that stay loaded between requests."""

    @field_validator("memory")
    @classmethod
    def _a_size(cls, memory: str) -> str:
        size_in_bytes(memory)
        return memory


class ServeSettings(Settings):
    runs: Annotated[list[str], Argument("*", names="run", needed=True)] = Field(min_length=1)
    """Runs of personalize, other models, or folders of runs, which are looked at whenever a model is asked for."""
    host: Annotated[str, Flag("--host", common=True)] = Field("127.0.0.1", min_length=1)
    """Address to answer at; from any other than this machine's own a token is asked for."""
    port: Annotated[int, Flag("--port", common=True, unit="port")] = Field(8766, ge=0, le=65535)
    """Port to answer at; 0 takes any that is free."""
    names: Annotated[Words, Flag("--names")] = []
    """Names under which a network, or a proxy in front, knows this machine, beside its own."""
    token: Annotated[str | None, Flag("--token")] = Field(None, min_length=16, pattern=r"^[A-Za-z0-9_.~-]+$")
    """Secret that every request must bring; made up where the address needs one and none is given."""
    address: Annotated[str | None, Flag("--address", common=True, group="cluster")] = None
    """Cluster of Ray: auto is the one that this machine belongs to, host:port another; one of this machine alone is
    started and ended if not given.
    """
    replicas: Annotated[str, Flag("--replicas", common=True, unit="processes", group="cluster")] = Field(
        "1:4", pattern=r"^[1-9]\d{0,3}(:[1-9]\d{0,3})?$"
    )
    """Processes that hold one base, the fewest and the most (1:4), or always as many (2); no more than there is room
    for.
    """
    target_requests: Annotated[int, Flag("--target-requests", unit="requests", group="cluster")] = Field(2, ge=1)
    """Requests that each is to have, waiting ones included; another is started where they have more."""
    adapters: Annotated[int, Flag("--adapters", unit="adapters", common=True, group="cluster")] = Field(100, ge=1)
    """Adapters that each keeps in memory; the least recently used goes first."""
    models: Annotated[int, Flag("--models", unit="models", common=True, group="cluster")] = Field(1, ge=1)
    """Whole models that each process for these keeps in memory; the least recently used goes first."""
    precision: Annotated[FloatPrecision, Flag("--precision", common=True, group="cluster")] = "fp32"
    """Number format of the computation: fp32, fp16 or bf16."""
    threads: Annotated[int, Flag("--threads", unit="cores", common=True, group="cluster")] = Field(1, ge=1)
    """Cores that each computes on."""
    gpus_per_replica: Annotated[float, Flag("--gpus-per-replica", unit="GPUs", common=True, group="cluster")] = Field(
        0.0, ge=0
    )
    """Share of a GPU that each takes: 0.25 puts four on one."""

    @field_validator("replicas")
    @classmethod
    def _fewest_first(cls, replicas: str) -> str:
        fewest, _, most = replicas.partition(":")
        if int(most or fewest) < int(fewest):
            raise ValueError(f"{most} is fewer than {fewest}: give the fewest, then the most")
        return replicas

    def least_and_most(self) -> tuple[int, int]:
        """Give how few and how many processes may hold one base."""
        fewest, _, most = self.replicas.partition(":")
        return int(fewest), int(most or fewest)


def _sampling(run: str | None) -> Mapping[str, Any]:
    """Say how to draw with a finished run, or with the bundled base where none is given; nothing for what will be
    refused.
    """
    if run and not is_model(Path(run) / "model"):
        return {}
    return {"sampling": of_card(run, "generate").get("sampling", {})}
