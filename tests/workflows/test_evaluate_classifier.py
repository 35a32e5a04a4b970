"""`evaluate-classifier` as a whole, on a tiny network and real files."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from femtobooth import cli
from femtobooth.core.errors import ExistsError, PhotoError
from femtobooth.core.files import sha256_of
from femtobooth.recognizer.finetuning import dataset
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess
from femtobooth.recognizer.settings import EvaluateClassifierSettings
from femtobooth.workflows import evaluate_classifier, export_photos
from femtobooth.workflows.comparing import bench

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220)}


def paint(folder, colour, count, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for index in range(count):
        pixels = np.clip(np.array(colour) + random.normal(0, 25, (40, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network of three classes named as colours (one with a hostile name), untrained: it errs, which is what is
    shown.
    """
    torch.manual_seed(0)
    labels = Labels(("red", "green", "blue <b>navy</b>, blue"))
    recognizer = Recognizer.create("test_convnext", labels, Preprocess(size=(64, 64), crop_pct=1.0))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    recognizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pictures"
    for seed, (name, colour) in enumerate(COLOURS.items()):
        paint(folder / name, colour, 6, seed)
    (folder / "red" / "broken.png").write_bytes((folder / "red" / "0.png").read_bytes()[:200])
    return folder


def settings(model, data, out, **others):
    return EvaluateClassifierSettings(model=str(model), data=str(data), out=str(out), workers=1, **others)


@pytest.fixture(scope="module")
def done(model, data, tmp_path_factory):
    paint(data.parent / "other" / "deep", (200, 200, 30), 4)
    out = tmp_path_factory.mktemp("out") / "page"
    return out, evaluate_classifier.run(settings(model, data, out, out_of_distribution=str(data.parent / "other")))


def test_figures_agree_with_the_network_itself(done, model, data):
    out, report = done
    recognizer = Recognizer.load(model)
    right = []
    for index, name in enumerate(COLOURS):
        for file in sorted((data / name).glob("[0-9].png")):
            with torch.no_grad():
                right.append(int(recognizer(recognizer.batch([Image.open(file).convert("RGB")])).argmax()) == index)
    assert report["pictures"] == 18 and report["top1"][0] == pytest.approx(np.mean(right))
    assert json.loads((out / "report.json").read_text()) == report
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert len(rows) == 18 + 4 and sum(row["right"] == "True" for row in rows) == sum(right)
    assert [row["label"] for row in rows][-4:] == [""] * 4


def test_what_was_left_out_is_said(done):
    _, report = done
    assert [entry["path"].endswith("red/broken.png") for entry in report["skipped"]] == [True]
    assert any("could not be read" in remark for remark in report["remarks"])


def test_unseen_pictures_are_measured_by_the_last_layer(done):
    _, report = done
    assert (
        report["out_of_distribution"]["pictures"] == 4
        and 0 <= report["out_of_distribution"]["by_distance"]["auroc"][0] <= 1
    )
    assert "last layer" in report["distance_to"]


def test_the_page_is_whole_and_safe(done):
    out, report = done
    html = (out / "report.html").read_text()
    tags, closed = [], []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, _: tags.append(tag)
    reader.handle_endtag = closed.append
    reader.feed(html)
    for tag in ("section", "svg", "table", "figure", "details", "div"):
        assert tags.count(tag) == closed.count(tag)
    # the hostile name is text: the only <b> are the bars of the page's own meters
    assert "<b>navy" not in html and "&lt;b&gt;navy&lt;/b&gt;" in html
    assert not re.search(r"https?:", re.sub(r"base64,[^\"]+", "", html))
    shown = min(12, len(report["mistakes"]))
    assert html.count("<img ") == 3 * shown > 0  # the picture and two maps of each
    assert html.count("<h2>") == 7


def test_a_second_run_is_the_same_and_nothing_is_overwritten(done, model, data, tmp_path):
    out, report = done
    with pytest.raises(ExistsError):
        evaluate_classifier.run(settings(model, data, out))
    again = evaluate_classifier.run(
        settings(model, data, tmp_path / "again", out_of_distribution=str(data.parent / "other"))
    )
    assert again == report
    assert (tmp_path / "again" / "report.html").read_bytes() == (out / "report.html").read_bytes()


def test_classes_that_the_model_lacks_count_as_unseen(model, data, tmp_path):
    paint(tmp_path / "mixed" / "red", COLOURS["red"], 4)
    paint(tmp_path / "mixed" / "purple", (150, 30, 160), 3)
    report = evaluate_classifier.run(settings(model, tmp_path / "mixed", tmp_path / "out", mistakes=0))
    assert report["pictures"] == 4 and report["out_of_distribution"]["pictures"] == 3
    assert any("purple" in remark for remark in report["remarks"])


def test_no_class_in_common(model, tmp_path):
    paint(tmp_path / "data" / "purple", (150, 30, 160), 2)
    with pytest.raises(PhotoError, match="none of its 1 classes"):
        evaluate_classifier.run(settings(model, tmp_path / "data", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_pictures_it_was_trained_on_are_left_out(model, data, tmp_path):
    recognizer = Recognizer.load(model)
    recognizer.provenance = {"trained_on": [sha256_of(path) for path in sorted((data / "red").glob("[0-3].png"))]}
    recognizer.save(tmp_path / "trained")
    report = evaluate_classifier.run(settings(tmp_path / "trained", data, tmp_path / "a", mistakes=0))
    assert report["pictures"] == 14 and report["left_out_training"] == 4
    flattered = evaluate_classifier.run(
        settings(tmp_path / "trained", data, tmp_path / "b", mistakes=0, include_training=True)
    )
    assert flattered["pictures"] == 18
    recognizer.provenance = {"trained_on": [sha256_of(path) for path in data.rglob("*.png")]}
    recognizer.save(tmp_path / "all")
    with pytest.raises(PhotoError, match="trained on all"):
        evaluate_classifier.run(settings(tmp_path / "all", data, tmp_path / "c"))


def test_pictures_that_set_its_8_bit_ranges_are_left_out(model, data, tmp_path):
    recognizer = Recognizer.load(model)
    red = [sha256_of(data / "red" / f"{index}.png") for index in range(3)]
    export = {"precision": "int8", "activation_ranges": {"photos": 2, "sha256": red[:2]}}
    recognizer.provenance = {"trained_on": red[1:], "export": export}
    recognizer.save(tmp_path / "ranged")
    report = evaluate_classifier.run(settings(tmp_path / "ranged", data, tmp_path / "a", mistakes=0))
    assert (report["pictures"], report["left_out_training"], report["left_out_ranges"]) == (15, 2, 1)
    assert any(
        remark.endswith("1 of 19 pictures were left out: they set its 8-bit ranges.") for remark in report["remarks"]
    )
    flattered = evaluate_classifier.run(
        settings(tmp_path / "ranged", data, tmp_path / "b", mistakes=0, include_training=True)
    )
    assert flattered["pictures"] == 18
    recognizer.provenance = {
        "export": export | {"activation_ranges": {"sha256": [sha256_of(path) for path in data.rglob("*.png")]}}
    }
    recognizer.save(tmp_path / "all")
    with pytest.raises(PhotoError, match="its 8-bit ranges were set on them"):
        evaluate_classifier.run(settings(tmp_path / "all", data, tmp_path / "c"))


def test_the_models_own_centroids_and_threshold_are_used(model, data, tmp_path):
    recognizer = Recognizer.load(model)
    size = recognizer.model.num_features
    recognizer.rejection = {
        "center": np.zeros(size, np.float32),
        "centroids": np.eye(3, size, dtype=np.float32),
        "threshold": 2.0,
    }
    recognizer.save(tmp_path / "model")
    paint(tmp_path / "other", (200, 200, 30), 3)
    report = evaluate_classifier.run(
        settings(tmp_path / "model", data, tmp_path / "out", out_of_distribution=str(tmp_path / "other"), mistakes=0)
    )
    assert report["distance_to"] == "nearest class centroid"
    assert report["out_of_distribution"]["at_threshold"]["rejected"][0] == 1  # no cosine reaches 2
    assert (report["rejection"]["rejected"][0], report["rejection"]["right_and_kept"][0]) == (1, 0)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Classify would reject 18 of them as out-of-distribution, which leaves 0 right." in page
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert {row["rejected"] for row in rows} == {"True"}


def test_csv_beside_a_flat_folder_and_validation_part_only(model, data, tmp_path):
    flat = tmp_path / "flat"
    paint(flat, COLOURS["green"], 4)
    lines = [f"{index}.png,green,{'train' if index < 1 else 'val'}" for index in range(4)]
    (flat / "labels.csv").write_text("path,label,split\n" + "\n".join(lines) + "\n")
    report = evaluate_classifier.run(settings(model, flat, tmp_path / "out", mistakes=0))
    assert report["pictures"] == 3 and any("validation" in remark for remark in report["remarks"])


def test_command_line(model, data, tmp_path, capsys):
    cli.main(
        ["evaluate-classifier", str(model), str(data), "--out", str(tmp_path / "out"), "--mistakes", "1", "--json"]
    )
    captured = capsys.readouterr()
    assert json.loads(captured.out)["pictures"] == 18
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate-classifier", str(model), str(tmp_path / "nothing")])
    assert stopped.value.code == 2 and "no such file or folder" in capsys.readouterr().err


def test_generated_pictures_are_left_out_or_refused(model, data, tmp_path):
    mixed = tmp_path / "mixed"
    for name, colour in COLOURS.items():
        paint(mixed / name, colour, 2, 7)
    paint(tmp_path / "unseen", (200, 200, 30), 2)
    info = PngInfo()
    info.add_text("femtobooth", "{}")
    for path in (mixed / "red" / "0.png", tmp_path / "unseen" / "0.png"):
        Image.open(path).save(path, pnginfo=info)
    report = evaluate_classifier.run(
        settings(model, mixed, tmp_path / "page", out_of_distribution=str(tmp_path / "unseen"))
    )
    assert (report["pictures"], report["out_of_distribution"]["pictures"]) == (5, 1)
    assert "2 generated pictures were left out: only real photos can test." in report["remarks"]
    for path in mixed.glob("*/*.png"):
        Image.open(path).save(path, pnginfo=info)
    with pytest.raises(PhotoError, match="all 6 pictures are generated"):
        evaluate_classifier.run(settings(model, mixed, tmp_path / "other"))


@pytest.mark.parametrize("split", [False, True])
def test_every_command_reads_labelled_pictures_alike(tmp_path, split):
    """A list beside folders, or a split without a validation part: evaluate-classifier, export and compare measure the
    same files.
    """
    for part in ("train", "test") if split else ("images",):
        for name, colour in COLOURS.items():
            paint(tmp_path / part / name, colour, 1, len(part) + len(name))
    wanted = {(str(path), path.parent.name) for path in (tmp_path / ("test" if split else "images")).rglob("*.png")}
    if not split:
        lines = [f"images/{name}/0.png,{name}" for name in COLOURS]
        (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines, "images/gone.png,red"]))
    measured, _ = dataset.read(tmp_path).to_measure()
    assert {(str(example.path), example.label) for example in measured} == wanted
    compared = bench.labelled(str(tmp_path), [])
    assert {(str(example.path), example.label) for example in compared.values()} == wanted
    names = tuple(COLOURS)
    exported = export_photos.read(str(tmp_path), Labels(names))
    assert {(str(path), names[index]) for path, index in zip(exported.paths, exported.classes, strict=True)} == wanted
