"""Settings of `train-many`, and of other commands that teach several subjects one by one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ...core.bulk.settings import ClusterSettings
from ...core.fields import Argument, Flag, SettingsOf
from ...generator.settings import PersonalizeSettings


class ManySettings(ClusterSettings):
    """How several subjects are taught beside each other, a process each."""

    jobs: Annotated[int | None, Flag("--jobs", unit="subjects", group="cluster")] = Field(None, ge=1)
    """Subjects at a time, without a cluster: as many as there are GPUs, or one, if not given."""
    workers: Annotated[int | None, Flag("--workers", unit="cores", group="cluster")] = Field(None, ge=1)
    """Cores of each subject; if not given those of the machine are shared out, and one is asked of a cluster."""
    gpus_per_subject: Annotated[float | None, Flag("--gpus-per-subject", unit="GPUs", group="cluster")] = Field(
        None, ge=0
    )
    """GPUs of a cluster that one subject takes: 0.5 puts two on one; 1 where the cluster has any, if not given."""
    retries: Annotated[int, Flag("--retries", unit="times", group="cluster")] = Field(1, ge=0)
    """How often a subject whose process was killed goes on from its checkpoint before it counts as failed."""

    def only_of_cluster(self) -> set[str]:
        """Name the settings that only a cluster makes use of."""
        return {*super().only_of_cluster(), "gpus_per_subject"}

    def without_effect(self) -> dict[str, str]:
        """Name how many at a time, where a cluster decides."""
        idle = {"jobs": "with executor=ray"} if self.executor == "ray" and self.jobs else {}
        return super().without_effect() | idle


MANY = {*ManySettings.model_fields}
"""Names of the settings that change where and beside what a subject is taught, and nothing of what comes out."""


class TrainManySettings(ManySettings):
    subjects: Annotated[str, Argument("?", names="file", needed=True)] = Field(min_length=1)
    """Who is taught: a .jsonl file whose lines hold name, photos, class_noun and any settings of personalize, or a
    folder with a folder of photos for each subject.
    """
    class_noun: Annotated[str | None, Flag("--class-noun", common=True)] = Field(None, min_length=1)
    """What subjects are of which the file, or the prompts_and_classes.txt of the folder, does not say it."""
    runs: Annotated[str, Flag("--runs", common=True, group="output", names="path")] = Field("runs/many", min_length=1)
    """Folder for the run of each subject, and for the page of all."""
    personalize: Annotated[dict[str, Any], SettingsOf(PersonalizeSettings), Flag(group="output")] = {}
    """Settings of `femtobooth personalize` for every subject; a line of the file wins over them."""
