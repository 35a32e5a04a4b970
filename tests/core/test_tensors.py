"""Files of tensors that are something else, or claim to hold more than they do: named, in bounded time and memory."""

from __future__ import annotations

import json
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from femtobooth.core import tensors
from femtobooth.core.errors import ModelError


def _torchscript(path: Path) -> None:
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    module.save(str(path))


def _zip_of_other_things(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")


def _bomb(path: Path) -> None:
    """A pickle of one byte over and over, which unfolds to a thousand times its size."""
    torch.save({"state_dict": {"a": torch.zeros(2)}}, path)
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content + b"\0" * (30 << 20 if name.endswith("data.pkl") else 0))


def _overlapping(path: Path) -> None:
    """A directory that lists the same bytes under many names."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
        archive.writestr("model/data/0", bytes(100_000))
        archive.filelist.extend([archive.filelist[-1]] * 1000)


def _legacy_repeat(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1).expand(30_000, 30_000)}}, path, _use_new_zipfile_serialization=False)


def _shared(path: Path) -> None:
    big = torch.zeros(100_000)
    torch.save({"state_dict": {f"copy{i}": big for i in range(1000)}}, path)


def _safetensors_header(length: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", length) + b"{")
            file.truncate(length + 8)  # a hole: it takes no disk

    return write


def _lying_safetensors(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "TorchScript": (_torchscript, "a TorchScript archive: a program"),
    "zip of a document": (_zip_of_other_things, r"a zip archive of other things, its first file is word/document\.xml"),
    "empty zip": (
        lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
        "neither safetensors nor a torch checkpoint",
    ),
    "zip cut off": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "damaged or cut off"),
    "compressed": (_bomb, "a torch checkpoint that was compressed"),
    "overlapping": (_overlapping, "claims to hold more than its own size|damaged"),
    "repeated value": (
        lambda path: torch.save({"a": torch.zeros(1).expand(30_000, 30_000)}, path),
        r"would take 3\.6 GB, far more",
    ),
    "repeated value, before torch 1.6": (_legacy_repeat, r"would take 3\.6 GB, far more"),
    "shared": (_shared, r"would take 0\.4 GB, far more"),
    "sparse": (
        lambda path: torch.save({"a": torch.zeros(3, 3).to_sparse()}, path),
        "sparse, quantized or empty|damaged",
    ),
    "meta": (
        lambda path: torch.save({"a": torch.zeros(3, 3, device="meta")}, path),
        "sparse, quantized or empty|damaged",
    ),
    "list": (lambda path: torch.save([1, 2], path), "holds a list, not a model"),
    "header of a gigabyte": (_safetensors_header(1 << 30), "its header is larger than that of any model"),
    "header of an exabyte": (
        lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{" + bytes(99)),
        "its header is larger",
    ),
    "header that lies": (_lying_safetensors, "damaged or cut off"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_model_is_named(name: str, tmp_path: Path) -> None:
    write, says = FILES[name]
    path = tmp_path / "model.ckpt"
    write(path)
    began = time.process_time()
    with pytest.raises(ModelError, match=says) as caught:
        contents, _ = tensors.read(path)
        tensors.state_dict(path, contents)
    assert time.process_time() - began < 5
    assert len(str(caught.value).splitlines()) == 2


def test_shared_weights_of_a_real_model_are_no_bomb(tmp_path: Path) -> None:
    tied = torch.randn(100, 100)
    torch.save(
        {"state_dict": {"embedding.weight": tied, "head.weight": tied, "bias": torch.zeros(3)}, "epoch": 3},
        tmp_path / "m.ckpt",
    )
    contents, _ = tensors.read(tmp_path / "m.ckpt")
    assert set(tensors.state_dict(tmp_path / "m.ckpt", contents)) == {"embedding.weight", "head.weight", "bias"}


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("conv.weight", "conv.weight"),
        ("module.conv.weight", "conv.weight"),
        ("_orig_mod.conv.weight", "conv.weight"),
        ("module._orig_mod.module.conv.weight", "conv.weight"),
        ("blocks.0._orig_mod.conv.weight", "blocks.0.conv.weight"),
        ("_fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.conv.weight", "blocks.0.conv.weight"),
        ("blocks.0.module.conv.weight", "blocks.0.module.conv.weight"),  # some networks have a part of that name
    ],
)
def test_names_without_wrappers(name: str, plain: str) -> None:
    assert tensors.unwrapped(name) == plain


def test_only_what_has_no_values_stays_unfilled() -> None:
    with tensors.Unfilled():
        made, real = torch.empty(2, device="meta"), torch.zeros(2)
        assert torch.nn.init.normal_(tensor=made) is made
        assert made.mul_(2) is made
        real.add_(1)
        torch.nn.init.constant_(real[1:], 5.0)
        with torch.device("meta"):
            layer = torch.nn.Conv2d(3, 4, 5)
    assert real.tolist() == [1, 5]
    assert layer.weight.shape == (4, 3, 5, 5)
    torch.manual_seed(0)
    filled = torch.nn.Linear(2, 2).weight
    assert filled.abs().max() > 0
