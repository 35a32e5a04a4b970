"""docs/bases.md: every cell of its table is what happens, here or in the tests that are named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from femtobooth.core.errors import ModelError, SettingsError
from femtobooth.generator import trainable
from femtobooth.generator.families import known
from femtobooth.generator.formats.single_file import save_single_file
from femtobooth.generator.load import load
from femtobooth.workflows.personalizing.needs import shipped

from .conftest import settings

ROOT = Path(__file__).parents[2]
FIRST, XL, THIRD = "Stable Diffusion 1.x, 2.x", "Stable Diffusion XL", "Stable Diffusion 3, 3.5"
Z, FLUX = "Z-Image", "FLUX.1"
BASES = {FIRST: "tiny_sd1", XL: "tiny_xl", THIRD: "tiny_sd3", Z: "tiny_z_image", FLUX: "tiny_flux"}
NETWORKS = {
    "UNet": ["unet"],
    "transformer": ["transformer"],
    "text encoder": ["text_encoder"],
    "both text encoders": ["text_encoder", "text_encoder_2"],
    "CLIP": ["text_encoder"],
    "both CLIPs": ["text_encoder", "text_encoder_2"],
    "none": [],
}
TRAINS = {
    "trains: everything": "[unet,text_encoder]",
    "trains: attention": "[attention]",
    "trains: LoRA": "[lora]",
    "trains: one new word": "[token]",
}
PROCESS = {"DDPM": "DDPM", "rectified flow": "RectifiedFlow"}
MEMORY = {  # the numbers of a cell, in their order
    FIRST: ("Stable Diffusion 1.5", "Stable Diffusion 2.1"),
    XL: ("Stable Diffusion XL",),
    THIRD: ("Stable Diffusion 3.5 medium", "Stable Diffusion 3.5 medium without T5"),
    Z: ("Z-Image",),
    FLUX: ("FLUX.1-dev",),
}
TESTS: dict[tuple[str, str], list[str]] = {
    ("reads: folders", FIRST): ["model_folder:shards", "model_folder:beside_the_plain_weights_a_variant_stays_unread"],
    ("reads: folders", XL): ["reading_weights:a_base_is_read_straight_into_the_wanted_precision"],
    ("reads: folders", THIRD): ["stable_diffusion_3:its_class_says_whether_t5_is_there"],
    ("reads: folders", Z): ["z_image:what_is_saved_loads_anywhere"],
    ("reads: single files", Z): ["single_file:other_kinds_are_named"],
    ("reads: LoRAs", Z): ["z_image:adapters_of_all_layouts_are_read_and_diffusers_draws_ours"],
    ("writes: folders", Z): ["z_image:what_is_saved_loads_anywhere"],
    ("writes: single files", Z): ["bases_table:what_is_not_written_as_a_single_file_is_refused"],
    ("writes: LoRAs", Z): ["z_image:adapters_of_all_layouts_are_read_and_diffusers_draws_ours"],
    ("others read: folders", Z): ["z_image:it_draws_what_diffusers_own_pipeline_draws"],
    ("others read: single files", Z): ["bases_table:what_is_not_written_as_a_single_file_is_refused"],
    ("others read: LoRAs", Z): ["z_image:adapters_of_all_layouts_are_read_and_diffusers_draws_ours"],
    ("reads: folders", FLUX): ["flux:what_is_saved_loads_anywhere"],
    ("reads: single files", FLUX): ["single_file:other_kinds_are_named"],
    ("reads: LoRAs", FLUX): [
        "flux:adapters_of_all_layouts_are_read_and_diffusers_draws_ours",
        "flux:kohyas_layers_are_cut_as_diffusers_cuts_them",
    ],
    ("writes: folders", FLUX): ["flux:what_is_saved_loads_anywhere"],
    ("writes: single files", FLUX): ["bases_table:what_is_not_written_as_a_single_file_is_refused"],
    ("writes: LoRAs", FLUX): ["flux:adapters_of_all_layouts_are_read_and_diffusers_draws_ours"],
    ("others read: folders", FLUX): ["flux:it_draws_what_diffusers_own_pipeline_draws"],
    ("others read: single files", FLUX): ["bases_table:what_is_not_written_as_a_single_file_is_refused"],
    ("others read: LoRAs", FLUX): ["flux:adapters_of_all_layouts_are_read_and_diffusers_draws_ours"],
    ("reads: single files", FIRST): [
        "single_file:foreign_safetensors",
        "single_file:a_malicious_pickle_is_refused_and_not_run",
    ],
    ("reads: single files", XL): ["single_file_xl:a_strangers_file_is_the_model_it_holds"],
    ("reads: single files", THIRD): ["single_file:other_kinds_are_named"],
    ("reads: LoRAs", FIRST): ["adapter_files:strangers_layouts_are_read_to_the_last_tensor"],
    ("reads: LoRAs", XL): ["adapter_files_xl:strangers_layouts_are_read_to_the_last_tensor"],
    ("reads: LoRAs", THIRD): ["adapter_files_sd3:strangers_layouts_are_read_to_the_last_tensor"],
    ("writes: folders", FIRST): ["base:what_is_saved_loads_anywhere_and_names_no_path"],
    ("writes: folders", XL): ["stable_diffusion_xl:what_is_saved_loads_anywhere"],
    ("writes: folders", THIRD): ["stable_diffusion_3:what_is_saved_loads_anywhere"],
    ("writes: single files", FIRST): ["single_file:round_trip_loses_nothing"],
    ("writes: single files", XL): ["single_file_xl:a_folder_comes_back_from_a_file_to_the_bit"],
    ("writes: single files", THIRD): ["stable_diffusion_3:no_more_is_written_than_a_folder"],
    ("writes: LoRAs", FIRST): ["adapter_files:round_trips_change_the_same_to_the_bit"],
    ("writes: LoRAs", XL): ["adapter_files_xl:a_run_writes_what_loads_as_it_was"],
    ("writes: LoRAs", THIRD): ["adapter_files_sd3:what_is_written_has_names_that_comfyui_knows"],
    ("others read: folders", FIRST): ["base:what_is_saved_loads_anywhere_and_names_no_path"],
    ("others read: folders", XL): ["stable_diffusion_xl:it_draws_what_diffusers_own_pipeline_draws"],
    ("others read: folders", THIRD): ["stable_diffusion_3:it_draws_what_diffusers_own_pipeline_draws"],
    ("others read: single files", FIRST): [
        "single_file:files_are_read_alike_by_diffusers",
        "single_file:full_size_1x_has_exactly_the_published_keys",
    ],
    ("others read: single files", XL): [
        "single_file_xl:from_single_file_of_diffusers_loads_what_is_written",
        "single_file_xl:the_published_file_is_understood",
    ],
    ("others read: single files", THIRD): ["stable_diffusion_3:no_more_is_written_than_a_folder"],
    ("others read: LoRAs", FIRST): ["adapter_files:every_reader_finds_a_layer_for_every_key"],
    ("others read: LoRAs", XL): [
        "adapter_files_xl:every_reader_finds_a_layer_for_every_key_at_full_size",
        "adapter_files_xl:diffusers_draws_our_files_as_we_do",
    ],
    ("others read: LoRAs", THIRD): [
        "adapter_files_sd3:diffusers_draws_our_files_as_we_do",
        "adapter_files_sd3:what_is_written_has_names_that_comfyui_knows",
    ],
}


def table() -> dict[tuple[str, str], str]:
    """The cells, by row and family."""
    lines = re.findall(r"^\|(.*)\|$", (ROOT / "docs" / "bases.md").read_text(encoding="utf-8"), re.MULTILINE)
    head, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {(row[0], family): cell for row in rows for family, cell in zip(head[1:], row[1:], strict=True)}


CELLS = table()


def test_every_family_has_a_column_and_every_cell_a_test() -> None:
    families = list(dict.fromkeys(family for _, family in CELLS))
    assert families == [*BASES]
    assert len(families) == len(known.FAMILIES)
    for row, column in zip(known.FAMILIES, families, strict=True):
        assert all(version in column for version in row.versions) and row.root in column
        assert (CELLS["writes: single files", column] == "yes") == row.single_files
    live = {"noise process", *TRAINS, "memory: LoRA", "memory: attention", "memory: everything"}
    assert {cell for cell in CELLS if cell[0] not in live} == {*TESTS}


@pytest.mark.parametrize("cell", TESTS, ids=" of ".join)
def test_tests_that_are_named_are_there(cell: tuple[str, str]) -> None:
    for name in TESTS[cell]:
        file, _, test = name.partition(":")
        text = (ROOT / "tests" / "generator" / f"test_{file}.py").read_text(encoding="utf-8")
        assert f"def test_{test}(" in text, name


@pytest.mark.parametrize("family", BASES)
def test_what_trains_is_what_the_table_says(family: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(BASES[family])
    model: Any = load(str(folder), weights=False)
    assert type(model.process).__name__ == PROCESS[CELLS["noise process", family]]
    for row, parts in TRAINS.items():
        wanted = {name for word in CELLS[row, family].split(", ") for name in NETWORKS[word]}
        if row == "trains: everything" and len(model.can_train()) == 1:
            parts = "[unet]"  # noqa: PLW2901
        model = load(str(folder), weights=False)
        if not wanted:
            with pytest.raises(SettingsError, match="never trains"):
                trainable.select(model, settings(f"train.parts={parts}"), {"sks": "dog"})
            continue
        trainable.select(model, settings(f"train.parts={parts}"), {"sks": "dog"})
        trained = {
            name for name, one in model.trainable.items() if any(each.requires_grad for each in one.parameters())
        }
        assert trained == wanted, row


@pytest.mark.parametrize("family", [Z, FLUX])
def test_what_is_not_written_as_a_single_file_is_refused(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = load(str(request.getfixturevalue(BASES[family])), weights=False)
    with pytest.raises(ModelError, match=f"a {family} is not written as a single file"):
        save_single_file(model, tmp_path / "one.safetensors")


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("kind", ["LoRA", "attention", "everything"])
def test_memory_is_what_plans_say(kind: str, family: str) -> None:
    plans = {one["name"]: one for one in shipped().values()}
    said = [plans[name][kind.lower()]["accelerator"] / 2**30 for name in MEMORY[family]]
    numbers = re.findall(r"\d+\.\d(?![\d:])", CELLS[f"memory: {kind}", family])
    assert numbers == [f"{one:.1f}" for one in said]


def test_the_plans_are_of_these_architectures() -> None:
    """Planned anew by benchmarks/plans.py; here what weights, gradients and AdamW alone come to."""
    plans = {one["name"]: one for one in shipped().values()}
    xl = plans["Stable Diffusion XL"]
    unet, texts, vae = 2_567_463_684, 123_060_480 + 694_659_840, 83_653_863
    assert 2 * (unet + texts) + 4 * vae < xl["lora"]["accelerator"] < 2 * (unet + texts) + 4 * vae + 4 * 2**30
    assert 4 * 4 * (unet + texts) + 4 * vae < xl["everything"]["accelerator"] < 4 * 4 * (unet + texts) + 5 * 2**30
    assert json.dumps(plans).count("accelerator") == 3 * len(plans)
