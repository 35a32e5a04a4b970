"""Settings of the commands in which generator and recognizer meet. The text under each field is its help."""

from __future__ import annotations

from pydantic import Field

from ..core.config import Settings
from ..generator.settings import SamplingSettings


class EvaluateSettings(Settings):
    run: str = Field(min_length=1)
    """Run folder that `femtobooth personalize` made."""
    encoders: list[str] = []
    """What scores: dino, clip, bundled, tf_efficientnet_lite0, a path or timm's name. If not given, those of dino and clip \
that are in the hub's cache, else those that need no hub."""
    photos: list[str] = []
    """Photos of the subject to score against, best ones that were held out of training; those of the run if not given."""
    prompts: list[str] = ["a [V] {class}", "a [V] {class} on the beach", "a [V] {class} in the snow", "a [V] {class} on the moon"]
    """What to draw and score; [V] is the subject, {class} the class noun."""
    count: int = Field(4, ge=1)
    """Pictures for each prompt."""
    class_prompt: str = "a {class}"
    """Prompt of the pictures that tell how far the class has drifted."""
    class_count: int = Field(16, ge=2)
    """Pictures of the class, and of each other class, by the tuned model and by the base."""
    other_classes: list[str] = ["cat", "car"]
    """Further classes whose drift is measured."""
    gallery: str | None = None
    """Folder with a folder of photos for each look-alike, among which the subject is ranked."""
    region: bool = True
    """Also compare the subject's region alone, so that copied backgrounds earn nothing."""
    seed: int = Field(500, ge=0)
    """Seed of the first picture; picture i of each prompt has seed + i."""
    batch_size: int = Field(4, ge=1)
    """Pictures drawn at a time."""
    device: str = "auto"
    """Where to draw: auto, cpu, cuda, cuda:1, mps."""
    sampling: SamplingSettings = SamplingSettings()
