"""Judge what a personalize run came to: learned or not, by which figures, and what to try next.

A pure function of what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..core.files import read_json
from ..core.metrics import Interval
from ..generator.families.known import NAMES
from ..generator.run import PersonalizedRun

Outcome = Literal["learned", "partly learned", "not learned", "memorized", "not judged"]
MOODS = {"learned": "good", "partly learned": "warn", "not learned": "bad", "memorized": "bad", "not judged": "info"}

LEARNED_SHARE, PARTLY_SHARE = 0.5, 0.25  # shares of the way from the untuned base to the photos
MIN_PICTURES = 4  # pictures that are judged
# cosine: where the photos are no more alike than this above the base's pictures, the encoder does not tell the subject
MIN_ROOM = 0.05
COPIED, MEMORIZED = 0.25, 0.5  # shares of pictures that nearly copy a training photo
OBEDIENT = 0.5  # share of the base's obedience to the prompt, beyond chance, that is left
DRIFTED = 0.75  # of the distance between the base's pictures of the class and the photos
RULE = (
    "Likeness is the mean of two cosines, of whole pictures and of their subjects' "
    "regions alone. It runs from 0 %, that of the untuned "
    "base's pictures of the same prompts and seeds to the photos, to 100 %, that "
    "of the photos among each other. The subject is learned "
    f"from {LEARNED_SHARE:.0%} on, partly from {PARTLY_SHARE:.0%} on, and not where the interval "
    f"reaches 0. It is memorized where {MEMORIZED:.0%} of "
    f"the pictures nearly copy a training photo. A warning are: {COPIED:.0%} of "
    "copies that do not show what their prompt asks for; less "
    f"than {OBEDIENT:.0%} of the base's obedience to its prompts, beyond chance; "
    f"pictures of the class that have moved by {DRIFTED:.0%} of "
    "the distance between the base's and the photos."
)


@dataclass(frozen=True)
class Evidence:
    """What was measured by one encoder on the same prompts and seeds with the tuned model and with its untuned base."""

    encoder: str
    pictures: int
    """Of the subject."""
    likeness: float
    """Of the tuned model's pictures to the photos."""
    floor: float
    """The same of the untuned base's pictures."""
    gain: Interval
    """Of likeness over floor, picture by picture."""
    ceiling: float | None
    """The same of the photos among each other; None for a single photo."""
    obeyed: Sequence[float] | None = None
    """Share of pictures that show what their prompt asks for: by the tuned model, by its base, and by chance; None
    where not measured.
    """
    drift: float | None = None
    """How far pictures of the class have moved, 1 being as far as the photos are from the base's; None where not
    measured.
    """
    copies: int = 0
    """Pictures that nearly copy a training photo."""
    astray: int = 0
    """Those of them that do not show what their prompt asks for, as far as that is known."""


@dataclass(frozen=True)
class Verdict:
    """What is said of a run, first and last."""

    outcome: Outcome
    mood: str
    """good, warn, bad or info: the colour of its box."""
    sentence: str
    """The outcome, and by which figures."""
    advice: str
    """What to try next."""
    share: Interval | None = None
    """Of the way from the untuned base to the photos."""
    evidence: Evidence | None = None

    @property
    def told(self) -> str:
        return f"{self.sentence} {self.advice}"

    def plain(self) -> dict[str, Any]:
        """Give JSON values, for run.json and evaluation.json."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def read(facts: Any) -> Verdict | None:
    """Read the verdict that `plain` wrote; None where there is none, or it cannot be read."""
    try:
        found = Verdict(**facts)
        known = Evidence(**facts["evidence"]) if facts["evidence"] else None
        evidence = known and replace(known, gain=Interval(*known.gain), obeyed=known.obeyed and tuple(known.obeyed))
        return (
            replace(found, share=found.share and Interval(*found.share), evidence=evidence)
            if found.outcome in MOODS
            else None
        )
    except (KeyError, TypeError):
        return None


def of_run(run: PersonalizedRun) -> Verdict | None:
    """Find the verdict of a run: that of its evaluation where there is one; None where there is none."""
    evaluation = read_json(run.folder / "evaluation" / "evaluation.json")
    found = read(evaluation.get("verdict")) if isinstance(evaluation, dict) else None
    return found or read(run.verdict)


def of_each(run: PersonalizedRun) -> dict[str, Verdict]:
    """Find the verdicts of each of several subjects, as `of_run` does; none of one subject."""
    evaluation = read_json(run.folder / "evaluation" / "evaluation.json")
    facts = (evaluation.get("verdicts") if isinstance(evaluation, dict) else None) or run.verdicts or {}
    return {name: found for name, one in facts.items() if (found := read(one))}


def unjudged(why: str, advice: str) -> Verdict:
    """Make a verdict where too little could be measured."""
    return Verdict("not judged", MOODS["not judged"], f"Not judged: {why}.", advice)


def judge(found: Evidence, bundled: bool) -> Verdict:
    """Judge by `RULE`. `bundled`: whether the base is the bundled one, which knows icons only."""
    by = f"{found.pictures} pictures, by {found.encoder}"
    if found.pictures < MIN_PICTURES:
        return unjudged(f"{found.pictures} of its pictures cannot tell much, {MIN_PICTURES} are the fewest", EVALUATE)
    if found.ceiling is None:
        text = (
            f"likeness to the photo is {found.likeness:.3f}, the untuned base's "
            f"{found.floor:.3f} ({by}); one photo shows no ceiling"
        )
        return unjudged(text, "Next: give 3 to 5 photos of different views.")
    room = found.ceiling - found.floor
    if room < MIN_ROOM:
        text = (
            f"by {found.encoder} the photos are alike by {found.ceiling:.3f}, the "
            f"untuned base's pictures to them by {found.floor:.3f}"
        )
        return unjudged(f"{text}, which tells nothing", "Next: let another encoder judge, with femtobooth evaluate.")
    value, low, high = (part / room for part in found.gain)
    way = f"from the untuned base ({found.floor:.3f}) to the photos themselves ({found.ceiling:.3f})"
    came = f"{percent(value)} (95 %: {percent(low)} to {percent(high)})"
    figures = f"likeness came {came} of the way {way}, {by}"
    outcome: Outcome = (
        "not learned" if value < PARTLY_SHARE or low <= 0 else "learned" if value >= LEARNED_SHARE else "partly learned"
    )
    troubles = {} if outcome == "not learned" else _troubles(found)
    if "copies" in troubles and found.copies >= MEMORIZED * found.pictures:
        outcome = "memorized"
    mood = "warn" if troubles and outcome == "learned" else MOODS[outcome]
    sentence = f"{outcome.capitalize()}: {figures}" + "".join(f"; but {text}" for text in troubles.values()) + "."
    weak = outcome in ("partly learned", "not learned")
    advice = ADVICE[next(iter(troubles), "bundled" if bundled and weak else outcome)]
    return Verdict(outcome, mood, sentence, advice, Interval(value, low, high), found)


def joint(each: Mapping[str, Verdict]) -> Verdict:
    """Say of several subjects what came of them, by the one of which least did."""
    if len(each) == 1:
        return next(iter(each.values()))
    order = ("bad", "warn", "info", "good")
    share = {name: one.share.value if one.share else -1.0 for name, one in each.items()}
    name = min(each, key=lambda name: (order.index(each[name].mood), share[name]))
    worst = each[name]
    parts = [
        f"{name} {one.outcome}" + (f" ({percent(one.share.value)})" if one.share else "") for name, one in each.items()
    ]
    by = worst.evidence.encoder if worst.evidence else ""
    way = f" of the way from the untuned base to its photos, by {by}" if by and worst.share else ""
    sentence = f"{worst.outcome.capitalize()}: {', '.join(parts)}{way}."
    if worst.mood != "good":
        sentence += f" Of {name}: {worst.sentence}"
    return replace(worst, sentence=sentence)


def percent(share: float) -> str:
    """Write a share in whole per cent, never -0."""
    return f"{round(share, 2) + 0.0:.0%}"


def _troubles(found: Evidence) -> dict[str, str]:
    """Tell what else went wrong, by name, as clauses."""
    said = {}
    if found.copies and (found.astray >= COPIED * found.pictures or found.copies >= MEMORIZED * found.pictures):
        said["copies"] = (
            f"{found.copies} of {found.pictures} pictures nearly copy a training "
            f"photo, {found.astray} against their prompt"
        )
    if found.obeyed:
        tuned, base, chance = found.obeyed
        if tuned - chance < OBEDIENT * (base - chance):
            said["prompts"] = (
                f"only {tuned:.0%} of them show what the prompt asks for (the base {base:.0%}, by chance {chance:.0%})"
            )
    if found.drift is not None and found.drift >= DRIFTED:
        said["drift"] = f"pictures of its class have moved {found.drift:.0%} as far as the photos are from the base's"
    return said


EVALUATE = "Next: femtobooth evaluate, with this run, generates more and judges them."
ADVICE = {
    "learned": "Next: draw it where no photo shows it.",
    "partly learned": "Next: more steps, or photos of more sides of the subject.",
    "not learned": (
        "Next: see on the run's page what of the photos was trained on; then more steps or a higher learning rate."
    ),
    "bundled": "Next: the bundled base draws 64x64 icons and knows no photographs: "
    f"take a {NAMES} as the base for them; "
    "for drawings, more steps.",
    "copies": "Next: fewer steps, or more and more different photos.",
    "prompts": "Next: fewer steps, or the best checkpoint by validation, which minds the prompts.",
    "drift": "Next: fewer steps, or more class images.",
}
"""By what is the matter."""
