"""The derivative of the solution map and the polish, on random programs over every cone.

Oracles: the optimality conditions written out with dense matrices, finite differences of
solutions that satisfy them to 1e-12, and closed forms.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cvxlayers.derivative import Geometry, ImplicitDerivative, polish, system
from cvxlayers.program import ConeDims, ConeProgram, Pattern, ProblemStructure, Wanted
from cvxlayers.solvers.clarabel import Clarabel
from solvers.random_programs import random_program

DIMS = {
    "equality": ConeDims(zero=3),
    "nonneg": ConeDims(nonneg=9),
    "soc": ConeDims(zero=1, soc=(4, 3, 1, 2)),
    # Long cones are factored in their own coordinates on the sparse route.
    "long soc": ConeDims(nonneg=3, soc=(110, 4, 130, 110)),
    "psd": ConeDims(psd=(3, 2)),
    "exp": ConeDims(exp=3),
    "pow": ConeDims(pow=(0.3, 0.5, 0.8)),
    "all": ConeDims(zero=2, nonneg=4, soc=(3, 5), psd=(3,), exp=2, pow=(0.4,)),
}


@pytest.fixture(params=["lanes", "dense", "sparse"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways of solving the systems, whatever the size. Lanes leave singular ones to `factor`."""
    if request.param != "lanes":
        monkeypatch.setattr(Geometry, "engine_for", lambda *_: None)
    if request.param == "sparse":
        monkeypatch.setattr(system, "DENSE_SIZE", -1)
        monkeypatch.setattr(system, "DENSE_LIMIT", -1)
    else:
        monkeypatch.setattr(system, "DENSE_SIZE", 10**6)
    return request.param


def solved(program: ConeProgram) -> ImplicitDerivative:
    """The derivative at tight solutions; asserts that they are."""
    geometry = Geometry(program.structure)
    answer = Clarabel(program.structure).solve(program, {})
    assert answer.solved.all()
    point = polish(geometry, program, answer.x, answer.z, answer.s)
    for i in range(program.batch):
        P, q, A, b = dense(program, i)
        x, z, s = point.x[i], point.z[i], point.s[i]
        scale = 1 + max(np.abs(v).max(initial=0) for v in (x, z, s))
        assert np.abs(P @ x + q + A.T @ z).max() <= 1e-12 * scale
        assert np.abs(A @ x + s - b).max(initial=0) <= 1e-12 * scale
        assert abs(s @ z) <= 1e-12 * scale**2
    return ImplicitDerivative(geometry, program, point.x, point.z, point.s, point.system)


def dense(program: ConeProgram, i: int) -> tuple[np.ndarray, ...]:
    def row(values: np.ndarray) -> np.ndarray:
        return values[i if len(values) > 1 else 0]

    upper = program.structure.P.matrix(row(program.P)).toarray()
    A = program.structure.A.matrix(row(program.A)).toarray()
    return upper + np.triu(upper, 1).T, row(program.q), A, row(program.b)


def everything(program: ConeProgram, shared: frozenset[str] = frozenset()) -> Wanted:
    s = program.structure
    return Wanted(*(np.arange(k) for k in (s.P.nnz, s.n, s.A.nnz, s.m)), shared=shared)


def moved(program: ConeProgram, tangent: object, step: float) -> ConeProgram:
    return replace(program, **{k: getattr(program, k) + step * v for k, v in vars(tangent).items()})


def random_tangent(program: ConeProgram, rng: np.random.Generator) -> object:
    from cvxlayers.program import ProgramTangent

    return ProgramTangent(
        *(
            rng.standard_normal((program.batch, values.shape[1]))
            for values in (program.P, program.q, program.A, program.b)
        )
    )


@pytest.mark.parametrize("name", DIMS)
def test_jvp_agrees_with_finite_differences(name: str, route: str) -> None:
    program = random_program(DIMS[name], 6, batch=2, rank=6, seed=1)
    derivative = solved(program)
    tangent = random_tangent(program, np.random.default_rng(2))
    dx, dz = derivative.jvp(tangent, everything(program))

    def central(h: float) -> tuple[np.ndarray, np.ndarray]:
        up, down = solved(moved(program, tangent, h)), solved(moved(program, tangent, -h))
        return (up.x - down.x) / (2 * h), (up.z - down.z) / (2 * h)

    coarse, fine = central(2e-5), central(1e-5)
    for found, rough, better in zip((dx, dz), coarse, fine, strict=True):
        true = (4 * better - rough) / 3  # Richardson
        assert np.abs(found - true).max(initial=0) <= 2e-6 * (1 + np.abs(true).max(initial=0))


@pytest.mark.parametrize("name", DIMS)
@pytest.mark.parametrize("shared", [(), ("A",), ("P", "q", "A", "b")], ids=str)
def test_vjp_is_the_adjoint_of_jvp(name: str, shared: tuple[str, ...], route: str) -> None:
    program = random_program(DIMS[name], 6, batch=3, rank=6, seed=3)
    derivative = solved(program)
    rng = np.random.default_rng(4)
    tangent = random_tangent(program, rng)
    for key in shared:
        values = getattr(tangent, key)
        tangent = replace(tangent, **{key: np.repeat(values[:1], len(values), axis=0)})
    dx, dz = derivative.jvp(tangent, everything(program))
    gx, gz = rng.standard_normal(dx.shape), rng.standard_normal(dz.shape)
    gradient = derivative.vjp(gx, gz, everything(program, frozenset(shared)))
    left = (gx * dx).sum() + (gz * dz).sum()
    right = sum(
        (g * (getattr(tangent, key)[:1] if key in shared else getattr(tangent, key))).sum()
        for key, g in vars(gradient).items()
    )
    assert all(len(getattr(gradient, key)) == 1 for key in shared)
    assert left == pytest.approx(right, rel=1e-9)


def test_wanted_entries_are_those_of_the_full_gradient(route: str) -> None:
    program = random_program(DIMS["all"], 6, batch=3, rank=6, seed=5)
    derivative = solved(program)
    gx = np.random.default_rng(6).standard_normal((3, 6))
    full = derivative.vjp(gx, None, everything(program))
    some = Wanted(
        np.array([1, 3]), np.array([0]), np.array([2, 5, 6]), np.zeros(0, int), frozenset()
    )
    part = derivative.vjp(gx, None, some)
    for key in "PqAb":
        np.testing.assert_allclose(
            getattr(part, key), getattr(full, key)[:, getattr(some, key)], rtol=1e-9, atol=1e-12
        )


def structure(P: np.ndarray, A: np.ndarray, dims: ConeDims) -> ProblemStructure:
    def full(i: np.ndarray, j: np.ndarray, shape: tuple[int, int]) -> Pattern:
        indptr = np.searchsorted(j, np.arange(shape[1] + 1))
        return Pattern(shape, i.astype(np.int32), indptr.astype(np.int32))

    n = len(P)
    j, i = np.tril_indices(n)
    columns, rows = np.divmod(np.arange(A.size), max(len(A), 1))
    return ProblemStructure(dims, full(i, j, (n, n)), full(rows, columns, A.shape))


def program_of(
    P: np.ndarray, q: np.ndarray, A: np.ndarray, b: np.ndarray, dims: ConeDims
) -> ConeProgram:
    j, i = np.tril_indices(len(P))
    return ConeProgram(
        structure(P, A, dims), P[i, j][None], q[None], A.ravel(order="F")[None], b[None], batch=1
    )


def test_redundant_equalities_leave_the_gradient_alone(route: str) -> None:
    """min ½‖x‖² − cᵀx, sum x = b stated twice: dx/dc = I − 11ᵀ/n, the multiplier is not unique."""
    n, c = 4, np.array([1.0, -2.0, 0.5, 3.0])
    A = np.ones((2, n))
    program = program_of(np.eye(n), -c, A, np.array([1.0, 1.0]), ConeDims(zero=2))
    derivative = solved(program)
    gx = np.array([[1.0, 2.0, -1.0, 0.5]])
    gradient = derivative.vjp(gx, None, everything(program))
    np.testing.assert_allclose(-gradient.q[0], gx[0] - gx[0].mean(), atol=1e-8)
    # The least-norm element shares the sensitivity between the two copies.
    np.testing.assert_allclose(gradient.b[0], gx[0].mean() / 2 * np.ones(2), atol=1e-7)
    assert derivative.system.degenerate.all()


def test_many_optima_give_a_finite_flagged_gradient(route: str) -> None:
    """min 0 over the simplex: every point is optimal."""
    n = 3
    A = np.vstack([np.ones((1, n)), -np.eye(n)])
    program = program_of(
        np.zeros((n, n)), np.zeros(n), A, np.array([1.0, 0, 0, 0]), ConeDims(zero=1, nonneg=n)
    )
    derivative = solved(program)
    gradient = derivative.vjp(np.array([[1.0, 0.0, -1.0]]), None, everything(program))
    assert all(np.isfinite(value).all() for value in vars(gradient).values())
    assert derivative.system.degenerate.all()


def test_polish_repairs_a_rough_answer(route: str) -> None:
    """Newton's method from an answer that is good to three digits only."""
    program = random_program(DIMS["all"], 6, batch=4, rank=6, seed=7)
    answer = Clarabel(program.structure).solve(program, {})
    rng = np.random.default_rng(8)
    geometry = Geometry(program.structure)
    rough = [v + 1e-4 * rng.standard_normal(v.shape) for v in (answer.x, answer.z, answer.s)]
    point = polish(geometry, program, *rough)
    assert (point.residual <= 1e-12).all()
    exact = solved(program)
    np.testing.assert_allclose(point.x, exact.x, atol=1e-9)
    np.testing.assert_allclose(point.z, exact.z, atol=1e-8)


def test_polish_does_no_harm_where_newton_fails() -> None:
    """A start far from any solution: the residual must not rise."""
    from cvxlayers.derivative.polish import residual

    program = random_program(DIMS["all"], 6, batch=4, rank=6, seed=9)
    geometry = Geometry(program.structure)
    rng = np.random.default_rng(10)
    x, w = rng.standard_normal((4, 6)), 3 * rng.standard_normal((4, program.structure.m))
    s = geometry.cone.project(w)
    before = residual(geometry, program, x, s - w, s)[2]
    point = polish(geometry, program, x, s - w, s)
    assert (point.residual <= before).all()
    assert np.isfinite(point.x).all() and np.isfinite(point.z).all()


def test_a_variable_that_nothing_determines_does_not_disturb_the_others(route: str) -> None:
    """min ½(x − c)² with a slack bound t of it, |x| <= t <= 10: t is free, x is c."""
    c = 2.0
    A = np.array([[1.0, -1.0], [-1.0, -1.0], [0.0, 1.0]])
    program = program_of(
        np.diag([1.0, 0.0]), np.array([-c, 0.0]), A, np.array([0.0, 0.0, 10.0]), ConeDims(nonneg=3)
    )
    derivative = solved(program)
    gradient = derivative.vjp(np.array([[1.0, 0.0]]), None, everything(program))
    np.testing.assert_allclose(-gradient.q[0], [1.0, 0.0], atol=1e-12)
    assert not derivative.system.degenerate.any()
    # A gradient for t itself has no derivative to go through: zero, and flagged.
    gradient = derivative.vjp(np.array([[1.0, 1.0]]), None, everything(program))
    np.testing.assert_allclose(-gradient.q[0], [1.0, 0.0], atol=1e-12)
    assert derivative.system.degenerate.all()


def test_polish_exchanges_constraints_although_the_residual_rises(route: str) -> None:
    """Projection onto a box from a point whose active set is wrong in some entries."""
    n = 40
    rng = np.random.default_rng(11)
    c = rng.uniform(-2, 2, n)
    # Coupled, so that a wrong exchange in one entry moves the others.
    F = rng.standard_normal((n, n)) / n
    P = np.eye(n) + F @ F.T
    A = np.vstack([np.eye(n), -np.eye(n)])
    program = program_of(P, -P @ c, A, np.ones(2 * n), ConeDims(nonneg=2 * n))
    exact = solved(program)
    w = exact.s - exact.z
    wrong = rng.choice(2 * n, 6, replace=False)
    w[:, wrong] = -3e-4 * np.sign(w[:, wrong])
    s = np.maximum(w, 0)
    point = polish(exact.geometry, program, exact.x, s - w, s)
    assert (point.residual <= 1e-13).all()
    np.testing.assert_allclose(point.x, exact.x, atol=1e-12)


@pytest.mark.parametrize("name", DIMS)
def test_an_instance_does_not_depend_on_its_neighbours_to_the_last_bit(
    name: str, route: str
) -> None:
    program = random_program(DIMS[name], 6, batch=4, rank=6, seed=1)
    geometry = Geometry(program.structure)
    answer = Clarabel(program.structure).solve(program, {})
    start = answer.x, answer.z, answer.s
    batch = polish(geometry, program, *(v.copy() for v in start))
    for i in range(4):
        one = polish(geometry, program.take(np.array([i])), *(v[i : i + 1].copy() for v in start))
        for key in ("x", "z", "s"):
            assert np.array_equal(getattr(one, key)[0], getattr(batch, key)[i])
