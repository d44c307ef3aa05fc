"""Smoothed projections, against their definition: the barriers, written down once more.

Barriers are differentiated by differences in 50 digits; derivatives of smoothed projections by
differences of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

from cones.cases import ALL_CASES, CASES, adversarial, exponents, matrix, scattered
from cvxlayers.cones import Exponential, ProductCone, ThreeDimPower

Array = np.ndarray
N = 12


def barrier(name: str, s: Sequence[mpf], alpha: float) -> mpf:
    log = mpmath.log
    if name.startswith("psd"):
        places = matrix(np.arange(1.0, len(s) + 1.0))  # which entry stands where, times 1 or √2
        k = len(places)
        X = mpmath.matrix(k)
        entries = iter(s)
        for j in range(k):
            for i in range(j + 1):
                X[i, j] = X[j, i] = next(entries) / (1 if i == j else mpmath.sqrt(2))
        return -log(mpmath.det(X))
    if len(s) == 1:
        return -log(s[0])
    if name.startswith("soc"):
        return -log(s[0] ** 2 - sum(a * a for a in s[1:]))
    x, y, z = s
    if name == "exp":
        return -log(y * log(z / y) - x) - log(y) - log(z)
    a = mpf(float(alpha))
    power = x ** (2 * a) * y ** (2 - 2 * a)
    return -log(power - z * z) - (1 - a) * log(x) - a * log(y)


def degree(name: str, q: int) -> int:
    """Number of logarithms."""
    if name.startswith("psd"):
        return int(name[3:])
    return {"exp": 3, "pow": 3}.get(name, 1 if q == 1 else 2)


def gradient(name: str, s: Array, alpha: float) -> Array:
    with mpmath.workdps(50):
        s, h = [mpf(float(a)) for a in s], mpf(10) ** -25

        def at(i: int, step: mpf) -> mpf:
            return barrier(name, [a + step * (i == j) for j, a in enumerate(s)], alpha)

        return np.array([float((at(i, h) - at(i, -h)) / (2 * h)) for i in range(len(s))])


def dense(lam: Array, U: Array | None) -> Array:
    if U is None:
        return lam[..., None] * np.eye(lam.shape[-1])
    U = U if isinstance(U, np.ndarray) else U.matrix()
    return (U * lam[..., None, :]) @ np.swapaxes(U, -1, -2)


def points(name: str, n: int = N, seed: int = 0) -> Array:
    return 2.0 * np.random.default_rng(seed).standard_normal((n, CASES[name].q))


@pytest.mark.parametrize("mu", [1.0, 0.03])
@pytest.mark.parametrize("name", CASES)
def test_optimality(name: str, mu: float) -> None:
    w = points(name)
    case, alpha = CASES[name], exponents(N)
    s = case.make(N).smooth(w, mu)
    assert case.contains(s).all() and case.dual_contains(s - w).all()
    for i in range(N):
        expected = -mu * gradient(name, s[i], alpha[i])
        np.testing.assert_allclose((s - w)[i], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_complementarity_and_distance_from_the_projection(name: str) -> None:
    """sᵀz = ν μ, and therefore ‖Π_μ(w) − Π(w)‖ <= √(ν μ)."""
    case = CASES[name]
    for mu in (1.0, 1e-4, 1e-8):
        w = points(name, 100, seed=1)
        cone = case.make(100)
        s, nu = cone.smooth(w, mu), degree(name, case.q)
        np.testing.assert_allclose((s * (s - w)).sum(axis=1), nu * mu, rtol=1e-9, atol=1e-13)
        far = np.linalg.norm(s - cone.project(w), axis=1)
        assert (far <= 1.0001 * np.sqrt(nu * mu)).all()
        assert (far > 0.0).all()


@pytest.mark.parametrize("mu", [1.0, 0.03])
@pytest.mark.parametrize("name", CASES)
def test_derivative(name: str, mu: float) -> None:
    w, case = points(name, seed=2), CASES[name]
    cone = case.make(N)
    lam, U = cone.smooth_spectrum(w, mu)
    assert (lam > 0.0).all() and (lam < 1.0).all()
    D = dense(lam, U)
    if U is not None:
        np.testing.assert_allclose(
            np.swapaxes(U, 1, 2) @ U, np.broadcast_to(np.eye(case.q), D.shape), atol=1e-13
        )
    for j, direction in enumerate(np.eye(case.q)):

        def central(h: float, e: Array = direction) -> Array:
            return (cone.smooth(w + h * e, mu) - cone.smooth(w - h * e, mu)) / (2.0 * h)

        fine = (4.0 * central(5e-4) - central(1e-3)) / 3.0
        np.testing.assert_allclose(D[:, :, j], fine, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_small_mu_gives_the_derivative_of_the_projection(name: str) -> None:
    case = CASES[name]
    s, p = case.pairs(np.random.default_rng(3), 50, 0.0)
    cone = case.make(50)
    smoothed, exact = cone.smooth_spectrum(s + p, 1e-11), cone.spectrum(s + p)
    np.testing.assert_allclose(dense(*smoothed), dense(*exact), atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_units(name: str) -> None:
    w = points(name, seed=4)
    cone = CASES[name].make(N)
    np.testing.assert_allclose(
        cone.smooth(8.0 * w, 64.0 * 0.3), 8.0 * cone.smooth(w, 0.3), rtol=1e-13, atol=1e-13
    )
    (lam, U), (mine, V) = cone.smooth_spectrum(8.0 * w, 64.0 * 0.3), cone.smooth_spectrum(w, 0.3)
    np.testing.assert_allclose(dense(lam, U), dense(mine, V), atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_guess_and_namespace_make_no_difference(name: str) -> None:
    w, case = scattered(CASES[name], 400, seed=5), CASES[name]
    cone, mu = case.make(400), 1e-2 * (1.0 + (w**2).max(axis=1, keepdims=True))
    s = cone.smooth(w, mu)
    size = np.abs(s).max(axis=1, keepdims=True)
    for near in (s, 3.0 * s, case.interior + np.zeros_like(s), np.zeros_like(s)):
        np.testing.assert_allclose(cone.smooth(w, mu, near) / size, s / size, atol=1e-12)
    from_torch = cone.smooth(torch.from_numpy(w), torch.from_numpy(mu)).numpy()
    np.testing.assert_allclose(from_torch / size, s / size, atol=1e-12)
    lam, _ = cone.smooth_spectrum(torch.from_numpy(w), torch.from_numpy(mu))
    np.testing.assert_allclose(np.sort(lam), np.sort(cone.smooth_spectrum(w, mu)[0]), atol=1e-11)


@pytest.mark.parametrize("name", ALL_CASES)
def test_instances_do_not_depend_on_each_other(name: str) -> None:
    w = scattered(ALL_CASES[name], 5 * N, seed=10).reshape(5, N, -1)
    cone = ALL_CASES[name].make(N)
    s, (lam, _) = cone.smooth(w, 0.1), cone.smooth_spectrum(w, 0.1)
    for i in range(5):
        np.testing.assert_array_equal(cone.smooth(w[i : i + 1], 0.1)[0], s[i])
        np.testing.assert_array_equal(cone.smooth_spectrum(w[i : i + 1], 0.1)[0][0], lam[i])


@pytest.mark.parametrize("mu", [1e-12, 1.0, 1e6])
@pytest.mark.parametrize("name", ALL_CASES)
def test_nothing_overflows(name: str, mu: float) -> None:
    case = ALL_CASES[name]
    for w in (scattered(case, 1000, seed=6), adversarial(case.q)):
        cone = case.make(len(w))
        s, (lam, _) = cone.smooth(w, mu), cone.smooth_spectrum(w, mu)
        assert np.isfinite(s).all()
        assert ((lam > 0.0) & (lam < 1.0)).all() or name == "zero"


# Far from the kinks, relative to √μ: unknowns of which none is a difference of the others.


def exponential(w: Array) -> Callable:
    wx, wy, wz = (mpf(float(a)) for a in w)

    def equations(log_k: mpf, log_y: mpf, log_z: mpf) -> list[mpf]:
        k, y, z = (mpmath.exp(a) for a in (log_k, log_y, log_z))
        r = log_z - log_y
        return [
            k * (y * r - wx + k) - 1,
            y * (y - wy - k * (r - 1)) - 1,
            z * (z - wz) - k * y - 1,
        ]

    return equations


def power(w: Array, alpha: float) -> Callable:
    wx, wy, wz = (mpf(float(a)) for a in w)
    a = mpf(float(alpha))

    def equations(log_k: mpf, log_x: mpf, log_y: mpf) -> list[mpf]:
        k, x, y = (mpmath.exp(b) for b in (log_k, log_x, log_y))
        z = wz / (1 + 2 * k)
        c = k * mpmath.exp(2 * a * log_x + 2 * (1 - a) * log_y)
        return [
            c - k * z * z - 1,
            x * (x - wx) - 2 * a * c - (1 - a),
            y * (y - wy) - 2 * (1 - a) * c - a,
        ]

    return equations


def newton(equations: Callable, start: Sequence[float]) -> list[mpf]:
    q = [mpmath.log(mpf(float(a))) for a in start]
    for _ in range(200):
        here = mpmath.matrix(equations(*q))
        h = mpf(10) ** -35
        columns = [
            list(
                (mpmath.matrix(equations(*(a + h * (i == j) for i, a in enumerate(q)))) - here) / h
            )
            for j in range(3)
        ]
        change = mpmath.lu_solve(mpmath.matrix(columns).T, -here)
        largest = max(abs(a) for a in change)
        q = [a + b / max(1, largest) for a, b in zip(q, change, strict=True)]
        if largest < mpf(10) ** -30:
            return [mpmath.exp(a) for a in q]
    raise RuntimeError("Newton's method did not converge")


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_far_from_the_kinks_exponential(size: float) -> None:
    w = size * scattered_units("exp")
    cone = Exponential()
    s, D = cone.smooth(w, 1.0), dense(*cone.smooth_spectrum(w, 1.0))
    for i in range(len(w)):
        with mpmath.workdps(70):
            z_x, y, z = w[i, 0] - s[i, 0], s[i, 1], s[i, 2]
            k, y, z = newton(exponential(w[i]), (max(z_x, 1.0 / (1.0 + abs(size))), y, z))
            r, v = mpmath.log(z / y), mpmath.matrix([-1, mpmath.log(z / y) - 1, y / z])
            t = mpmath.matrix([0, 1, -y / z])
            H = k**2 * v * v.T + k / y * t * t.T + mpmath.diag([0, y**-2, z**-2])
            check(s[i], D[i], [y * r - 1 / k, y, z], H, size, i >= len(w) - 4)


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_far_from_the_kinks_power(size: float) -> None:
    w = size * scattered_units("pow")
    alpha = exponents(len(w))
    cone = ThreeDimPower(alpha)
    s, D = cone.smooth(w, 1.0), dense(*cone.smooth_spectrum(w, 1.0))
    for i in range(len(w)):
        with mpmath.workdps(70):
            a = mpf(float(alpha[i]))
            b = 1 - a
            k = abs((w[i, 2] - s[i, 2]) / (2.0 * s[i, 2]))
            k, x, y = newton(power(w[i], alpha[i]), (k, s[i, 0], s[i, 1]))
            z, G = mpf(float(w[i, 2])) / (1 + 2 * k), x ** (2 * a) * y ** (2 * b)
            v = mpmath.matrix([2 * a * G / x, 2 * b * G / y, -2 * z])
            xy = 4 * a * b * G / (x * y)
            bend = mpmath.matrix(
                [
                    [2 * a * (2 * a - 1) * G / x**2, xy, 0],
                    [xy, 2 * b * (2 * b - 1) * G / y**2, 0],
                    [0, 0, -2],
                ]
            )
            H = k**2 * v * v.T - k * bend + mpmath.diag([b / x**2, a / y**2, 0])
            check(s[i], D[i], [x, y, z], H, size, i >= len(w) - 4)


def scattered_units(name: str) -> Array:
    """The last four are inside the polar cone."""
    rng = np.random.default_rng(7)
    s, p = CASES[name].pairs(rng, 4, 0.0)
    return np.concatenate([rng.standard_normal((8, 3)), s, p, s + p, p - CASES[name].interior])


def check(
    s: Array, D: Array, true_s: list[mpf], H: mpmath.matrix, size: float, inside: bool
) -> None:
    error = max(abs(a - mpf(float(b))) for a, b in zip(true_s, s, strict=True))
    # What rounding of w alone may change s by, a few times: in the polar cone much less.
    assert error <= (1e-13 * max(abs(a) for a in true_s) if inside else 4e-15 * size)
    true_D = (mpmath.eye(3) + H) ** -1
    true_D = np.array([[float(true_D[i, j]) for j in range(3)] for i in range(3)])
    np.testing.assert_allclose(D, true_D, rtol=0, atol=2e-15 * size)


DIMS = {
    "zero": 2,
    "nonneg": 3,
    "soc": (3, 120, 1, 2),
    "psd": (2, 3, 1),
    "exp": 2,
    "pow": (0.3, 0.7),
}


def test_product_block_by_block() -> None:
    cone = ProductCone(**DIMS)
    w = 2.0 * np.random.default_rng(8).standard_normal((4, cone.m))
    mu = np.array([[1.0], [0.1], [1e-3], [10.0]])
    s, spectrum = cone.smooth(w, mu), cone.smooth_spectrum(w, mu)
    for group in cone.groups:
        blocks = w[:, group.rows]
        for i in range(4):
            expected = group.cone.smooth(blocks[i], mu[i, 0])
            np.testing.assert_allclose(s[i, group.rows], expected, rtol=1e-13, atol=1e-13)
    assert (s[:, :2] == 0.0).all() and (spectrum.lam[:, :2] == 0.0).all()
    assert (spectrum.lam[:, 2:] > 0.0).all() and (spectrum.lam[:, 2:] < 1.0).all()
    # All but the zero rows are among the blocks.
    rows = np.concatenate([group.rows.ravel() for group, _ in spectrum.blocks])
    assert sorted(rows) == list(range(2, cone.m))
    v, h = np.random.default_rng(9).standard_normal(w.shape), 1e-6
    change = (cone.smooth(w + h * v, mu) - cone.smooth(w - h * v, mu)) / (2.0 * h)
    np.testing.assert_allclose(spectrum.apply(v), change, atol=1e-7)
    np.testing.assert_allclose(cone.smooth(w[:1], 0.5), cone.smooth(w, 0.5)[:1], rtol=1e-15)
    np.testing.assert_allclose(cone.smooth(w, mu, near=s), s, rtol=1e-12, atol=1e-12)
