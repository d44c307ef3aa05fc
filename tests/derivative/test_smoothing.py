"""The central path and its derivative: optimality conditions with the gradients of the barriers,
closed forms, and finite differences of central points."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq

from cvxlayers.derivative import Geometry, ImplicitDerivative, polish, smoothing, system
from cvxlayers.derivative.smoothing import CentralPoint, SmoothedDerivative, central_point
from cvxlayers.program import ConeDims, ConeProgram
from cvxlayers.solvers.clarabel import Clarabel
from derivative.test_implicit import (
    DIMS,
    dense,
    everything,
    moved,
    program_of,
    random_tangent,
)
from solvers.random_programs import random_program, smat, svec


@pytest.fixture(params=["dense", "sparse"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of factoring, whatever the size."""
    if request.param == "sparse":
        monkeypatch.setattr(system, "DENSE_SIZE", -1)
        monkeypatch.setattr(system, "DENSE_LIMIT", -1)
    else:
        monkeypatch.setattr(system, "DENSE_SIZE", 10**6)
    return request.param


def exact(program: ConeProgram) -> ImplicitDerivative:
    geometry = Geometry(program.structure)
    answer = Clarabel(program.structure).solve(program, {})
    assert answer.solved.all()
    point = polish(geometry, program, answer.x, answer.z, answer.s)
    return ImplicitDerivative(geometry, program, point.x, point.z, point.s)


def centre(start: ImplicitDerivative, program: ConeProgram, mu: object) -> CentralPoint:
    """Points of the central path; asserts that they are."""
    point = central_point(start.geometry, program, start.x, start.z, start.s, mu)
    assert point.converged.all()
    return point


def smoothed(start: ImplicitDerivative, program: ConeProgram, mu: object) -> SmoothedDerivative:
    point = centre(start, program, mu)
    return SmoothedDerivative(start.geometry, program, point.x, point.z, point.s, mu)


def barrier_gradients(dims: ConeDims, s: np.ndarray) -> np.ndarray:
    """∇φ(s), zero on the rows of equations."""
    lengths = [dims.zero, dims.nonneg, *dims.soc]
    lengths += [k * (k + 1) // 2 for k in dims.psd] + [3] * (dims.exp + len(dims.pow))
    blocks = iter(np.split(s, np.cumsum(lengths)[:-1]))
    out = [0.0 * next(blocks), -1.0 / next(blocks)]
    for q in dims.soc:
        t = next(blocks)
        sign = np.r_[-1.0, np.ones(q - 1)]
        out.append(-1.0 / t if q == 1 else 2.0 * sign * t / (t[0] ** 2 - t[1:] @ t[1:]))
    for _ in dims.psd:
        out.append(-svec(np.linalg.inv(smat(next(blocks)))))
    for _ in range(dims.exp):
        x, y, z = next(blocks)
        k = 1.0 / (y * np.log(z / y) - x)
        out.append(np.array([k, -k * (np.log(z / y) - 1.0) - 1.0 / y, -k * y / z - 1.0 / z]))
    for a in dims.pow:
        x, y, z = next(blocks)
        G = x ** (2.0 * a) * y ** (2.0 - 2.0 * a)
        k, b = 1.0 / (G - z * z), 1.0 - a
        out.append(np.array([-(2.0 * a * k * G + b) / x, -(2.0 * b * k * G + a) / y, 2.0 * k * z]))
    return np.concatenate(out)


@pytest.mark.parametrize("rank", [0, 6])
@pytest.mark.parametrize("name", DIMS)
def test_optimality_conditions(name: str, rank: int, route: str) -> None:
    # With three variables the linear programs have more rows than variables.
    program = random_program(DIMS[name], 6 if rank else 3, batch=3, rank=rank, seed=1)
    mu = np.array([1.0, 0.1, 0.01])
    start = exact(program)
    point = centre(start, program, mu)
    assert (point.residual <= 1e-12).all()
    for i in range(3):
        P, q, A, b = dense(program, i)
        x, z, s = point.x[i], point.z[i], point.s[i]
        np.testing.assert_allclose(P @ x + q + A.T @ z, 0.0, atol=1e-10)
        np.testing.assert_allclose(A @ x + s, b, atol=1e-10)
        k = DIMS[name].zero
        expected = -mu[i] * barrier_gradients(DIMS[name], s)
        np.testing.assert_allclose(s[:k], 0.0, atol=0)
        np.testing.assert_allclose(z[k:], expected[k:], rtol=1e-8, atol=1e-10)
        assert k == len(s) or not np.allclose(x, start.x[i], atol=1e-4)


@pytest.mark.parametrize("name", DIMS)
@pytest.mark.parametrize("mu", [1.0, 1e-3])
def test_jvp_agrees_with_finite_differences(name: str, mu: float, route: str) -> None:
    program = random_program(DIMS[name], 6, batch=2, rank=3, seed=2)
    start = exact(program)
    tangent = random_tangent(program, np.random.default_rng(3))
    dx, dz = smoothed(start, program, mu).jvp(tangent, everything(program))

    def central(h: float) -> tuple[np.ndarray, np.ndarray]:
        up, down = (centre(start, moved(program, tangent, t), mu) for t in (h, -h))
        return (up.x - down.x) / (2 * h), (up.z - down.z) / (2 * h)

    coarse, fine = central(2e-5), central(1e-5)
    for found, rough, better in zip((dx, dz), coarse, fine, strict=True):
        true = (4 * better - rough) / 3  # Richardson
        assert np.abs(found - true).max(initial=0) <= 1e-6 * (1 + np.abs(true).max(initial=0))


@pytest.mark.parametrize("name", DIMS)
@pytest.mark.parametrize("rank", [0, 6])
def test_vjp_is_the_adjoint_of_jvp(name: str, rank: int, route: str) -> None:
    program = random_program(DIMS[name], 6 if rank else 3, batch=3, rank=rank, seed=4)
    derivative = smoothed(exact(program), program, np.array([[1.0], [1e-2], [1e-4]]))
    rng = np.random.default_rng(5)
    tangent = random_tangent(program, rng)
    dx, dz = derivative.jvp(tangent, everything(program))
    gx, gz = rng.standard_normal(dx.shape), rng.standard_normal(dz.shape)
    gradient = derivative.vjp(gx, gz, everything(program))
    left = (gx * dx).sum() + (gz * dz).sum()
    right = sum((g * getattr(tangent, key)).sum() for key, g in vars(gradient).items())
    assert left == pytest.approx(right, rel=1e-8)


@pytest.mark.parametrize("name", DIMS)
def test_small_mu_gives_the_derivative_of_the_solution(name: str, route: str) -> None:
    program = random_program(DIMS[name], 6, batch=2, rank=6, seed=6)
    start = exact(program)
    tangent = random_tangent(program, np.random.default_rng(7))
    expected = start.jvp(tangent, everything(program))
    found = smoothed(start, program, 1e-10).jvp(tangent, everything(program))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * (1 + np.abs(b).max()))


def simplex(c: np.ndarray) -> ConeProgram:
    """min cᵀx over the simplex."""
    n = len(c)
    A, b = np.vstack([np.ones((1, n)), -np.eye(n)]), np.r_[1.0, np.zeros(n)]
    return program_of(np.zeros((n, n)), c, A, b, ConeDims(zero=1, nonneg=n))


@pytest.mark.parametrize("mu", [1.0, 1e-2, 1e-5])
def test_simplex(mu: float, route: str) -> None:
    """x_i = μ/(c_i + ν), so dx/dc = −(diag(d) − d dᵀ/Σd) with d_i = x_i²/μ."""
    c = np.array([0.3, -1.0, 2.0, 0.1, -0.7])
    program = simplex(c)
    start = exact(program)
    least = -c.min()
    nu = brentq(lambda t: (mu / (c + t)).sum() - 1.0, least + 0.1 * mu, least + 10 * mu, xtol=1e-15)
    x = mu / (c + nu)
    derivative = smoothed(start, program, mu)
    np.testing.assert_allclose(derivative.x[0], x, rtol=1e-9)
    d = x**2 / mu
    J = -(np.diag(d) - np.outer(d, d) / d.sum())
    found = [derivative.vjp(e[None], None, everything(program)).q[0] for e in np.eye(5)]
    np.testing.assert_allclose(found, J, rtol=1e-7, atol=1e-9)
    # That of the solution itself, a vertex, vanishes.
    np.testing.assert_allclose(
        start.vjp(np.eye(5)[:1], None, everything(program)).q, 0.0, atol=1e-20
    )


def test_box(route: str) -> None:
    """min cᵀx, |x| <= 1, batched: c = −2μx/(1 − x²), entry by entry."""
    n, x = 4, np.array([[0.9, -0.5, 0.01, -0.999], [0.1, 0.2, -0.3, 0.4]])
    mu = np.array([0.1, 3.0])
    c = -2.0 * mu[:, None] * x / (1.0 - x**2)
    A = np.vstack([np.eye(n), -np.eye(n)])
    one = program_of(np.zeros((n, n)), c[0], A, np.ones(2 * n), ConeDims(nonneg=2 * n))
    program = replace(one, q=c, batch=2)
    derivative = smoothed(exact(program), program, mu)
    np.testing.assert_allclose(derivative.x, x, rtol=1e-10)
    slope = -2.0 * mu[:, None] * (1.0 + x**2) / (1.0 - x**2) ** 2
    gradient = derivative.vjp(np.ones((2, n)), None, everything(program))
    np.testing.assert_allclose(gradient.q, 1.0 / slope, rtol=1e-8)


def test_ball(route: str) -> None:
    """min cᵀx, ‖x‖ <= 1: c = −2μx/(1 − ‖x‖²)."""
    x, mu = np.array([0.4, -0.3, 0.5]), 0.2
    c = -2.0 * mu * x / (1.0 - x @ x)
    A = np.vstack([np.zeros((1, 3)), -np.eye(3)])
    program = program_of(np.zeros((3, 3)), c, A, np.eye(4)[0], ConeDims(soc=(4,)))
    derivative = smoothed(exact(program), program, mu)
    np.testing.assert_allclose(derivative.x[0], x, rtol=1e-10)
    slope = -2.0 * mu * (np.eye(3) + 2.0 * np.outer(x, x) / (1.0 - x @ x)) / (1.0 - x @ x)
    found = [derivative.vjp(e[None], None, everything(program)).q[0] for e in np.eye(3)]
    np.testing.assert_allclose(found, np.linalg.inv(slope), rtol=1e-8, atol=1e-10)


def test_spectrahedron(route: str) -> None:
    """min ⟨C, X⟩, X ⪰ 0, tr X = 1: X = μ (C + νI)⁻¹."""
    C, mu = np.array([[1.0, 0.5, 0.0], [0.5, -1.0, 0.3], [0.0, 0.3, 0.2]]), 0.05
    A = np.vstack([svec(np.eye(3))[None], -np.eye(6)])
    program = program_of(np.zeros((6, 6)), svec(C), A, np.eye(7)[0], ConeDims(zero=1, psd=(3,)))
    point = centre(exact(program), program, mu)
    values, V = np.linalg.eigh(C)
    nu = brentq(lambda t: (mu / (values + t)).sum() - 1.0, 0.01 - values[0], 10.0, xtol=1e-15)
    np.testing.assert_allclose(smat(point.x[0]), V @ np.diag(mu / (values + nu)) @ V.T, atol=1e-11)


def test_a_face_of_optimal_points_is_left_for_its_centre(route: str) -> None:
    """min x₄ over the simplex from a point of the optimal face that is not in its middle."""
    program = simplex(np.array([0.0, 0.0, 0.0, 1.0]))
    x = np.array([[0.7, 0.3, 0.0, 0.0]])
    z, s = np.array([[0.0, 0.0, 0.0, 0.0, 1.0]]), np.hstack([[[0.0]], x])
    geometry = Geometry(program.structure)
    copies = [v.copy() for v in (x, z, s)]
    for mu in (1e-1, 1e-4, 1e-6):
        point = central_point(geometry, program, x, z, s, mu)
        assert point.converged.all()
        np.testing.assert_allclose(point.x[0, :3], (1.0 - point.x[0, 3]) / 3.0, rtol=1e-6)
    for before, after in zip(copies, (x, z, s), strict=True):
        np.testing.assert_array_equal(before, after)


def test_redundant_equations(route: str) -> None:
    once = simplex(np.array([0.3, -1.0, 2.0]))
    A, b = np.vstack([np.ones((2, 3)), -np.eye(3)]), np.r_[1.0, 1.0, np.zeros(3)]
    twice = program_of(np.zeros((3, 3)), once.q[0], A, b, ConeDims(zero=2, nonneg=3))
    one, two = (smoothed(exact(program), program, 0.1) for program in (once, twice))
    np.testing.assert_allclose(one.x, two.x, atol=1e-10)
    gx = np.array([[1.0, 0.0, 2.0]])
    first, second = (d.vjp(gx, None, everything(p)) for d, p in ((one, once), (two, twice)))
    np.testing.assert_allclose(first.q, second.q, atol=1e-8)


@pytest.mark.parametrize("powers", [(13, 0, 0), (0, 0, -13), (0, 13, 0)])
def test_rows_of_very_different_size(powers: tuple[int, ...], route: str) -> None:
    """A multiple of a cone's rows leaves the barrier's derivatives as they are."""
    program = random_program(ConeDims(soc=(4,), exp=1, pow=(0.3,)), 6, rank=6, seed=8)
    scale = np.repeat(2.0 ** np.array(powers), [4, 3, 3])
    entries = program.structure.A.rows
    scaled = replace(program, A=program.A * scale[entries], b=program.b * scale)
    start = exact(program)
    other = ImplicitDerivative(start.geometry, scaled, start.x, start.z / scale, start.s * scale)
    one, two = smoothed(start, program, 0.01), smoothed(other, scaled, 0.01)
    np.testing.assert_allclose(one.x, two.x, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(one.z, two.z * scale, rtol=1e-9, atol=1e-10)
    gx, gz = np.random.default_rng(9).standard_normal((2, 1, 10))
    first = one.vjp(gx[:, :6], gz, everything(program))
    second = two.vjp(gx[:, :6], gz * scale, everything(program))
    np.testing.assert_allclose(first.q, second.q, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(first.b, second.b * scale, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["nonneg", "all"])
def test_instances_do_not_depend_on_each_other(name: str, route: str) -> None:
    program = random_program(DIMS[name], 6, batch=4, rank=6, seed=10)
    start = exact(program)
    mu = np.array([1e-8, 10.0, 1e-2, 1e-4])
    together = smoothed(start, program, mu)
    gx = np.random.default_rng(11).standard_normal((4, 6))
    gradient = together.vjp(gx, None, everything(program))
    for i in range(4):
        rows = np.array([i])
        part = program.take(rows)
        point = central_point(start.geometry, part, *(v[rows] for v in triple(start)), mu[i])
        for mine, theirs in zip(triple(point), triple(together), strict=True):
            np.testing.assert_allclose(mine[0], theirs[i], rtol=1e-12, atol=1e-13)
        alone = SmoothedDerivative(start.geometry, part, *triple(point), mu[i])
        mine = alone.vjp(gx[rows], None, everything(part))
        for key in "PqAb":
            np.testing.assert_allclose(
                getattr(mine, key)[0], getattr(gradient, key)[i], rtol=1e-9, atol=1e-11
            )


def triple(point: object) -> tuple[np.ndarray, ...]:
    return point.x, point.z, point.s


def test_an_instance_without_a_path_is_flagged(route: str) -> None:
    """0 <= x₁ <= b has no interior where b = 0. The others are not disturbed."""
    n = 3
    A = np.vstack([np.ones((1, n)), -np.eye(n), np.eye(n)[:1]])
    b = np.r_[1.0, np.zeros(n + 1)]
    one = program_of(np.zeros((n, n)), np.array([1.0, 2.0, 3.0]), A, b, ConeDims(1, n + 1))
    bounds = np.repeat(b[None], 3, axis=0)
    bounds[[0, 2], -1] = 0.5
    program = replace(one, b=bounds, batch=3)
    start = exact(program)
    for mu in (1e-10, 1e-6, 1e-2, 1.0):
        point = central_point(start.geometry, program, *triple(start), mu)
        np.testing.assert_array_equal(point.converged, [True, False, True])
        assert all(np.isfinite(v).all() for v in triple(point))
    # Nor has one with an unbounded set of optimal points.
    free = program_of(
        np.zeros((2, 2)), np.array([1.0, 0.0]), -np.eye(2), np.zeros(2), ConeDims(nonneg=2)
    )
    start = exact(free)
    assert not central_point(start.geometry, free, *triple(start), 0.1).converged.any()


def test_starts_far_from_the_path(route: str) -> None:
    program = random_program(DIMS["all"], 6, batch=3, rank=2, seed=12)
    start = exact(program)
    expected = centre(start, program, 0.1)
    rng = np.random.default_rng(13)
    x, z, s = (30.0 * rng.standard_normal(v.shape) for v in triple(start))
    point = central_point(start.geometry, program, x, z, s, 0.1)
    assert point.converged.all()
    np.testing.assert_allclose(point.x, expected.x, atol=1e-8)


def test_what_is_not_there_is_refused() -> None:
    program = random_program(DIMS["nonneg"], 6, batch=2, rank=6, seed=14)
    start = exact(program)
    derivative = smoothed(start, program, 0.1)
    tangent, wanted = random_tangent(program, np.random.default_rng(15)), everything(program)
    with pytest.raises(NotImplementedError, match="no derivative of its own"):
        derivative.hvp(derivative.x, None, tangent, wanted)
    with pytest.raises(NotImplementedError, match="no derivative of its own"):
        derivative.jvp2(tangent, tangent, wanted)
    for mu in (0.0, -1.0, np.nan, np.array([1.0, 0.0])):
        with pytest.raises(ValueError, match="must be positive"):
            central_point(start.geometry, program, *triple(start), mu)


def test_the_sparse_assembly_is_made_once_and_apart_from_the_exact_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system, "DENSE_SIZE", -1)
    monkeypatch.setattr(system, "DENSE_LIMIT", -1)
    program = random_program(DIMS["long soc"], 6, batch=2, rank=6, seed=16)
    start = exact(program)
    gx = np.ones((2, 6))
    before = start.vjp(gx, None, everything(program)).q
    made = []

    class Counted(smoothing._SmoothedAssembly):
        def __init__(self, *arguments: object) -> None:
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(smoothing, "_SmoothedAssembly", Counted)
    smoothed(start, program, 0.1).vjp(gx, None, everything(program))
    assert len(made) == 1
    again = ImplicitDerivative(start.geometry, program, *triple(start))
    np.testing.assert_array_equal(again.vjp(gx, None, everything(program)).q, before)
    # It lives as long as what it was made for.
    there = weakref.ref(start.geometry)
    del start, again
    gc.collect()
    assert there() is None
