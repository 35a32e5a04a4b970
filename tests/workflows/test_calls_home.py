"""Nothing calls home: the commands run where a single network connection, from Python or from a library's own code,
ends the process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# A seccomp filter, which children inherit: connect() and sendto() with an address as long as an IPv4 or IPv6 one kill
# the process. Local sockets have other lengths. (x86-64 and 64-bit ARM; struct sock_filter is u16 code, u8 jt, u8 jf,
# u32 k.)
WATCH = """
import ctypes, os, platform, struct
connect, sendto = {"x86_64": (42, 44), "aarch64": (203, 206)}[platform.machine()]
def argument(index): return 16 + 8 * index
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
program = [
    (LOAD, 0, 0, 0),
    (EQUAL, 2, 0, connect), (EQUAL, 3, 0, sendto), (RETURN, 0, 0, 0x7FFF0000),
    (LOAD, 0, 0, argument(2)), (EQUAL, 4, 3, 16),
    (LOAD, 0, 0, argument(5)), (EQUAL, 2, 0, 16), (EQUAL, 1, 2, 28),
    (EQUAL, 0, 1, 28), (RETURN, 0, 0, 0x80000000), (RETURN, 0, 0, 0x7FFF0000),
]
code = b"".join(struct.pack("HBBI", *one) for one in program)
held = ctypes.create_string_buffer(code)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
if libc.prctl(22, 2, ctypes.byref(Program(len(program), ctypes.addressof(held))), 0, 0): os._exit(77)
"""


def _watched(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program under the watch, in a home of its own, with nothing set that would keep a library quiet."""
    loud = {
        "CI",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "DO_NOT_TRACK",
        "HF_HUB_DISABLE_TELEMETRY",
        "ORT_DISABLE_TELEMETRY",
    }
    environment = {name: value for name, value in os.environ.items() if name not in loud}
    environment |= {
        "HOME": str(folder),
        "HF_HOME": str(folder / "hub"),
        "FEMTOBOOTH_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        [sys.executable, "-c", WATCH + code], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if ended.returncode == 77:
        pytest.skip("this kernel does not let a process watch itself")
    return ended


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")


@pytest.mark.parametrize(
    "call",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "import subprocess, sys; code = 'import socket; socket.create_connection((\"127.0.0.1\", 9))'\n"
        "sys.exit(subprocess.run([sys.executable, '-c', code]).returncode)",
    ],
)
def test_the_watch_sees_connections(call: str, tmp_path: Path) -> None:
    assert _watched(call, tmp_path).returncode in (
        -signal.SIGSYS,
        256 - signal.SIGSYS,
    )  # killed itself, or says that its child was


def test_the_watch_lets_local_sockets_be(tmp_path: Path) -> None:
    code = f"""
import socket
one = socket.socket(socket.AF_UNIX); one.bind({str(tmp_path / "a-socket-of-this-machine")!r}); one.listen()
socket.socket(socket.AF_UNIX).connect({str(tmp_path / "a-socket-of-this-machine")!r})
"""
    ended = _watched(code, tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_no_command_calls_home(tiny: Path, tiny_onnx: Path, tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    commands = [
        f"classify {photos} --model {tiny_onnx}",
        f"export {tiny} --format openvino --no-parity --out {tmp_path}/openvino",
        f"classify {photos} --model {tmp_path}/openvino",
        f"compare {tiny_onnx} {tmp_path}/openvino --no-speed --out {tmp_path}/page.html",
        f"finetune {photos} --model {tiny} --name mine --steps 1 --set training.batch_size=2",
        f"personalize {photos}/a --class-noun dog --base {tiny_base} --name rex --steps 1 --class-images 2"
        " --set prior.sampling.steps=1 --set samples.sampling.steps=1 --set samples.images=1 --validate-every 0",
        f"generate {tmp_path}/runs/rex picture --steps 1",
        "models",
    ]
    code = f"""
import shlex, sys
from femtobooth import cli
for command in {commands!r}:
    print(command, file=sys.stderr)
    cli.main(shlex.split(command))
"""
    ended = _watched(code, tmp_path)
    assert ended.returncode == 0, (
        f"{signal.Signals(-ended.returncode).name if ended.returncode < 0 else ''}\n{ended.stderr[-3000:]}"
    )
