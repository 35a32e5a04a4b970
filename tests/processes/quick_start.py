"""Start Python processes as `subprocess` does, forked from one that has imported the heavy libraries already.

Importing torch, diffusers and Lightning costs ten seconds of processor; most of what a test asks of a process, less
than one. What `start` and `run` start is a process of its own all the same: our child, with its own pid, streams,
folder, environment and memory, that imports femtobooth anew and can be signalled and killed. What differs is that the
libraries were imported before, with one thread and in the environment of the tests. So a test of what is imported, of
variables that are read at import, of peak memory or of the interpreter itself takes `subprocess`.

The server is this file run as a program. It forks twice, so that the second child is an orphan, and the process that
asked adopts it (PR_SET_CHILD_SUBREAPER, which is Linux's; elsewhere `start` is `subprocess.Popen`).
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any, NoReturn

ADOPT = 36  # PR_SET_CHILD_SUBREAPER
LONGEST = 1 << 17  # bytes of a request
COMMANDS = (
    "personalize",
    "finetune",
    "generate",
    "classify",
    "compare",
    "evaluate",
    "export",
    "protocol",
    "synthesize",
)
_servers: list[socket.socket] = []


def _server() -> socket.socket:
    """Start the server of this process, once; it ends with us."""
    if not _servers:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            subprocess.Popen(
                [sys.executable, "-P", __file__, str(its.fileno())],
                env=os.environ
                | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
                | {"JE_ARROW_MALLOC_CONF": "background_thread:false"},
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
            )
        _servers.append(ours)
    return _servers[0]


class _Forked(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` for this interpreter, its flag -P, and -c, -m or a file."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, _: Any, pass_fds: Any, cwd: Any, env: Any, *rest: Any) -> None:  # fmt: skip
        pipes = rest[3:9]
        words = [*map(os.fspath, args)]
        if words[0] != sys.executable or executable or preexec_fn or pass_fds or rest[2]:
            raise ValueError(f"only `subprocess` can start {args}")
        server = _server()
        told = {
            "words": words[1:],
            "cwd": os.fspath(cwd or Path.cwd()),
            "env": {**(os.environ if env is None else env)},
        }
        streams = [given if given != -1 else own for own, given in enumerate((pipes[0], pipes[3], pipes[5]))]
        adopt = ctypes.CDLL(None).prctl
        adopt(ADOPT, 1, 0, 0, 0)
        try:
            socket.send_fds(server, [json.dumps(told).encode()], streams)
            self.pid = int(server.recv(32))
        finally:
            adopt(ADOPT, 0, 0, 0, 0)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def start(args: Any, **given: Any) -> subprocess.Popen[Any]:
    """Do what `subprocess.Popen` does; it is that where there is no fork, or more threads than one are asked for."""
    alone = (given.get("env") or os.environ).get("OMP_NUM_THREADS") == "1"
    return (_Forked if alone and sys.platform == "linux" else subprocess.Popen)(args, **given)


def run(args: Any, **given: Any) -> subprocess.CompletedProcess[Any]:
    """Do what `subprocess.run` does, without `input`."""
    check, timeout = given.pop("check", False), given.pop("timeout", None)
    if given.pop("capture_output", False):
        given |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(args, **given) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    ended = subprocess.CompletedProcess(args, process.returncode, out, errors)
    if check:
        ended.check_returncode()
    return ended


def start_more() -> None:
    """Let this process, which `start` began and which has done nothing yet, `start` others just as fast, of itself."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        _begin(its)
    its.close()
    _servers[:] = [ours]


# Python of a process that uses several devices, whose others are Lightning's to start: -c RANKS, and what is to run.
RANKS = """
import subprocess, sys, types, quick_start
quick_start.start_more()
from lightning.fabric.strategies.launchers import subprocess_script
subprocess_script.subprocess = types.SimpleNamespace(Popen=quick_start.start)
quick_start.run_words(sys.argv[1:])
"""


# The server


def _serve(requests: socket.socket) -> tuple[list[str], list[int]]:
    """Return in each new process, with the words behind `python` and its standard streams; the server itself never
    returns.
    """
    parent = os.getppid()
    while True:
        message, streams, _, _ = socket.recv_fds(requests, LONGEST, 3)
        if not message:
            os._exit(0)
        back, there = os.pipe()
        if (between := os.fork()) == 0:
            if (pid := os.fork()) == 0:
                while os.getppid() != parent:  # until it is adopted
                    time.sleep(0.0005)
                os.close(back)
                os.close(there)
                requests.close()
                told = json.loads(message)
                os.chdir(told["cwd"])
                os.environ.clear()
                os.environ.update(told["env"])
                return told["words"], streams
            os.write(there, str(pid).encode())
            os._exit(0)
        os.close(there)
        os.waitpid(between, 0)
        requests.send(os.read(back, 32))
        for one in (back, *streams):
            os.close(one)


def _take(streams: list[int]) -> None:
    """Make these the standard streams, as Python opens them."""
    for own, given in enumerate(streams):
        os.dup2(given, own)
        os.close(given)
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(
        io.BufferedReader(io.FileIO(0, closefd=False)), encoding, errors or None
    )  # type: ignore[misc]
    for number, name, otherwise in ((1, "stdout", None), (2, "stderr", "backslashreplace")):
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        by_line = number == 2 or os.isatty(number)
        text = io.TextIOWrapper(raw, encoding, otherwise or errors or None, line_buffering=by_line)
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)


def _import() -> None:
    """Import what the commands import, and forget what is femtobooth's own."""
    import importlib

    gc.disable()  # a sixth of the time
    import lightning.pytorch
    import numpy as np
    import sklearn.linear_model
    import timm
    import transformers

    _ = (lightning.pytorch, sklearn.linear_model, timm, transformers)
    for command in COMMANDS:
        importlib.import_module(f"femtobooth.workflows.{command}")
    for module in (
        "generator.load",
        "generator.sampling",
        "recognizer.inference.engines",
        "recognizer.inference.predict",
    ):
        importlib.import_module(f"femtobooth.{module}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "femtobooth"]:
        del sys.modules[name]
    os.register_at_fork(after_in_child=np.random.seed)  # as a new process, it is seeded by chance
    gc.collect()
    gc.freeze()
    gc.enable()
    if len(threads := [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]) > 1:
        sys.exit(f"a library started threads, which no child would have: {threads}")


def _end(code: int) -> NoReturn:
    """End as Python does, but for freeing one by one what was imported: that costs as much as a short command."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)


def run_words(words: list[str]) -> NoReturn:
    """Do what `python` does with these words."""
    safe = words[0] == "-P"
    what, *others = words[safe:]
    try:
        if what not in ("-c", "-m"):
            sys.argv[:] = what, *others
            sys.path.insert(0, str(Path(what).resolve().parent))
            runpy.run_path(what, run_name="__main__")
            _end(0)
        if not safe:
            sys.path.insert(0, "" if what == "-c" else str(Path.cwd()))
        named, *sys.argv[1:] = others
        if what == "-m":
            runpy.run_module(named, run_name="__main__", alter_sys=True)
        else:
            sys.argv[0] = "-c"
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(named, "<string>", "exec"), main.__dict__)  # noqa: S102
    except SystemExit as stop:
        if not isinstance(stop.code or 0, int):
            raise
        _end(int(stop.code or 0))
    _end(0)


def _begin(requests: socket.socket) -> NoReturn:
    """Serve, and in each new process be what was asked for."""
    words, streams = _serve(requests)
    _take(streams)
    run_words(words)


if __name__ == "__main__":
    _import()
    sys.modules["quick_start"] = sys.modules["__main__"]
    _begin(socket.socket(fileno=int(sys.argv[1])))
