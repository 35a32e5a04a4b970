"""What published architectures need of memory to be trained: assets/plans.json, which `femtobooth models` reads.

    python benchmarks/plans.py            # says where it differs
    python benchmarks/plans.py --write

Plans each without weights, as `personalize --plan` does; a minute or two.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "oracles"))

from adapter_readers import published, published_xl  # noqa: E402

from femtobooth.generator import locate  # noqa: E402
from femtobooth.generator.available import shapes_key  # noqa: E402
from femtobooth.generator.formats.folder import load_tokenizer  # noqa: E402
from femtobooth.generator.load import load  # noqa: E402
from femtobooth.workflows.personalizing import needs  # noqa: E402

PLACE = ROOT / "src" / "femtobooth" / "assets" / "plans.json"
TOKENS = 77


def second(cells: int) -> Any:
    """Stable Diffusion 2.1, for pictures of 8 x `cells` pixels."""
    model = published("2.x")
    model.unet.register_to_config(sample_size=cells)
    return model


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "the bundled base": lambda: load(locate.BUNDLED, weights=False),
    "Stable Diffusion 1.5": lambda: published("1.x"),
    "Stable Diffusion 2.1-base": lambda: second(64),
    "Stable Diffusion 2.1": lambda: second(96),
    "Stable Diffusion XL": published_xl,
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


def key(model: Any) -> str:
    """Make what stands for it among available generators."""
    tensors = (one for name in model.NETWORKS for one in getattr(model, name).state_dict().values())
    return shapes_key(model.NAME, model.size, [one.shape for one in tensors if one.is_floating_point()])


def planned() -> Iterator[tuple[str, dict[str, Any]]]:
    """Plan every architecture."""
    for name in ARCHITECTURES:
        model = architecture(name)
        print(f"planning {name}", file=sys.stderr, flush=True)
        yield key(model), {"name": name, **needs.plans(model, Path(name))}


if __name__ == "__main__":
    text = json.dumps(dict(planned()), indent=1) + "\n"
    if "--write" in sys.argv[1:]:
        PLACE.write_text(text, encoding="utf-8")
    elif text != PLACE.read_text(encoding="utf-8"):
        print(text)
        sys.exit("assets/plans.json says otherwise: --write")
