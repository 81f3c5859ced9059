"""Child processes: what they leave behind when they, or their parent, end in any way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uho_pipelines.runtime.process import ChildFailedError, last_lines, start_child

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path):
    """Start a child of these tests; it is ended whatever the test does."""
    children = []

    def begin(*command, environment=None):
        log = tmp_path / "logs" / "child.log"
        child = start_child("child", command, environment=environment or dict(os.environ), log=log, folder=tmp_path)
        children.append(child)
        return child

    yield begin
    for child in children:
        child.stop(seconds=0)


def test_a_child_has_a_session_its_folder_and_only_its_environment(start, tmp_path):
    code = "import os; print(os.getcwd(), os.getsid(0) == os.getpid(), sorted(os.environ), os.read(0, 1))"
    child = start(sys.executable, "-c", code, environment={"ONLY": "this", "LC_CTYPE": "C"})
    assert child.process.wait(60) == 0
    assert child.log.read_text() == f"{tmp_path} True ['LC_CTYPE', 'ONLY'] b''\n"


def test_both_outputs_are_appended_to_the_log(start):
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr)"
    for _ in range(2):
        start(sys.executable, "-c", code).process.wait(60)
    assert start(sys.executable, "-c", "").log.read_text() == "out\nerr\nout\nerr\n"


def test_a_child_that_is_ready_goes_on(start):
    child = start(*SLEEPER)
    child.wait_until_ready(lambda: "up" in child.log.read_text(), seconds=60)
    assert child.process.poll() is None


def test_a_child_that_ends_while_starting_says_its_last_lines(start):
    child = start(
        sys.executable, "-c", "print(*range(100), sep='\\n'); print('https://me:hush@host'); raise SystemExit(7)"
    )
    with pytest.raises(ChildFailedError, match="child ended with exit code 7 while starting") as caught:
        child.wait_until_ready(lambda: False, seconds=60)
    assert str(caught.value).endswith("\n    98\n    99\n    https://***@host")
    assert str(child.log) in str(caught.value)


def test_a_child_that_never_is_ready_is_stopped(start):
    child = start(*SLEEPER)
    eventually(lambda: child.log.read_text())
    with pytest.raises(ChildFailedError, match="was not ready after 0 seconds") as caught:
        child.wait_until_ready(lambda: False, seconds=0.3)
    assert str(caught.value).endswith("\n    up")
    assert child.process.returncode == -signal.SIGTERM


def test_stopping_lets_a_child_finish(start):
    code = """
import signal, sys, time
def finish(*_):
    print("finished", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, finish)
print("up", flush=True)
time.sleep(60)
"""
    child = start(sys.executable, "-c", code)
    eventually(lambda: "up" in child.log.read_text())
    child.stop()
    assert child.process.returncode == 0
    assert "finished" in child.log.read_text()
    child.stop()


def test_stopping_kills_a_child_that_will_not_end(start):
    ignoring = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    child = start(sys.executable, "-c", ignoring)
    eventually(lambda: "up" in child.log.read_text())
    child.stop(seconds=0.2)
    assert child.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("alive", [True, False], ids=["running", "ended"])
def test_stopping_ends_grandchildren(start, alive):
    code = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep({60 if alive else 0})
"""
    child = start(sys.executable, "-c", code)
    eventually(lambda: child.log.read_text().endswith("\n"))
    grandchild = int(child.log.read_text())
    if not alive:
        child.process.wait(60)
    assert lives(grandchild)
    child.stop()
    eventually(lambda: not lives(grandchild))


def test_a_child_dies_with_its_parent(tmp_path):
    code = f"""
import os, sys, time
from pathlib import Path
from uho_pipelines.runtime.process import start_child
command = {SLEEPER!r}
child = start_child("child", command, environment=os.environ, log=Path("child.log"), folder=Path.cwd())
child.wait_until_ready(lambda: "up" in child.log.read_text(), seconds=60)
print(child.process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert lives(child)
        parent.kill()
    eventually(lambda: not lives(child))


def test_the_last_lines_of_a_log_are_read_from_its_end(tmp_path):
    log = tmp_path / "a.log"
    assert last_lines(log) == ""
    log.write_bytes(b"x" * 1_000_000 + b"\nnot \xff text\n\nlast")
    assert last_lines(log, count=3) == "    not � text\n    \n    last"
    assert len(last_lines(log)) < 20_000
