"""Settings of the recognizer's commands. The text under each field is its help on the command line."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..core.bulk.settings import BulkSettings
from ..core.config import Seed, Settings, Words
from ..core.errors import SettingsError
from ..core.fields import Argument, Flag, Flags
from ..core.machine import ExportPrecision
from ..training.optimizers import KINDS, refuse_rates
from ..training.settings import HostSettings, TrainingSettings

DEFAULT = "convnext_femto.d1_in1k"
Runtime = Literal["auto", "torch", "ort", "openvino"]
"""What can be asked to run a model; an export of another format runs in the runtime of that."""


class ReadingSettings(BulkSettings):
    """What every command has that looks at files; not a command of its own."""

    paths: Annotated[list[str], Argument("*", names="path", needed=True, unless="from_file")] = []
    """Pictures, folders (with all below them), globs in quotes, addresses (s3://...), or - for a list on stdin."""
    from_file: Annotated[str | None, Flag("--from-file", common=True, group="pictures", names="path")] = None
    """File that lists pictures and folders, one a line, or ended by NUL as `find -print0` writes them; - is stdin."""
    column: Annotated[str | None, Flag("--column", group="pictures")] = None
    """Column of the Parquet files among them: of pictures' bytes, or of paths and addresses."""
    model: Annotated[str, Flag("--model", common=True, group="model", names="model")] = DEFAULT
    """bundled, a run, an exported artifact, a file or folder of weights, or timm's name of a model."""
    engine: Annotated[Runtime, Flag("--engine", common=True, group="model")] = "auto"
    """What runs the model: torch, or ONNX Runtime (ort) or OpenVINO, also for a model that was not exported; auto takes
    what an export was made for, and else what is quick.
    """
    device: Annotated[str, Flag("--device", common=True, group="hardware")] = "auto"
    """Where torch computes: auto, cpu, cuda, cuda:1, mps; other runtimes use the CPU."""
    trust: Annotated[bool, Flag("--trust", group="model")] = False
    """Run a TorchScript export, which is a program: only of someone you trust."""
    decode: Annotated[Literal["exact", "fast"], Flag("--decode", group="pictures")] = "exact"
    """exact decodes every pixel; fast has large JPEGs decoded smaller, to no less than twice what the model then reads.
    """
    batch_size: Annotated[int, Flag("--batch-size", unit="pictures", group="hardware")] = Field(8, ge=1)
    """Pictures that one worker runs at a time."""
    workers: Annotated[int | None, Flag("--workers", common=True, unit="threads", group="hardware")] = Field(None, ge=1)
    """Threads that decode and run the model; as many as cores if not given, and one in each process of a cluster."""
    shard: Annotated[str | None, Flag("--shard", group="pictures")] = None
    """i/n: only the i-th of n parts that share no file and leave none out; the same files on every machine."""
    out: Annotated[str | None, Flag("--out", common=True, group="output", names="path")] = None
    """File to write; its ending says the format if `format` does not. With `executor=ray`, a folder of Parquet parts.

    An interrupted command goes on when given again.
    """
    overwrite: Annotated[bool, Flag("--overwrite", common=True, group="output")] = False
    """Replace the file, if the same command wrote it."""


class ClassifySettings(ReadingSettings):
    top_k: Annotated[int, Flag("--top-k", common=True, unit="labels", group="output")] = Field(5, ge=1)
    """Labels for each picture, likeliest first."""
    format: Annotated[
        Literal["table", "json", "jsonl", "csv", "parquet"] | None, Flag("--format", common=True, group="output")
    ] = None
    """table is for people (the default without `out`); parquet needs `out`."""
    csv_safe: Annotated[bool, Flag("--csv-safe", group="output")] = False
    """In CSV, put ' before text that begins with = + - @ tab or CR, so that no spreadsheet runs it as a formula."""


class EmbedSettings(ReadingSettings):
    prelogits: Annotated[bool, Flag("--prelogits", common=True, group="output")] = False
    """Also what the last linear layer reads."""
    stages: Annotated[Words, Flag("--stages", common=True, group="output")] = []
    """Also the maps of these stages: 0,1,2,3 (at strides 4, 8, 16, 32)."""
    format: Annotated[
        Literal["parquet", "npz", "safetensors"] | None, Flag("--format", common=True, group="output")
    ] = None
    """parquet has a row for each picture, unreadable ones too; the others have arrays, with what could not be read
    beside them.
    """


class SearchSettings(Settings):
    query: Annotated[list[str], Argument("+", names="path")] = Field(min_length=1)
    """Pictures, folders or globs to find the like of."""
    index: Annotated[str, Argument(None, names="file")] = Field(min_length=1)
    """File that `femtobooth embed` wrote."""
    model: Annotated[str | None, Flag("--model", names="model")] = None
    """The model that made the index, if it lies elsewhere now."""
    engine: Annotated[Runtime, Flag("--engine")] = "auto"
    """What runs the model."""
    device: Annotated[str, Flag("--device")] = "auto"
    """Where torch computes: auto, cpu, cuda, cuda:1, mps; other runtimes use the CPU."""
    trust: Annotated[bool, Flag("--trust")] = False
    """Run a TorchScript export, which is a program: only of someone you trust."""
    top_k: Annotated[int, Flag("--top-k", unit="pictures")] = Field(10, ge=1)
    """Nearest pictures for each query."""


class AugmentSettings(Settings):
    crop: Annotated[float, Flag(unit="share")] = Field(0.5, gt=0, le=1)
    """Least share of a picture's area that a random crop keeps; 1 trains on the middle, as in use."""
    flip: Annotated[bool, Flag("--flip")] = True
    """Mirror half of the pictures; turn off where left and right matter, such as for text."""
    magnitude: Annotated[int, Flag("--randaugment", unit="strength")] = Field(5, ge=0, le=10)
    """Strength of RandAugment (arXiv 1909.13719), 0 to 10; 0 turns it off."""
    operations: Annotated[int, Flag(unit="operations")] = Field(2, ge=1, le=8)
    """RandAugment's operations for each picture."""
    mixup: Annotated[float, Flag("--mixup", unit="alpha")] = Field(0.1, ge=0)
    """Alpha of mixup (arXiv 1710.09412), which blends pairs of pictures; 0 turns it off."""
    cutmix: Annotated[float, Flag("--cutmix", unit="alpha")] = Field(0.0, ge=0)
    """Alpha of CutMix (arXiv 1905.04899), which pastes a part of one picture into another; 0 turns it off."""


class DistillSettings(Settings):
    teacher: Annotated[str | None, Flag("--teacher", names="model")] = None
    """A recognizer that teaches: bundled, a run, an exported artifact, weights, or timm's name of a model, also of one
    without classes. Its answers teach where it has the classes of the data, its embeddings in any case (knowledge
    distillation).
    """
    probe: Annotated[bool, Flag("--teacher-probe")] = False
    """Fit a linear layer to the teacher's embeddings of the training pictures: its answers then teach, in the place of
    the teacher's own.
    """
    unlabelled: Annotated[list[str], Flag("--unlabelled", names="folder")] = []
    """Folders or archives of further pictures, with all below them, of which only the teacher says something; generated
    ones too.
    """
    weight: Annotated[float, Flag("--teacher-weight", unit="share")] = Field(0.5, ge=0, le=1)
    """Share of the teacher's answers in the loss; the labels have the rest."""
    temperature: Annotated[float, Flag("--teacher-temperature", unit="divisor")] = Field(2.0, ge=0.1, le=100)
    """Both answers are divided by it before they are compared: more of it shows more of what the teacher holds for
    possible besides.
    """
    features: Annotated[float, Flag("--teacher-features", unit="weight")] = Field(0.5, ge=0)
    """Weight in the loss of how far a linear map of the student's embedding, left away afterwards, is from the
    teacher's.
    """

    def without_effect(self) -> dict[str, str]:
        """Name what is of no use without a teacher, or without its answers."""
        given = self.model_fields_set - {"teacher"}
        if self.teacher is None:
            return dict.fromkeys(sorted(given), "without a `distill.teacher`")
        return (
            dict.fromkeys(sorted(given & {"temperature", "probe"}), "with `distill.weight=0`")
            if not self.weight
            else {}
        )

    @model_validator(mode="after")
    def _teaches(self) -> DistillSettings:
        if self.teacher is not None and not (self.weight or self.features):
            raise ValueError("weight and features are both 0: the teacher would teach nothing")
        return self


class FinetuneTraining(TrainingSettings):
    steps: Annotated[int, Flag("--steps", common=True, unit="steps")] = Field(0, ge=0)
    """Optimizer steps; 0 takes as many as 25 passes over the training pictures need, but 60 at least."""
    batch_size: Annotated[int, Flag("--batch-size", common=True, unit="pictures")] = Field(8, ge=1)
    """Pictures per process and micro-step."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled weight decay, times the learning rate; biases and norms have none."""
    schedule: Annotated[Literal["constant", "linear", "cosine"], Flag("--schedule")] = "cosine"
    """How the learning rate falls after warm-up, counted in optimizer steps."""
    warmup: Annotated[int, Flag("--warmup", unit="steps")] = Field(30, ge=0)
    """Optimizer steps over which the learning rate rises from 0, also of layers that are unfrozen later; a third of all
    steps at most if not given.
    """
    ema: Annotated[float, Flag("--ema", unit="decay")] = Field(0.98, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which then becomes the result; 0 keeps none."""


class FinetuneSettings(HostSettings):
    data: Annotated[str, Argument("?", names="file", needed=True)] = Field(min_length=1)
    """Folder of class folders (in train and val, where you have split), a tar or zip of it, a folder of shards, or a
    CSV file with the columns path and label (and split); `multi_label` where a picture may have several labels.
    """
    synthesized: Annotated[list[str], Flag("--synthesized", group="pictures", names="folder")] = []
    """Further such folders whose pictures only train, as `femtobooth synthesize` makes them; classes of one name are
    one class.
    """
    model: Annotated[str, Flag("--model", common=True, group="model", names="model")] = DEFAULT
    """Classifier to start from: a name, a weights file, an artifact, or a run."""
    size: Annotated[int | None, Flag("--size", unit="pixels", group="model")] = Field(None, ge=32)
    """Picture width and height that the network reads, in pixels; the model's own if not given."""
    name: Annotated[str | None, Flag("--name", common=True, group="output")] = Field(None, pattern=r"^[^./\\][^/\\]*$")
    """Name of the run; made from the folder's name and the time if not given."""
    runs: Annotated[str, Flag("--runs", group="output", names="path")] = "runs"
    """Folder that holds the runs."""
    overwrite: Annotated[bool, Flag("--overwrite", group="output")] = False
    """Replace a run of the same name; nothing that femtobooth did not write."""
    validation: Annotated[float, Flag("--validation", common=True, unit="share", group="pictures")] = Field(
        0.2, gt=0, lt=1
    )
    """Share of each class's pictures that validate (one at least); a folder with train and val keeps its own split."""
    copies: Annotated[Literal["group", "leave-out", "keep"], Flag("--copies", group="pictures")] = "group"
    """group: copies of one shot stay on one side of the split made here; leave-out: they also leave the validation part
    of a split of your own; keep: all pictures are different shots, as of a fixed camera, unless their files are equal.
    """
    multi_label: Annotated[bool, Flag("--multi-label", group="pictures")] = False
    """A picture may have several labels, or none: in one cell of the CSV (cat|outdoor), in several rows, in columns of
    0 and 1, or as a copy in several class folders; columns `group:NAME` hold labels that exclude each other.
    """
    loss: Annotated[Literal["binary", "asymmetric"], Flag("--loss", group="training")] = "binary"
    """Of labels that do not exclude each other: binary cross-entropy, or asymmetric (arXiv 2009.14119), which makes
    less of the many pictures that lack a label.
    """
    learning_rate: Annotated[float, Flag("--lr", common=True, unit="rate", group="training")] = Field(1e-4, gt=0)
    """Learning rate; of the last layer, where `layer_decay` lowers it for those before."""
    layer_decay: Annotated[float, Flag("--layer-decay", unit="share", group="training")] = Field(1.0, gt=0, le=1)
    """Each layer further from the end learns at this share of the rate of the one after it; 1 is the same rate
    everywhere.
    """
    freeze: Annotated[int, Flag("--freeze", unit="steps", group="training")] = Field(0, ge=0)
    """Optimizer steps for which only the last layer learns."""
    unfreeze_every: Annotated[int, Flag("--unfreeze-every", unit="steps", group="training")] = Field(0, ge=0)
    """Optimizer steps between one layer's start and that of the layer before it; 0 starts all together."""
    smoothing: Annotated[float, Flag("--smoothing", unit="share", group="training")] = Field(0.1, ge=0, lt=1)
    """Label smoothing: the share of each target that is spread over all classes."""
    class_weights: Annotated[Literal["none", "balanced"], Flag("--class-weights", group="training")] = "none"
    """balanced weighs pictures by how rare their class is, in the probe and in fine-tuning."""
    result: Annotated[Literal["better", "finetuned", "probe"], Flag("--result", group="output")] = "better"
    """What becomes model/: better: more validation pictures right; of equals, the lower calibrated log loss. Fine-tuned
    weights are averaged with those they began from, in the share of the lowest loss on validation pictures.
    """
    probe_only: Annotated[bool, Flag("--probe-only", common=True, group="training")] = False
    """Leave fine-tuning out: the linear probe is the result, after seconds."""
    push: Annotated[str | None, Flag("--push", group="output")] = Field(None, min_length=1)
    """OWNER/NAME on the Hugging Face hub that the finished model, with its card, is sent to; a private one is made."""
    public: Annotated[bool, Flag("--public", group="output")] = False
    """Let all see what `push` sends."""
    patience: Annotated[int, Flag("--patience", unit="checks", group="training")] = Field(0, ge=0)
    """Checks without a lower loss after which training stops, on pictures set aside from training for it; 0 trains to
    the end.
    """
    check_every: Annotated[int, Flag("--check-every", unit="steps", group="training")] = Field(20, ge=1)
    """Optimizer steps between the checks for early stopping."""
    workers: Annotated[int, Flag("--workers", unit="processes", group="hardware")] = Field(0, ge=0)
    """Processes that decode and augment pictures beside training; 0 does it in between. Changes no result."""
    distill: Annotated[DistillSettings, Flags("teacher")] = DistillSettings()
    augment: Annotated[AugmentSettings, Flags("augmentation")] = AugmentSettings()
    training: Annotated[FinetuneTraining, Flags("training", without=("gradient_checkpointing",))] = FinetuneTraining()

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneSettings:
        if self.probe_only and (self.result == "finetuned" or self.patience):
            raise ValueError("probe_only leaves fine-tuning out: leave out result and patience, or probe_only")
        if self.distill.teacher and self.probe_only:
            raise ValueError("probe_only leaves fine-tuning out, which a teacher takes part in: leave out one of them")
        if self.distill.teacher and self.augment.cutmix:
            raise ValueError("augment.cutmix pastes at one size, and a teacher reads its own: use augment.mixup")
        if (self.augment.mixup or self.augment.cutmix) and self.training.batch_size % 2:
            raise ValueError(
                "training.batch_size must be even for mixup and cutmix, which blend pairs (or set augment.mixup to 0)"
            )
        if KINDS[self.training.optimizer].multiplies and "learning_rate" not in self.model_fields_set:
            self.learning_rate = 1.0
        return self

    def without_effect(self) -> dict[str, str]:
        """Name the loss where it has no choice, and who may see what is not sent."""
        idle = {"loss"} & self.model_fields_set if not self.multi_label else set()
        unsent = {"public"} if self.public and not self.push else set()
        return (
            super().without_effect()
            | dict.fromkeys(idle, "without multi_label")
            | dict.fromkeys(unsent, "without push")
        )

    def refuse_at_once(self) -> None:
        """Raise InputError for what cannot be done here, and for layers apart where the optimizer takes them as one."""
        super().refuse_at_once()
        name = self.training.optimizer
        refuse_rates(name, {"learning_rate": self.learning_rate})
        if KINDS[name].multiplies and self.layer_decay != 1:
            raise SettingsError(f"`layer_decay={self.layer_decay:g}`: {name} finds one learning rate for all", "give 1")
        for setting in ("freeze", "unfreeze_every"):
            if KINDS[name].at_once and (given := getattr(self, setting)):
                raise SettingsError(
                    f"`{setting}={given}`: {name} counts its steps for all layers together",
                    "leave it out, or use adamw",
                )


class EvaluateClassifierSettings(Settings):
    model: Annotated[str, Argument("?", names="model")] = DEFAULT
    """bundled, a run, an exported artifact, a file or folder of weights, or timm's name of a model."""
    data: Annotated[str, Argument("?", names="file", needed=True)] = Field(min_length=1)
    """Labelled pictures: one folder a class (named as the model's classes, or by synset), a tar or zip of them, or a
    CSV file of paths and labels.
    """
    split: Annotated[Literal["auto", "test", "val", "train", "all"], Flag("--split", common=True, group="pictures")] = (
        "auto"
    )
    """Part of split data to measure on; auto is test, else val, else all there is."""
    out_of_distribution: Annotated[str | None, Flag("--ood", common=True, group="pictures", names="folder")] = None
    """Folder or archive of pictures of classes that the model does not know; classes of the data that it does not know
    count as such too.
    """
    include_training: Annotated[bool, Flag("--include-training", common=True, group="pictures")] = False
    """Also measure on pictures that the model was trained on, or that set its 8-bit ranges, which flatters it."""
    engine: Annotated[Runtime, Flag("--engine", common=True, group="hardware")] = "auto"
    """What runs the model; the maps of mistakes always come from torch."""
    device: Annotated[str, Flag("--device", common=True, group="hardware")] = "auto"
    """Where torch computes: auto, cpu, cuda, cuda:1, mps; other runtimes use the CPU."""
    trust: Annotated[bool, Flag("--trust", group="hardware")] = False
    """Run a TorchScript export, which is a program: only of someone you trust."""
    batch_size: Annotated[int, Flag("--batch-size", unit="pictures", group="hardware")] = Field(16, ge=1)
    """Pictures that one worker runs at a time."""
    workers: Annotated[int | None, Flag("--workers", common=True, unit="threads", group="hardware")] = Field(None, ge=1)
    """Threads that decode and run the model; as many as cores if not given."""
    bins: Annotated[int, Flag("--bins", unit="bins", group="report")] = Field(15, ge=1, le=100)
    """Bins of confidence in the reliability diagram and the expected calibration error."""
    mistakes: Annotated[int, Flag("--mistakes", common=True, unit="pictures", group="report")] = Field(12, ge=0, le=200)
    """Worst mistakes to show with their pictures."""
    seed: Annotated[Seed, Flag("--seed", group="report")] = 0
    """Seed of the halves that the temperature is fitted on, and of the resampling behind confidence intervals."""
    out: Annotated[str, Flag("--out", common=True, group="output", names="path")] = Field("evaluation", min_length=1)
    """Folder for report.html, report.json and predictions.csv."""
    overwrite: Annotated[bool, Flag("--overwrite", common=True, group="output")] = False
    """Replace that folder, if the same command wrote it."""


class ExportSettings(Settings):
    model: Annotated[str, Argument("?", names="model")] = DEFAULT
    """bundled, a finetune run, a file or folder of weights, or timm's name of a model."""
    format: Annotated[
        Literal["onnx", "openvino", "torchscript", "pt2", "litert", "coreml", "executorch", "ncnn", "tensorrt"],
        Flag("--format", common=True, group="format"),
    ] = "onnx"
    """Runtime: onnx, openvino, torchscript, pt2 (torch.export), litert, coreml, executorch, ncnn, tensorrt."""
    precision: Annotated[ExportPrecision, Flag("--precision", common=True, group="format")] = "fp32"
    """Number format: fp32, fp16, or int8 (onnx, openvino and tensorrt; needs `representative_data`, or a run)."""
    normalize: Annotated[bool, Flag("--normalize", common=True, group="format")] = False
    """Have the graph read bytes (B, H, W, 3) and normalize them itself; resizing and cropping stay outside."""
    data: Annotated[str | None, Flag("--data", common=True, group="comparison", names="file")] = None
    """Photos to compare on: class folders, a CSV file of paths and labels, or unlabelled photos.

    A run's validation photos if not given.
    """
    representative_data: Annotated[
        str | None, Flag("--representative-data", common=True, group="8 bits", names="file")
    ] = None
    """Photos that set the activation ranges of int8.

    A run's training photos if not given; half of them are compared on where there is no data.
    """
    representative_photos: Annotated[int, Flag(unit="photos", group="8 bits")] = Field(256, ge=8)
    """Most photos that set the ranges, taken evenly from all."""
    activation_ranges: Annotated[
        Literal["best", "minmax", "percentile", "entropy"], Flag("--activation-ranges", group="8 bits")
    ] = "best"
    """How the ranges follow from the activations; best compares the three on photos that did not set the ranges."""
    reduce_range: Annotated[bool, Flag("--reduce-range", group="8 bits")] = False
    """7-bit weights: for x86 processors without VNNI, where sums of 8-bit products overflow in silence."""
    max_drop: Annotated[float, Flag("--max-drop", common=True, unit="points", group="comparison")] = Field(
        1.0, ge=0, le=100
    )
    """Most points of top-1 accuracy (of agreement, where photos have no labels) that may be lost."""
    tolerance: Annotated[float | None, Flag("--tolerance", unit="deviations", group="comparison")] = Field(None, gt=0)
    """Most that 99 % of logits may be off, in standard deviations of all logits: 1e-3 for fp32, 5e-2 for fp16, no limit
    for int8.
    """
    parity: Annotated[bool, Flag("--parity", common=True, group="comparison")] = True
    """Compare the export with the original on real photos; without, its status stays "converted only"."""
    reduced: Annotated[bool, Flag(group="comparison")] = False
    """Let OpenVINO compute in bf16 when comparing, as it does unless told otherwise."""
    threads: Annotated[int | None, Flag("--threads", unit="threads", group="hardware")] = Field(None, ge=1)
    """Threads of both engines; as many as cores if not given."""
    python: Annotated[str | None, Flag("--python", group="format", names="path")] = None
    """Interpreter that has the converter of litert, coreml, executorch or ncnn; this one if not given."""
    out: Annotated[str | None, Flag("--out", common=True, group="output", names="path")] = None
    """Folder for the artifact; under the run's exports/ or here under exports/ if not given."""
    overwrite: Annotated[bool, Flag("--overwrite", common=True, group="output")] = False
    """Replace that folder, if the same command wrote it."""
