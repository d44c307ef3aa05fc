"""Instances of a batch in parallel threads.

The solvers and LAPACK release the GIL, so threads are enough. One pool serves the process. It is
made on first use, and anew after a fork, because threads do not survive one.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["for_each", "workers"]

_lock = threading.Lock()
_worker = threading.local()
_pool: ThreadPoolExecutor | None = None
_size = 0


def workers() -> int:
    """Number of threads: CVXLAYERS_NUM_THREADS if that is set, else the processors that this
    process may use.

    Raises
    ------
    ValueError
        If CVXLAYERS_NUM_THREADS is not a positive integer.
    """
    chosen = os.environ.get("CVXLAYERS_NUM_THREADS")
    if chosen is not None:
        if not chosen.isdecimal() or int(chosen) < 1:
            raise ValueError(
                f"CVXLAYERS_NUM_THREADS: expected a positive integer such as 4, got {chosen!r}"
            )
        return int(chosen)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forget_pool() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _executor(threads: int) -> ThreadPoolExecutor:
    global _pool, _size
    with _lock:
        if _pool is None or threads > _size:
            # An older pool ends by itself once nobody uses it any more.
            _pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="cvxlayers")
            _size = threads
        return _pool


def for_each(count: int, start_worker: Callable[[], Callable[[int], None]]) -> None:
    """Call ``body(i)`` for i = 0 … count - 1, in any order, on all processors.

    Parameters
    ----------
    count : int
    start_worker : callable
        Called once in every thread that takes part; returns that thread's ``body``, which may
        keep buffers of its own.

    Notes
    -----
    The first exception stops the others and is raised. So does Ctrl-C, once the instances under
    way have ended.
    """
    if count <= 0:
        return
    if count == 1:
        start_worker()(0)
        return
    # A worker that waited for others could wait for itself.
    threads = 1 if getattr(_worker, "busy", False) else min(workers(), count)
    if threads == 1:
        body = start_worker()
        for i in range(count):
            body(i)
        return
    queue = itertools.count()  # next() on it is atomic under the GIL
    stop = threading.Event()

    def run() -> None:
        _worker.busy = True
        try:
            body = start_worker()
            while not stop.is_set():
                i = next(queue)
                if i >= count:
                    return
                body(i)
        except BaseException:
            stop.set()
            raise
        finally:
            _worker.busy = False

    executor = _executor(threads)
    futures = [executor.submit(run) for _ in range(threads)]
    try:
        for future in futures:
            future.result()
    finally:
        # Nothing may still write into the caller's arrays once this function has returned.
        stop.set()
        for future in futures:
            future.exception()
