"""How this process is asked to stop: at once, or in training after the next save.

SIGTERM, SIGUSR1, which SLURM sends ahead of a time limit, and Ctrl-C. This room knows no training
and saves nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from kd.console import print_line

__all__ = [
    "INTERRUPTED",
    "STOPPED",
    "StopSignals",
    "end_processes",
    "ended",
    "exit_when_terminated",
    "follow_launcher",
    "grace",
    "is_launched",
    "requeue",
]

STOPPED = 143
"""Exit code after SIGTERM or SIGUSR1: 128 and the number of SIGTERM."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT."""

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")  # the last is unknown to Windows
_LOOK_SECONDS = 1.0
_SAVING_SECONDS = 30.0


class StopSignals:
    """The first signal that asked this process to stop.

    Inside :meth:`handled` a signal ends the process by `SystemExit`. Between :meth:`hold` and
    :meth:`release` it is only noted, for whoever looks at ``received``; a second one then ends the
    process where it stands.
    """

    def __init__(self) -> None:
        self.received = 0
        self._holds = False
        self._is_deaf = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take the signals for a while; outside of the main thread, where none arrive, do not."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        known = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
        before = {one: signal.signal(one, self._handle) for one in known}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def hold(self) -> None:
        """Only note what comes from now on."""
        self._holds = True

    def release(self, obeys: bool = True) -> None:
        """Obey again what comes from now on, and perhaps what came."""
        self._holds = False
        if self.received and obeys:
            raise SystemExit(self.exit_code)

    def hear(self, number: int) -> None:
        """Take a signal that another rank was sent, or none, unless there is one already."""
        self.received = self.received or number

    def ignore(self) -> None:
        """Hear nothing more: the process is ending, and says how."""
        self._is_deaf = True

    @property
    def asks_to_requeue(self) -> bool:
        """Whether SLURM said that the time is nearly over."""
        return self.received == getattr(signal, "SIGUSR1", None)

    @property
    def exit_code(self) -> int:
        """What this process is to end with: another rank with 0, all that Lightning accepts."""
        if is_launched():
            return 0
        return INTERRUPTED if self.received == signal.SIGINT else STOPPED

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_deaf:
            return
        is_first, self.received = not self.received, self.received or number
        if not (self._holds and is_first):
            if is_launched() and not self._holds:
                os.kill(os.getppid(), number)  # the first rank tells how it ended, and ends all
            raise SystemExit(self.exit_code)
        if os.environ.get("LOCAL_RANK", "0") == "0":  # not from every rank
            name = signal.Signals(number).name
            told = f"kd: {name}: saving, then stopping; once more stops at once\n"
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, told.encode())


def is_launched() -> bool:
    """Tell whether Lightning has started this process as another rank, not torchrun or SLURM."""
    started = int(os.environ.get("LOCAL_RANK") or 0) > 0
    return started and not {"RANK", "SLURM_PROCID"} & os.environ.keys()


def exit_when_terminated() -> None:
    """Let SIGTERM end this process as an error does: what is open is closed, the exit code is 143.

    Outside of the main thread nothing happens.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(STOPPED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, leave)


def end_processes(
    processes: Sequence[subprocess.Popen[bytes]], seconds: tuple[float, float] = (5.0, 5.0)
) -> None:
    """Wait some seconds for processes to end, ask them to, wait again, and make them."""
    asks = (None, subprocess.Popen.terminate, subprocess.Popen.kill)
    for ask, patience in zip(asks, (*seconds, 60.0), strict=True):
        deadline = time.monotonic() + patience
        for process in processes:
            if ask is not None and process.poll() is None:
                ask(process)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Let a process of our own not outlive an error in here."""
    try:
        yield process
    except BaseException as error:
        end_processes([process], grace(error))
        raise


def grace(error: BaseException) -> tuple[float, float]:
    """Return the seconds that a process gets before and after SIGTERM; Ctrl-C it has heard too."""
    is_told = isinstance(error, KeyboardInterrupt) or getattr(error, "code", 0) == INTERRUPTED
    return (_SAVING_SECONDS, 0.0) if is_told else (0.0, _SAVING_SECONDS)


def requeue(job: str) -> None:
    """Ask SLURM to queue its job again; tell where it does not."""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        problem = done.stderr.strip() if done.returncode else None
    except OSError as error:
        problem = str(error.strerror)
    told = f"is not queued again ({problem}): submit it anew" if problem else "is queued again"
    print_line(f"job = {job} {told}")


def follow_launcher() -> None:
    """End this process when Lightning or torchrun, which started it, has died, as no signal tells.

    A process that neither of them started goes on.
    """
    if not is_launched() and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(STOPPED)  # the main thread may wait in a collective for ever

    threading.Thread(target=watch, daemon=True, name="follow-launcher").start()
