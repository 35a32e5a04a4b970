"""A base's weights once in memory for all processes of a machine."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import quick_start
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from femtobooth.core import cache
from femtobooth.core.machine import Precision
from femtobooth.generator import frozen, locate
from femtobooth.generator.families.family import Family
from femtobooth.generator.formats.folder import save_folder
from femtobooth.generator.formats.single_file import save_single_file
from femtobooth.generator.load import load

LEARNED = """
import gc, json, sys, torch
from pathlib import Path
from femtobooth.generator import adapter_layers
from femtobooth.generator.load import load
from femtobooth.generator.train_settings import LoraSettings

def memory():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}

load("bundled")  # all that is imported
before = memory()
model = load(sys.argv[1])
adapter_layers.install(model, LoraSettings(rank=4), seed=0)
condition = model.condition(model.tokenize(["a dog"]))
model.denoise(torch.zeros(1, model.latent_channels, 8, 8), torch.tensor([1]), condition).square().mean().backward()
for parameter in model.denoiser.parameters():
    parameter.grad = None
del parameter, condition
gc.collect()
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps({name: value - before[name] for name, value in memory().items()}), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(locate.SHARED, "1")
    monkeypatch.setenv("FEMTOBOOTH_CACHE", str(tmp_path / "cache"))


def tensors(model: Family) -> dict[str, Tensor]:
    networks = ((name, getattr(model, name)) for name in model.NETWORKS)
    return {
        f"{name}.{path}": one
        for name, part in networks
        for path, one in (*part.named_parameters(), *part.named_buffers())
    }


def same(one: Family, other: Family) -> None:
    found, wanted = tensors(one), tensors(other)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
        assert not found[name].requires_grad and found[name].data_ptr() % 64 == 0, name
    for name in one.NETWORKS:
        assert getattr(one, name).training is getattr(other, name).training is False


@pytest.mark.parametrize("base", ["tiny_sd1", "tiny_xl", "tiny_sd3", "tiny_z_image", "tiny_flux"])
@pytest.mark.parametrize("held", ["fp32", "bf16", "int8", "nf4"])
def test_a_mapped_base_is_the_base(
    base: str,
    held: Precision,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if held in ("int8", "nf4"):
        pytest.importorskip("bitsandbytes")
    folder = str(request.getfixturevalue(base))
    wanted = load(folder, held=held)
    monkeypatch.setenv(locate.SHARED, "1")
    first, second = load(folder, held=held), load(folder, held=held)
    assert first.hash == second.hash == wanted.hash and first.held == second.held == held
    for found in (first, second):
        same(found, wanted)
        rounded = [
            sum(isinstance(one, frozen.Rounded) for one in model.denoiser.modules()) for model in (found, wanted)
        ]
        assert rounded[0] == rounded[1] and bool(rounded[0]) == (held in ("int8", "nf4"))


def test_a_single_file_is_mapped_too(tiny_sd1: Path, tmp_path: Path, shared: None) -> None:
    save_single_file(load(str(tiny_sd1)), tmp_path / "one.safetensors")
    same(load(str(tmp_path / "one.safetensors")), load(str(tiny_sd1)))
    assert len([*(cache.cache_folder() / "bases").glob("*/unet.pt")]) == 2


def test_what_is_written_into_it_is_nobody_elses(tiny_sd1: Path, shared: None) -> None:
    one, other = load(str(tiny_sd1)), load(str(tiny_sd1))
    with torch.no_grad():
        one.denoiser.conv_in.weight.zero_()
    assert other.denoiser.conv_in.weight.any()
    same(load(str(tiny_sd1)), other)


def test_what_does_not_fit_its_hash_is_made_again(
    tiny_sd1: Path, said: io.StringIO, shared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(str(tiny_sd1))
    (kept,) = (cache.cache_folder() / "bases").glob("*/unet.pt")
    whole = kept.read_bytes()
    torn = bytearray(whole)
    torn[len(torn) // 2] ^= 1
    for bad in (bytes(torn), whole[:-1]):
        kept.write_bytes(bad)
        model = load(str(tiny_sd1))
        assert "does not fit its hash" in said.getvalue() and kept.read_bytes() == whole
        same(model, load(str(tiny_sd1)))


def test_without_room_each_has_its_own(
    tiny_sd1: Path, tmp_path: Path, said: io.StringIO, shared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FEMTOBOOTH_CACHE", str(tmp_path / "file"))
    found = load(str(tiny_sd1))
    assert "the cache cannot be written" in said.getvalue()
    monkeypatch.delenv(locate.SHARED)
    same(found, load(str(tiny_sd1)))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="memory is counted as Linux does")
def test_two_processes_hold_a_base_once(tmp_path: Path, shared: None) -> None:
    model = load(str(locate.bundled_folder()))
    width = model.text_encoders["text_encoder"].config.hidden_size
    channels = model.latent_channels
    model.unet = UNet2DConditionModel(  # type: ignore[attr-defined]
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(64, 128, 256, 256),
        cross_attention_dim=width,
        sample_size=16,
    )
    size = sum(one.numel() * one.element_size() for one in model.unet.parameters())  # type: ignore[attr-defined]
    assert size > 100e6
    save_folder(model, tmp_path / "base", card="# random\n")
    command = [sys.executable, "-c", LEARNED, str(tmp_path / "base")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [quick_start.start(command, **pipes) for _ in range(2)]
    for one in started:
        assert one.stdout.readline() == "ready\n"
    for one in started:
        print(file=one.stdin, flush=True)
    found = [json.loads(one.stdout.readline()) for one in started]
    for one in started:
        one.communicate("\n")
    for one in found:
        assert one["Rss"] > size  # all of it is there
        assert one["Anonymous"] < size / 3  # and next to nothing of it is a copy
        assert one["Pss"] - one["Anonymous"] < size * 0.7  # half of it for each, and pages of libraries
