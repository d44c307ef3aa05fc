"""The layer without a framework: calls, pullbacks, directional and second derivatives."""

from __future__ import annotations

import copy
import pickle

import cvxpy as cp
import numpy as np
import pytest

from cvxlayers import ParameterTypeError, ParameterValueError, SolverError, solution_map
from cvxlayers.numpy import CvxpyLayer

Array = np.ndarray


@pytest.fixture(scope="module")
def ridge() -> CvxpyLayer:
    """x = (AᵀA + λ I)⁻¹ Aᵀ b."""
    A, b = cp.Parameter((3, 2), name="A"), cp.Parameter(3, name="b")
    lam, x = cp.Parameter(pos=True, name="lam"), cp.Variable(2)
    objective = cp.sum_squares(A @ x - b) + lam * cp.sum_squares(x)
    return CvxpyLayer(cp.Problem(cp.Minimize(objective)), [A, b, lam], [x])


def solution(A: Array, b: Array, lam: Array) -> Array:
    H = A.mT @ A + lam[..., None, None] * np.eye(2)
    return np.linalg.solve(H, A.mT @ b[..., None])[..., 0]


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def values() -> list[Array]:
    """λ is shared by the batch (5, 7)."""
    return [draw(5, 1, 3, 2), draw(7, 3), np.array(0.3)]


def difference(function, at: list[Array], along: list[Array], h: float = 1e-4) -> Array:
    def side(t: float) -> Array:
        return function(*[a + t * d for a, d in zip(at, along, strict=True)])

    coarse, fine = ((side(t) - side(-t)) / (2 * t) for t in (h, h / 2))
    return (4 * fine - coarse) / 3


def test_call(ridge: CvxpyLayer) -> None:
    (x,) = ridge(*values())
    assert isinstance(x, np.ndarray) and x.shape == (5, 7, 2)
    np.testing.assert_allclose(x, solution(*values()), rtol=1e-8)


def test_vjp(ridge: CvxpyLayer) -> None:
    """⟨pullback(g), d⟩ = ⟨g, dx⟩ for a direction d of each value; shared ones sum."""
    at = values()
    (x,), pullback = ridge.vjp(*at)
    np.testing.assert_allclose(x, solution(*at), rtol=1e-12)
    g = draw(5, 7, 2, seed=1)
    gradients = pullback(g)
    assert [v.shape for v in gradients] == [v.shape for v in at]
    for k, gradient in enumerate(gradients):
        along = [draw(*v.shape, seed=2) if j == k else np.zeros_like(v) for j, v in enumerate(at)]
        slope = (g * difference(solution, at, along)).sum()
        assert (gradient * along[k]).sum() == pytest.approx(slope, rel=1e-7)
    for first, second in zip(gradients, pullback(g), strict=True):
        assert np.array_equal(first, second)
    assert all((v == 0).all() for v in pullback(None))


def test_jvp(ridge: CvxpyLayer) -> None:
    at = values()
    along = [draw(*v.shape, seed=3) for v in at]
    _, (dx,) = ridge.jvp(at, along)
    np.testing.assert_allclose(dx, difference(solution, at, along), rtol=1e-7, atol=1e-9)
    named = dict(zip(("A", "b", "lam"), at, strict=True))
    _, (db,) = ridge.jvp(named, {"b": along[1]})
    _, (same,) = ridge.jvp(at, (None, along[1], None))
    assert np.array_equal(db, same)
    true = difference(solution, at, [np.zeros_like(at[0]), along[1], np.zeros(())])
    np.testing.assert_allclose(db, true, rtol=1e-7, atol=1e-9)


def test_hvp_and_jvp2(ridge: CvxpyLayer) -> None:
    at = values()
    one, two = ([draw(*v.shape, seed=s) for v in at] for s in (4, 5))
    true = difference(lambda *v: difference(solution, list(v), one, 1e-3), at, two, 1e-3)
    (found,) = ridge.jvp2(at, one, two)
    np.testing.assert_allclose(found, true, rtol=1e-5, atol=1e-6)
    g = draw(5, 7, 2, seed=6)
    product = ridge.hvp(at, [g], two)
    assert [v.shape for v in product] == [v.shape for v in at]
    pairing = sum((h * d).sum() for h, d in zip(product, one, strict=True))
    assert pairing == pytest.approx((g * found).sum(), rel=1e-10)


def test_dtypes(ridge: CvxpyLayer) -> None:
    """Outputs in the promoted dtype of the floating arrays, gradients each in its own."""
    A, b = draw(3, 2).astype(np.float32), draw(3).astype(np.float32)
    (x,), pullback = ridge.vjp(A, b, 0.5)
    assert x.dtype == np.float32
    assert [g.dtype for g in pullback(x)] == [np.float32, np.float32, np.float64]
    assert ridge(A, b.astype(np.float64), 0.5)[0].dtype == np.float64
    assert ridge(A.tolist(), [1, 2, 3], 1)[0].dtype == np.float64
    assert ridge(np.ones((3, 2), dtype=int), b, True)[0].dtype == np.float32


def test_outputs_do_not_share_memory_with_what_the_pullback_needs(ridge: CvxpyLayer) -> None:
    at = [v.copy() for v in values()]
    (x,), pullback = ridge.vjp(*at)
    true = pullback(np.ones_like(x))
    x[...] = 0.0
    for v in at:
        v[...] = 9.0
    for found, expected in zip(pullback(np.ones((5, 7, 2))), true, strict=True):
        assert np.array_equal(found, expected)


def test_nothing_of_the_derivative_is_computed_for_a_call(
    ridge: CvxpyLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("polished")

    monkeypatch.setattr(solution_map, "polish", refuse)
    ridge(*values())
    with pytest.raises(AssertionError, match="polished"):
        ridge.vjp(*values())


def test_rows_that_fail_are_nan_with_zero_gradients() -> None:
    b, x = cp.Parameter(2), cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [cp.sum(x) == 1, x >= b])
    layer = CvxpyLayer(problem, [b], [x], on_failure="nan")
    at = np.array([[0.0, 0.5], [1.0, 1.0]])
    (y,), pullback = layer.vjp(at)
    assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()
    assert (pullback(np.ones((2, 2)))[0][1] == 0).all()
    _, (dy,) = layer.jvp([at], [np.ones((2, 2))])
    assert np.isfinite(dy[0]).all() and np.isnan(dy[1]).all()
    assert (layer.hvp([at], [np.ones((2, 2))], [np.ones((2, 2))])[0][1] == 0).all()
    assert np.isnan(layer.jvp2([at], [np.ones((2, 2))], [np.ones((2, 2))])[0][1]).all()
    with pytest.raises(SolverError, match="row 1"):
        layer(at, on_failure="raise")


@pytest.mark.parametrize(
    ("operation", "error", "words"),
    [
        (lambda layer: layer.vjp(*values())[1](), ParameterValueError, "Expected 1 gradients"),
        (lambda layer: layer.vjp(*values())[1](np.ones(2)), ParameterValueError, r"\(5, 7, 2\)"),
        (lambda layer: layer.vjp(*values())[1](1j), ParameterTypeError, "real numbers"),
        (lambda layer: layer.jvp(values(), [None]), ParameterValueError, "missing"),
        (lambda layer: layer.jvp(values(), {"c": 1}), ParameterValueError, "no parameter"),
        (lambda layer: layer.jvp(values(), {"b": 1.0}), ParameterValueError, r"'b'.*\(7, 3\)"),
        (lambda layer: layer(*values()[:2], -1.0), ParameterValueError, "declared pos"),
        (lambda layer: layer(*values(), warm_start=True), ValueError, "warm_start"),
    ],
    ids=["count", "shape", "complex", "tangents", "name", "tangent shape", "sign", "warm"],
)
def test_what_does_not_fit_is_an_error(
    ridge: CvxpyLayer, operation, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        operation(ridge)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(ridge: CvxpyLayer, copied) -> None:
    ridge(*values())
    twin = copied(ridge)
    assert np.array_equal(twin(*values())[0], ridge(*values())[0])
    assert repr(twin) == repr(ridge) and "lam[]" in repr(ridge)
