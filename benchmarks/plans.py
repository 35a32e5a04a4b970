"""What published architectures need of memory to be trained: assets/plans.json, which `femtobooth models` reads.

    python benchmarks/plans.py            # says where it differs
    python benchmarks/plans.py --write
    python benchmarks/plans.py --write "Stable Diffusion XL"

Plans each, or those that are named, without weights, as `personalize --plan` does; two minutes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "oracles"))

import torch  # noqa: E402
from adapter_readers import published, published_xl  # noqa: E402
from diffusers import (  # noqa: E402
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from sd15_step import TEXTS, clip  # noqa: E402
from tiny_flows import qwen_tokenizer  # noqa: E402
from transformers import (  # noqa: E402
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from femtobooth.generator import locate  # noqa: E402
from femtobooth.generator.available import key_of  # noqa: E402
from femtobooth.generator.families.flux import Flux  # noqa: E402
from femtobooth.generator.families.stable_diffusion_3 import StableDiffusion3, StableDiffusion3WithoutT5  # noqa: E402
from femtobooth.generator.families.z_image import ZImage  # noqa: E402
from femtobooth.generator.formats.folder import load_tokenizer  # noqa: E402
from femtobooth.generator.load import load  # noqa: E402
from femtobooth.workflows.personalizing import needs  # noqa: E402

PLACE = ROOT / "src" / "femtobooth" / "assets" / "plans.json"
TOKENS = 77
VAE_16: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
}
"""The VAE of flows."""
T5 = T5Config(
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    feed_forward_proj="gated-gelu",
    vocab_size=32128,
)


def t5_tokenizer() -> T5TokenizerFast:
    """Make one that reads next to nothing: shapes are the same."""
    return T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("a", -2.0)], extra_ids=0)


def second(cells: int) -> Any:
    """Stable Diffusion 2.1, for pictures of 8 x `cells` pixels."""
    model = published("2.x")
    model.unet.register_to_config(sample_size=cells)
    return model


def third(t5: bool) -> Any:
    """Stable Diffusion 3.5 medium."""
    with torch.device("meta"):
        networks: dict[str, Any] = {
            f"text_encoder{after}": CLIPTextModelWithProjection(clip(*shape))
            for after, shape in zip(("", "_2"), TEXTS, strict=True)
        }
        networks["vae"] = AutoencoderKL(**VAE_16, scaling_factor=1.5305, shift_factor=0.0609)
        networks["transformer"] = SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            num_attention_heads=24,
            caption_projection_dim=1536,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
        if t5:
            networks |= {"text_encoder_3": T5EncoderModel(T5), "tokenizer_3": t5_tokenizer()}
    kind: Any = StableDiffusion3 if t5 else StableDiffusion3WithoutT5
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return kind(**networks, tokenizer=None, tokenizer_2=None, scheduler=scheduler, source="3.5", hash="")


def z_image() -> Any:
    """Z-Image, and Z-Image-Turbo."""
    words = Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
    )
    with torch.device("meta"):
        networks = {"transformer": ZImageTransformer2DModel(), "text_encoder": Qwen3Model(words)}
        networks["vae"] = AutoencoderKL(**VAE_16, scaling_factor=0.3611, shift_factor=0.1159)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    return ZImage(**networks, tokenizer=qwen_tokenizer(), scheduler=scheduler, source="Z", hash="")


def flux() -> Any:
    """FLUX.1-dev; schnell is smaller by what reads guidance."""
    with torch.device("meta"):
        networks: dict[str, Any] = {
            "transformer": FluxTransformer2DModel(guidance_embeds=True),
            "text_encoder": CLIPTextModel(clip(*TEXTS[0])),
            "text_encoder_2": T5EncoderModel(T5),
            "vae": AutoencoderKL(**VAE_16, scaling_factor=0.3611, shift_factor=0.1159),
        }
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return Flux(**networks, tokenizer=None, tokenizer_2=t5_tokenizer(), scheduler=scheduler, source="F", hash="")


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "the bundled base": lambda: load(locate.BUNDLED, weights=False),
    "Stable Diffusion 1.5": lambda: published("1.x"),
    "Stable Diffusion 2.1-base": lambda: second(64),
    "Stable Diffusion 2.1": lambda: second(96),
    "Stable Diffusion XL": published_xl,
    "Stable Diffusion 3.5 medium": lambda: third(t5=True),
    "Stable Diffusion 3.5 medium without T5": lambda: third(t5=False),
    "Z-Image": z_image,
    "FLUX.1-dev": flux,
}


def architecture(name: str) -> Any:
    """Build one without weights, with tokenizers."""
    model = ARCHITECTURES[name]()
    for network, tokenizer in model.TEXT_ENCODERS.items():
        if getattr(model, tokenizer) is None:
            setattr(model, tokenizer, load_tokenizer(locate.bundled_folder() / "tokenizer"))
            getattr(model, tokenizer).model_max_length = TOKENS
        getattr(model, network).eval()
    for network in model.NETWORKS:
        getattr(model, network).eval().requires_grad_(False)
    return model


def planned(names: Iterable[str] = ARCHITECTURES) -> Iterator[tuple[str, dict[str, Any]]]:
    """Plan architectures."""
    for name in names:
        model = architecture(name)
        print(f"planning {name}", file=sys.stderr, flush=True)
        yield key_of(model), {"name": name, **needs.plans(model, Path(name))}


if __name__ == "__main__":
    before = json.loads(PLACE.read_text(encoding="utf-8"))
    named = [one for one in sys.argv[1:] if one != "--write"]
    found = (before if named else {}) | dict(planned(named or ARCHITECTURES))
    if "--write" in sys.argv[1:]:
        PLACE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    elif found != before:
        print(json.dumps(found, indent=1))
        sys.exit("assets/plans.json says otherwise: --write")
