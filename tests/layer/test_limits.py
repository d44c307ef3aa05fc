"""Limits of time and of memory: what does not fit is said, and what does is the same."""

from __future__ import annotations

import os
import tracemalloc
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

import cvxlayers.numpy
from conformance.problems import CASES
from cvxlayers import SolverError, Status
from cvxlayers.chunks import slices
from cvxlayers.settings import Settings
from cvxlayers.torch import CvxpyLayer

SOLVERS = ("CLARABEL", "SCS", "DIFFCP")


def simplex(**settings: Any) -> CvxpyLayer:
    x, b = cp.Variable(4), cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0, cp.sum(x) == 1])
    return CvxpyLayer(problem, [b], [x], **settings)


# --- Time.


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("batch", [(), (5,)])
def test_no_time_left(solver: str, batch: tuple[int, ...]) -> None:
    layer = simplex(solver=solver, on_failure="nan")
    b = torch.randn(*batch, 4, dtype=torch.float64, requires_grad=True)
    (x,), info = layer.solve(b, solver_args={"time_limit": 1e-9})
    assert (info.status == Status.TIME_LIMIT).all() and x.isnan().all()
    x.nan_to_num().sum().backward()
    assert b.grad is not None and (b.grad == 0).all()
    with pytest.raises(SolverError, match="TIME_LIMIT: stopped at the time limit"):
        layer(b, solver_args={"time_limit": 1e-9}, on_failure="raise")


@pytest.mark.parametrize("solver", SOLVERS)
def test_time_enough(solver: str) -> None:
    b = torch.randn(5, 4, dtype=torch.float64)
    (free,) = simplex(solver=solver)(b)
    (limited,) = simplex(solver=solver, solver_args={"time_limit": 1e4})(b)
    assert torch.equal(free, limited)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_time_limit_is_for_all_instances_together(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock jumps past the limit while the third instance is solved."""
    monkeypatch.setenv("CVXLAYERS_NUM_THREADS", "1")
    asked: list[float | None] = []

    def left(deadline: float | None) -> float | None:
        asked.append(deadline)
        return 100.0 if len(asked) <= 3 else -1.0

    modules = {"CLARABEL": "clarabel", "SCS": "scs", "DIFFCP": "diffcp"}
    monkeypatch.setattr(f"cvxlayers.solvers.{modules[solver]}.seconds_left", left)
    layer = simplex(solver=solver, on_failure="nan", solver_args={"time_limit": 1000.0})
    b = torch.randn(6, 4, dtype=torch.float64)
    (x,), info = layer.solve(b)
    assert info.status.tolist() == 3 * [Status.SOLVED] + 3 * [Status.TIME_LIMIT]
    assert len(set(asked)) == 1 and asked[0] is not None
    torch.testing.assert_close(x[:3], simplex()(b[:3])[0], rtol=0, atol=1e-5)
    assert x[3:].isnan().all()


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), "1", True])
def test_a_time_limit_is_a_positive_number(limit: Any) -> None:
    with pytest.raises(ValueError, match=r"solver_args\['time_limit'\]: expected a positive"):
        simplex(solver_args={"time_limit": limit})


# --- Memory.


def test_slices_cover_the_batch_evenly() -> None:
    assert slices(0, 10.0, 1.0) == [slice(0, 0)]
    assert slices(5, 0.0, 5.0) == slices(5, 1.0, 5.0) == [slice(0, 5)]
    assert slices(3, 10.0, 1.0) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    for batch in range(1, 40):
        for limit in range(1, 45):
            pieces = slices(batch, 1.0, float(limit))
            sizes = [p.stop - p.start for p in pieces]
            covered = np.concatenate([np.arange(batch)[p] for p in pieces])
            assert np.array_equal(covered, np.arange(batch))
            assert min(sizes) > 0 and max(sizes) <= limit
            assert len(pieces) == -(-batch // limit)


@pytest.mark.parametrize("limit", [0, -1, float("inf"), "2e9", True])
def test_a_limit_of_memory_is_a_positive_number(limit: Any) -> None:
    with pytest.raises(ValueError, match="max_batch_memory: expected a positive number of bytes"):
        Settings(max_batch_memory=limit)


NAMES = ("qp_dense", "mpc", "robust_lp", "nearest_correlation", "entropy_softmax", "gp_box")
CHOSEN = [case for case in CASES if case.name in NAMES]


@pytest.mark.parametrize("case", CHOSEN, ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["batched", "shared"])
def test_a_batch_in_pieces_is_the_batch(case: Any, shared: bool) -> None:
    """Outputs and all four derivatives, with one instance in every piece."""
    problem, parameters, variables = case.build()
    rng = np.random.default_rng(0)
    values = [np.stack([(1.0 + 1e-4 * i) * v for i in range(4)]) for v in case.values()]
    if shared:
        values[0] = values[0][0]
    whole, pieces = (
        cvxlayers.numpy.CvxpyLayer(
            problem, parameters, variables, gp=case.gp, max_batch_memory=limit
        )
        for limit in (None, 1)
    )
    outputs, pullback = whole.vjp(*values)
    others, other_pullback = pieces.vjp(*values)
    for y, other in zip(outputs, others, strict=True):
        assert np.array_equal(y, other)
    g = [rng.standard_normal(y.shape) for y in outputs]
    for a, b in zip(pullback(*g), other_pullback(*g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(a).max(initial=0))
    t = [0.1 * rng.standard_normal(v.shape) for v in values]
    for name, arguments in (("jvp", (t,)), ("hvp", (g, t)), ("jvp2", (t, t))):
        found = getattr(whole, name)(values, *arguments)
        other_found = getattr(pieces, name)(values, *arguments)
        for a, b in zip(_flat(found), _flat(other_found), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11 * (1 + np.abs(a).max(initial=0)))


def _flat(found: Any) -> list[np.ndarray]:
    if isinstance(found, np.ndarray):
        return [found]
    return [array for part in found for array in _flat(part)]


@pytest.mark.parametrize("solver", SOLVERS)
def test_failures_in_pieces(solver: str) -> None:
    """The rows that an error names are those of the batch; shared gradients are summed."""
    x, u, c = cp.Variable(2), cp.Parameter(), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0, x <= u])
    layer = CvxpyLayer(problem, [u, c], [x], solver=solver, max_batch_memory=1)
    u_t = torch.tensor([1.0, 2.0, -1.0, 3.0, -2.0], dtype=torch.float64)
    c_t = torch.tensor([0.5, 9.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(SolverError, match=r"2 of 5 instances were not solved.*rows 2, 4") as caught:
        layer(u_t, c_t)
    assert set(caught.value.statuses) == {(2,), (4,)}
    (y,), info = layer.solve(u_t, c_t, on_failure="nan")
    assert info.solved.tolist() == [True, True, False, True, False]
    y[info.solved].sum().backward()
    torch.testing.assert_close(c_t.grad, torch.tensor([3.0, 0.0]).double(), atol=1e-5, rtol=0)
    assert y[~info.solved].isnan().all()


@pytest.mark.parametrize("derivative", ["exact", "smoothed"])
def test_the_limit_of_memory_holds(derivative: Any) -> None:
    n, batch, limit = 20, 500, 4e6
    x, L, q = cp.Variable(n), cp.Parameter((n, n)), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(L @ x) + q @ x), [x <= 1, x >= -1])
    rng = np.random.default_rng(0)
    L_t, q_t = (
        torch.tensor(rng.standard_normal((batch, *p.shape)), requires_grad=True) for p in (L, q)
    )
    peaks = []
    for allowed in (None, limit):
        layer = CvxpyLayer(
            problem,
            [L, q],
            [x],
            derivative=derivative,
            smoothing=None if derivative == "exact" else 0.01,
            max_batch_memory=allowed,
        )
        layer(L_t[:2], q_t[:2])[0].sum().backward()  # what is made once
        tracemalloc.start()
        layer(L_t, q_t)[0].sum().backward()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    inputs = 8 * batch * (n * n + n)
    assert peaks[0] > 2 * limit
    assert peaks[1] < 1.5 * limit + 2 * inputs


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_memory_is_flat_over_a_thousand_steps() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    layer = simplex(on_failure="nan")
    b = torch.zeros(16, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([b], lr=0.1)
    target = torch.eye(4, dtype=torch.float64).repeat(4, 1)

    def train(steps: int) -> None:
        for step in range(steps):
            optimizer.zero_grad()
            with torch.no_grad():
                b[step % 16, 0] += torch.nan if step % 50 == 0 else 0.0
            (layer(b)[0] - target).square().nansum().backward()
            optimizer.step()
            with torch.no_grad():
                b.nan_to_num_()

    train(200)  # what is made once, and what the allocator keeps
    before = resident()
    train(1000)
    assert resident() - before < 4e6
