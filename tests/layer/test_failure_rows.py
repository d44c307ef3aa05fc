"""A failing row of a batch touches nothing but itself, with on_failure="nan".

Its outputs are NaN and its gradients exactly zero, whatever the loss does with the NaN. All other
rows, and the gradients of what the batch shares, have the bits that they have in a batch without
it: for every kind of failure, in every place, over dense and sparse systems and curved cones.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from layer_checks import draw

from cvxlayers import Status
from cvxlayers.derivative import Geometry
from cvxlayers.derivative.sparse import SparseSystem
from cvxlayers.numpy import CvxpyLayer as NumpyLayer
from cvxlayers.torch import CvxpyLayer as TorchLayer

Values = list[np.ndarray]
ROWS = 7


# Each problem has a batched parameter t and a shared one C. What `build` adds can be made
# infeasible or unbounded, row by row, and is solved by y = 0 otherwise.


def dense(t: Any, C: Any, x: Any) -> tuple[Any, list]:
    return cp.sum_squares(C @ x - t) + cp.sum_squares(x), [x >= 0, cp.sum(x) <= 1]


def sparse(t: Any, C: Any, x: Any) -> tuple[Any, list]:
    return cp.sum_squares(x - t) + C * cp.tv(x), []


def second_order(t: Any, C: Any, x: Any) -> tuple[Any, list]:
    return cp.norm(C @ x) - 0.1 * t @ x, [cp.sum(x) == 1, x >= 0]


def semidefinite(t: Any, C: Any, x: Any) -> tuple[Any, list]:
    X = cp.bmat([[x[0], x[1], x[2]], [x[1], x[3], x[4]], [x[2], x[4], x[5]]])
    return cp.sum_squares(C @ x - t), [X >> 0]


def exponential(t: Any, C: Any, x: Any) -> tuple[Any, list]:
    return t @ x - cp.sum(cp.entr(C @ x)), [cp.sum(x) == 1]


PROBLEMS: dict[str, tuple[Callable, int]] = {
    "dense": (dense, 6),
    "sparse": (sparse, 150),
    "soc": (second_order, 6),
    "psd": (semidefinite, 6),
    "exp": (exponential, 6),
}

# What a row's t, slope, ceiling and floor are replaced by, and the status that follows. The other
# variable is min slope · y with floor <= y and ceiling · y <= 1.
KINDS: dict[str, tuple[dict[str, float], Status]] = {
    "infeasible": ({"floor": 2.0}, Status.PRIMAL_INFEASIBLE),
    "unbounded": ({"slope": -1.0, "ceiling": 0.0}, Status.DUAL_INFEASIBLE),
    "nan": ({"t": np.nan}, Status.NUMERICAL_ERROR),
    "inf": ({"t": -np.inf}, Status.NUMERICAL_ERROR),
}
NAMES = ("t", "C", "slope", "ceiling", "floor")

PLACES: dict[str, dict[int, str]] = {
    "first": {0: "infeasible"},
    "middle": {3: "nan"},
    "last": {ROWS - 1: "unbounded"},
    "mixed": {0: "nan", 1: "infeasible", 3: "unbounded", ROWS - 1: "inf"},
    "all but one": dict(enumerate(["infeasible", "unbounded", "nan", "infeasible", "inf", "nan"])),
}


@cache
def build(name: str, frontend: str) -> Any:
    """The layer; a layer keeps nothing between calls."""
    function, n = PROBLEMS[name]
    t, C = (
        cp.Parameter(n),
        cp.Parameter(() if name == "sparse" else (n, n), nonneg=name == "sparse"),
    )
    slope, ceiling, floor = cp.Parameter(), cp.Parameter(), cp.Parameter()
    x, y = cp.Variable(n), cp.Variable()
    objective, constraints = function(t, C, x)
    problem = cp.Problem(
        cp.Minimize(objective + slope * y), [*constraints, y >= floor, ceiling * y <= 1]
    )
    module = importlib.import_module(f"cvxlayers.{frontend}")
    return module.CvxpyLayer(problem, [t, C, slope, ceiling, floor], [x, y], on_failure="nan")


def values_of(name: str, bad: dict[int, str], rows: int = ROWS) -> Values:
    _, n = PROBLEMS[name]
    C = np.array(0.3) if name == "sparse" else np.eye(n) + 0.2 * draw(n, n)
    values = {"t": draw(rows, n), "C": C, "slope": np.ones(rows), "ceiling": np.ones(rows)}
    values["floor"] = np.zeros(rows)
    for row, kind in bad.items():
        for key, value in KINDS[kind][0].items():
            values[key][(row, 0) if key == "t" else row] = value
    return [values[key] for key in NAMES]


def only(values: Values, rows: Iterable[int]) -> Values:
    rows = list(rows)
    return [v if key == "C" else v[rows] for key, v in zip(NAMES, values, strict=True)]


def weights(rows: int, n: int, chosen: Iterable[int]) -> list[np.ndarray]:
    chosen = list(chosen)
    return [draw(rows, n, seed=1)[chosen], draw(rows, seed=2)[chosen]]


def by_numpy(name: str, values: Values, upstream: Values, **keywords: Any) -> tuple[Values, Values]:
    layer: NumpyLayer = build(name, "numpy")
    outputs, pullback = layer.vjp(*values, **keywords)
    return list(outputs), list(pullback(*upstream))


def by_torch(name: str, values: Values, upstream: Values, **keywords: Any) -> tuple[Values, Values]:
    layer: TorchLayer = build(name, "torch")
    leaves = [torch.tensor(v, requires_grad=True) for v in values]
    outputs = layer(*leaves, **keywords)
    gradients = torch.autograd.grad(outputs, leaves, [torch.tensor(g) for g in upstream])
    return [y.detach().numpy() for y in outputs], [g.numpy() for g in gradients]


FRONTENDS = {"numpy": by_numpy, "torch": by_torch}


def equal_bits(found: Values, expected: Values) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and np.array_equal(a, b)


def check(run: Callable, name: str, values: Values, bad: Iterable[int], **keywords: Any) -> None:
    """Rows `bad` are NaN with zero gradients, the others as in a batch of their own."""
    rows, n = values[0].shape
    bad = list(bad)
    good = [i for i in range(rows) if i not in bad]
    upstream = weights(rows, n, range(rows))
    for g in upstream:
        g[bad] = np.nan  # as most losses make of a NaN
    outputs, gradients = run(name, values, upstream, **keywords)
    for y in outputs:
        assert np.isnan(y[bad]).all() and np.isfinite(y[good]).all()
    batched = [g for key, g in zip(NAMES, gradients, strict=True) if key != "C"]
    shared = gradients[NAMES.index("C")]
    assert all((g[bad] == 0.0).all() for g in batched)
    assert np.isfinite(shared).all()

    alone = run(name, only(values, good), weights(rows, n, good), **keywords)
    equal_bits([y[good] for y in outputs], alone[0])
    equal_bits(
        [shared if k == "C" else g[good] for k, g in zip(NAMES, gradients, strict=True)], alone[1]
    )

    terms = [
        run(name, only(values, [i]), weights(rows, n, [i]), **keywords)[1][NAMES.index("C")]
        for i in good
    ]
    total = np.sum(terms, axis=0) if terms else np.zeros_like(shared)
    size = np.sum(np.abs(terms), axis=0).max() if terms else 0.0
    np.testing.assert_allclose(shared, total, rtol=0, atol=1e-14 * size)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_failing_rows_touch_no_other(frontend: str, name: str, place: str) -> None:
    bad = PLACES[place]
    values = values_of(name, bad)
    check(FRONTENDS[frontend], name, values, bad)
    _, info = build(name, frontend).solve(
        *map(torch.tensor, values) if frontend == "torch" else values
    )
    expected = [KINDS[bad[i]][1] if i in bad else Status.SOLVED for i in range(ROWS)]
    assert info.status.tolist() == expected


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_every_row_fails(frontend: str, name: str) -> None:
    """A batch of one of each kind, and all of them together."""
    run = FRONTENDS[frontend]
    kinds = dict(enumerate(KINDS))
    for bad in ({0: "infeasible"}, {0: "unbounded"}, {0: "nan"}, {0: "inf"}, kinds):
        values = values_of(name, bad, rows=len(bad))
        outputs, gradients = run(name, values, weights(len(bad), values[0].shape[1], bad))
        assert all(np.isnan(y).all() for y in outputs)
        assert all((g == 0.0).all() for g in gradients)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_rows_that_reach_the_iteration_limit(frontend: str, name: str) -> None:
    """The lowest limit that some rows are content with; beside them another kind of failure."""
    values = values_of(name, {2: "infeasible"}, rows=12)
    values[0][::3] *= 300.0  # harder, and not all in the same way
    values[0][4] *= 1e3
    for limit in range(1, 50):
        options = {"max_iters": limit}
        _, info = build(name, "numpy").solve(*values, solver_args=options)
        if info.solved.any():
            break
    assert info.solved.any() and Status.MAX_ITERATIONS in info.status
    failed = np.flatnonzero(~info.solved)
    check(FRONTENDS[frontend], name, values, failed.tolist(), solver_args=options)


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_both_ways_of_factoring_are_tried(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no lanes, or the system is singular."""
    monkeypatch.setattr(Geometry, "engine_for", lambda *_: None)
    t, C, *rest = values_of(name, {})
    theta = [t, C.reshape(1, -1), *(v[:, None] for v in rest)]
    point = build(name, "numpy").operations.solution_map.solve(theta, (ROWS,))
    pieces = point.derivative.system.pieces
    assert all(isinstance(piece.factor, SparseSystem) == (name == "sparse") for piece in pieces)


# --- The other frameworks bind the same operations: one problem, all kinds of failure at once.


def bits_of(frontend: str, name: str, values: Values, upstream: Values) -> tuple[Values, Values]:
    layer = build(name, frontend)
    if frontend == "jax":
        jax = importlib.import_module("jax")
        outputs, pullback = jax.vjp(layer, *map(jax.numpy.asarray, values))
        gradients = pullback(tuple(map(jax.numpy.asarray, upstream)))
        return list(map(np.asarray, outputs)), list(map(np.asarray, gradients))
    mx = importlib.import_module("mlx.core")
    arrays = [mx.array(v, dtype=mx.float64) for v in values]
    cotangents = [mx.array(g, dtype=mx.float64) for g in upstream]
    outputs, gradients = mx.vjp(lambda *args: list(layer(*args)), arrays, cotangents)
    return list(map(np.array, outputs)), list(map(np.array, gradients))


@pytest.mark.parametrize("name", ["dense", "exp"])
@pytest.mark.parametrize("frontend", ["jax", "mlx"])
def test_failing_rows_touch_no_other_in_jax_and_mlx(frontend: str, name: str) -> None:
    pytest.importorskip(frontend)
    bad = PLACES["mixed"]
    values = values_of(name, bad)

    def run(name: str, values: Values, upstream: Values) -> tuple[Values, Values]:
        return bits_of(frontend, name, values, upstream)

    if frontend == "mlx":
        mx = importlib.import_module("mlx.core")
        before = mx.default_device()
        mx.set_default_device(mx.cpu)
        try:
            check(run, name, values, bad)
        finally:
            mx.set_default_device(before)
        return
    jax = importlib.import_module("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        check(run, name, values, bad)
    finally:
        jax.config.update("jax_enable_x64", before)
