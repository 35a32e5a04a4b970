"""A UNet, a VAE or a text encoder from its config and its tensors: every tensor is there, fits and is finite, or the
model is refused.

The same for folders and single files. A part is built without memory (on torch's meta device) and takes the file's
tensors only where they fit it, so that what a config says can cost neither memory nor time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel, T5EncoderModel

from ...core.errors import ModelError, first_line
from ...core.machine import Precision
from ...core.tensors import DAMAGED, Unfilled, numbers
from .. import frozen
from .ldm_keys import Place

diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

CLIPS = (CLIPTextModel, CLIPTextModelWithProjection)
MAX_NUMBER = 1 << 20  # of whole numbers in a config: channels, tokens, ...
MAX_LENGTH = 64  # of lists in a config: levels, blocks
MAX_LAYERS = 512  # of a part: levels x layers of each x transformer layers of each; Stable Diffusion XL has 60
MAX_SAMPLE_SIZE = 2048  # cells of a latent, or pixels for the VAE, that a config may call its own size


def build(kind: Any, config: Mapping[str, Any], where: object) -> Any:
    """Build a network of this class without memory, frozen and in evaluation mode. Raises ModelError naming `where`."""
    _refuse_absurd(config, where)
    try:
        with torch.device("meta"), Unfilled():
            if issubclass(kind, PreTrainedModel):
                plain = {
                    key: value
                    for key, value in config.items()
                    if key[:1] != "_" and key not in ("dtype", "torch_dtype")
                }
                attention = {} if kind is T5EncoderModel else {"attn_implementation": "sdpa"}
                # Said here and not by the file: an implementation can also be the name of code on a hub.
                built = kind._from_config(
                    (CLIPTextConfig if kind in CLIPS else kind.config_class)(**plain | attention), dtype=torch.float32
                )
            else:
                built = kind.from_config(dict(config))
            return built.eval().requires_grad_(False)
    except Exception as error:  # whatever a library makes of values it cannot use
        raise ModelError(f"{where}: its {kind.__name__} cannot be built ({first_line(error)})", DAMAGED) from error


def fill(
    part: Any,
    tensors: Mapping[str, Tensor],
    places: Mapping[str, Place],
    where: object,
    precision: Precision = "fp32",
) -> None:
    """Give a part its tensors, held in this number format; `places` says what each is called in the file.

    Raises ModelError naming the first tensor that is missing, of another shape, no number, or not finite.
    """
    missing = [place.key for place in places.values() if place.key not in tensors]
    if missing:
        more = f", and {len(missing) - 1} more of its {len(places)} tensors" if len(missing) > 1 else ""
        raise ModelError(f"{where}: {missing[0]} is missing{more}", DAMAGED)
    state: dict[str, Tensor] = {}
    for (name, (key, third, turned)), wanted in zip(places.items(), part.state_dict().values(), strict=True):
        given = tensors[key]
        if not given.is_floating_point():
            raise ModelError(
                f"{where}: {key} holds whole numbers ({given.dtype})",
                "quantized models cannot be trained; take the plain one",
            )
        shape = given.shape[::-1] if turned else given.shape if third is None else given.chunk(3)[third].shape
        if shape not in (wanted.shape, (*wanted.shape, 1, 1)):
            raise ModelError(
                (
                    f"{where}: {key} has shape {tuple(given.shape)}, which does not fit "
                    f"the rest of the model ({tuple(wanted.shape)})"
                ),
                DAMAGED,
            )
        # Read here, one after the other, so that no more of the file is held beside the part. A copy of its own: mapped
        # from the file it starts at any byte, where kernels round otherwise; results depend on values alone.
        tensor = numbers(given) if third is None else numbers(given).chunk(3)[third]
        tensor = tensor.T if turned else tensor
        held = frozen.kept(part, name, tensor.reshape(wanted.shape), precision)
        if held is not None:
            state[name] = held
        if not (tensor if held is None else held).isfinite().all():
            told = "holds NaN or infinite values" if not tensor.isfinite().all() else f"is too large for {precision}"
            raise ModelError(f"{where}: {key} {told}", "take another copy: training has broken this one")
    part.load_state_dict(state, assign=True)
    for module in part.modules() if isinstance(part, PreTrainedModel) else ():
        if hasattr(module, "inv_freq"):  # buffers of positions that are in no state dict
            for name, buffer in type(module)(module.config).named_buffers():
                setattr(module, name, buffer)
    for module in part.modules() if isinstance(part, CLIPS) else ():
        if hasattr(module, "position_ids"):  # a buffer that is in no state dict
            module.position_ids = torch.arange(part.config.max_position_embeddings)[None]  # (1, L)


def fit_tokenizer(tokenizer: Any, text_encoder: Any, where: object, way_out: str) -> None:
    """Cut the tokenizer's length to the text encoder's.

    Raises ModelError where their vocabularies do not fit each other.
    """
    config = text_encoder.config
    count, known = len(tokenizer), config.vocab_size
    if (
        not known / 2 <= count <= known
    ):  # a table may be padded to a round number, or have words that were added to it alone
        raise ModelError(f"{where}: the tokenizer has {count} tokens, the text encoder knows {known}", way_out)
    if not isinstance(text_encoder, CLIPS):
        return
    if any(getattr(tokenizer, name) is None for name in ("bos_token_id", "eos_token_id", "pad_token_id")):
        raise ModelError(f"{where}: the tokenizer has no token for start, end or padding", way_out)
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)


def _refuse_absurd(config: Mapping[str, Any], where: object) -> None:
    for key, value in config.items():
        flat = list(_flat(value))
        whole = [number for number in flat if isinstance(number, int)]
        most = MAX_SAMPLE_SIZE if key == "sample_size" else MAX_NUMBER
        if len(flat) > MAX_LENGTH or any(abs(number) > most for number in whole):
            raise ModelError(f"{where}: {key} is {str(value)[:40]}, more than any model has", DAMAGED)
    levels = len(list(_flat(config.get("block_out_channels", 1))))
    counts = [config.get(key, 1) for key in ("layers_per_block", "transformer_layers_per_block", "num_hidden_layers")]
    layers = levels * math.prod(
        max((number for number in _flat(value) if isinstance(number, int)), default=1) for value in counts
    )
    if layers > MAX_LAYERS:
        raise ModelError(f"{where}: {layers} layers, more than any model has", DAMAGED)


def _flat(value: Any) -> Iterator[Any]:
    """List the values of nested lists, no more of them than tell that there are too many."""
    waiting: list[Iterator[Any]] = [iter([value])]
    given = 0
    while waiting and given <= MAX_LENGTH:
        one = next(waiting[-1], waiting)
        if one is waiting:
            waiting.pop()
        elif isinstance(one, Iterable) and not isinstance(one, (str, bytes, Mapping)):
            waiting.append(iter(one))
        else:
            given += 1
            yield one
