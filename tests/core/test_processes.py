"""Which process of a run this is, as each launcher tells it."""

from __future__ import annotations

import pytest

from femtobooth.core.processes import rank, world

VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, 0, id="alone"),
        pytest.param({"RANK": "0", "LOCAL_RANK": "0"}, 0, id="torchrun, first"),
        pytest.param({"RANK": "5", "LOCAL_RANK": "1"}, 5, id="torchrun, second of another machine"),
        pytest.param({"RANK": "4", "LOCAL_RANK": "0"}, 4, id="torchrun, first of another machine"),
        pytest.param({"LOCAL_RANK": "1", "NODE_RANK": "0"}, 1, id="Lightning, which starts all but the first"),
        pytest.param({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, 1, id="Lightning, within an allocation of one task"),
        pytest.param({"SLURM_PROCID": "0"}, 0, id="SLURM, first"),
        pytest.param({"SLURM_PROCID": "3"}, 3, id="SLURM, fourth"),
        pytest.param({"NODE_RANK": "0"}, 0, id="by hand, first machine"),
        pytest.param({"NODE_RANK": "1"}, 1, id="by hand, second machine"),
        pytest.param(
            {"NODE_RANK": "1", "LOCAL_RANK": "1"}, 2, id="by hand, second machine, started by Lightning there"
        ),
        pytest.param({"RANK": "", "SLURM_PROCID": "none"}, 0, id="no numbers"),
    ],
)
def test_rank(given: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert rank() == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({"WORLD_SIZE": "4"}, 1, id="a variable that is left over"),
        pytest.param({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, 4, id="torchrun"),
        pytest.param({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, 1, id="started by Lightning"),
        pytest.param({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "8"}, 8, id="srun"),
        pytest.param({"SLURM_PROCID": "0"}, 1, id="SLURM, a batch script"),
    ],
)
def test_world(given: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert world() == expected
