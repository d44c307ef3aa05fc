"""Projections against their optimality conditions, known pairs, and an interior-point solver."""

from __future__ import annotations

import array_api_compat.torch as torch_namespace
import cvxpy as cp
import numpy as np
import pytest
import torch

from cvxlayers.cones import PSD, Exponential, SecondOrder, ThreeDimPower, smat, svec

from .cases import ALL_CASES, CASES, adversarial, exponents, matrix, scattered

norm = np.linalg.norm


@pytest.mark.parametrize("name", ALL_CASES)
def test_moreau(name):
    """s in K, s - w in K* and ⟨s, s - w⟩ = 0; a step of 1e-12 ‖w‖ inwards allows for rounding."""
    case = ALL_CASES[name]
    w = scattered(case, 4000, seed=1)
    s = case.make(len(w)).project(w)
    size = norm(w, axis=-1, keepdims=True)
    inwards = 1e-12 * size * case.interior
    assert np.all(case.contains(s + inwards))
    assert np.all(case.dual_contains(s - w + inwards))
    assert np.all(np.abs(np.sum(s * (s - w), axis=-1)) <= 1e-12 * size[:, 0] ** 2)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("name", CASES)
def test_known_pairs(name, spread):
    """Π(s + p) = s for s on the boundary and p normal to K there, to machine precision."""
    case = CASES[name]
    s, p = case.pairs(np.random.default_rng(2), 4000, spread)
    error = norm(case.make(len(s)).project(s + p) - s, axis=-1)
    assert np.all(error <= 1e-14 * norm(np.hstack([s, p]), axis=-1))


@pytest.mark.parametrize("name", CASES)
def test_inside_and_polar(name):
    case = CASES[name]
    s, p = case.pairs(np.random.default_rng(3), 500, 0.0)
    cone = case.make(len(s))
    inside, polar = s + 0.3 * case.interior, p - 0.3 * case.interior
    np.testing.assert_allclose(cone.project(inside), inside, rtol=1e-14, atol=1e-14)
    np.testing.assert_array_equal(cone.project(polar), 0.0)


def test_second_order_cones_of_two_rows_and_psd_of_order_two_are_rotated_copies():
    """R² cone: a quarter turn of the orthant. PSD(2) in svec: the cone of three rows, rotated."""
    w = np.random.default_rng(4).standard_normal((500, 2))
    turn = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2.0)
    np.testing.assert_allclose(
        SecondOrder(2).project(w), np.maximum(w @ turn, 0) @ turn, atol=1e-15
    )
    w = np.random.default_rng(5).standard_normal((500, 3))
    turn = np.array([[1.0, 0.0, 1.0], [0.0, np.sqrt(2.0), 0.0], [1.0, 0.0, -1.0]]) / np.sqrt(2.0)
    expected = SecondOrder(3).project(w @ turn.T) @ turn
    np.testing.assert_allclose(PSD(2).project(w), expected, atol=1e-14)


def test_power_cone_is_symmetric():
    """Exchanging x and y and reversing z maps the cone of α to that of 1 - α; here α = ½."""
    w = np.random.default_rng(6).standard_normal((500, 3))
    s = ThreeDimPower([0.5]).project(w[:, None])[:, 0]
    mirrored = ThreeDimPower([0.5]).project((w[:, [1, 0, 2]] * [1, 1, -1])[:, None])[:, 0]
    np.testing.assert_allclose(mirrored, s[:, [1, 0, 2]] * [1, 1, -1], atol=1e-14)


@pytest.mark.parametrize(
    ("name", "gap", "atol"),
    [
        ("soc3", 1e-9, 1e-7),
        ("soc8", 1e-9, 1e-7),
        ("psd4", 1e-9, 1e-7),
        ("exp", 1e-11, 2e-6),
        ("pow", 1e-11, 2e-6),
    ],
)
def test_interior_point_solver(name, gap, atol):
    """A coarse oracle, but of the whole: a duality gap of ε promises x within √ε only."""
    case = CASES[name]
    points = np.random.default_rng(8).standard_normal((12, case.q))
    projections = case.make(len(points)).project(points)
    tight = {f"tol_{what}": gap for what in ("gap_abs", "gap_rel", "feas")}
    for w, s, alpha in zip(points, projections, exponents(len(points)), strict=True):
        x = cp.Variable(case.q)
        if name == "exp":
            constraint = cp.ExpCone(x[0], x[1], x[2])
        elif name == "pow":
            constraint = cp.PowCone3D(x[0], x[1], x[2], alpha)
        elif name == "psd4":
            basis = matrix(np.eye(case.q))
            constraint = sum(x[i] * basis[i] for i in range(case.q)) >> 0
        else:
            constraint = cp.SOC(x[0], x[1:])
        problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x) - w @ x), [constraint])
        problem.solve(solver=cp.CLARABEL, use_quad_obj=True, **tight)
        np.testing.assert_allclose(s, x.value, rtol=0.0, atol=atol)


@pytest.mark.parametrize("name", ALL_CASES)
def test_torch_equals_numpy(name):
    case = ALL_CASES[name]
    w = scattered(case, 400, seed=9)
    cone = case.make(len(w))
    s, from_torch = cone.project(w), cone.project(torch.from_numpy(w))
    assert isinstance(from_torch, torch.Tensor)
    assert from_torch.dtype == torch.float64
    assert np.all(np.abs(from_torch.numpy() - s) <= 1e-12 * norm(w, axis=-1, keepdims=True))


@pytest.mark.parametrize("name", ALL_CASES)
def test_adversarial_points(name):
    case = ALL_CASES[name]
    w = adversarial(case.q)
    s = case.make(len(w)).project(w)
    size = np.max(np.abs(w), axis=-1, keepdims=True)
    assert np.all(np.isfinite(s))
    assert np.all(np.max(np.abs(s), axis=-1, keepdims=True) <= 2.0 * size)
    # The oracles square and divide: give them numbers of ordinary size. K is a cone.
    scale = np.where(size > 0.0, size, 1.0)
    s, w = s / scale, w / scale
    inwards = 1e-12 * case.interior
    assert np.all(np.abs(np.sum(s * (s - w), axis=-1)) <= 1e-12)
    assert np.all(case.contains(s + inwards))
    assert np.all(case.dual_contains(s - w + inwards))


@pytest.mark.parametrize("name", ["exp", "pow"])
def test_a_guess_never_changes_the_result(name):
    case = CASES[name]
    w = np.vstack([scattered(case, 800, seed=10), adversarial(3)])
    cone = case.make(len(w))
    s = cone.project(w)
    rng = np.random.default_rng(11)
    for near in (s, -s, np.zeros_like(s), rng.standard_normal(s.shape), np.full_like(s, np.nan)):
        error = np.abs(cone.project(w, near=near) - s)
        assert np.all(error <= 1e-14 * np.max(np.abs(w), axis=-1, keepdims=True))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_exponential_cone_far_along_the_slope(sign):
    """Where e^|ρ| is large, s and w - s stay on their surfaces to *relative* precision."""
    rng = np.random.default_rng(14)
    slope = sign * rng.uniform(5.0, 300.0, (2000, 1))
    large, third = rng.uniform(0.5, 2.0, (2, 2000, 1))
    if sign > 0.0:  # y vanishes at ρ = 1 - w_y/w_x, and s_z stays
        w = np.hstack([large / slope, -large, third])
    else:  # μ vanishes at ρ = w_x/w_y, and the third entry of w - s stays
        w = np.hstack([-large, -large / slope, -third])
    s = Exponential().project(w)
    x, y, z = s.T
    np.testing.assert_allclose(np.log(y) + x / y, np.log(z), rtol=1e-12, atol=1e-12)
    # With μ = (w - s)_x and 1 - ρ = (w - s)_y / μ, the derivative across is y/(y + μ κ²).
    lam, _ = Exponential().spectrum(w)
    ρ = x / y
    if sign > 0.0:
        mu = w[:, 0] - x
        κ2 = (1.0 + (1.0 + ρ**2) * np.exp(-2.0 * ρ)) / (1.0 + (1.0 - ρ) ** 2 + np.exp(-2.0 * ρ))
    else:
        mu = np.exp(ρ) * (z - w[:, 2])
        κ2 = (1.0 + ρ**2 + np.exp(2.0 * ρ)) / (1.0 + np.exp(2.0 * ρ) * (1.0 + (1.0 - ρ) ** 2))
    np.testing.assert_allclose(lam[:, 2], y / (y + mu * κ2), rtol=1e-9)


@pytest.mark.parametrize("name", ["exp", "pow"])
def test_nan_stays_in_its_row(name):
    case = CASES[name]
    w = np.random.default_rng(15).standard_normal((6, 3))
    s = case.make(6).project(w)
    spoiled = w.copy()
    spoiled[2, 1] = np.nan
    t = case.make(6).project(spoiled)
    assert np.any(np.isnan(t[2]))
    np.testing.assert_array_equal(np.delete(t, 2, axis=0), np.delete(s, 2, axis=0))


@pytest.mark.parametrize("name", ALL_CASES)
def test_leading_axes(name):
    case = ALL_CASES[name]
    w = np.random.default_rng(12).standard_normal((2, 3, 5, case.q))
    s = case.make(5).project(w)
    assert s.shape == w.shape
    np.testing.assert_allclose(case.make(5).project(w[1, 2]), s[1, 2], rtol=1e-14, atol=1e-15)
    assert case.make(5).project(w[:0]).shape == (0, 3, 5, case.q)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_svec_keeps_the_inner_product(k):
    X, Y = np.random.default_rng(13).standard_normal((2, 6, k, k))
    X, Y = X + X.swapaxes(-1, -2), Y + Y.swapaxes(-1, -2)
    np.testing.assert_allclose(
        np.sum(svec(X) * svec(Y), axis=-1), np.trace(X @ Y, axis1=-2, axis2=-1), rtol=1e-13
    )
    np.testing.assert_allclose(smat(svec(X)), X, rtol=1e-15)
    np.testing.assert_allclose(matrix(svec(X)), X, rtol=1e-15)
    np.testing.assert_allclose(smat(svec(torch_namespace.asarray(X))).numpy(), X, rtol=1e-15)


def test_bad_sizes_raise():
    with pytest.raises(ValueError, match="q = 0"):
        SecondOrder(0)
    with pytest.raises(ValueError, match="k = 0"):
        PSD(0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        ThreeDimPower([0.5, 1.0])
    with pytest.raises(ValueError, match="triangle"):
        smat(np.zeros(4))
