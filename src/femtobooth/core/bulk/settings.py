"""Settings of commands that can share their work among processes and machines."""

from __future__ import annotations

from importlib import util
from typing import Annotated, Literal

from pydantic import Field

from ..config import Settings
from ..errors import SettingsError, needs
from ..fields import Flag
from .store import is_address

ONLY_RAY = "without executor=ray"


class ClusterSettings(Settings):
    """What every command has that can be shared out; not a command of its own."""

    executor: Annotated[Literal["local", "ray"], Flag("--executor", group="cluster")] = "local"
    """local: this machine, without a cluster; ray: processes of a Ray cluster, with the same results."""
    address: Annotated[str | None, Flag("--address", group="cluster")] = None
    """Cluster of Ray: auto is the one that this machine belongs to, host:port another; one of this machine alone is
    started and ended if not given.
    """

    def only_of_cluster(self) -> set[str]:
        """Name the settings that only a cluster makes use of."""
        return {"address"}

    def without_effect(self) -> dict[str, str]:
        """Name the settings of a cluster where none is used."""
        given = self.only_of_cluster() & self.model_fields_set
        return super().without_effect() | ({} if self.executor == "ray" else dict.fromkeys(sorted(given), ONLY_RAY))

    def refuse_at_once(self) -> None:
        """Raise SettingsError where Ray is asked for and not installed."""
        super().refuse_at_once()
        if self.executor == "ray" and not util.find_spec("ray"):
            raise SettingsError("`executor=ray`: needs Ray, which is not installed", needs("ray"))


class ActorSettings(ClusterSettings):
    """What commands have whose processes each hold a model."""

    actors: Annotated[int | None, Flag("--actors", unit="processes", group="cluster")] = Field(None, ge=1)
    """Processes that each hold the model; as many as fit the cluster if not given."""
    gpus_per_actor: Annotated[float, Flag("--gpus-per-actor", unit="GPUs", group="cluster")] = Field(0.0, ge=0)
    """Share of a GPU that one such process takes: 0.25 puts four on one."""

    def only_of_cluster(self) -> set[str]:
        """Name the settings that only a cluster makes use of."""
        return {*super().only_of_cluster(), "actors", "gpus_per_actor"}


class BulkSettings(ActorSettings):
    """What commands have whose rows come in parts."""

    executor: Annotated[Literal["local", "ray"], Flag("--executor", group="cluster")] = "local"
    """local: this process; ray: processes of a Ray cluster, with the same rows, in a folder of Parquet parts."""
    part_size: Annotated[int, Flag("--part-size", unit="inputs", group="cluster")] = Field(1024, ge=1)
    """Inputs of one part: what a kill may lose, and is done again."""

    def only_of_cluster(self) -> set[str]:
        """Name the settings that only a cluster makes use of."""
        return {*super().only_of_cluster(), "part_size"}

    def refuse_at_once(self) -> None:
        """Raise SettingsError where an address is to be written to, and not in parts."""
        super().refuse_at_once()
        out = getattr(self, "out", None)
        if self.executor != "ray" and isinstance(out, str) and is_address(out):
            raise SettingsError(f"`out={out}`: only `executor=ray` writes to an address", "add that, or give a path")

    def refuse_uneven(self, batch_size: int) -> None:
        """Raise SettingsError where a part is no whole number of batches, which would change what is computed."""
        if self.part_size % batch_size:
            raise SettingsError(
                f"`part_size={self.part_size}`: is no multiple of batch_size={batch_size}",
                f"give {max(1, self.part_size // batch_size) * batch_size}",
            )


CLUSTER = {*BulkSettings.model_fields}
"""Names of the settings that change where something is computed, and nothing of what comes out."""
