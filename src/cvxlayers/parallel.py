"""Instances of a batch in parallel threads, but for those in lanes, whose threads are their own.

The solvers and LAPACK release the GIL, so threads are enough. One pool serves all of them. It is
made on first use, and anew after a fork, because threads do not survive one. While it works, BLAS
keeps to the thread that calls it: threads of BLAS in each of ours would be more than processors.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import Any

import numpy as np

__all__ = ["for_each", "is_stopped", "quiet", "workers"]

_lock = threading.Lock()
_worker = threading.local()
_pool: ThreadPoolExecutor | None = None
_size = 0
# How many loops are under way, and the limiter that gives BLAS its threads back after the last.
_loops = 0
_limiter: Any = None


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
    global _pool, _lock, _loops
    if _loops and _limiter is not None:
        _take_control()
        _limiter.restore_original_limits()
    _pool, _lock, _loops = None, threading.Lock(), 0


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


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@contextmanager
def _one_thread_of_blas() -> Iterator[None]:
    """BLAS without threads of its own. The limit is the process's, so that of several loops at
    once the first sets it and the last takes it away."""
    global _loops, _limiter
    with _lock:
        _loops += 1
        if _loops == 1:
            _take_control()
            _limiter = _blas().limit(limits=1)
    try:
        yield
    finally:
        with _lock:
            _loops -= 1
            if _loops == 0:
                _take_control()
                _limiter.restore_original_limits()
                _take_control()


def _take_control() -> None:
    # threadpoolctl 3.8 ignores without a word what any thread wants but the first one that set a
    # limit. Here the last loop to end need not be in the thread that began.
    for library in _blas().lib_controllers:
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread(force=True)


def quiet() -> np.errstate:
    """NumPy without its warnings of overflow and the like, in the calling thread: what is not
    finite has a status here, or a flag."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


def is_stopped() -> Callable[[], bool]:
    """Whether the loop that the calling thread works for has been stopped, to be asked by what
    takes long within one instance."""
    stop: threading.Event | None = getattr(_worker, "stop", None)
    return (lambda: False) if stop is None else stop.is_set


def for_each(
    count: int,
    start_worker: Callable[[], Callable[[int], None]],
    apart: bool = False,
    blas: bool = True,
) -> None:
    """Call ``body(i)`` for i = 0 … count - 1, in any order, on all processors.

    Parameters
    ----------
    count : int
    start_worker : callable
        Called once in every thread that takes part; returns that thread's ``body``, which may
        keep buffers of its own.
    apart : bool
        Whether a single thread, too, is another than the caller's: compiled code in the caller's
        own keeps Ctrl-C from it until it is done.
    blas : bool
        Whether ``body`` calls BLAS, whose threads are then limited.

    Notes
    -----
    The first exception stops the others and is raised. So does Ctrl-C, once the instances under
    way have ended, or have seen that `is_stopped`.
    """
    if count <= 0:
        return
    # A worker that waited for others could wait for itself.
    stop_above = getattr(_worker, "stop", None)
    apart = apart and stop_above is None
    if count == 1 and not apart:
        start_worker()(0)
        return
    threads = 1 if stop_above is not None else min(workers(), count)
    if threads == 1 and not apart:
        body = start_worker()
        for i in range(count):
            body(i)
        return
    queue = itertools.count()  # next() on it is atomic under the GIL
    stop = threading.Event()
    futures: list[Future[None]] = []

    def run() -> None:
        _worker.stop = stop
        try:
            with quiet():
                body = start_worker()
                while not stop.is_set():
                    i = next(queue)
                    if i >= count:
                        break
                    body(i)
            # What has not begun would wait for other loops, for nothing.
            for future in futures:
                future.cancel()
        except BaseException:
            stop.set()
            raise
        finally:
            del _worker.stop

    executor = _executor(threads)
    with _one_thread_of_blas() if blas else nullcontext():
        try:
            for _ in range(threads):
                futures.append(executor.submit(run))
            for future in futures:
                with suppress(CancelledError):
                    future.result()
        finally:
            # Nothing may still write into the caller's arrays once this function has returned.
            stop.set()
            for future in futures:
                if not future.cancel():
                    future.exception()
