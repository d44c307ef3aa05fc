"""How much memory there is."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["available_memory", "total_memory"]


def available_memory() -> float | None:
    """Bytes of memory that can still be had; None if the system does not say."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next((line for line in lines if line.startswith("MemAvailable:")), "")
        found.append(1024.0 * int(line.split()[1]))
    if not found:
        found += _physical()
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        own = pages * os.sysconf("SC_PAGE_SIZE")
        found += [max(0.0, limit - own) for limit in _container()]
    return min(found, default=None)


@cache
def total_memory() -> float:
    """Bytes of memory that this process could ever have; 8 GB if the system does not say."""
    return min([*_physical(), *_container()], default=8e9)


def _physical() -> list[float]:
    with suppress(AttributeError, OSError, ValueError):  # not on Windows
        return [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    return []


def _container() -> list[float]:
    """What a container may have at most."""
    found = []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            found.append(float(int(Path("/sys/fs/cgroup", name).read_text())))
    return found
