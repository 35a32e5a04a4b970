"""Every page, at a desk and on a phone, by day and by night: no error, nothing beyond the edge, nobody shut out.

With FEMTOBOOTH_SCREENSHOTS=FOLDER the pages are also photographed, for the documentation (`make screenshots`) and for
those who change them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from PIL import Image
from studio_browser import JobHere, Watched, serving

from femtobooth import api
from femtobooth.studio.library import id_of
from femtobooth.studio.state import Studio
from femtobooth.workflows.settings import StudioSettings

axe_playwright_python = pytest.importorskip("axe_playwright_python")

MASCOT = sorted((Path(__file__).parents[2] / "examples" / "mascot").glob("*.jpg"))
WIDTHS, HEIGHTS = (1400, 390), (940, 844)
PICTURES = os.environ.get("FEMTOBOOTH_SCREENSHOTS", "")
DOCUMENTED, DOCUMENTED_SIZE = ("subject", "run", "draw"), (960, 645)
WIDE = "[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right > innerWidth + 1)"
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
SERIOUS = """axe.run({resultTypes: ["violations"]}).then((found) => found.violations
    .filter((one) => ["serious", "critical"].includes(one.impact))
    .map((one) => `${one.id} (${one.help}): ${one.nodes.slice(0, 3).map((node) => node.html.slice(0, 160))}`))"""
QUICK: dict[str, Any] = {
    "training": {"steps": 2, "trackers": ["csv"]},
    "prior": {"images": 1, "sampling": {"steps": 1}},
    "samples": {"images": 2, "every": 1, "sampling": {"steps": 1}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_sd1: Path) -> Path:
    """A studio's folder with a finished run of the command line, and pictures that were drawn with it."""
    runs = tmp_path_factory.mktemp("studio") / "runs"
    ready = os.environ.get("FEMTOBOOTH_SCREENSHOTS_OF")  # a run that has learned something, for the documentation
    if ready:
        shutil.copytree(ready, runs / "femto")
        return runs
    (runs / "models").mkdir(parents=True)
    (runs / "models" / "tiny").symlink_to(tiny_sd1)
    made = api.personalize(MASCOT, class_noun="robot", base=str(tiny_sd1), runs=str(runs), name="femto", **QUICK)
    from femtobooth.generator.settings import GenerateSettings
    from femtobooth.workflows import generate

    asked = {"run": str(made.folder), "prompts": ["a [V] robot on the moon"], "count": 2, "sampling": {"steps": 1}}
    generate.run(GenerateSettings.model_validate(asked))
    return runs


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A studio in this process, which does its jobs in threads: everything is imported once."""
    studio = Studio(StudioSettings(folder=str(folder), browser=False))
    studio.runner.process = JobHere  # type: ignore[assignment]
    with serving(studio) as found:
        yield found


def begun(page: Any, address: str) -> str:
    """Begin a subject with the mascot's photos; gives the address of its page."""
    page.goto(f"{address}/new")
    page.set_input_files("#begin input[type=file]", MASCOT)  # the form sends itself
    page.wait_for_url("**/new/*")
    return str(page.url.removeprefix(address))


def test_pages(chromium: Any, address: str) -> None:
    page = chromium.new_page(reduced_motion="reduce")
    seen = Watched(page)
    run = id_of("femto")
    page.goto(f"{address}/new")
    page.get_by_role("button", name="Try it with our mascot").click()
    page.wait_for_url("**/new/*")
    draft = page.url.removeprefix(address)
    edit = page.locator(".photo a").first.get_attribute("href")
    pages = {
        "home": "/", "begin": "/new", "subject": draft, "photo": edit, "run": f"/runs/{run}", "choose": "/draw?all=1",
        "draw": f"/draw/{run}", "compare": "/compare", "recognize": "/recognize", "models": "/models",
        "settings": "/settings",
    }  # fmt: skip
    faults: list[str] = []
    for name, place in pages.items():
        page.set_viewport_size({"width": WIDTHS[0], "height": HEIGHTS[0]})
        page.emulate_media(color_scheme="light")
        page.goto(address + place)
        page.wait_for_load_state("load") if name != "run" else page.locator("#chart-loss canvas").wait_for()
        if name == "subject":
            page.get_by_text("Everything else").click()
        page.evaluate(AXE)
        for width, height in zip(WIDTHS, HEIGHTS, strict=True):
            page.set_viewport_size({"width": width, "height": height})
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                beyond = page.evaluate(f"document.documentElement.scrollWidth > innerWidth ? {WIDE}.length : 0")
                faults += [f"{name}, {width} px: {beyond} elements reach beyond the edge"] if beyond else []
                photographed(page, name, width, scheme)
                found = page.evaluate(SERIOUS)
                faults += [f"{name}, {width} px, {scheme}: {one}" for one in found]
    page.goto(f"{address}/nothing/here")
    assert page.get_by_role("heading", name="Not here").count() == 1
    seen.wrong = [one for one in seen.wrong if "/nothing/here" not in one]
    assert faults == []
    assert seen.wrong == []
    page.close()


def painted(page: Any, box: Any) -> None:
    """Drag the brush over the lower half of a picture."""
    box.scroll_into_view_if_needed()
    area = box.bounding_box()
    for row in (0.8, 0.97):
        page.mouse.move(area["x"] + 1, area["y"] + row * area["height"])
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"] - 1, area["y"] + row * area["height"], steps=3)
        page.mouse.up()


def test_a_picture_is_drawn_over_where_it_is_painted(chromium: Any, address: str) -> None:
    page = chromium.new_page(reduced_motion="reduce", viewport={"width": 1400, "height": 1400})
    seen = Watched(page)
    page.goto(f"{address}/draw/{id_of('femto')}")
    first = page.locator(".shot img").first
    before = pixels(page, first.get_attribute("src"))
    page.locator(".shot button").first.click()
    page.get_by_role("button", name="Begin from this").click()
    page.locator("#over").wait_for()
    page.locator("#brush").fill("20")
    painted(page, page.locator("#mask canvas"))
    page.get_by_label("How much may change").fill("1")
    page.get_by_label("What should it draw?").fill("a [V] robot in the snow")
    page.get_by_label("How many").fill("1")
    page.get_by_text("Size and everything else").click()
    page.locator("#sampling-steps").fill("2")
    page.get_by_role("button", name="Draw", exact=True).click()
    drawn = page.get_by_alt_text("a [V] robot in the snow").first
    drawn.wait_for()
    after = pixels(page, drawn.get_attribute("src"))
    assert np.array_equal(after[: len(after) // 2], before[: len(before) // 2])
    assert not np.array_equal(after[-6:], before[-6:])
    drawn.click()
    assert "begun from\na picture" in page.locator("#look-facts").inner_text()
    assert seen.wrong == []
    page.close()


def test_a_photo_is_cut_and_painted_over(chromium: Any, address: str) -> None:
    page = chromium.new_page(reduced_motion="reduce", viewport={"width": 1400, "height": 1400})
    seen = Watched(page)
    begun(page, address)
    late: list[Any] = []
    page.route("**/photos/*whole=true", lambda route: late.insert(0, route))  # somebody may be quicker than the picture
    page.locator(".photo a").first.click()
    page.locator("#crop canvas[width]").wait_for()
    area = page.locator("#crop canvas").bounding_box()
    page.mouse.move(area["x"] + area["width"] / 4, area["y"] + area["height"] / 4)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.75, area["y"] + area["height"] * 0.75, steps=2)
    page.mouse.up()
    late.pop().continue_()
    page.unroute_all()
    page.get_by_role("button", name="Keep this part").click()
    page.get_by_text("cut by hand").wait_for()
    page.locator(".photo a").first.click()
    page.locator("#mask canvas").wait_for()
    painted(page, page.locator("#mask canvas"))
    page.get_by_role("button", name="Use this mask").click()
    page.get_by_text("painted over").wait_for()
    with Image.open(MASCOT[0]) as photo:
        sides = re.findall(r"\d+", page.locator(".photo li").first.inner_text())
        assert [*map(int, sides)] == pytest.approx([photo.width / 2, photo.height / 2], abs=1)
    assert seen.wrong == []
    page.close()


def test_models_go_out_and_come_in(chromium: Any, address: str, tmp_path: Path) -> None:
    """A whole tune leaves as an adapter, comes back by its file, is mixed in, and leaves merged into a base."""
    page = chromium.new_page(reduced_motion="reduce", viewport={"width": 1400, "height": 900})
    seen = Watched(page)

    def take(title: str, way: str, file: str) -> Path:
        page.goto(f"{address}/models")
        form = page.locator("li", has=page.get_by_label(f"{title}: take it away as")).filter(has_text=way)
        form.get_by_role("combobox").select_option(way)
        form.get_by_role("button", name="Take away").click()
        with page.expect_download() as got:
            page.get_by_role("link", name="Download").click()
        got.value.save_as(tmp_path / file)
        return tmp_path / file

    adapter = take("femto", "As an adapter of a few megabytes", "adapter.safetensors")
    page.goto(f"{address}/models")
    page.set_input_files("#model-file", adapter)
    adapters = page.locator("section", has=page.get_by_role("heading", name="Adapters"))
    adapters.get_by_text("brought in").wait_for()
    page.goto(f"{address}/draw/{id_of('femto')}")
    page.get_by_text("Mix in adapters").click()
    assert page.get_by_label("adapter.safetensors").input_value() == "0"
    merged = take("adapter.safetensors", "Merged into tiny", "merged.safetensors")
    with safetensors.safe_open(merged, "numpy") as opened:
        assert any(name.startswith("model.diffusion_model.") for name in opened.keys())  # noqa: SIM118
    assert seen.wrong == []
    page.close()


def test_a_folder_of_classes_is_taught(chromium: Any, address: str, tmp_path: Path) -> None:
    for number, colour in enumerate(("red", "blue")):
        (tmp_path / "things" / colour).mkdir(parents=True)
        for seed in range(6):
            noise = np.random.default_rng(seed + 10 * number).integers(0, 99, (32, 32, 3), np.uint8)
            noise[..., 2 * number] += 150
            Image.fromarray(noise).save(tmp_path / "things" / colour / f"{seed}.png")
    page = chromium.new_page(reduced_motion="reduce", viewport={"width": 1400, "height": 900})
    seen = Watched(page)
    page.goto(f"{address}/recognize")
    page.get_by_label("It begins from").select_option("bundled")
    page.get_by_label("How").select_option("quick")
    page.set_input_files("#classes input[type=file]", tmp_path / "things")
    page.wait_for_url("**/runs/*")
    run = page.locator("h1").inner_text()
    report = page.get_by_role("link", name="The whole report")
    report.wait_for()
    with page.expect_popup() as opened:
        report.click()
    opened.value.get_by_text("red").first.wait_for()
    page.goto(f"{address}/recognize")
    page.get_by_label("Recognizer", exact=True).select_option(label=run)
    page.set_input_files("#see input[type=file]", tmp_path / "things" / "blue" / "0.png")
    page.locator(".answer strong").wait_for()
    assert page.locator(".answer strong").inner_text() == "blue"
    assert seen.wrong == []
    page.close()


def test_who_has_the_token_comes_in(chromium: Any, tmp_path: Path) -> None:
    studio = Studio(StudioSettings(folder=str(tmp_path), browser=False), token="open sesame")
    with serving(studio) as address:
        page = chromium.new_page(reduced_motion="reduce", viewport={"width": WIDTHS[1], "height": HEIGHTS[1]})
        page.goto(f"{address}/models")
        page.evaluate(AXE)
        assert page.evaluate(SERIOUS) == []
        page.get_by_label("Token").fill("sesame")
        page.keyboard.press("Enter")
        page.get_by_text("This is not the token.").wait_for()
        page.get_by_label("Token").fill("open sesame")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Teach it somebody, or something").wait_for()
        assert "sesame" not in page.url
        page.close()


def test_the_queue_is_ordered_by_the_keyboard(chromium: Any, tmp_path: Path) -> None:
    studio = Studio(StudioSettings(folder=str(tmp_path), browser=False))
    studio.runner.begin = lambda: None  # type: ignore[method-assign]
    with serving(studio) as address:
        photo = studio.uploads.add_picture(MASCOT[0], "rex.jpg").in_settings()
        given = {"photos": {"paths": [photo], "class_noun": "robot"}}
        jobs = [studio.desk.submit("personalize", {**given, "name": name}) for name in ("one", "two", "three")]
        page = chromium.new_page(reduced_motion="reduce", viewport={"width": 1400, "height": 900})
        seen = Watched(page)
        page.goto(f"{address}/settings")
        page.get_by_role("button", name="Later: one").focus()
        for after in (["two", "one", "three"], ["two", "three", "one"], ["two", "three", "one"]):
            with page.expect_response("**/later"):
                page.keyboard.press("Enter")
            page.wait_for_function("names => [...document.querySelectorAll('#queue h3')].map((one) => one.innerText)"
                                   ".join() === names.join()", arg=after)  # fmt: skip
            page.wait_for_function("id => document.activeElement.id === id", arg=f"later-{jobs[0].id}")
            # What was just put in is a plain form until htmx has looked at it: then a press leads to another page.
            page.wait_for_function("() => !document.querySelector('.htmx-added, .htmx-settling')")
        page.get_by_role("button", name="Pause: three").press("Enter")
        page.locator("#queue .chip.paused").wait_for()
        assert [(job.title, job.status) for job in studio.jobs.listed()] == [
            ("two", "queued"), ("three", "paused"), ("one", "queued"),
        ]  # fmt: skip
        page.evaluate(AXE)
        assert page.evaluate(SERIOUS) == []
        assert seen.wrong == []
        page.close()


def pixels(page: Any, address: str) -> np.ndarray:
    """Give the pixels of a picture, uint8 (H, W, 3)."""
    host = re.match("http://[^/]+", page.url)[0]  # type: ignore[index]
    with Image.open(BytesIO(page.request.get(host + address).body())) as image:
        return np.asarray(image.convert("RGB"))


def test_the_keyboard_reaches_everything_that_begins_a_subject(chromium: Any, address: str) -> None:
    page = chromium.new_page(reduced_motion="reduce")
    page.goto(address)
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText")
        )
    assert reached[0] == "Skip to the page"
    assert {"New subject", "Draw", "femto", "Choose photos", "Try it with our mascot"} <= set(reached)


def photographed(page: Any, name: str, width: int, scheme: str) -> None:
    """Keep a picture of the page, where that is asked for; of some also what the documentation shows."""
    if not PICTURES:
        return
    folder = Path(PICTURES)
    folder.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(300)
    page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)
    if name in DOCUMENTED and (width, scheme) == (WIDTHS[0], "light"):
        with Image.open(BytesIO(page.screenshot())) as image:
            image.convert("RGB").resize(DOCUMENTED_SIZE, Image.Resampling.LANCZOS).quantize(128).save(
                folder / f"{name}.png", optimize=True
            )
