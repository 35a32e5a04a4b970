"""Headers of adapters: what the spec asks, what kohya's readers need, and nothing of this machine."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from adapter_readers import everything, kohyas_hashes, published, random_lora, validate
from PIL import Image

from femtobooth.core.errors import ExistsError
from femtobooth.generator.adapters import Adapter
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.formats.adapter_header import About, header
from femtobooth.generator.formats.adapter_writing import write_diffusers, write_kohya
from femtobooth.generator.load import load


@pytest.fixture(scope="module", params=["1.x", "2.x"])
def full(request: pytest.FixtureRequest) -> tuple[str, StableDiffusion]:
    """Stable Diffusion 1.5 and 2.1 at their own size, without weights."""
    return request.param, published(request.param)


@pytest.mark.parametrize("write", [write_kohya, write_diffusers])
def test_the_header_keeps_to_the_spec(
    write: Callable[..., None], full: tuple[str, StableDiffusion], tmp_path: Path
) -> None:
    version, model = full
    adapter = random_lora(model, everything(model), rank=2, alpha=1.0)
    Image.effect_noise((900, 700), 90).save(tmp_path / "drawn.png")
    about = About(
        title="rex",
        description="a LoRA of a dog",
        trigger_phrase="sks dog",
        merged_from="stable-diffusion",
        license="openrail",
        date="2026-11-29T07:00:00+00:00",
        steps=300,
        seed=7,
        photos=4,
        picture=tmp_path / "drawn.png",
    )
    write(tmp_path / "a.safetensors", adapter, header(adapter, model, about))
    found = validate(tmp_path / "a.safetensors")
    assert (found["sshs_model_hash"], found["sshs_legacy_hash"]) == kohyas_hashes(tmp_path / "a.safetensors")
    second = version == "2.x"
    assert found["modelspec.architecture"] == f"stable-diffusion-v{'2-512' if second else '1'}/lora"
    assert found["modelspec.trigger_phrase"] == "sks dog" and found["modelspec.resolution"] == "512x512"
    kohya = {key: value for key, value in found.items() if key.startswith("ss_")}
    assert kohya == {
        "ss_base_model_version": "sd_v2" if second else "sd_v1",
        "ss_v2": str(second),
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "1.0",
        "ss_output_name": "rex",
        "ss_resolution": "(512, 512)",
        "ss_steps": "300",
        "ss_seed": "7",
        "ss_num_train_images": "4",
    }
    text = json.dumps(found)
    assert str(tmp_path) not in text and str(Path.home()) not in text and ': "/' not in text
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text.replace("stable-diffusion", ""))
    write(tmp_path / "b.safetensors", adapter, header(adapter, model, about))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(ExistsError):
        write(tmp_path / "a.safetensors", adapter, {})


def test_a_header_says_no_more_than_is_known(tiny_sd2: Path, tmp_path: Path) -> None:
    model = load(str(tiny_sd2))
    assert isinstance(model, StableDiffusion)
    names = everything(model)[:2]
    one, other = random_lora(model, names[:1], rank=2), random_lora(model, names[1:], rank=4, alpha=4)
    mixed = Adapter({**one.modules, **other.modules})
    write_kohya(tmp_path / "a.safetensors", mixed, header(mixed, model, About("a")))
    found = validate(tmp_path / "a.safetensors")
    assert found["modelspec.architecture"] == "stable-diffusion-v2-768-v-other-size/lora"
    assert (
        found["modelspec.prediction_type"] == "v" and found["ss_network_dim"] == found["ss_network_alpha"] == "Dynamic"
    )
    assert not {"ss_base_model_version", "ss_v2", "ss_steps", "modelspec.date", "modelspec.license"} & set(found)
