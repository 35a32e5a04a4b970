"""Forms of settings, presets, and the curves of a page, without a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from femtobooth.core import fields
from femtobooth.core.config import Settings, merge, settle
from femtobooth.core.errors import SettingsError
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.studio import catalog, fieldsets, forms, live
from femtobooth.studio.presets import presets, without_preset
from femtobooth.studio.references import REFUSED, is_place
from femtobooth.studio.watching import History

RECOMMENDED = PersonalizeSettings.recommended({"base": "bundled"})
API = "/api/v1"
GIVEN = {"photos": {"paths": ["rex.png"], "class_noun": "dog"}}
# Settings whose text names nothing: words, prompts, numbers in text.
PLAIN = {
    "batch_size", "class_noun", "class_prompt", "together", "device", "other_classes", "prompt", "prompts", "size", "labels",
    "template", "backgrounds", "scales", "styles", "negative", "sampling.negative", "shard", "stages", "name", "captions",
    "identifier.token", "photos.class_noun", "prior.prompt", "prior.other_classes", "prior.sampling.negative",
    "samples.prompts", "samples.sampling.negative", "validation.prompts", "validation.outside", "memory", "train.parts",
    "lora.targets", "lora.modules", "freeze",
}  # fmt: skip


@pytest.mark.parametrize("name", forms.OFFERED)
def test_a_command_is_described(name: str, client: TestClient) -> None:
    told = client.get(f"{API}/commands/{name}").json()
    assert {one["path"] for one in told["fields"]}.isdisjoint({*REFUSED, "out", "target"})
    assert all(one["help"] for one in told["fields"])
    assert told["json_schema"]["properties"]


def test_a_unit_stands_in_the_schema(client: TestClient) -> None:
    schema = client.get(f"{API}/commands/personalize").json()["json_schema"]
    steps = schema["$defs"]["TrainingSettings"]["properties"]["steps"]
    assert (steps["x-unit"], steps["description"], steps["minimum"]) == ("steps", "Optimizer steps to train for.", 1)


@pytest.mark.parametrize("name", forms.OFFERED)
def test_every_setting_that_can_name_a_file_says_so(name: str) -> None:
    """Else its text would pass from a network as it is."""
    model: type[Settings] = forms.model_of(name)
    for one in fields.settings(model):
        texts = str in fields.leaf_types(one.field) or "str" in str(one.field.annotation)
        if texts and not one.choices and not one.names and one.path not in REFUSED and not is_place(one):
            assert one.path in PLAIN or "SubjectSettings" in str(one.field.annotation), (
                f"{name}: mark {one.path} with what it names"
            )


def test_a_form_gives_what_was_filled_in_and_is_not_in_force_anyway() -> None:
    form = {
        "training.steps": ["40"],
        "training.batch_size": ["8"],  # as the base recommends
        "training.seed": [""],
        "photos.flip": ["on", "off"],  # a ticked box, and the hidden field behind it
        "lora.text_encoder": ["off"],  # a box that was ticked, and is not now
        "train.parts": ["lora"],
        "samples.prompts": ["a [V] dog\n\n a [V] dog, on the moon "],
        "nothing.of.ours": ["1"],
    }
    assert fieldsets.read(PersonalizeSettings, form, RECOMMENDED) == {
        "training": {"steps": 40},
        "photos": {"flip": True},
        "lora": {"text_encoder": False},
        "train": {"parts": ["lora"]},
        "samples": {"prompts": ["a [V] dog", "a [V] dog, on the moon"]},
    }


def test_no_form_offers_what_names_a_file() -> None:
    paths = {one.path for one in fieldsets.offered(PersonalizeSettings, ("training.", "size"))}
    assert not paths & {"photos.paths", "base", "tokenizer", "runs", "prior.folder", "photos.mask_model", "size"}
    assert "prior.images" in paths
    assert not any(path.startswith("training.") for path in paths)


def test_an_error_stands_at_its_field() -> None:
    with pytest.raises(SettingsError) as told:
        settle(
            PersonalizeSettings, {**GIVEN, "training": {"steps": -1}, "photos": {**GIVEN["photos"], "crop": "round"}}
        )
    found = fieldsets.blame(PersonalizeSettings, told.value)
    assert found.keys() == {"training.steps", "photos.crop"}
    assert found["training.steps"] == "Should be greater than or equal to 1 (got -1)."


def test_presets_are_shares_of_what_the_base_recommends() -> None:
    found = presets(RECOMMENDED)
    assert [(one.name, one.steps) for one in found.values()] == [("quick", 75), ("balanced", 300), ("best", 600)]
    for one in found.values():
        assert settle(PersonalizeSettings, one.settings, GIVEN).training.steps == one.steps


def test_what_a_preset_gave_is_told_from_what_was_chosen() -> None:
    for name, one in presets(RECOMMENDED).items():
        chosen = {"training": {"batch_size": 2}, "photos": {"class_noun": "dog"}}
        assert without_preset(merge(one.settings, chosen), "bundled") == (name, chosen)
    own = merge(presets(RECOMMENDED)["quick"].settings, {"training": {"steps": 60}})
    assert without_preset(own, "bundled") == ("quick", {"training": {"steps": 60}})


def metric(step: int, loss: float | None) -> dict[str, object]:
    return {"kind": "metrics", "step": step, "values": {"loss/instance": loss, "learning_rate/unet": 1e-6}}


def progress(what: str, done: int, state: str = "running") -> dict[str, object]:
    return {
        "kind": "progress",
        "id": len(what),
        "description": what,
        "done": done,
        "total": 9,
        "state": state,
        "time": 100.0 + done,
    }


def history(path: Path, *events: dict[str, object]) -> History:
    with path.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    found = History(path)
    found.read()
    return found


def test_a_curve_takes_the_steps_that_were_done_again(tmp_path: Path) -> None:
    losses = [(1, 0.5), (2, 0.4), (3, None), (4, 0.2), (2, 0.3), (3, 0.25)]
    found = history(tmp_path / "events.jsonl", *(metric(*one) for one in losses))
    assert found.curves() == {"loss": {"photos": [[1, 0.5], [2, 0.3], [3, 0.25]]}}


def test_what_is_done_now_is_the_last_that_is_not_over(tmp_path: Path) -> None:
    events = [progress("training", 3), progress("samples", 1), progress("samples", 9, "done")]
    path = tmp_path / "events.jsonl"
    found = history(path, {"kind": "stage", "state": "running", "stage": ["base"]})
    assert found.doing == {"what": "base", "done": None, "total": None}
    assert history(path, *events).doing == {"what": "training", "done": 3, "total": 9}
    assert history(path, {"kind": "error"}).doing is None
    assert history(path, progress("training", 4), progress("training", 2)).times == [[102.0, 2]]


def test_a_history_goes_on_where_it_was_and_begins_anew_with_another_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    found = history(path, metric(1, 0.5), metric(2, 0.4))
    with path.open("a") as file:
        file.write(json.dumps(metric(3, 0.3)) + "\n" + '{"torn')
    found.read()
    assert (found.seq, found.curves()["loss"]["photos"]) == (3, [[1, 0.5], [2, 0.4], [3, 0.3]])
    other = tmp_path / "other"
    other.write_text(json.dumps(metric(1, 9.0)) + "\n")
    other.replace(path)
    found.read()
    assert (found.seq, found.curves()) == (1, {"loss": {"photos": [[1, 9.0]]}})


def test_a_growing_file_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PIECE", 64)
    path = tmp_path / "events.jsonl"
    tail = live.Tail(path, after=1)
    assert tail.read() == []
    found: list[tuple[int, str]] = []
    lines = ['{"a": 1}', "damaged", '{"b": "' + "x" * 200 + '"}', '{"c": 3}']
    for piece in ("\n".join(lines)[:150], "\n".join(lines)[150:] + "\n"):
        with path.open("a") as file:
            file.write(piece)
        for _ in range(5):
            found += tail.read()
    assert found == [(3, lines[2]), (4, lines[3])]


def test_what_hub_caches_hold_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole bases by their newest snapshot, and timm's recognizers; nothing that is half there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in (
        "models--a--base/snapshots/1/model_index.json",
        "models--a--base/snapshots/1/unet/diffusion_pytorch_model.safetensors",
        "models--a--flow/snapshots/1/model_index.json",
        "models--a--flow/snapshots/1/transformer/x-00001-of-00002.safetensors",
        "models--a--begun/snapshots/1/model_index.json",
        "models--timm--resnet18.a1_in1k/snapshots/1/model.safetensors",
        "models--timm--begun/snapshots/1/config.json",
        "models--a--text/snapshots/1/model.safetensors",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = [(one.reference, one.kind, one.source) for one in catalog.in_hub_cache()]
    bases = [(name, "base", "hub cache") for name in ("a/base", "a/flow")]
    assert found == [*bases, ("resnet18.a1_in1k", "recognizer", "hub cache")]
