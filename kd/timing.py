"""How long something takes, without holding up a GPU.

This room knows clocks and devices, nothing else.
"""

from __future__ import annotations

import time
from types import TracebackType

import torch

__all__ = ["Stopwatch"]


class Stopwatch:
    """Add up the time spent inside its ``with`` blocks; on a GPU, that of the GPU.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds = 0.0
        self._started = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self.device.type == "cuda":
            make = torch.cuda.Event
            start, end = make(enable_timing=True), make(enable_timing=True)  # type: ignore[no-untyped-call]
            start.record()
            self._events.append((start, end))
        else:
            self._started = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.device.type == "cuda":
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._started

    def seconds(self) -> float:
        """Return the time so far; waits for the GPU, so it is not for every step."""
        for start, end in self._events:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds
