"""Every page, at a desk and on a phone, by day and by night: no error, nothing beyond the edge, nobody shut out.

With FEMTOBOOTH_SCREENSHOTS=docs/studio the pages are also photographed, for the documentation and for those who change
them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studio_browser import Server, Watched

from femtobooth import api
from femtobooth.studio.library import id_of

MASCOT = sorted((Path(__file__).parents[2] / "examples" / "mascot").glob("*.jpg"))
WIDTHS = (1400, 390)
WIDE = "[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right > innerWidth + 1)"
SERIOUS = ("serious", "critical")
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
    made = api.personalize(MASCOT, class_noun="robot", base=str(tiny_sd1), runs=str(runs), name="femto", **QUICK)
    from femtobooth.generator.settings import GenerateSettings
    from femtobooth.workflows import generate

    asked = {"run": str(made.folder), "prompts": ["a [V] robot on the moon"], "count": 2, "sampling": {"steps": 1}}
    generate.run(GenerateSettings.model_validate(asked))
    return runs


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    found = Server(folder)
    yield found
    found.end()


def test_pages(chromium: Any, server: Server) -> None:
    from axe_playwright_python.sync_playwright import Axe

    axe, page = Axe(), chromium.new_page()
    seen = Watched(page)
    run = id_of("femto")
    page.goto(f"{server.address}/new")
    page.set_input_files("#begin input[type=file]", MASCOT)  # the form sends itself
    page.wait_for_url("**/new/*")
    draft = page.url.removeprefix(server.address)
    edit = page.locator(".photo a").first.get_attribute("href")
    pages = {
        "home": "/", "begin": "/new", "subject": draft, "photo": edit, "run": f"/runs/{run}", "choose": "/draw?all=1",
        "draw": f"/draw/{run}", "compare": "/compare", "recognize": "/recognize", "models": "/models",
        "settings": "/settings",
    }  # fmt: skip
    faults: list[str] = []
    for name, address in pages.items():
        page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        page.emulate_media(color_scheme="light")
        page.goto(server.address + address)
        page.wait_for_load_state("networkidle") if name != "run" else page.locator("#chart-loss canvas").wait_for()
        if name == "subject":
            page.get_by_text("Everything else").click()
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900 if width > 600 else 844})
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                beyond = page.evaluate(f"document.documentElement.scrollWidth > innerWidth ? {WIDE}.length : 0")
                faults += [f"{name}, {width} px: {beyond} elements reach beyond the edge"] if beyond else []
                photographed(page, f"{name}-{width}-{scheme}")
                if (width, scheme) in ((WIDTHS[0], "light"), (WIDTHS[1], "dark")):
                    found = axe.run(page).response["violations"]
                    faults += [f"{name}, {width} px: {told(one)}" for one in found if one["impact"] in SERIOUS]
    page.goto(f"{server.address}/nothing/here")
    assert page.get_by_role("heading", name="Not here").count() == 1
    seen.wrong = [one for one in seen.wrong if "/nothing/here" not in one]
    assert faults == []
    assert seen.wrong == []


def test_the_keyboard_reaches_everything_that_begins_a_subject(chromium: Any, server: Server) -> None:
    page = chromium.new_page()
    page.goto(server.address)
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText")
        )
    assert reached[0] == "Skip to the page"
    assert {"New subject", "Draw", "femto", "Choose photos", "Try it with our mascot"} <= set(reached)


def told(violation: dict[str, Any]) -> str:
    """Say what axe found, and where."""
    nodes = [node["html"][:160] for node in violation["nodes"][:3]]
    return f"{violation['id']} ({violation['help']}): {nodes}"


def photographed(page: Any, name: str) -> None:
    """Keep a picture of the page, where that is asked for."""
    place = os.environ.get("FEMTOBOOTH_SCREENSHOTS")
    if place:
        Path(place).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(300)
        page.screenshot(path=Path(place) / f"{name}.png", full_page=True)
