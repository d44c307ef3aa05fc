"""Threads: ours, those of BLAS, those of the caller; and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import cvxpy as cp
import numpy as np
import pytest
import torch
from layer_checks import run_script
from threadpoolctl import ThreadpoolController

from cvxlayers import SolverWarning
from cvxlayers.parallel import for_each, is_stopped
from cvxlayers.torch import CvxpyLayer

BLAS = ThreadpoolController().select(user_api="blas")


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch):
    """Two threads for us, and two for BLAS."""
    monkeypatch.setenv("CVXLAYERS_NUM_THREADS", "2")
    with BLAS.limit(limits=2):
        yield


def counts() -> set[int]:
    # SCS brings a BLAS that has no threads.
    return {b["num_threads"] for b in BLAS.info() if b["threading_layer"] != "disabled"}


def test_blas_keeps_to_our_threads(two_threads: None) -> None:
    """Two in each of two would be four on two processors."""
    seen: list[set[int]] = []

    def body(i: int) -> None:
        seen.append(counts())

    for_each(4, lambda: body)
    assert seen == 4 * [{1}] and counts() == {2}
    for_each(1, lambda: body)
    assert seen[-1] == {2}  # a single one may use them all


def test_blas_gets_its_threads_back_after_an_error(two_threads: None) -> None:
    def body(i: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        for_each(4, lambda: body)
    assert counts() == {2}


def test_several_loops_at_once_limit_blas_until_the_last_one_ends(two_threads: None) -> None:
    inside, ends = threading.Barrier(3, timeout=30), [threading.Event(), threading.Event()]

    def start(loop: int):
        def body(i: int) -> None:
            if i == 0:
                inside.wait()
                ends[loop].wait(30)

        return body

    with ThreadPoolExecutor(2) as callers:
        loops = [callers.submit(for_each, 2, lambda k=k: start(k)) for k in range(2)]
        inside.wait()
        for loop, end, left in zip(loops, ends, ({1}, {2}), strict=True):
            assert counts() == {1}
            end.set()
            loop.result()
            assert counts() == left


def test_who_works_long_hears_that_the_others_failed(two_threads: None) -> None:
    heard = threading.Event()

    def start_worker():
        stopped = is_stopped()

        def body(i: int) -> None:
            if i == 1:
                raise ZeroDivisionError
            for _ in range(3000):
                if stopped():
                    heard.set()
                    return
                threading.Event().wait(0.01)

        return body

    with pytest.raises(ZeroDivisionError):
        for_each(2, start_worker)
    assert heard.is_set()
    assert not is_stopped()()


def test_a_loop_in_a_loop_does_not_wait_for_itself(two_threads: None) -> None:
    found = np.zeros((3, 3))

    def outer(i: int) -> None:
        def inner(j: int) -> None:
            found[i, j] = threading.get_ident()

        for_each(3, lambda: inner, apart=True)

    for_each(3, lambda: outer)
    assert (found == found[:, :1]).all() and (found != threading.get_ident()).all()


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_number_of_threads_can_be_chosen(threads: str) -> None:
    done = run_script(
        """
        import threading
        from cvxlayers.parallel import for_each, workers
        seen, meet = set(), threading.Barrier(workers(), timeout=30)
        def start_worker():
            def body(i):
                seen.add(threading.get_ident())
                meet.wait()
            return body
        for_each(workers(), start_worker)
        print(len(seen))
        """,
        CVXLAYERS_NUM_THREADS=threads,
    )
    assert done.stdout.strip() == threads, done.stderr


def test_a_wrong_number_of_threads_is_an_error() -> None:
    done = run_script("import cvxlayers.parallel as p; p.workers()", CVXLAYERS_NUM_THREADS="two")
    assert "CVXLAYERS_NUM_THREADS: expected a positive integer" in done.stderr


def test_ctrl_c_stops_a_long_batch_and_the_process_goes_on() -> None:
    script = """
    import os, signal, threading, time
    import cvxpy as cp, torch
    from cvxlayers.torch import CvxpyLayer
    x, b = cp.Variable(30), cp.Parameter(30)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [cp.norm1(x) <= 1]), [b], [x])
    layer(torch.randn(4, 30))
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        layer(torch.randn(200_000, 30))
        print("not interrupted")
    except KeyboardInterrupt:
        print("interrupted", layer(torch.randn(4, 30))[0].shape[0])
    """
    assert run_script(script).stdout.strip() == "interrupted 4"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_stops_a_single_large_problem() -> None:
    """Between two iterations of Clarabel, seconds before it would have ended."""
    script = """
    import os, signal, threading
    import cvxpy as cp, numpy as np
    from cvxlayers.numpy import CvxpyLayer
    n = 1000
    x, b = cp.Variable(n), cp.Parameter(700)
    A = np.random.default_rng(0).standard_normal((700, n))
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.norm1(x)), [A @ x == b, x <= 9]), [b], [x])
    iterations = []
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        _, info = layer.solve(np.ones(700), solver_args={"polish": False})
        print("not interrupted", info)
    except KeyboardInterrupt:
        print("interrupted")
    """
    done = run_script(script)
    assert done.stdout.strip() == "interrupted", done.stdout + done.stderr


def test_warnings_point_at_the_line_of_the_caller() -> None:
    x, b = cp.Variable(), cp.Parameter()
    layer = CvxpyLayer(cp.Problem(cp.Minimize(x), [x >= 1, x <= b]), [b], [x], on_failure="warn")
    for grad in (False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer(torch.tensor(0.0, requires_grad=grad))
        assert [(w.category, w.filename) for w in caught] == [(SolverWarning, __file__)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer(torch.tensor(2.0), solver_args={"alpha": 1.5})
    assert [w.filename for w in caught] == [__file__]
