"""Children are started again when they die, and never outlive their supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from federation.pace import Pace
from federation.processes import Child, Supervisor, free_port, listens, wait_until

SUPERVISED = """
import sys
from pathlib import Path
from federation.processes import Child, Supervisor
out = Path(sys.argv[1])
code = "import os, time; open(r'%s', 'a').write(f'{os.getpid()}\\\\n'); time.sleep(600)" % (out / "pids")
Supervisor([Child("sleeper", [sys.executable, "-c", code], {}, out / "log")]).run()
"""


def pids(folder: Path) -> list[int]:
    path = folder / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def supervise(folder: Path) -> subprocess.Popen[bytes]:
    supervisor = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SUPERVISED), str(folder)])
    assert wait_until(lambda: len(pids(folder)) == 1, seconds=30)
    return supervisor


def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path)
    os.kill(pids(tmp_path)[0], signal.SIGKILL)
    assert wait_until(lambda: len(pids(tmp_path)) == 2, seconds=30)
    supervisor.terminate()
    assert supervisor.wait(20) == 0
    assert wait_until(lambda: not any(map(alive, pids(tmp_path))), seconds=10)


def test_what_a_child_started_ends_too(tmp_path: Path) -> None:
    """A grandchild that ignores SIGTERM does not outlive the supervisor's orderly end."""
    code = (
        "import os, signal, subprocess, sys, time\n"
        "inner = 'import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);'\n"
        f"inner += \"open(r'{tmp_path / 'pids'}', 'a').write(str(os.getpid()) + chr(10));\"\n"
        "inner += 'time.sleep(600)'\n"
        "subprocess.Popen([sys.executable, '-c', inner])\n"
        "time.sleep(600)\n"
    )
    child = Child("parent", [sys.executable, "-c", code], {}, tmp_path / "log")
    child.start()
    assert wait_until(lambda: len(pids(tmp_path)) == 1, seconds=30)
    Supervisor([child]).stop()
    assert wait_until(lambda: not alive(pids(tmp_path)[0]), seconds=10)


def test_children_of_a_killed_supervisor_end(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path)
    supervisor.kill()
    supervisor.wait()
    assert wait_until(lambda: not any(map(alive, pids(tmp_path))), seconds=10)


def test_waiting_gives_up() -> None:
    assert not wait_until(lambda: False, seconds=0.2)
    assert not listens("127.0.0.1", free_port())


def test_the_pause_grows_with_the_wait_and_shrinks_at_news() -> None:
    pace = Pace(shortest=0.01, longest=0.02)
    assert pace.pause() == 0.01
    time.sleep(0.3)
    assert pace.pause() == 0.02
    pace.news()
    assert pace.pause() == 0.01
