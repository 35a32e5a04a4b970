"""What others took of a machine while something was timed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from femtobooth.core import busy

WORK = "import time\nwhile time.process_time() < 0.6: pass\nprint(flush=True); time.sleep(60)"


def test_the_work_of_children_is_our_own() -> None:
    before = busy._own()
    with subprocess.Popen([sys.executable, "-c", WORK], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        running = busy._own() - before  # while it still runs
        child.kill()
    assert running >= 0.55
    assert busy._own() - before >= 0.55  # and when it has ended


def test_others_are_what_is_left() -> None:
    with busy.Load() as load:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    assert load.others is not None
    assert 0 <= load.others <= (os.cpu_count() or 1)


def test_a_quiet_machine_is_not_worth_a_word() -> None:
    cores = os.cpu_count() or 1
    assert busy.remark(None) is None
    assert busy.remark(0.1 * cores) is None
    assert f"took {0.5 * cores:.1f} of its {cores} cores" in str(busy.remark(0.5 * cores))
