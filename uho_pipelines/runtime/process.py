"""One child process of ours: started in a session of its own, logged to a file, ended with its parent.

What belongs here: starting, watching and stopping a process. Which processes there are is `stack.py`'s business.
"""

import contextlib
import ctypes
import ctypes.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uho_pipelines.errors import UhoError
from uho_pipelines.redaction import redact

PARENT_DEATH_SIGNAL = 1
"""`PR_SET_PDEATHSIG` of prctl(2)."""


class ChildFailedError(UhoError):
    """A child process ended, or did not become ready in time."""

    def __init__(self, name: str, reason: str, log: Path) -> None:
        self.name = name
        self.reason = reason
        self.log = log
        super().__init__(f"{name} {reason}; its log: {log}\n{last_lines(log)}")


def last_lines(log: Path, count: int = 12) -> str:
    """Return the last `count` lines of a log file, indented, without credentials; an empty text when there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16_384))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(f"    {redact(line)}" for line in lines[-count:])


def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True) if sys.platform == "linux" else None


_LIBC = _library()


def die_with_parent(signal_number: signal.Signals) -> Callable[[], None]:
    """Return a `preexec_fn` that asks the kernel for this signal when the parent dies (on Linux; elsewhere nothing).

    So `kill -9` of `uho` leaves nothing behind. The kernel's parent is the thread that starts the child: start children
    from a thread that lives as long as they should.
    """
    parent = os.getpid()

    def prepare() -> None:
        if _LIBC is not None:
            _LIBC.prctl(PARENT_DEATH_SIGNAL, signal_number, 0, 0, 0)
            if os.getppid() != parent:  # it died before we asked
                os._exit(1)

    return prepare


@dataclass
class Child:
    """A running child process and where it logs."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def wait_until_ready(self, ready: Callable[[], bool], *, seconds: float) -> None:
        """Poll `ready` until it is true; a child that does not become ready is stopped.

        Raises:
            ChildFailedError: the process ended, or `seconds` passed.
        """
        deadline = time.monotonic() + seconds
        try:
            while not ready():
                code = self.process.poll()
                if code is not None:
                    raise ChildFailedError(self.name, f"ended with exit code {code} while starting", self.log)
                if time.monotonic() > deadline:
                    raise ChildFailedError(self.name, f"was not ready after {seconds:.0f} seconds", self.log)
                time.sleep(0.1)
        except BaseException:
            self.stop(seconds=1)
            raise

    def stop(self, *, seconds: float = 20) -> None:
        """End the process and what it started: SIGTERM, then SIGKILL after `seconds`."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start_child(name: str, command: Sequence[str], *, environment: Mapping[str, str], log: Path, folder: Path) -> Child:
    """Start `command` in `folder`, in a session of its own, appending both its outputs to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),  # a system call alone: no lock of Python's is taken
        )
    return Child(name, process, log)
