"""Bad input: exit code 2, one problem that names the file or flag, one way out, and nothing written."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from femtobooth.core.machine import may_accelerate
from femtobooth.core.names import shown
from femtobooth.workflows.commands import COMMANDS

# What {dog} stands for: everything that a run needs, so that a row shows only what is wrong.
DOG = "personalize {photos} --class-noun dog --base {base} --class-images 2"

SEEDED = {  # command: what it says of its seed
    "{dog}": "Seed of every random draw in training.",
    "generate {base} cat": "Seed of the first picture of each prompt",
    "finetune {photos}": "Seed of every random draw in training.",
    "evaluate {base}": "Seed of the first picture; picture i of each prompt",
    "synthesize {base}": "Seed of the first picture; every further picture",
    "compare bundled {base}": "the same for every generator",
}
# name: (command, what the problem names, what the way out names)
BAD: dict[str, tuple[str, str, str]] = {
    "command": ("personalise {photos}", "personalise: no such command", "did you mean personalize?"),
    "global flag": ("--verbos", "--verbos", "--help"),
    "flag": ("{dog} --step 3", ("--step: femtobooth personalize has no such " "flag; did you mean --steps?"), ("personalize " "--help")),
    "flag of a setting without one": ("{dog} --clip 3", "did you mean --set training.clip=VALUE?", ("personalize " "--help")),
    "flag of another command": ("classify {photos} --class-noun dog", ("--class-noun: femtobooth classify " "has no such"), "--help"),
    "value behind a switch": ("{dog} --flip=yes", "--flip/--no-flip: ignored explicit argument 'yes'", "--help"),
    "one too many": ("report {photos} {photos}", "more than femtobooth report takes", "report --help"),
    "value of an enumeration": ("{dog} --crop smrt", "(got 'smrt'); did you mean smart?", ("How a picture " "becomes " "square")),
    "flag without value": ("{dog} --steps", "--steps: needs a value", "--steps VALUE"),
    "no photos": ("personalize --class-noun dog", "personalize: no PHOTOS given", "3 to 5 pictures"),
    "missing folder": ("personalize {tmp}/nowhere --class-noun dog", "{tmp}/nowhere: no such file", "path"),
    "folder without pictures": ("personalize {tmp}/texts --class-noun dog", "no usable photo in {tmp}/texts", "3 to 5"),
    "damaged photos only": ("personalize {tmp}/damaged --class-noun dog", "no usable photo in {tmp}/damaged", "3 to 5"),
    "no class noun": ("personalize {photos}", "--class-noun: not given; what the subject is", "personalize --help"),
    "empty class noun": ("personalize {photos} --class-noun=", "--class-noun: string should have at least 1", "What the subject is"),
    "--config missing": ("{dog} --config {tmp}/nowhere.yaml", "{tmp}/nowhere.yaml: cannot be read", "check the file"),
    "--config no YAML": ("{dog} --config {tmp}/corrupt.yaml", "{tmp}/corrupt.yaml, line 3: not valid YAML", "put texts with : # [ {{ or quotes"),
    "--config no mapping": ("{dog} --config {tmp}/list.yaml", "{tmp}/list.yaml: must hold `key: value` lines", "such as `size: 64`"),
    "--config unknown key": ("{dog} --config {tmp}/typo.yaml", "training.step: no such setting; did you mean training.steps?", "Optimizer steps to train for."),
    "--set unknown key": ("{dog} --set prior.wieght=1", "prior.wieght: no such setting; did you mean prior.weight?", "Weight of the class-prior loss"),
    "--set no value": ("{dog} --set training.steps", "--set training.steps: expected KEY=VALUE", "--set training.steps=400"),
    "--steps 0": ("{dog} --steps 0", "--steps: input should be greater than or equal to 1 (got 0)", "Optimizer steps"),
    "--steps many": ("{dog} --steps many", "--steps: input should be a valid integer (got 'many')", "Optimizer steps"),
    "--size": ("{dog} --size 65", "--size: input should be a multiple of 8", "pixels"),
    "--train unknown": ("{dog} --train vae", "--train: input should be 'unet'", "text_encoder"),
    "--train twice": ("{dog} --train unet,attention", "train: unet already trains the attention layers; name one of them", "such as train.parts"),
    "--token": ("{dog} --token [V]", "--token: '[V]' is not one word", "`auto`"),
    "--base nowhere": ("{dog} --base {tmp}/nowhere", "{tmp}/nowhere: no such file or folder", "`bundled`, a run"),
    "--base hub id offline": ("{dog} --base nobody/nothing", "nobody/nothing: not in the local hub cache", ("hf download " "nobody/nothing")),
    "--base no model": ("{dog} --base {photos}", "{photos}: not a Stable Diffusion model", "model_index.json"),
    "--base picture": ("{dog} --base {photos}/photo0.png", "photo0.png: is neither safetensors nor", "download it again"),
    "--base missing part": ("{dog} --base {tmp}/no-vae", ("{tmp}/no-vae: not a Stable Diffusion " "model, its vae/"), "vae/"),
    "--base truncated": (
        "{dog} --base {tmp}/truncated", ("truncated/unet/diffusion_pytorch_model.safetensors: " "damaged or cut off"), "download it again",
    ),
    "--base of another family": ("{dog} --base {tmp}/sdxl", "{tmp}/sdxl: a Stable Diffusion XL inpainting", "Stable Diffusion 1.x, 2.x, XL or 3"),
    "--base that lacks tensors": ("{dog} --base {tmp}/lacking", "{tmp}/lacking/unet: conv_in.weight is missing", "download it again"),
    "--base of NaN": ("{dog} --base {tmp}/nan", ("{tmp}/nan/vae: quant_conv.bias holds " "NaN or infinite " "values"), "take another copy"),
    "--base absurd": ("{dog} --base {tmp}/absurd", ("{tmp}/absurd/unet: layers_per_block " "is 1000000000"), "download it again"),
    "--base no vocabulary": ("{dog} --base {tmp}/wordless", ("{tmp}/wordless/tokenizer: no CLIP " "tokenizer there"), "vocab.json"),
    "--base flow matching": (
        "{dog} --base {tmp}/flow", ("{tmp}/flow/scheduler: " "FlowMatchEulerDiscreteScheduler " "is flow matching"), "epsilon, v_prediction",
    ),
    "--base zip": ("{dog} --base {tmp}/document.zip", ("{tmp}/document.zip: a zip archive " "of other things"), "another file"),
    "generate that lacks tensors": ("generate {tmp}/lacking cat", ("{tmp}/lacking/unet: conv_in.weight " "is missing"), "download it again"),
    "convert of NaN": ("convert {tmp}/nan {tmp}/x.safetensors", "{tmp}/nan/vae: quant_conv.bias holds NaN", "take another copy"),
    "--base evil pickle": ("{dog} --base {tmp}/evil.ckpt", "{tmp}/evil.ckpt", "safetensors"),
    "--resume no run": ("personalize --resume {photos}", "{photos}: not a run folder", "runs/NAME"),
    "--resume and settings": ("personalize --resume {photos} --steps 9", "--resume", "leave the other settings out"),
    "--name taken": ("{dog} --name taken", "runs/taken already exists", "--overwrite"),
    "--class-folder": ("{dog} --class-folder {tmp}/nowhere", "{tmp}/nowhere: no such file", "path"),
    "--class-folder empty": ("{dog} --class-folder {tmp}/texts", "--class-folder {tmp}/texts: no picture", "leave it out"),
    "--prior sampler": (
        ("personalize {photos} --class-noun dog --set " "prior.sampling.sampler=plms"), ("prior.sampling.sampler: plms " "cannot"), "dpmpp-2m",
    ),
    "--samples sampler": (
        "personalize {photos} --class-noun dog --prior-weight 0 --set samples.sampling.sampler=plms",
        "samples.sampling.sampler: plms cannot", "dpmpp-2m",
    ),
    "--accelerator": ("{dog} --accelerator gpu", "--accelerator gpu: there is none here", "use auto or cpu"),
    "--optimizer": ("{dog} --optimizer adamw8bit", "--optimizer: bitsandbytes is not installed", ("pip install " "'bitsandbytes")),
    "--optimizer prodigy": (
        "{dog} --optimizer prodigy --unet-lr 2e-6", "--unet-lr 2e-06: multiplies the learning rate that prodigy finds", "give 1",
    ),
    "--optimizer schedulefree": (
        "{dog} --optimizer schedulefree --schedule cosine", "--schedule cosine: schedule-free AdamW averages", "another optimizer",
    ),
    "--optimizer schedulefree, ema": (
        "{dog} --optimizer schedulefree --ema 0.9", "--ema 0.9: schedule-free AdamW averages", "another optimizer",
    ),
    "finetune --optimizer": (
        "finetune {photos} --model bundled --optimizer prodigy --freeze 9", "--freeze 9: prodigy counts its steps for all layers", "use adamw",
    ),
    "--trackers": ("{dog} --trackers wandb", "--trackers: wandb is not installed", "pip install 'wandb>="),
    "--strategy": ("{dog} --strategy sideways", "--strategy: input should be 'auto' or 'ddp'", "processes"),
    "finetune split without classes": (
        "finetune {tmp}/unlabelled --model bundled", "unlabelled: test, train are parts of a split", "labels.csv",
    ),
    "finetune same folders": (
        "finetune {tmp}/repeated --model bundled", "repeated: a, b hold the same folders (cats)", "train, val and test",
    ),
    "finetune list of missing files": ("finetune {tmp}/missing.csv --model bundled", ("missing.csv: none of " "its 2 " "files is there"), "{tmp}"),
    "evaluate-classifier list of missing files": (
        "evaluate-classifier bundled {tmp}/missing.csv", "missing.csv: none of its 2 files is there", "{tmp}",
    ),
    "evaluate-classifier --split": (
        "evaluate-classifier bundled {tmp}/repeated/a --split val", "{tmp}/repeated/a: has no val part", "--split all",
    ),
    "generate nothing": ("generate {base}", "generate: no PROMPTS given", "femtobooth generate runs/rex"),
    "generate nowhere": ("generate {tmp}/nowhere cat", "{tmp}/nowhere: no such file or folder", "give `bundled`, a run"),
    "generate mistyped run": ("generate runs/takne cat", "runs/takne: no such file or folder", ("did you mean " "runs/taken?")),
    "generate mistyped name": ("generate takne cat", "takne: no such base model", "did you mean runs/taken?"),
    "--base mistyped": ("{dog} --base {tmp}/no-vea", "{tmp}/no-vea: no such file or folder", ("did you mean " "{tmp}/no-vae?")),
    "convert mistyped run": ("convert runs/takne {tmp}/x.safetensors", "runs/takne: no such file or folder", ("did you mean " "runs/taken?")),
    "compare mistyped run": ("compare runs/takne bundled", "runs/takne: no such file or folder", ("did you mean " "runs/taken?")),
    "classify mistyped model": (
        "classify {photos} --model runs/takne", "runs/takne: no such file or folder", "did you mean runs/taken?",
    ),
    "generate unfinished": (
        "generate {tmp}/unfinished cat", "{tmp}/unfinished: this run is not finished", ("personalize --resume " "{tmp}/unfinished"),
    ),
    "generate --prompts": ("generate {base} --prompts {tmp}/nowhere.txt", ("{tmp}/nowhere.txt: no such file " "or folder"), "--prompts"),
    "generate [V] without subject": ("generate {base} [V]", "has learned no subject", "femtobooth personalize"),
    "generate plms on zero SNR": ("generate bundled cat --sampler plms", "--sampler: plms cannot", "dpmpp-2m"),
    "generate --sampler": ("generate {base} cat --sampler heun", "--sampler: input should be", "euler-a"),
    "generate --mask alone": ("generate {base} cat --mask {photos}/photo0.png", "--mask", "--init-image"),
    "generate --negative without guidance": ("generate {base} cat --negative ugly --guidance 1", ("--negative: " "has no"), "leave it out"),
    "generate --strength alone": ("generate {base} cat --strength 0.5", ("--strength: has no effect " "without a picture"), "leave it out"),
    "generate --init-image of which nothing is left": (
        ("generate {base} cat --init-image " "{photos}/photo0.png --strength 1"), ("--init-image: has no " "effect at " "strength 1"), "leave it out",
    ),
    "generate --mask of nothing": (
        ("generate {base} cat --init-image " "{photos}/photo0.png " "--mask {tmp}/black.png"), ("black.png: " "nothing " "in it " "is white"), "white",
    ),
    "learning rate of nothing": (
        ("{dog} --train token --set " "train.unet_learning_rate=1e-4"), ("train.unet_learning_rate: has " "no effect as " "only token"), "leave it out",
    ),
    "class images beside photos as their class": ("{dog} --prior-target photos --class-images 9", ("--class-images: has no effect " "with prior target photos"), "leave it out"),
    "class images of no prior": ("{dog} --prior-weight 0 --class-images 9", ("--class-images: has no effect " "at prior"), "leave it out"),
    **{f"seed of {command.split()[0]}": (f"{command} --seed {2**64}", "--seed: input should be less than", SEEDED[command]) for command in SEEDED},
    "generate --init-image": (("generate {base} cat --init-image " "{tmp}/texts/notes.txt"), "{tmp}/texts/notes.txt", "picture"),
    "generate --device": ("generate {base} cat --device cuda:99", "--device cuda:99: not on this machine", "use auto or cpu"),
    "generate --from": ("generate --from {photos}/photo0.png", "--from {photos}/photo0.png", "femtobooth"),
    "generate --from and more": ("generate --from {photos}/photo0.png --steps 3", "--from", "only RUN"),
    "convert nothing": ("convert", "convert: no SOURCE given", "femtobooth convert runs/rex rex.safetensors"),
    "convert to pickle": ("convert bundled {tmp}/model.ckpt", "{tmp}/model.ckpt", ".safetensors"),
    "convert over a file": ("convert {base} {tmp}/list.yaml", "{tmp}/list.yaml is a file", ".safetensors"),
    "convert nowhere": ("convert {tmp}/nowhere {tmp}/x.safetensors", "{tmp}/nowhere: no such file or folder", "SOURCE"),
    "classify nowhere": ("classify {tmp}/nowhere", "{tmp}/nowhere: no such file or folder", "path"),
    "classify empty name": ("classify  ", "'': no such file or folder", "path"),
    "classify no picture": ("classify {tmp}/texts", "no pictures among what was named", "1 other and 0 hidden files"),
    "classify glob of nothing": ("classify {photos}/*.webp", "{photos}/*.webp: no such file or folder", "path"),
    "classify --from-file picture": ("classify --from-file {photos}/photo0.png", "photo0.png: is a picture", "without --from-file"),
    "classify --from-file folder": ("classify --from-file {photos}", "--from-file {photos}: not a file", "--from-file -"),
    "classify --from-file nowhere": ("classify --from-file {tmp}/nowhere", ("--from-file {tmp}/nowhere: no " "such file"), "path"),
    "classify --out folder": ("classify {photos} --out {tmp}/texts --format csv", ("--out {tmp}/texts: is a " "folder"), "name of a file"),
    "classify --out ending": ("classify {photos} --out {tmp}/o.xlsx", ("--out {tmp}/o.xlsx: its ending " "is none of"), "--format"),
    "classify --out taken": (("classify {photos} --out {tmp}/list.yaml " "--format csv"), ("{tmp}/list.yaml " "already " "exists"), "--overwrite"),
    "classify --out not ours": (
        ("classify {photos} --out {tmp}/list.yaml " "--format csv --overwrite"), ("{tmp}/list.yaml is no " "file that " "femtobooth " "classify"), "--out",
    ),
    "classify --out input": (
        ("classify {photos} --out {photos}/photo0.png " "--format csv --overwrite"), ("photo0.png is no " "file that " "femtobooth " "classify"), "--out",
    ),
    "classify --out under a file": ("classify {photos} --out {tmp}/list.yaml/o.csv", ("{tmp}/list.yaml is no " "folder"), "--out"),
    "classify parquet to stdout": ("classify {photos} --format parquet", ("--format parquet: cannot be " "written to " "stdout"), "--out"),
    "classify --shard": ("classify {photos} --shard 3/2", "--shard 3/2", "--shard 1/4"),
    "embed no --out": ("embed {photos}", "--out: where shall the embeddings go?", "parquet"),
    "embed --out ending": ("embed {photos} --out {tmp}/e.csv", "--out {tmp}/e.csv: its ending is none of", "--format"),
    "embed --stages": ("embed {photos} --out {tmp}/e.npz --stages 9", "--stages 9: stages are 0, 1, 2 and 3", "--stages 0,3"),
    "embed over a thesis": (
        ("embed {photos} --out {tmp}/list.yaml " "--format npz --overwrite"), ("{tmp}/list.yaml is no " "file that " "femtobooth embed"), "--out",
    ),
    "search nowhere": ("search {photos} {tmp}/nowhere.parquet", "{tmp}/nowhere.parquet: no such file", "path"),
    "search no index": ("search {photos} {tmp}/list.yaml", "{tmp}/list.yaml: no index", "femtobooth embed"),
    "name too long": (f"models --runs {'x' * 300}", "x: File name too long", "another place"),
}  # fmt: skip
EXTRAS = {"--optimizer": "bitsandbytes", "--trackers": "wandb"}


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("pickle-ran"),)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_sd1: Path, photos: Path) -> Path:
    """A folder of everything that can be wrong with a file."""
    folder = tmp_path_factory.mktemp("bad")
    for name in ("texts", "damaged", "runs/taken", "unfinished"):
        (folder / name).mkdir(parents=True)
    (folder / "texts" / "notes.txt").write_text("no picture")
    (folder / "damaged" / "half.png").write_bytes((photos / "photo0.png").read_bytes()[:3000])
    (folder / "damaged" / "renamed.jpg").write_text("no picture")
    Image.new("L", (96, 80)).save(folder / "black.png")
    (folder / "runs" / "taken" / "run.json").write_text(json.dumps({"token": "sks"}))
    (folder / "unfinished" / "run.json").write_text(json.dumps({"status": "started"}))
    for path in ("unlabelled/train", "unlabelled/test", "repeated/a/cats", "repeated/b/cats"):
        (folder / path).mkdir(parents=True)
        shutil.copy(photos / "photo0.png", folder / path)
    (folder / "missing.csv").write_text("path,label\n~$scan.jpg,cat\ngone.jpg,dog\n")
    (folder / "corrupt.yaml").write_text("training:\n  steps: [3\nprior: 1\n")
    (folder / "list.yaml").write_text("- training\n")
    (folder / "typo.yaml").write_text("training:\n  step: 3\n")
    shutil.copytree(tiny_sd1, folder / "no-vae", ignore=shutil.ignore_patterns("vae"))
    shutil.copytree(tiny_sd1, folder / "truncated")
    unet = folder / "truncated" / "unet" / "diffusion_pytorch_model.safetensors"
    unet.write_bytes(unet.read_bytes()[:-1000])
    torch.save({"state_dict": _Evil()}, folder / "evil.ckpt")
    _spoilt_models(tiny_sd1, folder)
    return folder


def _spoilt_models(tiny_sd1: Path, folder: Path) -> None:
    for name in ("sdxl", "lacking", "nan", "absurd", "wordless", "flow"):
        shutil.copytree(tiny_sd1, folder / name)

    def configure(file: str, **changes: object) -> None:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))

    def reweigh(file: str, key: str, value: torch.Tensor | None) -> None:
        tensors = {
            name: tensor for name, tensor in {**load_file(folder / file), key: value}.items() if tensor is not None
        }
        save_file(tensors, folder / file)

    configure("sdxl/model_index.json", _class_name="StableDiffusionXLInpaintPipeline")
    configure("absurd/unet/config.json", layers_per_block=10**9)
    configure("flow/scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler")
    reweigh("lacking/unet/diffusion_pytorch_model.safetensors", "conv_in.weight", None)
    reweigh("nan/vae/diffusion_pytorch_model.safetensors", "quant_conv.bias", torch.full((8,), float("nan")))
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (folder / "wordless" / "tokenizer" / name).unlink()
    with zipfile.ZipFile(folder / "document.zip", "w") as archive:
        archive.writestr("word/document.xml", "<w/>")


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("name", BAD)
def test_bad_input(
    name: str,
    femtobooth: Callable[..., int],
    place: Path,
    photos: Path,
    tiny_sd1: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name in EXTRAS and importlib.util.find_spec(EXTRAS[name]):
        pytest.skip(f"{EXTRAS[name]} is installed")
    if name == "--accelerator" and may_accelerate():
        pytest.skip("there may be a GPU")
    known = {"photos": photos, "base": tiny_sd1, "tmp": place}
    command, problem, way_out = (text.format(**known, dog=DOG.format(**known)) for text in BAD[name])
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert femtobooth(*command.split(" ")) == 2
    printed = capsys.readouterr()
    said = printed.err[printed.err.index("femtobooth: ") :]
    first, *others = said.splitlines()
    assert problem in first
    assert len(others) == 1
    assert way_out
    assert way_out in others[0]
    assert not re.search(r"Traceback|^usage:", printed.err, re.MULTILINE)
    assert printed.out == ""
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    "name", [name for name, one in COMMANDS.items() if one.example and name not in ("export", "studio")]
)  # which have defaults
def test_a_command_alone_says_what_to_give(
    name: str,
    femtobooth: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert femtobooth(name) == 2
    problem, way_out = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"femtobooth: {name}: no [A-Z]+ given", problem)
    assert re.fullmatch(rf"  -> .{{10,}}; for example femtobooth {name} {re.escape(COMMANDS[name].example)}", way_out)
    assert femtobooth(*shlex.split(f"{name} {COMMANDS[name].example}")) == 2  # understood, but nothing of it is here
    assert not re.search(r"given$|--help|Traceback", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("evaluate", "run: nowhere"),
        ("classify", "from_file: nowhere"),
        ("finetune", "{data: nowhere, model: ./nowhere}"),
    ],
)
def test_settings_of_a_file_count_as_given(
    command: str, given: str, femtobooth: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.yaml").write_text(given)
    assert femtobooth(command, "--config", tmp_path / "settings.yaml") == 2
    said = capsys.readouterr().err
    assert "nowhere" in said
    assert "given" not in said


def test_all_faults_are_reported_at_once(femtobooth: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        femtobooth("personalize", "x", "--steps", "0", "--crop", "squash", "--set", "nonsense=1", "--class-noun", "dog")
        == 2
    )
    said = capsys.readouterr().err
    assert "3 settings are wrong" in said
    assert all(part in said for part in ("  --steps: ", "  --crop: ", "  --set nonsense: no such setting"))


@pytest.mark.parametrize(
    "command", [[], ["--help"], ["-h"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help(command: list[str], femtobooth: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert femtobooth(*command) == 0
    assert "femtobooth" in capsys.readouterr().out


def test_options_and_prompts_mix(
    femtobooth: Callable[..., int], tiny_sd1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt may stand behind the flags, and photos behind --class-noun."""
    out = tmp_path / "o"
    assert femtobooth("generate", tiny_sd1, "-n", 1, "a cat", "--steps", 1, "--out", out, "--json", "a dog") == 0
    assert [image["prompt"] for image in json.loads(capsys.readouterr().out)["images"]] == ["a cat", "a dog"]
    assert femtobooth("personalize", "--class-noun", "dog", tmp_path / "nowhere") == 2
    assert f"{tmp_path / 'nowhere'}: no such file" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom femtobooth.cli import main\ntry:\n    main(['--help'])\nexcept "
        "SystemExit as stop:\n    assert not stop.code\n"
        "print(sorted({'torch', 'pydantic', 'diffusers', 'transformers', 'numpy', "
        "'lightning', 'rich', 'PIL'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "name", ["\x1b[2J\x9b31m x", "two\nlines\u2028or three", "\u202egnp.exe\u2066", "\udcff byte"], ids=ascii
)
@pytest.mark.parametrize(
    "command",
    [
        "personalize {} --class-noun dog",
        "generate {} cat",
        "evaluate {}",
        "report {}",
        "convert {} out.safetensors",
        "classify {}",
        "classify --from-file {}",
        "classify . --out {}",
        "classify . --shard {}",
        "embed {} --out e.npz",
        "search {} {}",
        "finetune {}",
        "export {}",
        "evaluate-classifier {} {}",
        "compare {} {}",
        "{} x",
        "generate bundled cat --sampler {}",
        "personalize . --config {}",
    ],
)
def test_no_name_acts_on_a_terminal(
    command: str,
    name: str,
    femtobooth: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever a name holds, it is escaped where it is printed, and the error has two lines."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.txt").write_text("none")
    assert femtobooth(*(part.replace("{}", name) for part in command.split(" "))) == 2
    said = capsys.readouterr().err
    assert shown(said, keep="\n") == said
    assert len(said[said.index("femtobooth: ") :].splitlines()) == 2
