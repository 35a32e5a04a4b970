"""Who does the work on several subjects: processes of this machine, some at a time, or tasks of a Ray cluster."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Generator, Sequence
from concurrent import futures
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...core.bulk import cluster
from ...core.errors import first_line
from ...core.events import note
from ...core.machine import cores, may_accelerate
from ...generator.locate import SHARED
from .settings import ManySettings
from .work import KILLED, Ended, Work, carry_out

DEVICES, THREADS, CACHE = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "FEMTOBOOTH_CACHE"
Working = Generator[dict[str, Ended], None, None]
LOOK = 0.5  # seconds between two looks at all
GRACE = 120.0  # seconds that tasks of a cluster are given to save, once the command is stopped


def run(works: Sequence[Work], settings: ManySettings, accelerated: bool) -> Working:
    """Do all work; yields every half a second, and as soon as one has ended, how those ended that did since.

    `accelerated` says whether processes are to have GPUs. Closed before its end, it has those that
    run save and end, and begins no other. Raises SettingsError for a cluster that is not there or has no room.
    """
    if settings.executor == "ray":
        return _on_ray(works, settings, accelerated)
    return _here(works, settings.retries, slots(settings, accelerated))


def slots(settings: ManySettings, accelerated: bool) -> list[dict[str, str]]:
    """List the variables of the processes that run at a time: each has a GPU of its own, as far as there are enough,
    and its share of the cores; several without a GPU have one base in memory.
    """
    gpus = _gpus() if accelerated else []
    jobs = settings.jobs or len(gpus) or 1
    found: list[dict[str, str]] = [{} for _ in range(jobs)]
    if settings.workers or (jobs > 1 and THREADS not in os.environ):
        found = [{THREADS: str(settings.workers or max(1, cores() // jobs))} for _ in range(jobs)]
    if gpus:
        return [one | {DEVICES: gpus[number % len(gpus)]} for number, one in enumerate(found)]
    return [one | _sharing() for one in found] if jobs > 1 else found


def _sharing() -> dict[str, str]:
    """Give the variable that has processes share a base, as it is set already or else on."""
    return {SHARED: os.environ.get(SHARED, "1")}


def _gpus() -> list[str]:
    """Name the GPUs of this machine as CUDA_VISIBLE_DEVICES does; none where torch sees none."""
    if not may_accelerate():
        return []
    import torch

    count = torch.cuda.device_count()
    given = [one.strip() for one in os.environ.get(DEVICES, "").split(",") if one.strip()]
    return given[:count] or [str(number) for number in range(count)]


def _here(works: Sequence[Work], retries: int, environments: Sequence[dict[str, str]]) -> Working:
    places: queue.Queue[dict[str, str]] = queue.Queue()
    for one in environments:
        places.put(one)
    stopping = threading.Event()

    def do(work: Work) -> Ended:
        environment = places.get()
        try:
            return carry_out(work, retries, environment, stopping)
        except Exception as error:  # whatever it is, the others go on
            return Ended("failed", f"{type(error).__name__}: {first_line(error)}", KILLED.way_out)
        finally:
            places.put(environment)

    with futures.ThreadPoolExecutor(len(environments), "subject") as pool:
        waiting = {pool.submit(do, work): work.name for work in works}
        try:
            while waiting:
                done, _ = futures.wait(waiting, LOOK, futures.FIRST_COMPLETED)
                yield {waiting.pop(one): one.result() for one in done}
        finally:
            if waiting:
                note("stopping: what is taught now is saved first")
            stopping.set()
            pool.shutdown(cancel_futures=True)


def _on_ray(works: Sequence[Work], settings: ManySettings, accelerated: bool) -> Working:
    threads, gpus = settings.workers or 1, settings.gpus_per_subject
    with cluster.connected(settings):
        import ray

        if gpus is None:
            gpus = float(accelerated and ray.cluster_resources().get("GPU", 0) >= 1)
        cluster.room(threads, gpus, "gpus_per_subject")
        task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=settings.retries, max_calls=1)(_there)
        environment = {THREADS: str(threads)} | {name: os.environ[name] for name in (CACHE,) if name in os.environ}
        environment |= {} if gpus else _sharing()
        waiting = {task.remote(work, settings.retries, environment, Path.cwd()): work.name for work in works}
        try:
            while waiting:
                done, _ = ray.wait([*waiting], timeout=LOOK)
                yield {waiting.pop(one): _told(one) for one in done}
        finally:
            if waiting:
                note("stopping: what is taught now is saved first")
            for one in waiting:
                with suppress(Exception):  # it may have ended just now, or its machine is gone
                    ray.cancel(one, force=False)
            if waiting:
                ray.wait([*waiting], num_returns=len(waiting), timeout=GRACE)


def _there(work: Work, retries: int, environment: dict[str, str], place: Path) -> Ended:
    """Do the work on a subject in a task of Ray, which sees the GPUs that it was given."""
    cluster.enter(place)
    return carry_out(work, retries, environment, threading.Event())


def _told(reference: Any) -> Ended:
    import ray

    try:
        found: Ended = ray.get(reference)
    except ray.exceptions.RayError as error:
        return Ended(KILLED.status, f"the cluster gave up: {first_line(error)}", KILLED.way_out)
    return found
