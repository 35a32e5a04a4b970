"""Reading files of tensors: safetensors, and torch's pickles without running any code of theirs."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
from torch.overrides import TorchFunctionMode

from .errors import ModelError, UnsafeFileError

DAMAGED = "copy or download it again"
LARGEST_HEADER = 32 << 20  # bytes of a safetensors header; a Stable Diffusion's takes a tenth of a million
LARGEST_PICKLE = 64 << 20  # bytes of what a torch file says of its tensors
MAPPED = 32 << 20  # bytes of a file that are in memory at a time, beside one tensor
SHARED = 4  # how many times a file's size its tensors may take in memory; more than one where some share their numbers
_WRAPPERS = {
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}  # of torch.compile and FSDP, anywhere in a name

# Old checkpoints also hold objects of the trainer that wrote them. These names become inert stand-ins; no other name
# passes.
_INERT = [
    f"{lightning}.callbacks.{name}"
    for lightning in ("pytorch_lightning", "lightning.pytorch")
    for name in ("model_checkpoint", "model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")
] + [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
_INERT += ["numpy.dtype", "numpy.ndarray", "argparse.Namespace"]


class _StandIn:
    """Takes the place of a pickled object and does nothing with whatever it is given."""

    def __new__(cls, *_: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read(path: Path, weights: bool = True) -> tuple[dict[Any, Any], dict[str, str]]:
    """Read what a file holds, and its safetensors metadata: tensors by key, or the dictionary of a torch checkpoint
    (and {}).

    Without `weights` a safetensors file's tensors are on torch's meta device: its header alone is read, and `numbers`
    reads them one by one.

    The content decides what the file is, not its name. Raises UnsafeFileError for a pickle of anything but tensors and
    plain values, ModelError for a file that is damaged or something else.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from None
    if start[8:] == b"{":  # a safetensors file: the header's length, then the header
        if struct.unpack("<Q", start[:8])[0] > LARGEST_HEADER:
            raise ModelError(f"{path}: its header is larger than that of any model", DAMAGED)
        try:
            with safetensors.safe_open(path, "pt") as opened:
                mapped = _Mapped(path)
                take = opened.get_tensor if weights else lambda key: _shape(mapped, key, opened.get_slice(key))
                return {key: take(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118  (not a dict)
        except Exception as error:  # the library's own error type, and struct, memory or UTF-8 errors
            raise ModelError(f"{path}: damaged or cut off ({error})", DAMAGED) from None
    if start[:4] != b"PK\x03\x04" and start[:1] != b"\x80":
        what = {
            b"vers": "a Git LFS pointer, not the file it stands for",
            b"<!DO": "a web page",
            b"<htm": "a web page",
            b"": "empty",
        }
        what |= {
            b"GGUF": "a GGUF file of quantized weights",
            b"\x89HDF": "an HDF5 file, as Keras writes",
            b"Rar!": "a RAR archive",
        }
        raise ModelError(f"{path}: is {what.get(start[:4], 'neither safetensors nor a torch checkpoint')}", DAMAGED)
    if path.suffix.lower() == ".safetensors":
        raise UnsafeFileError(
            f"{path}: is a pickle, though named .safetensors, and was not loaded", "take another copy of this model"
        )
    zipped = start[:2] == b"PK"
    if zipped:
        _refuse_other_archives(path)
    contents = _unpickle(path, zipped)
    _refuse_inflated(path, contents)
    return contents, {}


class _Mapped:
    """A safetensors file whose tensors are read when they are needed. What was read of a file counts as this process's
    memory for as long as it is mapped, so that it is mapped anew after every `MAPPED` bytes, and given up when another
    file, such as the next shard, is read.
    """

    _latest: ClassVar[Callable[[], _Mapped | None]] = staticmethod(lambda: None)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened: Any = None
        self.taken = 0

    def numbers(self, key: str) -> torch.Tensor:
        """Read a tensor. Raises ModelError."""
        before, _Mapped._latest = _Mapped._latest(), weakref.ref(self)
        if before is not None and before is not self:
            before.opened = None
        try:
            opened = self.opened  # which another thread may give up meanwhile
            if opened is None or self.taken > MAPPED:
                self.opened = opened = None  # before the file is mapped again
                self.opened = opened = safetensors.safe_open(self.path, "pt")
                self.taken = 0
            tensor: torch.Tensor = opened.get_tensor(key)
        except Exception as error:  # it was whole a moment ago
            raise ModelError(f"{self.path}: damaged or cut off ({error})", DAMAGED) from None
        self.taken += tensor.numel() * tensor.element_size()
        return tensor


class _Described(torch.Tensor):
    """A tensor without numbers that says where they are."""

    file: _Mapped
    key: str
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


def _shape(file: _Mapped, key: str, described: Any) -> torch.Tensor:
    """Make a tensor without numbers of what a header says of one."""
    dtype = safetensors.torch._TYPES[described.get_dtype()]
    made = torch.empty(described.get_shape(), dtype=dtype, device="meta").as_subclass(_Described)
    made.file, made.key = file, key
    return made


def numbers(tensor: torch.Tensor) -> torch.Tensor:
    """Read the numbers of a tensor that `read` gave without; others are returned as they are. Raises ModelError."""
    return tensor.file.numbers(tensor.key) if isinstance(tensor, _Described) else tensor


class Unfilled(TorchFunctionMode):
    """Skip what gives new tensors their first values, or multiplies these by a number, on the device "meta".

    There is nothing to fill there, yet torch takes as long as for building the network; arithmetic even imports its
    compiler.
    """

    FILL = frozenset(
        [getattr(torch.nn.init, name) for name in dir(torch.nn.init) if name.endswith("_") and name[0] != "_"]
        + [torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.zero_, torch.Tensor.fill_]
        + [torch.Tensor.erfinv_, torch.Tensor.clamp_, torch.Tensor.mul_, torch.Tensor.add_]
    )

    def __torch_function__(self, function: Any, _: Any, arguments: Any = (), named: Any = None) -> Any:
        """Return a tensor without values as it is where it would be filled."""
        named = named or {}
        if function in self.FILL or (function is torch.Tensor.mul and isinstance(arguments[-1], (int, float))):
            tensor = arguments[0] if arguments else named["tensor"]
            if tensor.is_meta:
                return tensor
        return function(*arguments, **named)


def state_dict(path: Path, contents: dict[Any, Any]) -> dict[str, torch.Tensor]:
    """Give the tensors of what `read` gave: those of a checkpoint's `state_dict` if it has one. Raises ModelError."""
    tensors = contents.get("state_dict", contents)
    if isinstance(tensors, torch.Tensor):  # of that name
        tensors = contents
    if not isinstance(tensors, dict):
        raise ModelError(f"{path}: its state_dict is a {type(tensors).__name__}", DAMAGED)
    found = {str(key): value for key, value in tensors.items() if isinstance(value, torch.Tensor)}
    return {unwrapped(key): value for key, value in found.items()} | {
        key: value for key, value in found.items() if unwrapped(key) == key
    }


def unwrapped(name: str) -> str:
    """Give a tensor's name without what DDP, torch.compile and FSDP put into it:

    `module._orig_mod.conv.weight` is `conv.weight`.
    """
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _refuse_other_archives(path: Path) -> None:
    """Raise ModelError for a zip archive that is no torch checkpoint, or that unfolds to more than itself.

    Reads its directory only.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{path}: damaged or cut off ({type(error).__name__})", DAMAGED) from None
    names = [entry.filename for entry in entries]
    pickled = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise ModelError(
            f"{path}: a TorchScript archive: a program with its weights inside, not a model's weights",
            "give its state_dict",
        )
    if not pickled:
        first = f"its first file is {names[0][:80]}" if names else "it is empty"
        raise ModelError(f"{path}: a zip archive of other things, {first}", "unpack it, or give another file")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ModelError(
            f"{path}: a torch checkpoint that was compressed, which torch never does",
            "unzip it and take what was in it",
        )
    if sum(entry.file_size for entry in entries) > path.stat().st_size or any(
        one.file_size > LARGEST_PICKLE for one in pickled
    ):
        raise ModelError(f"{path}: claims to hold more than its own size", DAMAGED)


def _refuse_inflated(path: Path, contents: dict[Any, Any]) -> None:
    """Raise ModelError for tensors that are not plain numbers in the file, or far more of them than it holds."""
    total = 0
    waiting: list[Any] = [contents]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, torch.Tensor):
            if one.layout != torch.strided or one.is_quantized or one.device.type != "cpu":
                raise ModelError(f"{path}: holds a sparse, quantized or empty tensor", "save its plain weights")
            total += one.numel() * one.element_size()
        elif isinstance(one, (dict, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            waiting += one.values() if isinstance(one, dict) else one
    if total > SHARED * path.stat().st_size:
        raise ModelError(f"{path}: its tensors would take {total / 1e9:.1f} GB, far more than the file", DAMAGED)


def _unpickle(path: Path, zipped: bool) -> dict[Any, Any]:
    """Read a torch checkpoint's dictionary; nothing in it is run, and what is no tensor or plain value is replaced or
    refused.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_StandIn, name) for name in _INERT]):
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        problem = f"wants to run {named[1]}" if named else "is a pickle of more than tensors"
        raise UnsafeFileError(
            f"{path}: {problem}, and was not loaded",
            "take the .safetensors version of this model; no such file is safe to open",
        ) from None
    except Exception as error:  # zip, struct, EOF, Unicode and index errors: all say that bytes are missing or wrong
        raise ModelError(f"{path}: damaged or cut off ({type(error).__name__})", DAMAGED) from None
    if not isinstance(loaded, dict):
        raise ModelError(f"{path}: holds a {type(loaded).__name__}, not a model", DAMAGED)
    return loaded
