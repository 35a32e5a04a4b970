"""What is said of a run follows from its figures: the worst of it decides, and what to try next belongs to it."""

import json
from dataclasses import replace

import pytest

from femtobooth.core.metrics import Interval
from femtobooth.judging.verdict import Evidence, joint, judge, read


def measured(likeness, floor=0.378, ceiling=0.629, width=0.02, **more):
    gain = Interval(likeness - floor, likeness - floor - width, likeness - floor + width)
    return Evidence("lite0", 12, likeness, floor, gain, ceiling, **more)


VERDICTS = {
    # what was measured, the outcome, the colour, what is said of it and what is advised
    "photos on the bundled base": (
        measured(0.408),
        "not learned",
        "bad",
        "came 12 % (95 %: 4 % to 20 %) of the way",
        "64x64 icons",
    ),
    "junk above the floor": (
        measured(0.408),
        "not learned",
        "bad",
        "(0.378) to the photos themselves (0.629)",
        "as the base",
    ),
    "an untrained run": (measured(0.377), "not learned", "bad", "came 0 % (95 %: -8 % to 8 %)", "as the base"),
    "worse than the base": (measured(0.1), "not learned", "bad", "came -111 %", "as the base"),
    "nothing sure": (measured(0.56, width=0.2), "not learned", "bad", "-7 %", "as the base"),
    "a third of the way": (measured(0.46), "partly learned", "warn", "33 %", "as the base"),
    "a well-learned subject": (
        measured(0.56, obeyed=(0.9, 1.0, 1 / 3), drift=0.3),
        "learned",
        "good",
        "73 %",
        "draw it",
    ),
    "one copy of twelve": (measured(0.56, copies=1), "learned", "good", "73 %", "draw it"),
    "a third are photos that show what was asked for": (measured(0.56, copies=4), "learned", "good", "73 %", "draw it"),
    "a third are photos instead": (
        measured(0.56, copies=4, astray=3),
        "learned",
        "warn",
        "4 of 12 pictures nearly copy",
        "fewer steps",
    ),
    "all copied": (measured(0.62, copies=11), "memorized", "bad", "11 of 12 pictures nearly copy", "fewer steps"),
    "deaf to prompts": (
        measured(0.56, obeyed=(0.4, 1.0, 1 / 3)),
        "learned",
        "warn",
        "only 40 % of them show",
        "best checkpoint",
    ),
    "a base that is deaf itself": (measured(0.56, obeyed=(1 / 3, 1 / 3, 1 / 3)), "learned", "good", "73 %", "draw it"),
    "its class gone": (measured(0.56, drift=0.9), "learned", "warn", "moved 90 % as far", "more class images"),
    "one picture": (
        replace(measured(0.56), pictures=1),
        "not judged",
        "info",
        "1 of its pictures",
        "femtobooth evaluate",
    ),
    "one photo": (measured(0.56, ceiling=None), "not judged", "info", "one photo shows no ceiling", "3 to 5 photos"),
    "an encoder that tells nothing": (
        measured(0.56, ceiling=0.4),
        "not judged",
        "info",
        "tells nothing",
        "another encoder",
    ),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict_follows_from_the_figures(name):
    evidence, outcome, mood, said, advised = VERDICTS[name]
    found = judge(evidence, bundled=True)
    assert (found.outcome, found.mood) == (outcome, mood)
    assert found.sentence.startswith(outcome.capitalize())
    assert said.replace(" %", "%") in found.sentence.replace(" %", "%")
    assert advised in found.advice
    assert json.loads(json.dumps(found.plain())) == found.plain()
    assert read(found.plain()) == found


def test_another_base_is_advised_only_on_the_bundled_one():
    assert "64x64" not in judge(measured(0.408), bundled=False).advice
    assert "higher learning rate" in judge(measured(0.408), bundled=False).advice


@pytest.mark.parametrize("damaged", [None, {}, [], "learned", {"outcome": "learned"}, {"outcome": 3, "share": "x"}])
def test_what_is_no_verdict_is_none(damaged):
    assert read(damaged) is None


def test_of_several_subjects_the_least_learned_is_told():
    good, weak = judge(measured(0.56), bundled=False), judge(measured(0.46), bundled=False)
    both = joint({"rex": good, "mug": weak})
    assert (both.outcome, both.mood, both.share) == ("partly learned", "warn", weak.share)
    assert both.sentence.startswith(
        "Partly learned: rex learned (73%), mug partly learned (33%) of the way from the untuned base to its photos"
    )
    assert "Of mug: Partly learned: likeness came 33%" in both.sentence
    assert joint({"V": good}) is good
    assert joint({"rex": good, "max": good}).sentence.startswith("Learned: rex learned (73%), max learned (73%)")
