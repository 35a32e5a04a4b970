"""femtobooth report: a run on one page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from femtobooth import cli
from femtobooth.core import config
from femtobooth.core.errors import ModelError
from femtobooth.core.files import write_json, write_text
from femtobooth.core.metrics import Interval
from femtobooth.generator import prior
from femtobooth.generator.photos import load_photos
from femtobooth.generator.run import SUBJECT, PersonalizedRun, Subject
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.generator.stored_photos import restore_photos, store_photos
from femtobooth.judging.memorization import near_copies
from femtobooth.judging.verdict import Evidence, judge
from femtobooth.pictures import duplicates
from femtobooth.workflows import report

NOUN = "toy <b>"  # what would break a page that does not escape


@pytest.fixture
def run(photo_folder: Path, tmp_path: Path) -> Path:
    """A finished run of a tiny picture size, with class images in the cache and one picture that copies photo 2."""
    folder = tmp_path / "runs" / "x y"
    wanted = {
        "photos": {"paths": [str(photo_folder)], "class_noun": NOUN},
        "prior": {"images": 3},
        "training": {"steps": 40},
    }
    settings = config.settle(
        PersonalizeSettings, wanted, {"samples": {"prompts": ["a [V] {class}", "a {class}"], "images": 2}}
    )
    photos, preflight = load_photos(settings.photos, 64)
    kept = [path.relative_to(folder).as_posix() for path in store_photos(photos, folder / "photos")]
    write_text(folder / "config.yaml", config.dump(settings))
    write_json(folder / "preflight.json", preflight)
    subject = Subject(token="sks", class_noun=NOUN, photos=kept)
    known = {"subjects": {SUBJECT: subject}, "base": settings.base, "base_hash": "b" * 64, "size": 64}
    made = PersonalizedRun.create(folder, settings, **known)
    made.update(status="done", steps=40, seconds=75.0, peak_memory_gib=1.25, versions={"python": "3"})
    random = np.random.default_rng(0)
    for step in (0, 20, 40):
        for row in range(2):
            for column in range(2):
                pixels = random.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
                path = folder / "samples" / f"step-{step:06d}" / f"{row:02d}-{column}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(photos[2].pixels if (step, row, column) == (40, 0, 1) else pixels).save(path)
    lines = [f"{step},{0.5 / step},{0.2 if step % 2 else ''},{step / 100}" for step in range(1, 41)]
    write_text(
        folder / "logs" / "metrics.csv", "\n".join(["step,loss/instance,loss/prior,fidelity/dino", *lines]) + "\n"
    )
    recipe = {"base": "b" * 64, "prompt": prior.prompts(settings.prior, NOUN)[0], "size": 64, "first_seed": 0}
    recipe |= settings.prior.sampling.model_dump()
    for index in range(3):
        path = prior.folder_of(recipe) / f"{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    write_json(prior.folder_of(recipe) / "manifest.json", {"key": prior.key_of(recipe), **recipe})
    return folder


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_everything_is_on_one_page_that_needs_nothing_else(run: Path) -> None:
    found = report.write(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    page, alts = _Page(text), [str(image["alt"]) for image in _Page(text).all("img")]
    assert found["bytes"] == (run / "report.html").stat().st_size
    assert not page.all("script")
    assert not page.all("link")
    assert all(str(image["src"]).startswith("data:image/") for image in page.all("img"))
    assert all(alts)
    assert sum(alt.startswith("photo ") for alt in alts) == 4
    assert sum(alt.startswith("class image") for alt in alts) == 3
    assert sum("seed" in alt and ", step 0" in alt for alt in alts) == 4
    assert sum("seed" in alt and ", step 40" in alt for alt in alts) == 4
    assert sum(alt.endswith("step 20") for alt in alts) == 2
    charts = [str(chart["aria-label"]) for chart in page.all("svg") if "aria-label" in chart]
    assert any(label.startswith("Loss") for label in charts)
    assert any(label.startswith("fidelity") for label in charts)
    assert "1 min 15 s" in text
    assert "toy &lt;b&gt;" in text
    assert "toy <b>" not in text
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Before and after",
        "Nearest training photos",
        "Photos",
        "Class images",
        "Training",
        "Make it again",
    ]


def test_a_copied_photo_is_found_and_told(run: Path) -> None:
    found = report.write(run)
    assert (found["near_copies"], found["pictures"]) == (1, 2)  # of the subject: "a {class}" is not compared
    text = (run / "report.html").read_text(encoding="utf-8")
    copied = [
        caption for caption in re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL) if "near-copy" in caption
    ]
    assert len(copied) == 1
    assert "02.png" in copied[0]
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (64, 64, 3), np.uint8)).save(
        run / "samples/step-000040/00-1.png"
    )
    assert report.write(run)["near_copies"] == 0


def test_the_verdict_stands_first_in_its_colour_and_the_evaluation_has_the_last_word(run: Path) -> None:
    assert report.write(run)["verdict"] is None  # of an older version
    gain = Interval(0.03, 0.01, 0.05)
    junk = judge(
        Evidence("lite0", 12, 0.408, 0.378, gain, 0.629, obeyed=(1.0, 1.0, 0.5), drift=0.25, copies=1), bundled=True
    )
    PersonalizedRun.open(run).update(verdict=junk.plain())
    assert report.write(run)["verdict"]["outcome"] == "not learned"
    text = (run / "report.html").read_text(encoding="utf-8")
    main = text[text.index("<main>") :]
    assert main.startswith('<main>\n<aside class="callout bad"><strong>Not learned:</strong> likeness came 12%')
    assert "64x64 icons and knows no photographs" in main[: main.index("</aside>")]
    names = re.findall(r"<dt>(.*?)</dt>", text)
    assert names == [
        "likeness",
        "prompts followed",
        "near-copies",
        "drift of its class",
        "steps",
        "time",
        "peak memory",
    ]
    assert '<div class="tile bad"><dt>likeness</dt><dd>12%</dd>' in text
    good = judge(Evidence("dino", 16, 0.6, 0.378, Interval(0.22, 0.2, 0.24), 0.629), bundled=True)
    write_json(
        run / "evaluation" / "evaluation.json", {"scores": [], "pictures": 16, "remarks": [], "verdict": good.plain()}
    )
    report.write(run)
    assert '<aside class="callout good"><strong>Learned:</strong>' in (run / "report.html").read_text(encoding="utf-8")


def test_copies_are_those_that_evaluate_counts(run: Path) -> None:
    """A crop that the perceptual hash misses counts; so does a picture without structure, as one that copies
    nothing.
    """
    photos = [photo.pixels for photo in restore_photos(run / "photos")]
    crop = Image.fromarray(photos[1]).crop((2, 6, 50, 54)).resize((64, 64), Image.Resampling.LANCZOS)
    views = [duplicates.views(image) for image in (crop, Image.fromarray(photos[1]))]
    assert len(set(duplicates.groups(views, ["crop", "photo"]).tolist())) == 2
    plain = Image.new("RGB", (64, 64), "grey")
    for name, picture in (("00-0", crop), ("00-1", plain)):
        picture.save(run / "samples" / "step-000040" / f"{name}.png")
    found = report.write(run)
    assert near_copies([np.asarray(crop), np.asarray(plain)], photos) == [True, False]
    assert (found["near_copies"], found["pictures"]) == (1, 2)
    text = (run / "report.html").read_text(encoding="utf-8")
    (copied,) = [
        caption for caption in re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL) if "near-copy" in caption
    ]
    assert "01.png" in copied
    assert "nothing to compare" in text


def test_class_images_of_another_recipe_are_not_shown(run: Path) -> None:
    PersonalizedRun.open(run).update(base_hash="c" * 64)
    report.write(run)
    assert 'alt="class image' not in (run / "report.html").read_text(encoding="utf-8")


def test_scores_stand_between_floor_and_ceiling(run: Path) -> None:
    score = {
        "score": "subject fidelity",
        "encoder": "lite0",
        "better": "higher",
        "base": 0.25,
        "tuned": [0.5, 0.4, 0.6],
        "ceiling": None,
    }
    write_json(run / "evaluation" / "evaluation.json", {"scores": [score], "pictures": 8, "remarks": ["few photos"]})
    report.write(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "0.500 (0.400 to 0.600)" in text
    assert "lite0" in text
    assert "few photos" in text


def test_a_run_that_was_interrupted_has_its_way_on(run: Path) -> None:
    PersonalizedRun.open(run).update(status="running", steps=None, seconds=0.0, peak_memory_gib=None)
    (run / "logs" / "metrics.csv").unlink()
    (run / "samples").rename(run / "elsewhere")
    found = report.write(run)
    assert "not finished" in found["warnings"][0]
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "--resume &#39;" in text
    assert "femtobooth generate" not in text


def test_other_folders_are_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "run.json", {"status": "done", "kind": "finetune"})
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(ModelError, match="not a personalize run"):
        report.write(tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", str(tmp_path / "nothing")])
    assert stopped.value.code == 2
    assert "->" in capsys.readouterr().err


def test_the_chosen_step_is_shown_with_its_rule(run: Path) -> None:
    points = [
        {"step": 10 * i, "fidelity": [0.2 + 0.1 * i, 0.3 + 0.1 * i], "prompt": [1.0, 1.0], "drift": 0.05 * i}
        for i in range(5)
    ]
    curve = {
        "encoder": "lite0", "weights": "w", "prompts": [], "prompt_fidelity": "CLIP-T", "photos": 4, "ceiling": 0.9, "points": points,
        "deterministic": [[0, 1.0], [10, 0.5]], "dvar_step": None, "seconds": {},
    }  # fmt: skip
    write_json(run / "validation" / "validation.json", curve)
    selected = {"step": 20, "reason": "because", "front": [10, 20], "rule": "THE RULE"}
    cost = {"scored": 5, "seconds": 12.0, "share": 0.12}
    PersonalizedRun.open(run).update(steps=20, trained_steps=40, selected=selected, validation=cost)
    report.write(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "model/ holds step 20 of 40: because." in text
    assert "THE RULE" in text
    assert "12% of the training" in text
    assert ">step 20</text>" in text  # in the chart of the Pareto front
    charts = [str(chart["aria-label"]) for chart in _Page(text).all("svg") if "aria-label" in chart]
    for name in (
        "Subject fidelity over optimizer",
        "Prompt fidelity",
        "Drift",
        "Subject fidelity over drift",
        "Deterministic loss",
    ):
        assert any(label.startswith(name) for label in charts), name
    alts = [str(image["alt"]) for image in _Page(text).all("img")]
    assert any("seed" in alt and ", step 20" in alt for alt in alts)
    assert not any(", step 40" in alt for alt in alts)  # was drawn after the step that became the model
    assert "outside the class" not in text  # what older versions wrote
    further = [dict(point) | {"outside": [0.01 * i, 0.03 * i]} for i, point in enumerate(points)]
    write_json(run / "validation" / "validation.json", curve | {"points": further, "outside": ["a house"]})
    report.write(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "Outside the class: a house; this chooses nothing." in text
    cells = [str(cell) for cell in re.findall(r"<td[^>]*>([^<]*)</td>", text)]
    assert "0.080" in cells  # the mean of the last step
    (run / "validation" / "validation.json").write_text("{}")  # damaged: the page is made without it
    report.write(run)
    assert "THE RULE" not in (run / "report.html").read_text(encoding="utf-8")


def test_nothing_that_the_page_shows_is_markup(run: Path) -> None:
    """Names, prompts, encoders, columns, remarks and verdicts are text, whoever wrote them."""
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'[/] &lt;\x1b[31m"
    said = judge(Evidence(evil, 12, 0.5, 0.378, Interval(0.12, 0.1, 0.14), 0.629), bundled=False)
    selected = {"step": 20, "reason": evil, "front": [20], "rule": evil}
    known = PersonalizedRun.open(run)
    subject = known.subject.model_copy(update={"class_noun": evil})
    known.update(subjects={SUBJECT: subject}, verdict=said.plain(), versions={evil: evil}, selected=selected)
    known.update(validation={"scored": 2, "seconds": 1})
    points = [{"step": step, "fidelity": [0.2, 0.3], "prompt": [1.0, 1.0], "drift": 0.1} for step in (0, 20)]
    curve = {
        "encoder": evil,
        "prompts": [evil, evil],
        "prompt_fidelity": evil,
        "photos": 4,
        "ceiling": 0.9,
        "points": points,
    }
    write_json(
        run / "validation" / "validation.json",
        curve | {"deterministic": [], "dvar_step": evil, "weights": evil, "seconds": {}},
    )
    row = {
        "score": evil,
        "encoder": evil,
        "better": evil,
        "base": 0.25,
        "tuned": [0.5, 0.4, 0.6],
        "ceiling": 0.7,
        "ceiling_of": evil,
    }
    write_json(run / "evaluation" / "evaluation.json", {"scores": [row], "pictures": evil, "remarks": [evil]})
    rows = json.loads((run / "preflight.json").read_text())
    write_json(
        run / "preflight.json", [*rows, {"file": evil, "width": 0, "height": 0, "status": "skipped", "notes": [evil]}]
    )
    write_text(
        run / "logs" / "metrics.csv", f'step,loss/instance,"x/{evil.replace(chr(34), "")}"\n1,0.5,0.5\n2,0.5,0.4\n'
    )
    report.write(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert not page.all("script")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(str(image["src"]).startswith("data:image/") for image in page.all("img"))
    assert "\x1b" not in text
    assert text.count("&lt;script&gt;") > 15


def test_scores_of_an_older_run_have_no_chart_twice(run: Path) -> None:
    """Validation was called watch: its columns of metrics.csv are shown in the part about the choice of the step."""
    write_text(run / "logs" / "metrics.csv", "step,loss/instance,watch/drift,other/value\n1,0.5,0.1,1\n2,0.4,0.2,2\n")
    report.write(run)
    charts = [chart.get("aria-label") for chart in _Page((run / "report.html").read_text(encoding="utf-8")).all("svg")]
    assert "other over optimizer steps" in charts
    assert not any("watch" in label or "validation" in label for label in charts if label)
