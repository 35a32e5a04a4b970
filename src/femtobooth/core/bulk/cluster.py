"""Parts made by the processes of a Ray cluster: Ray Data lists them, hands them out, and starts again what dies.

One task lists the inputs and hands on a part at a time, as it is asked for; actors each hold the model, and write the
parts that they make; what comes back here is one small row a part. So this process holds no names and no rows, however
many inputs there are, and a part that was being made when its process or machine died is made again elsewhere.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from ..claims import Output
from ..errors import FemtoboothError, SettingsError, StorageError, first_line
from ..events import Event, emit, listening, note, progress_bar
from ..machine import cores
from .parts import Dataset, Outcome, Part, Unit, make
from .settings import ActorSettings, BulkSettings
from .store import Folder, Remote, Store

if TYPE_CHECKING:
    from ray.data import Dataset as Stream

Item = TypeVar("Item")
Result = TypeVar("Result")
STORE = 2**28  # bytes of shared memory of a cluster of this machine alone: parts are names, not pictures


class Connecting(Protocol):
    """Settings that say which cluster."""

    @property
    def address(self) -> str | None:
        """As ClusterSettings has it."""


@contextmanager
def connected(settings: Connecting) -> Iterator[None]:
    """Connect to the cluster that is asked for, or to one of this machine alone, which ends with the block.

    A program that has connected itself keeps its connection. Raises SettingsError for an address without a cluster.
    """
    for name, value in {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_worker_niceness": "0"}.items():
        os.environ.setdefault(name, value)  # no lines of Ray's own, and no processes that wait for all others
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    alone: dict[str, Any] = {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": STORE}
    if settings.address:
        alone = {}
    try:
        _call(settings.address)
        with unheard():
            ray.init(settings.address or "local", log_to_driver=False, logging_level=logging.ERROR, **alone)
    except (OSError, ValueError, RuntimeError) as error:
        raise SettingsError(
            f"`address={settings.address}`: no Ray cluster can be reached there ({first_line(error)})",
            "start one with `ray start --head`, or leave it out",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _call(address: str | None) -> None:
    """Raise OSError where nothing answers at host:port, for which Ray itself would wait many minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.removeprefix("ray://").strip("[]"), int(port)), timeout=10).close()


@contextmanager
def unheard() -> Iterator[None]:
    """Keep from the terminal what Ray's own library writes there as it begins: that it was told to be quiet."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def fill(
    settings: BulkSettings,
    out: Output | Remote,
    made_with: dict[str, Any],
    listed: Callable[[], Iterator[Part[Any]]],
    opened: Callable[[], Unit[Any]],
    threads: int = 1,
) -> Iterator[Outcome]:
    """Fill a dataset with all parts, and give what became of each, once; it is whole when the last has been taken.

    Raises ExistsError and InUseError as `Dataset.open` does, SettingsError where there is no cluster, and what the
    processes raise.
    """
    names: set[str] = set()
    rows = 0
    with connected(settings), Dataset.open(out, made_with) as dataset, progress_bar("inputs", None) as bar:
        for told in run(settings, dataset, listed, opened, threads):
            if told.name in names:  # it was listed twice, as the machine died that did it first
                continue
            names.add(told.name)
            rows += told.rows + told.failed + told.before
            yield told
            bar.advance(told.rows + told.failed + told.before + told.others)
        if stale := dataset.finish(names, {"rows": rows, "parts": len(names)}):
            note(f"{stale} parts of inputs that are no longer there, or no longer in this order, were dropped")


def run(
    settings: BulkSettings,
    dataset: Dataset,
    listed: Callable[[], Iterator[Part[Any]]],
    opened: Callable[[], Unit[Any]],
    threads: int = 1,
) -> Iterator[Outcome]:
    """Make all parts, and give what became of each as they come, in no order.

    `listed` and `opened` are called elsewhere, in the folder of this process, and must be picklable; `threads` are the
    cores that one process takes. Raises the FemtoboothError that one of them raised.
    """
    yield from _told(_stream(settings, listed, _Maker, (_anywhere(dataset.store), opened, Path.cwd()), threads))


def each(
    settings: ActorSettings,
    folder: Path,
    listed: Callable[[], Iterator[Item]],
    opened: Callable[[], Callable[[Item], Result]],
    threads: int = 1,
) -> Iterator[Result]:
    """Hand items to actors, which write into a folder, and give what each makes of one as they come, in no order.

    As with `run`, `listed` and `opened` are called elsewhere. An item may be done twice, where a process or a machine
    dies. Raises SettingsError where there is no cluster, and the FemtoboothError that a process raised.
    """
    with connected(settings):
        yield from _told(_stream(settings, listed, _Doer, (Folder(folder.absolute()), opened, Path.cwd()), threads))


def elsewhere(function: Callable[[], Result], threads: int = 1) -> Result:
    """Call a function in a task of the cluster that this process is connected to, and tell here what it told there.

    Raises the FemtoboothError that it raised.
    """
    import ray

    room(threads, 0.0, "address")
    task = ray.remote(num_cpus=threads, max_calls=1)(_heard)
    found, events = ray.get(task.remote(function, Path.cwd()))
    for event in events:
        emit(event.kind, **event.data)
    if isinstance(found, FemtoboothError):
        raise found
    result: Result = found
    return result


def _heard(function: Callable[[], Any], place: Path) -> tuple[Any, list[Event]]:
    """Call a function in a folder; gives what it returned, or the FemtoboothError that it raised, and what it told."""
    enter(place)
    events: list[Event] = []
    with listening(events.append):
        try:
            found = function()
        except FemtoboothError as error:
            found = error
    return found, [one for one in events if one.kind in ("note", "warning")]


def _anywhere(store: Store) -> Store:
    """Give what is the same place in whatever folder a process works."""
    return Folder(store.path.absolute()) if isinstance(store, Folder) else store


def _told(stream: Stream) -> Iterator[Any]:
    for row in stream.iter_rows():
        told = pickle.loads(row["outcome"])  # noqa: S301  (of our own processes)
        if isinstance(told, FemtoboothError):
            raise told
        yield told


def _stream(
    settings: ActorSettings, listed: Callable[[], Iterator[Any]], actor: type, given: tuple[Any, ...], threads: int
) -> Stream:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of settings that nobody here has set
        context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # a part is a block, handed on as soon as it is listed
    context.target_min_block_size = 1
    context.enable_progress_bars = context.print_on_execution_start = False
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    resources: dict[str, Any] = {"num_cpus": threads}
    if settings.gpus_per_actor:
        resources["num_gpus"] = settings.gpus_per_actor
    most = room(threads, settings.gpus_per_actor, "gpus_per_actor")
    size = min(settings.actors or most, most)
    with DataContext.current(context):
        return ray.data.read_datasource(
            _lister(listed, Path.cwd()),
            override_num_blocks=1,
            num_cpus=0,
            label_selector=here,
        ).map_batches(
            actor,
            fn_constructor_args=given,
            batch_size=1,
            compute=ActorPoolStrategy(min_size=1, initial_size=size, max_size=settings.actors),
            **resources,
        )


def room(threads: int, gpus: float, named: str) -> int:
    """Count the processes of so many cores and GPUs that the cluster has room for at a time.

    Raises SettingsError for none; `named` is the setting that says how many GPUs one takes.
    """
    import ray

    most = 0
    for there in [node["Resources"] for node in ray.nodes() if node["Alive"]]:  # no process is on two machines
        most += min(int(there.get("CPU", 0) // threads), int(there.get("GPU", 0) / gpus) if gpus else sys.maxsize)
    if most < 1:
        also = f" and {gpus:g} GPUs" if gpus else ""
        raise SettingsError(
            f"one process needs {threads} cores{also}, which no machine of the cluster has",
            f"change `workers` or `{named}`",
        )
    return most


def _lister(listed: Callable[[], Iterator[Any]], place: Path) -> Any:
    import pyarrow as pa
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def blocks() -> Iterator[pa.Table]:
        for told in _parts(listed, place):
            yield pa.table({"part": pa.array([pickle.dumps(told)], pa.large_binary())})

    class Listing(Datasource):
        def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
            return [ReadTask(blocks, BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None))]

        def estimate_inmemory_data_size(self) -> int | None:
            return None

    return Listing()


def _parts(listed: Callable[[], Iterator[Item]], place: Path) -> Iterator[Item | FemtoboothError]:
    """List parts, or other items, in a folder, and at the end what went wrong."""
    enter(place)
    try:
        yield from listed()
    except FemtoboothError as error:
        yield error


def enter(place: Path) -> None:
    """Go to the folder that the command was called in, where this machine has it: names may be relative to it."""
    with suppress(OSError):
        os.chdir(place)


class _Doer(Generic[Item]):
    """What an actor does: it opens what is to be done once, and does it to an item at a time."""

    def __init__(self, store: Store, opened: Callable[[], Any], place: Path) -> None:
        enter(place)
        self.store = store
        self.unit: Any
        try:
            if isinstance(store, Folder) and not store.path.is_dir():
                raise StorageError(
                    f"`out={store}`: is not there on {platform.node()}, which is to write into it",
                    "choose a place on a disk that all machines of the cluster share",
                )
            self.unit = opened()
        except FemtoboothError as error:
            self.unit = error

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        told = [self._outcome(pickle.loads(part)) for part in batch["part"]]  # noqa: S301  (of our own processes)
        return {"outcome": np.array([pickle.dumps(one) for one in told], dtype=object)}

    def _outcome(self, item: Item | FemtoboothError) -> Any:
        if isinstance(item, FemtoboothError):
            return item
        if isinstance(self.unit, FemtoboothError):
            return self.unit
        try:
            return self.done(item)
        except FemtoboothError as error:
            return error

    def done(self, item: Item) -> Any:
        """Do it."""
        return self.unit(item)


class _Maker(_Doer[Part[Any]]):
    """Makes the parts of a dataset."""

    def done(self, item: Part[Any]) -> Outcome:
        """Make one."""
        return make(self.store, item, self.unit)
