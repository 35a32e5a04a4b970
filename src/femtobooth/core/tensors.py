"""Reading files of tensors: safetensors, and torch's pickles without running any code of theirs."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import safetensors
import torch

from .errors import ModelError, UnsafeFileError

DAMAGED = "copy or download it again"

# Old checkpoints also hold objects of the trainer that wrote them. These names become inert stand-ins; no other name passes.
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


def read(path: Path) -> tuple[dict[Any, Any], dict[str, str]]:
    """What a file holds, and its safetensors metadata: tensors by key, or the dictionary of a torch checkpoint (and {}).

    The content decides what the file is, not its name. Raises UnsafeFileError for a pickle of anything but tensors and
    plain values, ModelError for a file that is damaged or something else.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from None
    if start[8:] == b"{":  # a safetensors file: the header's length, then the header
        try:
            with safetensors.safe_open(path, "pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118  (not a dict)
        except Exception as error:  # the library's own error type, and struct, memory or UTF-8 errors
            raise ModelError(f"{path}: damaged or cut off ({error})", DAMAGED) from None
    if start[:4] != b"PK\x03\x04" and start[:1] != b"\x80":
        what = {b"vers": "a Git LFS pointer, not the file it stands for", b"<!DO": "a web page", b"<htm": "a web page", b"": "empty"}
        raise ModelError(f"{path}: is {what.get(start[:4], 'neither safetensors nor a torch checkpoint')}", DAMAGED)
    if path.suffix == ".safetensors":
        raise UnsafeFileError(f"{path}: is a pickle, though named .safetensors, and was not loaded", "take another copy of this model")
    return _unpickle(path, zipped=start[:2] == b"PK"), {}


def state_dict(path: Path, contents: dict[Any, Any]) -> dict[str, torch.Tensor]:
    """The tensors of what `read` gave: those of a checkpoint's `state_dict` where it has one. Raises ModelError."""
    tensors = contents.get("state_dict", contents)
    if isinstance(tensors, torch.Tensor):  # of that name
        tensors = contents
    if not isinstance(tensors, dict):
        raise ModelError(f"{path}: its state_dict is a {type(tensors).__name__}", DAMAGED)
    return {str(key): value for key, value in tensors.items() if isinstance(value, torch.Tensor)}


def _unpickle(path: Path, zipped: bool) -> dict[Any, Any]:
    """A torch checkpoint's dictionary; nothing in it is run, and what is no tensor or plain value is replaced or refused."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_StandIn, name) for name in _INERT]):
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        problem = f"wants to run {named[1]}" if named else "is a pickle of more than tensors"
        raise UnsafeFileError(
            f"{path}: {problem}, and was not loaded", "take the .safetensors version of this model; no such file is safe to open"
        ) from None
    except Exception as error:  # zip, struct, EOF, Unicode and index errors: all say that bytes are missing or wrong
        raise ModelError(f"{path}: damaged or cut off ({type(error).__name__})", DAMAGED) from None
    if not isinstance(loaded, dict):
        raise ModelError(f"{path}: holds a {type(loaded).__name__}, not a model", DAMAGED)
    return loaded
