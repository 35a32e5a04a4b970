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

import ctypes
import gc
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

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
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
            )
        _servers.append(ours)
    return _servers[0]


class _Forked(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` for this interpreter, its flag -P, and -c or -m."""

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


if __name__ == "__main__":
    _import()
    words, streams = _serve(socket.socket(fileno=int(sys.argv[1])))
    _take(streams)
    safe = words[0] == "-P"
    flag, what, *sys.argv[1:] = words[safe:]
    if not safe:
        sys.path.insert(0, "" if flag == "-c" else str(Path.cwd()))
    if flag == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif flag == "-c":
        sys.argv[0] = "-c"
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)  # noqa: S102
    else:
        raise ValueError(f"only `subprocess` can start Python with {flag}")
