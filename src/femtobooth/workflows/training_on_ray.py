"""One training on several machines of a Ray cluster, whose processes this command starts: `--executor ray`.

    with started("personalize", settings):
        team.trained(...)       # here is process 0, as if torchrun had started all

The command is process 0, on its own machine, with its own terminal and signals; the run folder is there. On each
machine a task of Ray holds the cores and GPUs of its processes, starts the command for each as torchrun would, and
waits. How they meet, train, save, stop and notice that one is gone is `training/team.py`'s, as with torchrun.
"""

from __future__ import annotations

import os
import platform
import shlex
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..core import config, job
from ..core.bulk import cluster
from ..core.errors import SettingsError, first_line
from ..core.events import note
from ..core.machine import cores
from ..core.processes import world
from ..core.run import Run
from ..generator.settings import PersonalizeSettings
from ..recognizer.settings import FinetuneSettings
from ..training import team, trainer
from ..training.settings import HostSettings, ResumeSettings, TrainingSettings
from .many.executors import CACHE, GRACE, LOOK, THREADS
from .many.work import KILLED, Work, carry_out

SELECTED = "ray.io/node-id"  # the label by which a machine of a cluster is chosen
FILE = "given.yaml"


@dataclass(frozen=True)
class Others:
    """The processes that one machine's task starts."""

    environments: Mapping[int, dict[str, str]]
    """The variables of each, by its number among all."""
    words: Sequence[str]
    given: str
    """Settings, as YAML; none where the words say all."""
    place: Path
    """The folder that the command was called in."""


@contextmanager
def started(command: str, asked: PersonalizeSettings | FinetuneSettings) -> Iterator[None]:
    """Make this process the first of a training on the cluster that is asked for, if one is, for the time inside: all
    others are started, and have ended after it.

    Raises SettingsError where the cluster is not there, or too small, and where a launcher started another number of
    processes than is asked for.
    """
    if asked.executor != "ray":
        trainer.refuse_other_number(asked.training)
        yield
        return
    with _others(asked, asked.training, [command], config.dump(asked)):
        yield


@contextmanager
def resumed(
    asked: ResumeSettings, kind: type[Run], settings: type[PersonalizeSettings | FinetuneSettings]
) -> Iterator[None]:
    """Do as `started` for a run of this kind that goes on."""
    asked.refuse_at_once()
    run = kind.open(Path(asked.run)) if asked.executor == "ray" else None
    if run is None or run.status == "done":
        yield
        return
    with _others(asked, run.read_settings(settings).training, [run.kind, "--resume", asked.run], ""):
        yield


@contextmanager
def _others(asked: HostSettings, training: TrainingSettings, words: Sequence[str], given: str) -> Iterator[None]:
    if training.nodes < 2 or world() > 1:
        raise SettingsError(
            "`executor=ray`: starts the processes of several machines",
            "say with `training.nodes` how many, or leave it out; it takes the place of torchrun",
        )
    with cluster.connected(asked):
        import ray

        threads = int(os.environ.get(THREADS) or 0) or max(1, cores() // training.devices)
        each = _each(training, threads)
        here = _room(asked, training, each)
        selected = [{SELECTED: here}, *[{}] * (training.nodes - 1)]
        group = ray.util.placement_group([each] * training.nodes, "STRICT_SPREAD", bundle_label_selector=selected)
        try:
            _wait_for(group)
            with _as_first(asked, training, threads, group, each, words, given):
                yield
        finally:
            with suppress(Exception):  # the cluster may be gone
                ray.util.remove_placement_group(group)


def _each(training: TrainingSettings, threads: int) -> dict[str, float]:
    """Say what a machine's processes take of it."""
    import ray

    gpus = training.accelerator != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
    count = float(training.devices)
    return {"CPU": count, "GPU": count} if gpus else {"CPU": count * threads}


def _room(asked: HostSettings, training: TrainingSettings, each: Mapping[str, float]) -> str:
    """Find this machine among those of the cluster. Raises SettingsError where too few are there, or large enough."""
    import ray

    here = str(ray.get_runtime_context().get_node_id())
    there = [one for one in ray.nodes() if one["Alive"]]
    large = [one["NodeID"] for one in there if all(one["Resources"].get(name, 0) >= of for name, of in each.items())]
    needs = " and ".join(f"{of:g} {'cores' if name == 'CPU' else 'GPUs'}" for name, of in each.items())
    if len(there) < training.nodes:
        raise SettingsError(
            f"`training.nodes={training.nodes}`: the cluster at {asked.address} has {len(there)}",
            "give fewer, or have more machines join it with `ray start`",
        )
    if len(large) < training.nodes or here not in large:
        which = "this machine has fewer" if here not in large else f"only {len(large)} of {len(there)} have as many"
        raise SettingsError(
            f"`training.devices={training.devices}`: takes {needs} of each machine, and {which}",
            f"give fewer, or set {THREADS} to fewer cores for each process",
        )
    return here


def _wait_for(group: Any) -> None:
    """Wait until the machines are free."""
    import ray

    if not ray.wait([group.ready()], timeout=5)[0]:
        note("waiting until other work has left enough machines of the cluster")
        ray.get(group.ready())


@contextmanager
def _as_first(
    asked: HostSettings,
    training: TrainingSettings,
    threads: int,
    group: Any,
    each: Mapping[str, float],
    words: Sequence[str],
    given: str,
) -> Iterator[None]:
    """Be process 0, and have tasks start the others."""
    import ray
    import torch

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    address, several, own = ray.util.get_node_ip_address(), training.nodes * training.devices, training.devices
    common = {
        "WORLD_SIZE": f"{several}",
        "LOCAL_WORLD_SIZE": f"{own}",
        "MASTER_ADDR": address,
        "MASTER_PORT": f"{port}",
    }
    common |= {THREADS: f"{threads}", "TORCHELASTIC_RUN_ID": "femtobooth"}  # by which Lightning knows torchrun
    common |= {name: os.environ[name] for name in (CACHE,) if name in os.environ}

    def variables(number: int) -> dict[str, str]:
        node, local = divmod(number, own)
        return common | {"RANK": f"{number}", "LOCAL_RANK": f"{local}", "NODE_RANK": f"{node}", "GROUP_RANK": f"{node}"}

    def called(function: Callable[..., Any], node: int) -> Any:
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, node)
        how = {"num_cpus": each["CPU"], "num_gpus": each.get("GPU", 0), "scheduling_strategy": strategy}
        return ray.remote(max_retries=0, max_calls=1, **how)(function)

    ours = variables(0)
    if "GPU" in each and (visible := ray.get(called(_visible, 0).remote())):
        ours["CUDA_VISIBLE_DEVICES"] = visible
    tasks = {}
    for node in range(training.nodes):
        numbers = range(max(node * own, 1), (node + 1) * own)
        if numbers:
            others = Others({number: variables(number) for number in numbers}, words, given, Path.cwd())
            tasks[called(_there, node).remote(others)] = numbers[0]
    before, kept = torch.get_num_threads(), dict(os.environ)
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(tasks, over), name="ray watch", daemon=True)
    os.environ |= ours
    torch.set_num_threads(threads)
    again = team.again.set(" " + shlex.join(["--executor", "ray", "--address", str(asked.address)]))
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()
        team.again.reset(again)
        torch.set_num_threads(before)
        for name in ours:
            os.environ.pop(name, None)
        os.environ |= {name: value for name, value in kept.items() if name in ours}
        _end(tasks)


def _visible() -> str:
    """Say, on the machine of process 0, which GPUs its processes have."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def _watch(tasks: Mapping[Any, int], over: threading.Event) -> None:
    """Tell all processes of a training when the cluster has lost the task of a machine."""
    import ray

    waiting = dict(tasks)
    while waiting and not over.is_set():
        for one in ray.wait([*waiting], timeout=LOOK)[0]:
            number = waiting.pop(one)
            try:
                ray.get(one)
            except Exception as error:  # of Ray, whatever it is
                if not over.is_set():
                    team.report(number, "the cluster", f"its task was lost ({first_line(error)})")


def _end(tasks: Mapping[Any, int]) -> None:
    """Wait until the tasks have ended, which their processes do by themselves; else stop them."""
    import ray

    for force in (False, True):
        _, left = ray.wait([*tasks], num_returns=len(tasks), timeout=GRACE / 4) if tasks else ([], [])
        for one in left:
            with suppress(Exception):
                ray.cancel(one, force=force)


def _there(others: Others) -> None:
    """Start the processes of one machine, in a task of Ray, and wait until all have ended."""
    cluster.enter(others.place)
    stopping = threading.Event()
    with (
        TemporaryDirectory(prefix="femtobooth-", ignore_cleanup_errors=True) as scratch,
        futures.ThreadPoolExecutor(len(others.environments)) as pool,
    ):
        words = list(others.words)
        if others.given:
            (Path(scratch) / FILE).write_text(others.given, encoding="utf-8")
            words += ["--config", str(Path(scratch) / FILE)]
        waiting = {
            pool.submit(_process, number, environment, words, Path(scratch), stopping)
            for number, environment in others.environments.items()
        }
        while waiting:
            try:
                _, waiting = futures.wait(waiting, LOOK)
            except KeyboardInterrupt:  # where Ray cancels this
                stopping.set()


def _process(
    number: int, environment: dict[str, str], words: Sequence[str], scratch: Path, stopping: threading.Event
) -> None:
    """Carry out one process of a training, and tell the others where it does not end well."""
    place = scratch / f"{number}"
    work = Work(f"process {number}", place, place / "none", partial(_following, place, words))
    ended = carry_out(work, 0, environment, stopping)
    problem = "was killed" if ended == KILLED else ended.problem
    if ended == KILLED or ended.status == "failed":
        os.environ |= {name: environment[name] for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")}
        team.report(number, platform.node(), problem, ended.way_out if ended.status == "failed" else None)


def _following(place: Path, words: Sequence[str]) -> Sequence[str] | None:
    return None if job.ended(place) == 0 else words
