"""Times and memory.

Absolute times say little on a machine that others use. So competitors run in turn, round after
round, in one process, and what is reported are medians over the rounds of ratios within a round.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

__all__ = ["Stopwatch", "Times", "interleaved", "limit_processors", "peak_memory"]

# In a round a competitor is called for about this long, so that the clock's noise is small.
ROUND_SECONDS = 0.03
# A comparison ends after so many rounds, or after fewer when it has taken this long.
PATIENCE_SECONDS, FEWEST_ROUNDS = 60.0, 3


def limit_processors(count: int) -> None:
    """Run this process, and so every competitor's threads, on `count` processors."""
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("--threads needs an operating system that can bind processes (Linux).")
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(available):
        raise SystemExit(f"--threads: expected 1 to {len(available)}, got {count}.")
    os.sched_setaffinity(0, available[:count])


class Stopwatch:
    """Adds up the time of named phases: ``with watch("forward"): ...``."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start


class Times:
    """Seconds per call of every phase, one number for each round."""

    def __init__(self) -> None:
        self.rounds: defaultdict[str, list[float]] = defaultdict(list)

    def ratio(self, phases: str, reference: str) -> float | None:
        """Median over the rounds of one time, or the sum of several ("a+b"), over another."""
        above, below = self._total(phases), self._total(reference)
        if not above or not below:
            return None
        return median(a / b for a, b in zip(above, below, strict=True))

    def microseconds(self, phase: str) -> float:
        """Median over the rounds."""
        return 1e6 * median(self.rounds[phase])

    def difference(self, phase: str, reference: str) -> float:
        """Median over the rounds of one time minus another, in seconds."""
        pairs = zip(self.rounds[phase], self.rounds[reference], strict=True)
        return median(a - b for a, b in pairs)

    def _total(self, phases: str) -> list[float]:
        columns = [self.rounds.get(phase, []) for phase in phases.split("+")]
        return [sum(row) for row in zip(*columns, strict=True)] if all(columns) else []


def interleaved(competitors: Mapping[str, Callable[[Stopwatch], None]], rounds: int) -> Times:
    """Call the competitors in turn, `rounds` times, or for as long as patience lasts.

    Parameters
    ----------
    competitors
        Each times its own phases with the stopwatch that it is given.
    rounds
        After one call of each that does not count.

    Returns
    -------
    Times
        By phase.
    """
    start = time.perf_counter()
    calls = {name: _calls_per_round(body) for name, body in competitors.items()}
    times = Times()
    for round_ in range(rounds):
        if round_ >= FEWEST_ROUNDS and time.perf_counter() - start > PATIENCE_SECONDS:
            break
        for name, body in competitors.items():
            watch = Stopwatch()
            for _ in range(calls[name]):
                body(watch)
            for phase, seconds in watch.seconds.items():
                times.rounds[phase].append(seconds / calls[name])
    return times


def _calls_per_round(body: Callable[[Stopwatch], None]) -> int:
    seconds = 0.0
    for _ in range(2):  # in the first call threads start and caches fill
        start = time.perf_counter()
        body(Stopwatch())
        seconds = time.perf_counter() - start
        if seconds > ROUND_SECONDS:
            break
    return max(1, int(ROUND_SECONDS / seconds))


def peak_memory(body: Callable[[], object]) -> int | None:
    """Bytes by which the process grew while `body` ran, at most; None where this is unknown.

    Counts what solvers allocate outside Python, too. Linux resets the high-water mark on request.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
        before = _kilobytes(status, "VmRSS")
        body()
        return 1024 * (_kilobytes(status, "VmHWM") - before)
    except OSError:
        return None


def _kilobytes(status: Path, entry: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(entry + ":"))
    return int(line.split()[1])
