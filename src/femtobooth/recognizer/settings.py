"""Settings of the recognizer's commands. The text under each field is its help on the command line."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..core.config import Seed, Settings, Words
from ..core.machine import ExportPrecision
from ..training.settings import TrainingSettings

DEFAULT = "convnext_femto.d1_in1k"


class ReadingSettings(Settings):
    """What every command has that looks at files; not a command of its own."""

    paths: list[str] = []
    """Pictures, folders (with all below them), globs in quotes, or - for a list on stdin."""
    from_file: str | None = None
    """File that lists pictures and folders, one a line, or ended by NUL as `find -print0` writes them; - is stdin."""
    model: str = DEFAULT
    """bundled, a run, an exported artifact, a file or folder of weights, or timm's name of a model."""
    engine: Literal["auto", "torch", "ort", "openvino"] = "auto"
    """What runs the model: torch, or ONNX Runtime or OpenVINO, also for a model that was not exported; auto takes what
    is quick.
    """
    device: str = "cpu"
    """Where torch computes: auto, cpu, cuda, cuda:1, mps."""
    decode: Literal["exact", "fast"] = "exact"
    """exact decodes every pixel; fast has large JPEGs decoded smaller, to no less than twice what the model then reads.
    """
    batch_size: int = Field(8, ge=1)
    """Pictures that one worker runs at a time."""
    workers: int | None = Field(None, ge=1)
    """Threads that decode and run the model; as many as cores if not given."""
    shard: str | None = None
    """i/n: only the i-th of n parts that share no file and leave none out; the same files on every machine."""
    out: str | None = None
    """File to write; its ending says the format if --format does not.

    An interrupted command goes on when given again.
    """
    overwrite: bool = False
    """Replace the file, if the same command wrote it."""


class ClassifySettings(ReadingSettings):
    top_k: int = Field(5, ge=1)
    """Labels for each picture, likeliest first."""
    format: Literal["table", "json", "jsonl", "csv", "parquet"] | None = None
    """table is for people (the default without --out); parquet needs --out."""
    csv_safe: bool = False
    """In CSV, put ' before text that begins with = + - @ tab or CR, so that no spreadsheet runs it as a formula."""


class EmbedSettings(ReadingSettings):
    prelogits: bool = False
    """Also what the last linear layer reads."""
    stages: Words = []
    """Also the maps of these stages: 0,1,2,3 (at strides 4, 8, 16, 32)."""
    format: Literal["parquet", "npz", "safetensors"] | None = None
    """parquet has a row for each picture, unreadable ones too; the others have arrays, with what could not be read
    beside them.
    """


class SearchSettings(Settings):
    query: list[str] = Field(min_length=1)
    """Pictures, folders or globs to find the like of."""
    index: str = Field(min_length=1)
    """File that `femtobooth embed` wrote."""
    model: str | None = None
    """The model that made the index, if it lies elsewhere now."""
    engine: Literal["auto", "torch", "ort", "openvino"] = "auto"
    """What runs the model."""
    top_k: int = Field(10, ge=1)
    """Nearest pictures for each query."""


class AugmentSettings(Settings):
    crop: float = Field(0.5, gt=0, le=1)
    """Least share of a picture's area that a random crop keeps; 1 trains on the middle, as in use."""
    flip: bool = True
    """Mirror half of the pictures; turn off where left and right matter, such as for text."""
    magnitude: int = Field(5, ge=0, le=10)
    """Strength of RandAugment (arXiv 1909.13719), 0 to 10; 0 turns it off."""
    operations: int = Field(2, ge=1, le=8)
    """RandAugment's operations for each picture."""
    mixup: float = Field(0.1, ge=0)
    """Alpha of mixup (arXiv 1710.09412), which blends pairs of pictures; 0 turns it off."""
    cutmix: float = Field(0.0, ge=0)
    """Alpha of CutMix (arXiv 1905.04899), which pastes a part of one picture into another; 0 turns it off."""


class FinetuneTraining(TrainingSettings):
    steps: int = Field(0, ge=0)
    """Optimizer steps; 0 takes as many as 25 passes over the training pictures need, but 60 at least."""
    batch_size: int = Field(8, ge=1)
    """Pictures per process and micro-step."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's decoupled weight decay; biases and norms have none."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after warm-up, counted in optimizer steps."""
    warmup: int = Field(5, ge=0)
    """Optimizer steps over which the learning rate rises from 0, also of layers that are unfrozen later."""
    ema: float = Field(0.98, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which then becomes the result; 0 keeps none."""


class FinetuneSettings(Settings):
    data: str = Field(min_length=1)
    """Folder of class folders (in train and val, where you have split), or a CSV file with the columns path and label
    (and split).
    """
    synthesized: list[str] = []
    """Further such folders whose pictures only train, as `femtobooth synthesize` makes them; classes of one name are
    one class.
    """
    model: str = DEFAULT
    """Classifier to start from: a name, a weights file, an artifact, or a run."""
    size: int | None = Field(None, ge=32)
    """Picture width and height that the network reads, in pixels; the model's own if not given."""
    name: str | None = Field(None, pattern=r"^[^./\\][^/\\]*$")
    """Name of the run; made from the folder's name and the time if not given."""
    runs: str = "runs"
    """Folder that holds the runs."""
    overwrite: bool = False
    """Replace a run of the same name; nothing that femtobooth did not write."""
    validation: float = Field(0.2, gt=0, lt=1)
    """Share of each class's pictures that validate (one at least); a folder with train and val keeps its own split."""
    copies: Literal["group", "leave-out", "keep"] = "group"
    """group: copies of one shot stay on one side of the split made here; leave-out: they also leave the validation part
    of a split of your own; keep: all pictures are different shots, as of a fixed camera, unless their files are equal.
    """
    learning_rate: float = Field(5e-4, gt=0)
    """Learning rate of the last layer."""
    layer_decay: float = Field(0.8, gt=0, le=1)
    """Each layer further from the end learns at this share of the rate of the one after it; 1 for the same rate
    everywhere.
    """
    freeze: int = Field(0, ge=0)
    """Optimizer steps for which only the last layer learns."""
    unfreeze_every: int = Field(0, ge=0)
    """Optimizer steps between one layer's start and that of the layer before it; 0 starts all together."""
    smoothing: float = Field(0.1, ge=0, lt=1)
    """Label smoothing: the share of each target that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs pictures by how rare their class is, in the probe and in fine-tuning."""
    result: Literal["better", "finetuned", "probe"] = "better"
    """What becomes model/: better: more validation pictures right; of equals, the lower calibrated log loss."""
    probe_only: bool = False
    """Leave fine-tuning out: the linear probe is the result, after seconds."""
    patience: int = Field(0, ge=0)
    """Checks without a lower loss after which training stops, on pictures set aside from training for it; 0 trains to
    the end.
    """
    check_every: int = Field(20, ge=1)
    """Optimizer steps between the checks for early stopping."""
    workers: int = Field(0, ge=0)
    """Processes that decode and augment pictures beside training; 0 does it in between. Changes no result."""
    augment: AugmentSettings = AugmentSettings()
    training: FinetuneTraining = FinetuneTraining()

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneSettings:
        if self.probe_only and (self.result == "finetuned" or self.patience):
            raise ValueError("probe_only leaves fine-tuning out: leave out result and patience, or probe_only")
        if (self.augment.mixup or self.augment.cutmix) and self.training.batch_size % 2:
            raise ValueError(
                "training.batch_size must be even for mixup and cutmix, which blend pairs (or set augment.mixup to 0)"
            )
        return self


class EvaluateClassifierSettings(Settings):
    model: str = DEFAULT
    """bundled, a run, an exported artifact, a file or folder of weights, or timm's name of a model."""
    data: str = Field(min_length=1)
    """Labelled pictures: one folder a class (named as the model's classes, or by synset), or a CSV file of paths and
    labels.
    """
    split: Literal["auto", "test", "val", "train", "all"] = "auto"
    """Part of split data to measure on; auto is test, else val, else all there is."""
    unseen: str | None = None
    """Folder of pictures of classes that the model does not know; classes of the data that it does not know count as
    such too.
    """
    include_training: bool = False
    """Also measure on pictures that the model was trained on, or that set its 8-bit ranges, which flatters it."""
    engine: Literal["auto", "torch", "ort", "openvino"] = "auto"
    """What runs the model; the maps of mistakes always come from torch."""
    device: str = "cpu"
    """Where torch computes: auto, cpu, cuda, cuda:1, mps."""
    batch_size: int = Field(16, ge=1)
    """Pictures that one worker runs at a time."""
    workers: int | None = Field(None, ge=1)
    """Threads that decode and run the model; as many as cores if not given."""
    bins: int = Field(15, ge=1, le=100)
    """Bins of confidence in the reliability diagram and the expected calibration error."""
    mistakes: int = Field(12, ge=0, le=200)
    """Worst mistakes to show with their pictures."""
    seed: Seed = 0
    """Seed of the halves that the temperature is fitted on, and of the resampling behind confidence intervals."""
    out: str = Field("evaluation", min_length=1)
    """Folder for report.html, report.json and predictions.csv."""
    overwrite: bool = False
    """Replace that folder, if the same command wrote it."""


class ExportSettings(Settings):
    model: str = DEFAULT
    """bundled, a finetune run, a file or folder of weights, or timm's name of a model."""
    format: Literal["onnx", "openvino", "torchscript", "litert", "coreml", "executorch", "tensorrt"] = "onnx"
    """Runtime to export for: onnx, openvino, torchscript, litert, coreml, executorch or tensorrt."""
    precision: ExportPrecision = "fp32"
    """Number format: fp32, fp16, or int8 (onnx, openvino and tensorrt; needs --calibration, or a finetune run)."""
    normalize: bool = False
    """Have the graph read bytes (B, H, W, 3) and normalize them itself; resizing and cropping stay outside."""
    data: str | None = None
    """Photos to compare on: class folders, a CSV file of paths and labels, or unlabelled photos.

    A run's validation photos if not given.
    """
    calibration: str | None = None
    """Photos that set the 8-bit ranges.

    A run's training photos if not given; half of them are compared on where there is no --data.
    """
    calibration_photos: int = Field(256, ge=8)
    """Most photos to calibrate with, taken evenly from all."""
    calibrator: Literal["best", "minmax", "percentile", "entropy"] = "best"
    """How 8-bit ranges follow from activations; best compares the three on photos that did not set the ranges."""
    reduce_range: bool = False
    """7-bit weights: for x86 processors without VNNI, where sums of 8-bit products overflow in silence."""
    max_drop: float = Field(1.0, ge=0, le=100)
    """Most points of top-1 accuracy (of agreement, where photos have no labels) that may be lost."""
    tolerance: float | None = Field(None, gt=0)
    """Most that 99 % of logits may be off, in standard deviations of all logits: 1e-3 for fp32, 5e-2 for fp16, no limit
    for int8.
    """
    parity: bool = True
    """Compare the export with the original on real photos; without, its status stays "converted only"."""
    reduced: bool = False
    """Let OpenVINO compute in bf16 when comparing, as it does unless told otherwise."""
    threads: int | None = Field(None, ge=1)
    """Threads of both engines; as many as cores if not given."""
    python: str | None = None
    """Interpreter that has the converter of litert, coreml or executorch; this one if not given."""
    out: str | None = None
    """Folder for the artifact; under the run's exports/ or here under exports/ if not given."""
    overwrite: bool = False
    """Replace that folder, if the same command wrote it."""
