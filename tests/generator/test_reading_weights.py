"""Weights are read one after the other: little of what a file holds is ever in memory beside the model."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from femtobooth.core import tensors as stored
from femtobooth.core.errors import ModelError
from femtobooth.core.machine import dtype, give_back_freed_memory, peak_memory
from femtobooth.core.tensors import MAPPED
from femtobooth.generator.formats import parts
from femtobooth.generator.formats.ldm_keys import Place
from femtobooth.generator.formats.part_folder import fill_part
from femtobooth.generator.load import load

MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Twelve tensors of 8 MiB."""
    path = tmp_path / "layers.safetensors"
    save_file({f"{number}.weight": torch.full((2048, 1024), float(number)) for number in range(12)}, path)
    return path


def layers() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(1024, 2048, bias=False) for _ in range(12))).requires_grad_(False)


def test_what_is_read_later_is_what_the_file_holds(tiny_sd1: Path) -> None:
    path = tiny_sd1 / "unet" / "diffusion_pytorch_model.safetensors"
    given, whole = stored.read(path, weights=False)[0], load_file(path)
    assert given.keys() == whole.keys() and len(given) > 300
    for name, tensor in given.items():
        assert tensor.is_meta and (tensor.shape, tensor.dtype) == (whole[name].shape, whole[name].dtype)
        assert torch.equal(stored.numbers(tensor), whole[name])
    plain = torch.ones(3)
    assert stored.numbers(plain) is plain


def test_a_file_that_was_cut_meanwhile_is_named(file: Path) -> None:
    given = stored.read(file, weights=False)[0]
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"layers\.safetensors: damaged or cut off"):
        stored.numbers(given["3.weight"])


def test_beside_what_is_held_lies_little(file: Path) -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        pytest.skip("this machine counts no peak from here")
    part, before = layers(), psutil.Process().memory_info().rss
    parts.fill(part, stored.read(file, weights=False)[0], {name: Place(name) for name in part.state_dict()}, file)
    assert [float(layer.weight[-1, -1]) for layer in part] == [*map(float, range(12))]  # type: ignore[union-attr, index]
    assert peak_memory() - before < (12 + 8) * 8 * MIB


def test_of_shards_no_more_is_in_memory_than_a_tensor_beside_what_is_kept(tmp_path: Path) -> None:
    """96 MiB of 32-bit numbers in four shards, kept in 16 bits: 48 MiB."""
    for shard in range(4):
        tensors = {
            f"{number}.weight": torch.full((2048, 1024), float(number)) for number in range(3 * shard, 3 * shard + 3)
        }
        save_file(tensors, tmp_path / f"model-0000{shard + 1}-of-00004.safetensors")
    names = {f"{number}.weight": f"model-0000{number // 3 + 1}-of-00004.safetensors" for number in range(12)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        pytest.skip("this machine counts no peak from here")
    part, before = layers(), psutil.Process().memory_info().rss
    fill_part(part, tmp_path, "bf16")
    assert [(layer.weight.dtype, float(layer.weight[-1, -1])) for layer in part] == [  # type: ignore[union-attr, index]
        (torch.bfloat16, float(number)) for number in range(12)
    ]
    assert peak_memory() - before < 12 * 4 * MIB + MAPPED + 2 * 8 * MIB


@pytest.mark.parametrize("held", ["bf16", "fp16", "fp32"])
def test_a_base_is_read_straight_into_the_wanted_precision(held: Any, tiny_xl: Path) -> None:
    """What can train; the VAE stays in 32 bits. Nothing that a part has is left without numbers."""
    model, whole = load(str(tiny_xl), held=held), load(str(tiny_xl))
    for name in model.NETWORKS:
        kept = dtype("fp32" if name == "vae" else held)
        ours, theirs = getattr(model, name).state_dict(), getattr(whole, name).state_dict()
        assert all(one.dtype == kept and torch.equal(one, theirs[key].to(kept)) for key, one in ours.items()), name


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
def test_what_is_freed_between_what_is_kept_goes_back() -> None:
    torch.ones(7 << 20).sum()  # glibc now keeps pieces of this size
    give_back_freed_memory()
    process, freed, kept = psutil.Process(), [], []
    before = process.memory_info().rss
    for _ in range(120):  # more than what earlier tests may have left to use again
        freed.append(torch.ones(1 << 20))
        kept.append(torch.ones(1 << 12))
    assert process.memory_info().rss - before > 200 * MIB
    freed.clear()
    assert process.memory_info().rss - before < 20 * MIB
    assert len(kept) == 120
