"""The processes of one training that a launcher (torchrun, srun) started, on machines that need not share a disk.

    team.trained(first, Task, follow, Run)
        first(ours)      # in the first process: shares what it read from its disk, `ours.share(task)`, and fits
        follow(task)     # in every other one: fits, too; `fit` takes the newest checkpoint from the first

They meet where torch.distributed does, at $MASTER_ADDR:$MASTER_PORT, before it does, and talk by gloo. Each says every
two seconds that it lives. When one ends, or its machine is gone, the others say so and end within a minute.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, distributed

from ..core import streams
from ..core.errors import CheckpointError, FemtoboothError, Interrupted, ProcessLost, first_line
from ..core.processes import first_here, rank, world
from ..core.run import Run
from . import checkpoints, sending

Kind = TypeVar("Kind")
Done = TypeVar("Done", bound=Run)
BEAT = 2.0
"""Seconds between two signs of life."""
SILENCE = 40.0
"""Seconds without one after which a process counts as gone."""
GRACE = 10.0
"""Seconds that the main thread has to notice the end of another process, before this one is ended from outside."""
MEETING = 300.0
"""Seconds in which all processes must have come."""
CHUNK = 1 << 26  # bytes sent at once
LEFT = b"left"
_started: list[str] = []  # the teams that this process has joined
FIRST = "femtobooth/0"  # where a process's first team talks
again: ContextVar[str] = ContextVar("again", default="")
"""What the first process is given, beside the run, to go on with all others; empty where each is started by itself."""


class Team:
    """A training with nobody to talk to: of one process, or of those that Lightning starts on one machine."""

    follows = False
    """Whether this process takes from the first one what that has read."""
    way_out = "start it again on every machine"
    """What to do when a process is lost."""

    def share(self, value: Any) -> None:
        """Send the others what this process, the first, has found."""

    def shared(self, kind: type[Kind]) -> Kind | None:
        """Take what the first process shares: a value of this kind, or None. Raises FemtoboothError for any other."""
        raise NotImplementedError

    def checkpoint(self, found: Path | None) -> Path | None:
        """Give the checkpoint folder of the first process, which `found` it; the others a copy where theirs differs."""
        return found

    def leave(self) -> None:
        """Go without being missed."""

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """Tell the others of an error that ends the body; raise ProcessLost for one whose cause is another process."""
        yield


_current: ContextVar[Team] = ContextVar("team", default=Team())  # noqa: B039  (it holds nothing)


def current() -> Team:
    """Give the team that this process has joined."""
    return _current.get()


@contextmanager
def joined() -> Iterator[Team]:
    """Meet the other processes that a launcher started, if it did. Where the body fails the others hear of it, and
    where another process has failed that is raised: ProcessLost.
    """
    if world() == 1:
        yield current()
        return
    ours = _Team()
    before = _current.set(ours)
    try:
        with ours.heeding():
            yield ours
            ours.leave()
    finally:
        _current.reset(before)


def trained(
    first: Callable[[Team], Done], sent: type[Kind], follow: Callable[[Kind | None], None], kind: type[Done]
) -> Done:
    """Train with all processes that a launcher started: the first one does `first`, every other `follow` with what the
    first one shares, which is `sent`. All return the run that `first` gave, once that is there, though its folder may
    be on the disk of the first one's machine alone.
    """
    with joined() as ours:
        if ours.follows:
            follow(ours.shared(sent))
            return kind.model_validate(ours.shared(dict))
        run = first(ours)
        ours.share({**run.plain(), "folder": str(run.folder)})
        return run


class _Team(Team):
    def __init__(self) -> None:
        from torch.distributed.distributed_c10d import ProcessGroupGloo  # which not every build of torch has

        self.rank, self.world = rank(), world()
        self.follows = self.rank > 0
        store = _meet(self.rank, self.world)
        place = FIRST if not _started else f"femtobooth/{len(_started)}"
        _started.append(place)
        self._store, self._turn = distributed.PrefixStore(place, store), itertools.count()
        self._store.add(f"beat/{self.rank}", 1)
        until = time.monotonic() + MEETING
        while not self._store.check([f"beat/{other}" for other in range(self.world)]):
            if self._store.check(["ended"]):
                raise _told(self._store, self.way_out)
            if time.monotonic() > until:
                raise _not_all(self.world, "some have not come")
            time.sleep(0.1)
        self._gone, self._lost_at = threading.Event(), 0.0
        self._lost: ProcessLost | None = None
        self._scratch: TemporaryDirectory[str] | None = None
        gloo = distributed.PrefixStore(f"{place}/gloo", store)
        self._group = ProcessGroupGloo(gloo, self.rank, self.world, timeout=timedelta(seconds=MEETING))
        self._heard = time.monotonic()  # when the store answered last
        self._since = dict.fromkeys(range(self.world), self._heard)  # when each was heard of last
        own = distributed.PrefixStore(place, store.clone())  # else it waits for what the main thread waits for
        self._threads = (
            threading.Thread(target=self._beat, args=(own,), name="team heartbeat", daemon=True),
            threading.Thread(target=self._watch, name="team watch", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    # --- what travels

    def share(self, value: Any) -> None:
        data = torch.frombuffer(bytearray(sending.packed(value)), dtype=torch.uint8)
        self._store.set(f"size/{next(self._turn)}", str(len(data)))
        self._send(data)

    def shared(self, kind: type[Kind]) -> Kind | None:
        size = int(self._wait_for(f"size/{next(self._turn)}"))
        return sending.unpacked(self._send(torch.empty(size, dtype=torch.uint8)).numpy().tobytes(), kind)

    def _send(self, data: Tensor) -> Tensor:
        """Copy the first process's uint8 tensor into that of each other one."""
        from torch.distributed.distributed_c10d import BroadcastOptions

        options = BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        for part in data.split(CHUNK):
            self._group.broadcast([part], options).wait()
        return data

    def _wait_for(self, key: str) -> bytes:
        while not self._store.check([key]):
            if self._lost:
                raise self._lost
            time.sleep(0.1)
        return self._store.get(key)

    def checkpoint(self, found: Path | None) -> Path | None:
        if not self.follows:
            manifest = (found / checkpoints.MANIFEST).read_bytes() if found else b""
            size = (found / checkpoints.STATE).stat().st_size if found else 0
            self.share((found.name, manifest, size) if found else None)
            if found is None or all(self._wait_for(f"same/{other}") == b"1" for other in range(1, self.world)):
                self._store.set("travels", "0")
                return found
            self._store.set("travels", "1")
            with (found / checkpoints.STATE).open("rb") as file:
                while part := file.read(CHUNK):
                    self._send(torch.frombuffer(bytearray(part), dtype=torch.uint8))
            return found
        told = self.shared(tuple)
        if told is None:
            return None
        name, manifest, size = told
        same = found is not None and (found / checkpoints.MANIFEST).read_bytes() == manifest
        self._store.set(f"same/{self.rank}", f"{same:d}")
        if self._wait_for("travels") == b"0":
            return found
        self._scratch = TemporaryDirectory(prefix="femtobooth-", ignore_cleanup_errors=True)
        target = Path(self._scratch.name) / name
        target.mkdir()
        with (target / checkpoints.STATE).open("wb") as file:
            for start in range(0, size, CHUNK):
                file.write(self._send(torch.empty(min(CHUNK, size - start), dtype=torch.uint8)).numpy())
        (target / checkpoints.MANIFEST).write_bytes(manifest)
        if problem := checkpoints.fault(target):
            raise CheckpointError(f"the checkpoint {name}, as it came from the first machine: {problem}")
        return target

    # --- how it ends

    def leave(self) -> None:
        if self._gone.is_set():
            return
        self._gone.set()
        if self._scratch:
            self._scratch.cleanup()
        until = time.monotonic() + GRACE
        with suppress(RuntimeError):
            self._store.set(f"beat/{self.rank}", LEFT.decode())
            while not self.follows and time.monotonic() < until:  # the store may go with the first process
                if all(self._store.get(f"beat/{other}") == LEFT for other in range(self.world)):
                    break
                time.sleep(0.1)
        self._rest()

    def _rest(self) -> None:
        """Wait for the threads: one that is inside torch when the interpreter ends would abort it."""
        for thread in self._threads:
            thread.join(GRACE)

    @contextmanager
    def heeding(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if (cause := self._ended_by(error)) is error:
                raise
            raise cause from error

    def _ended_by(self, error: BaseException) -> BaseException:
        """Tell the others how this process ends; give the error that is to be raised here."""
        if self._gone.is_set():
            return error
        known = isinstance(error, FemtoboothError | Interrupted)
        until = time.monotonic() + 5 * BEAT
        while isinstance(error, Exception) and not known and not self._lost and time.monotonic() < until:
            now = time.monotonic()  # a connection may have broken because another process ended
            if now - self._heard > 3 * BEAT:
                self._lose(self._first_is_gone())
            for other, since in self._since.items():
                if now - since > 3 * BEAT:
                    self._lose(self._silent(other))
            time.sleep(0.2)
        lost, self._lost = self._lost, None
        self._gone.set()
        if self._scratch:
            self._scratch.cleanup()
        if lost and not known:
            self._rest()
            return lost
        lines = (error.problem, error.way_out) if isinstance(error, FemtoboothError | Interrupted) else None
        problem, way_out = lines or (f"{type(error).__name__}: {first_line(error)}", None)
        code = getattr(error, "exit_code", 1)
        with suppress(RuntimeError):
            _tell(self._store, rank(), platform.node(), problem, way_out, code)
        self._rest()
        return error

    def _silent(self, other: int) -> ProcessLost:
        return ProcessLost(
            f"process {other} of {self.world} is gone: it was killed, or its machine cannot be reached", self.way_out
        )

    def _first_is_gone(self) -> ProcessLost:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        return ProcessLost(f"process 0 of {self.world} is gone: nothing answers at {where}", self.way_out)

    def _lose(self, error: ProcessLost) -> None:
        if self._lost is None and not self._gone.is_set():
            self._lost_at, self._lost = time.monotonic(), error

    def _beat(self, store: distributed.Store) -> None:
        """Say that this process lives, and listen to the others, until it leaves."""
        counts: list[bytes] = []
        keys = [f"beat/{other}" for other in range(self.world)]
        while not self._gone.wait(BEAT):
            try:
                store.add(keys[self.rank], 1)
                found = store.multi_get(keys)
                said = _told(store, self.way_out) if store.check(["ended"]) else None
            except RuntimeError:
                self._lose(self._first_is_gone())
                return
            now = self._heard = time.monotonic()
            for other, count in enumerate(found):
                if count == LEFT or not counts or count != counts[other]:
                    self._since[other] = now
                elif now - self._since[other] > SILENCE:
                    self._lose(self._silent(other))
            counts = found
            if said:
                self._lose(said)

    def _watch(self) -> None:
        """End this process where its main thread waits in vain for one that is gone."""
        while not self._gone.wait(1.0):
            if time.monotonic() - self._heard > SILENCE:
                self._lose(self._first_is_gone())
            if self._lost and time.monotonic() - self._lost_at > GRACE:
                if first_here():
                    streams.last_words(self._lost.lines)
                os._exit(self._lost.exit_code)


def _meet(own: int, several: int, seconds: float = MEETING) -> distributed.Store:
    """Connect to where all processes meet. Raises FemtoboothError where not all of them come."""
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment()
        os.environ |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": str(slurm.main_port)}
    _use_interface(os.environ["MASTER_ADDR"])
    try:
        store, _, _ = next(distributed.rendezvous("env://", own, several, timeout=timedelta(seconds=seconds)))
    except (RuntimeError, ValueError) as error:
        raise _not_all(several, first_line(error)) from None
    return store


def _not_all(several: int, why: str) -> FemtoboothError:
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return FemtoboothError(
        f"{where}: the {several} processes of this training do not meet there ({why})",
        "start the same command on every machine, with an address of the first that the others reach",
    )


def excuse(error: FemtoboothError) -> None:
    """Tell the first process why this one, which has not joined it, will not come."""
    if not _started:
        with suppress(RuntimeError, ValueError, FemtoboothError):
            store = distributed.PrefixStore(FIRST, _meet(rank(), world(), GRACE))
            _tell(store, rank(), platform.node(), error.problem, error.way_out, error.exit_code)


def report(other: int, host: str, problem: str, way_out: str | None = None) -> None:
    """Tell the processes that meet at $MASTER_ADDR how another ended, which could not say so; this one is none of them,
    or the first.
    """
    where, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with suppress(RuntimeError, ValueError):
        store = distributed.TCPStore(where, port, is_master=False, timeout=timedelta(seconds=GRACE))
        _tell(distributed.PrefixStore(FIRST, store), other, host, problem, way_out, 1)


def _tell(store: distributed.Store, own: int, host: str, problem: str, way_out: str | None, code: int) -> None:
    """Write down how a process ends, unless another has ended before."""
    store.compare_set("ended", "", json.dumps([own, host, problem, way_out, code]))
    if own == 0:
        time.sleep(1.5 * BEAT)  # until all have read it: the store may go with this process


def _told(store: distributed.Store, usual: str) -> ProcessLost:
    """Read what `_tell` wrote; `usual` is the way out where it knew none."""
    other, host, problem, way_out, code = json.loads(store.get("ended"))
    error = ProcessLost(f"process {other} on {host}: {problem}", way_out or usual)
    error.exit_code = code
    return error


def _use_interface(address: str) -> None:
    """Tell gloo which network interface leads to the others; it would take that of the machine's name, which often is
    the loopback.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # which sends nothing
        own = probe.getsockname()[0]
        names = [name for name, found in psutil.net_if_addrs().items() if own in [one.address for one in found]]
        if names and not own.startswith("127."):
            os.environ["GLOO_SOCKET_IFNAME"] = names[0]
