"""model/ of a run that trained an adapter: a few files beside the name of a base, which load as any model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from femtobooth.core import machine
from femtobooth.core.errors import ModelError
from femtobooth.generator import adapted_folder, locate, lora_reference, tokens
from femtobooth.generator.adapted_folder import Learned
from femtobooth.generator.adapter_base import Base
from femtobooth.generator.formats.adapter_header import About
from femtobooth.generator.load import load
from femtobooth.generator.shared_base import SharedBase
from femtobooth.workflows.comparing import candidates


def saved(
    adapting: Any, base: Path, run: Path, *sets: str, word: str = "sks", dtype: torch.dtype = torch.float32
) -> Any:
    """Write the folder of something learned, as a run does; returns the model in memory that it is to be."""
    module = adapting.training(base, *sets)
    if "token" in module.settings.train.parts and word != "sks":
        tokens.TokenEmbedding.remove(module.model)
        tokens.TokenEmbedding.install(module.model, word, "robot")
    adapting.learn(module)
    settings = module.settings.model_copy(update={"base": str(base)})
    learned = Learned.take(module.model, settings, [word], dtype)
    subject = {"token": word, "class_noun": "robot", "base_hash": module.model.hash, "run": run.name}
    model = learned.put_into(module.model)
    model.subject = {**subject, "adapter": adapted_folder.describe(settings, run.name, learned)}
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"base": str(base), "settings": {}}))
    card = "---\nfemtobooth: {generate: {sampling: {steps: 9}}}\n---\n"
    adapted_folder.save(run / "model", learned, model, About(run.name), card, dtype, run / "none.png")
    return model


@pytest.mark.parametrize(
    ("kind", "targets", "dtype"),
    [
        ("lora", "all", torch.float32),
        ("lora", "attention", torch.float16),
        ("dora", "attention", torch.float32),
        ("loha", "attention", torch.float32),
        ("lokr", "attention", torch.float32),
        ("oft", "attention", torch.float32),
    ],
)
def test_what_was_written_loads_as_it_was(
    adapting: Any, request: pytest.FixtureRequest, tmp_path: Path, kind: str, targets: str, dtype: torch.dtype
) -> None:
    run, folder = tmp_path / "rex", request.getfixturevalue("tiny_sd1" if kind == "lora" else "tiny_base")
    model = saved(adapting, folder, run, f"lora.kind={kind}", f"lora.targets={targets}", dtype=dtype)
    files = {path.name for path in (run / "model").iterdir()}
    assert files == {"README.md", "femtobooth.json", "rex.safetensors"} | (
        {"pytorch_lora_weights.safetensors"} if kind == "lora" else set()
    )
    assert {value.dtype for value in load_file(run / "model" / "rex.safetensors").values()} == {dtype}
    base, found = load(str(folder)), load(str(run))
    assert torch.equal(adapting.out(found), adapting.out(model))
    assert not torch.equal(adapting.out(found), adapting.out(base))
    assert found.source == str(run)
    assert found.subject["token"] == "sks"
    assert "adapter" not in found.subject  # convert writes a whole model
    assert found.card == {"generate": {"sampling": {"steps": 9}}}
    assert len(found.hash) == 64
    assert found.hash != base.hash
    assert locate.locate(str(run)) == run / "model"
    assert lora_reference.find(str(run)).weights == run / "model" / "rex.safetensors"


@pytest.mark.parametrize(("family", "precision"), [("tiny_base", "fp32"), ("tiny_base", "bf16"), ("tiny_xl", "fp32")])
def test_several_share_a_base_one_at_a_time(
    adapting: Any, request: pytest.FixtureRequest, tmp_path: Path, family: str, precision: Any
) -> None:
    """Words of the tokenizer and new ones too; what is shared is the base again after each, in what it computes in."""
    base = request.getfixturevalue(family)
    for name, sets in {"rex": "lora.kind=dora", "max": "lora.targets=all", "word": "train.parts=lora,token"}.items():
        saved(adapting, base, tmp_path / name, sets)
    saved(adapting, base, tmp_path / "new", "train.parts=lora,token", word="femtobot")
    runs = {path.name: str(path) for path in tmp_path.iterdir()}
    alone = {name: as_drawn(load(run), precision) for name, run in runs.items()}
    shared = SharedBase(Base.of(tmp_path / "max" / "model"), precision)
    plain = adapting.out(as_drawn(load(str(base)), precision))
    fitted = {name: shared.read(run) for name, run in runs.items()}
    for name in ("rex", "new", "word", "max", "word", "new", "rex"):
        model, expected = shared.merge(fitted[name]), alone[name]
        assert (model.hash, model.source, model.card) == (expected.hash, expected.source, expected.card)
        assert model.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
        for part, network in expected.trainable.items():
            merged = model.trainable[part].state_dict()
            assert all(torch.equal(weight, merged[key]) for key, weight in network.state_dict().items())
        assert torch.equal(adapting.out(model), adapting.out(expected))
    shared._restore()
    assert torch.equal(adapting.out(shared.base), plain)
    assert "femtobot" not in shared.base.tokenizer.get_vocab()
    about = tmp_path / "rex" / "model" / "femtobooth.json"
    about.write_text(about.read_text().replace(shared.base.hash, "0" * 64))
    with pytest.raises(ModelError, match=f"{runs['rex']}: was made for another base than"):
        shared.read(runs["rex"])


def as_drawn(model: Any, precision: Any) -> Any:
    """A model as `generate` has it."""
    for part in model.trainable.values():
        part.to(dtype=machine.dtype(precision))
    return model


def test_only_the_name_of_a_base_is_written(adapting: Any, tiny_base: Path, tmp_path: Path) -> None:
    saved(adapting, tiny_base, tmp_path / "rex")
    for path in (tmp_path / "rex" / "model").iterdir():
        assert str(tiny_base.parent).encode() not in path.read_bytes(), path.name
    told = json.loads((tmp_path / "rex" / "model" / "femtobooth.json").read_text())["adapter"]
    assert told == {
        "kind": "lora",
        "rank": 4,
        "alpha": 4.0,
        "targets": "attention",
        "base": tiny_base.name,
        "weights": "rex.safetensors",
        "embedding": None,
    }


@pytest.mark.parametrize("token", ["sks", "femtobot"])
def test_a_word_comes_with_it_as_a_file_of_textual_inversion(
    adapting: Any, tiny_base: Path, tmp_path: Path, token: str
) -> None:
    """Also one that the tokenizer splits, which is added to it."""
    model = saved(adapting, tiny_base, tmp_path / "rex", "train.parts=lora,token", word=token)
    word = load_file(tmp_path / "rex" / "model" / "embeddings" / f"{token}.safetensors")
    assert {name: value.shape for name, value in word.items()} == {token: (1, 32)}
    found = load(str(tmp_path / "rex"))
    assert len(found.tokenizer.tokenize(token)) == 1
    text = f"a {token} robot"
    assert torch.equal(adapting.out(found, text), adapting.out(model, text))
    pipeline = load(str(tiny_base)).pipeline()
    pipeline.load_textual_inversion(str(tmp_path / "rex" / "model" / "embeddings" / f"{token}.safetensors"))
    ids = found.tokenizer(token, add_special_tokens=False).input_ids
    theirs = pipeline.text_encoder.get_input_embeddings().weight[pipeline.tokenizer.convert_tokens_to_ids(token)]
    assert torch.equal(theirs, found.text_encoder.get_input_embeddings().weight[ids[0]])


def test_a_base_that_is_gone_or_another_is_named(
    adapting: Any, tiny_base: Path, tiny_sd2: Path, tmp_path: Path
) -> None:
    base, run = tmp_path / "base", tmp_path / "rex"
    shutil.copytree(tiny_base, base)
    model = saved(adapting, base, run)
    short = load(str(tiny_base)).hash[:12]
    base.rename(tmp_path / "moved")
    with pytest.raises(ModelError) as error:
        load(str(run))
    problem, way_out = error.value.lines
    assert problem.startswith(f"{run}: made for the base base (hash {short}), which is not there: {base}: no such")
    assert way_out == (
        f"  -> put that base there, or write where it is as `base` of `adapter` into {run / 'model' / 'femtobooth.json'}"
    )
    shutil.copytree(tiny_sd2, base)
    with pytest.raises(ModelError) as error:
        load(str(run))
    other = load(str(base)).hash[:12]
    assert (
        error.value.problem == f"{run}: made for the base base (hash {short}), but {base} is another one (hash {other})"
    )
    file = run / "model" / "femtobooth.json"
    told = json.loads(file.read_text())
    told["adapter"]["base"] = str(tmp_path / "moved")
    file.write_text(json.dumps(told))
    assert torch.equal(adapting.out(load(str(run))), adapting.out(model))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda model: (model / "rex.safetensors").unlink(), r"rex\.safetensors: missing"),
        (lambda model: (model / "rex.safetensors").write_bytes(b"\1" * 9), r"rex\.safetensors: "),
        (lambda model: (model / "femtobooth.json").write_text('{"adapter": {}}'), "says too little of its adapter"),
    ],
)
def test_what_is_damaged_is_named(adapting: Any, tiny_base: Path, tmp_path: Path, change: Any, problem: str) -> None:
    saved(adapting, tiny_base, tmp_path / "rex")
    change(tmp_path / "rex" / "model")
    with pytest.raises(ModelError, match=problem):
        load(str(tmp_path / "rex"))


def test_compare_knows_it_for_a_generator(adapting: Any, tiny_base: Path, tmp_path: Path) -> None:
    saved(adapting, tiny_base, tmp_path / "rex")
    saved(adapting, tiny_base, tmp_path / "max", "training.seed=1")
    rex, other, base = candidates.find([str(tmp_path / "rex"), str(tmp_path / "max"), str(tiny_base)])
    assert {one.task for one in (rex, other, base)} == {"generator"}
    assert (rex.name, rex.form) == ("rex", f"lora beside {tiny_base.name}")
    assert rex.size < base.size / 10
    assert rex.hash != other.hash
