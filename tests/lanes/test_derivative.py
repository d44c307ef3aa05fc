"""The linear system of the derivative, and the polish, in lanes, against dense matrices.

The oracle for the system is NumPy's solution of the unsymmetric equations with D as a dense matrix,
put together from the projections of the library; that for the polish is the optimality conditions
and the inequalities that define the cones.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from cvxlayers.cones import ProductCone
from cvxlayers.derivative import Geometry, memory_of_factor
from cvxlayers.derivative import polish as polished
from cvxlayers.derivative.in_lanes import LaneSystem
from cvxlayers.lanes import Engine, load
from cvxlayers.program import ConeDims, ConeProgram, Pattern, ProblemStructure
from cvxlayers.solvers.clarabel import Clarabel
from solvers.random_programs import dense_data, random_program
from solvers.toys import program_of

module = load()
pytestmark = pytest.mark.skipif(module is None, reason="not compiled")

Array = np.ndarray

DIMS = {
    "equality": ConeDims(zero=3),
    "nonneg": ConeDims(nonneg=11),
    "soc": ConeDims(zero=1, soc=(1, 2, 3, 4)),
    "long soc": ConeDims(nonneg=3, soc=(5, 12, 30)),
    "psd": ConeDims(psd=(1, 2, 3, 4)),
    "large psd": ConeDims(psd=(5, 6)),
    "exp": ConeDims(exp=4),
    "pow": ConeDims(pow=(0.1, 0.3, 0.5, 0.8)),
    "all": ConeDims(zero=2, nonneg=4, soc=(3, 7), psd=(3,), exp=2, pow=(0.4, 0.5)),
}
NUMBER_OF_VARIABLES = 8


@dataclass
class Point:
    """A batch of solutions, as good as they get, and its engine."""

    program: ConeProgram
    core: Engine
    x: Array
    z: Array
    s: Array


def solved(program: ConeProgram) -> Point:
    """Of those instances that Clarabel solves."""
    answer = Clarabel(program.structure).solve(program, {})
    assert answer.solved.mean() > 0.8
    program, answer = program.take(answer.solved.nonzero()[0]), answer.take(answer.solved)
    point = polished(Geometry(program.structure), program, answer.x, answer.z, answer.s)
    core = Engine(module, program.structure)
    return Point(program, core, point.x, point.z, point.s)


def points(name: str, batch: int = 9, rank: int | None = None, seed: int = 0) -> Point:
    rank = NUMBER_OF_VARIABLES if rank is None else rank
    return solved(
        random_program(DIMS[name], NUMBER_OF_VARIABLES, batch=batch, rank=rank, seed=seed)
    )


def derivative_of_projection(dims: ConeDims, w: Array, s: Array) -> Array:
    """DΠ(w) as a dense matrix, from what it does to unit vectors."""
    cone = ProductCone(dims.zero, dims.nonneg, dims.soc, dims.psd, dims.exp, dims.pow)
    m = len(w)
    spectrum = cone.spectrum(np.tile(w, (m, 1)), np.tile(s, (m, 1)))
    return spectrum.apply(np.eye(m)).T


def dense_system(point: Point, i: int) -> Array:
    """[P Aᵀ; (I − D) A  −D]."""
    P, _, A, _ = dense_data(point.program, i)
    D = derivative_of_projection(point.program.structure.dims, point.s[i] - point.z[i], point.s[i])
    return np.block([[P, A.T], [(np.eye(len(D)) - D) @ A, -D]])


def right_sides(point: Point, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(point.x.shape), rng.standard_normal(point.z.shape)


def check_system(point: Point, r1: Array, r2: Array | None, tolerance: float = 1e-9) -> Array:
    """Compares where the engine says that the system is regular; which those are.

    Away from a solution w = s − z depends on the units of s and z, so that D may be another.
    """
    u, v, residual = point.core.newton(point.program, point.x, point.z, point.s, r1, r2)
    n = point.program.structure.n
    for i in np.flatnonzero(np.isfinite(residual)):
        if residual_of(point.program, i, point.x[i], point.z[i], point.s[i]) > 1e-11:
            continue
        M = dense_system(point, i)
        # Below, the right-hand side is (I − D) r₂.
        D = -M[n:, n:]
        below = np.zeros(len(D)) if r2 is None else (np.eye(len(D)) - D) @ r2[i]
        expected = np.linalg.solve(M, np.concatenate([r1[i], below]))
        found = np.concatenate([u[i], v[i]])
        height = np.abs(expected).max()
        condition = np.linalg.cond(M)
        limit = max(tolerance, 1e-15 * condition) * height
        assert np.abs(found - expected).max() <= limit, (i, condition)
    return np.isfinite(residual)


@pytest.mark.parametrize("rank", [NUMBER_OF_VARIABLES, 4])
@pytest.mark.parametrize("name", DIMS)
def test_newton_against_a_dense_solve(name: str, rank: int) -> None:
    if name == "equality" and rank < NUMBER_OF_VARIABLES:
        rank = NUMBER_OF_VARIABLES
    point = points(name, rank=rank)
    r1, r2 = right_sides(point)
    assert check_system(point, r1, r2).mean() >= 0.6
    assert check_system(point, r1, None).mean() >= 0.6


@pytest.mark.parametrize("name", DIMS)
def test_the_system_is_mostly_regular(name: str) -> None:
    """With P definite and a random A there is no reason for it not to be, and it is seen."""
    point = points(name)
    r1, r2 = right_sides(point)
    _, _, residual = point.core.newton(point.program, point.x, point.z, point.s, r1, r2)
    for i in range(len(residual)):
        if np.linalg.cond(dense_system(point, i)) < 1e7:
            assert residual[i] <= 1e-12


def test_regular_vertices_of_linear_programs() -> None:
    program = random_program(ConeDims(nonneg=20), 8, batch=12, seed=3)
    point = solved(program)
    assert check_system(point, *right_sides(point)).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 12))
@pytest.mark.parametrize("name", DIMS)
def test_newton_at_length(name: str, seed: int) -> None:
    point = points(name, batch=16, seed=seed)
    assert check_system(point, *right_sides(point, seed)).mean() >= 0.6


def test_scaled_rows_and_columns() -> None:
    """Data in units from 1e-4 to 1e4; solutions scale with them, as the system does."""
    rng = np.random.default_rng(0)
    program = random_program(ConeDims(zero=2, nonneg=10), 8, batch=9, rank=8)
    rows, cols = 10.0 ** rng.uniform(-4, 4, 12), 10.0 ** rng.uniform(-4, 4, 8)
    A, P = program.structure.A, program.structure.P
    other = replace(
        program,
        P=program.P * cols[P.rows] * cols[P.cols],
        q=program.q * cols,
        A=program.A * rows[A.rows] * cols[A.cols],
        b=program.b * rows,
    )
    point = solved(program)
    core = Engine(module, other.structure)
    scaled = Point(other, core, point.x / cols, point.z / rows, point.s * rows)
    r1, r2 = right_sides(point)
    u, v, first = point.core.newton(program, point.x, point.z, point.s, r1, r2)
    p, w, second = core.newton(other, scaled.x, scaled.z, scaled.s, r1 * cols, r2 * rows)
    assert np.isfinite(first).all() and np.isfinite(second).all()
    np.testing.assert_allclose(p * cols, u, rtol=0, atol=1e-8 * np.abs(u).max())
    np.testing.assert_allclose(w * rows, v, rtol=0, atol=1e-8 * np.abs(v).max())


def test_linearity_and_zero() -> None:
    point = points("all")
    r1, r2 = right_sides(point)
    u, v, _ = point.core.newton(point.program, point.x, point.z, point.s, 8.0 * r1, 8.0 * r2)
    p, w, _ = point.core.newton(point.program, point.x, point.z, point.s, r1, r2)
    np.testing.assert_array_equal(u, 8.0 * p)
    np.testing.assert_array_equal(v, 8.0 * w)
    u, v, residual = point.core.newton(point.program, point.x, point.z, point.s, 0 * r1, 0 * r2)
    assert not u.any() and not v.any()
    assert np.isfinite(residual).any()
    zero = np.zeros_like(r2)
    one = point.core.newton(point.program, point.x, point.z, point.s, r1, zero)
    other = point.core.newton(point.program, point.x, point.z, point.s, r1, None)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- singular systems ----


def singular_program(name: str) -> ConeProgram:
    if name == "equal equalities":
        program = program_of(
            [[1.0, 1.0], [1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], ConeDims(zero=2, nonneg=2), batch=3
        )
        program.q[:], program.b[:] = [1.0, 2.0], [1.0, 1.0, 0.0, 0.0]
    elif name == "redundant vertex":
        # Three rows meet in (1, 1).
        program = program_of([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], ConeDims(nonneg=3), batch=3)
        program.q[:], program.b[:] = [-1.0, -2.0], [1.0, 1.0, 2.0]
    elif name == "edge":
        # Every point with x₀ + x₁ = 1 is a solution.
        program = program_of([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], ConeDims(nonneg=3), batch=3)
        program.q[:], program.b[:] = [-1.0, -1.0], [1.0, 0.0, 0.0]
    elif name == "variable without curvature":
        # x₁ occurs nowhere.
        program = program_of([[1.0, 0.0], [-1.0, 0.0]], ConeDims(nonneg=2), batch=3)
        program.q[:], program.b[:] = [1.0, 0.0], [1.0, 1.0]
    else:
        raise KeyError(name)
    return program


@pytest.mark.parametrize(
    "name", ["equal equalities", "redundant vertex", "edge", "variable without curvature"]
)
def test_a_singular_system_is_told(name: str) -> None:
    program = singular_program(name)
    answer = Clarabel(program.structure).solve(program, {})
    assert answer.solved.all()
    x, z, s = (v.copy() for v in (answer.x, answer.z, answer.s))
    # The solution, with its zeros exact.
    s, z = np.where(s > 1e-4, s, 0.0), np.where(np.abs(z) > 1e-4, z, 0.0)
    core = Engine(module, program.structure)
    rng = np.random.default_rng(0)
    for right in (rng.standard_normal(x.shape), np.ones_like(x)):
        _, _, residual = core.newton(program, x, z, s, right, rng.standard_normal(z.shape))
        assert np.isinf(residual).all()


def test_a_singular_system_does_not_disturb_a_regular_one() -> None:
    """Instances of one structure, of which some have equal rows."""
    program = random_program(ConeDims(zero=2, nonneg=6), 6, batch=9, rank=6, density=1.0)
    A = program.structure.A
    for i in (0, 4, 8):
        dense = dense_data(program, i)[2]
        dense[1] = dense[0]
        program.A[i] = dense[A.rows, A.cols]
        program.b[i, 1] = program.b[i, 0]
    answer = Clarabel(program.structure).solve(program, {})
    point = Point(program, Engine(module, program.structure), answer.x, answer.z, answer.s)
    assert check_system(point, *right_sides(point), tolerance=1e-7).tolist() == [
        i not in (0, 4, 8) for i in range(9)
    ]


# ---- right-hand sides that are not numbers ----


def test_what_is_not_finite_is_not_called_good() -> None:
    point = points("all", batch=9)
    r1, r2 = right_sides(point)
    u, v, expected = point.core.newton(point.program, point.x, point.z, point.s, r1, r2)
    r1[1, 0], r1[3, 2], r2[5, 1], r1[7] = np.nan, np.inf, np.nan, 1e308
    found_u, found_v, residual = point.core.newton(point.program, point.x, point.z, point.s, r1, r2)
    good = [0, 2, 4, 6, 8]
    np.testing.assert_array_equal(found_u[good], u[good])
    np.testing.assert_array_equal(found_v[good], v[good])
    np.testing.assert_array_equal(residual[good], expected[good])
    finite = np.isfinite(found_u).all(axis=1) & np.isfinite(found_v).all(axis=1)
    assert (finite | ~np.isfinite(residual)).all()


# ---- the polish ----


def residual_of(program: ConeProgram, i: int, x: Array, z: Array, s: Array) -> float:
    """The larger residual, each relative to its terms, and what leaves the cones or is not
    complementary, relative to the points."""
    P, q, A, b = dense_data(program, i)
    dims = program.structure.dims
    terms = [np.abs(v).max(initial=0.0) for v in (P @ x, A.T @ z, q)]
    dual = np.abs(P @ x + q + A.T @ z).max() / (1.0 + max(terms))
    primal = (np.abs(A @ x + s - b) / (1.0 + np.abs(s) + np.abs(b))).max(initial=0.0)
    size = 1.0 + np.abs(s).max(initial=0.0) + np.abs(z).max(initial=0.0)
    # A product of two numbers of the size of the rounding of the others.
    inner = 0.01 * abs(s @ z) / size**2
    # Distances: how far a power cone's inequality is violated says little beside its edges.
    cone = ProductCone(dims.zero, dims.nonneg, dims.soc, dims.psd, dims.exp, dims.pow)
    beyond = np.abs(s - cone.project(s[None])[0]).max(initial=0.0)
    beyond = max(beyond, np.abs(cone.project(-z[None])[0]).max(initial=0.0))
    return float(max(dual, primal, inner, 0.01 * beyond / size))


@pytest.mark.parametrize("name", DIMS)
def test_polished_points_are_exact(name: str) -> None:
    program = random_program(DIMS[name], NUMBER_OF_VARIABLES, batch=17, rank=8, seed=2)
    answer = Clarabel(program.structure).solve(program, {})
    assert answer.solved.all()
    x, z, s = (v.copy() for v in (answer.x, answer.z, answer.s))
    residual = Engine(module, program.structure).polish(program, x, z, s)
    good = np.isfinite(residual)
    assert good.mean() >= 0.7
    for i in np.flatnonzero(good):
        assert residual[i] <= 1e-13
        before = residual_of(program, i, answer.x[i], answer.z[i], answer.s[i])
        after = residual_of(program, i, x[i], z[i], s[i])
        assert after <= max(1e-13, min(before, 1e-12))
        assert np.abs(x[i] - answer.x[i]).max() <= 1e-3 * (1.0 + np.abs(x[i]).max())
    for before, after in ((answer.x, x), (answer.z, z), (answer.s, s)):
        np.testing.assert_array_equal(after[~good], before[~good])


def test_a_polished_point_stays() -> None:
    point = points("all", batch=9)
    x, z, s = (v.copy() for v in (point.x, point.z, point.s))
    first = point.core.polish(point.program, x, z, s)
    one = [v.copy() for v in (x, z, s)]
    again = point.core.polish(point.program, x, z, s)
    good = np.isfinite(first)
    assert good.any() and (again[good] <= np.maximum(first[good], 1e-15)).all()
    for a, b in zip(one, (x, z, s), strict=True):
        np.testing.assert_allclose(a[good], b[good], rtol=0, atol=1e-12)


def test_points_far_off_are_refused_or_solved() -> None:
    """Nothing in between: a point that Newton's method did not bring home is left as it was."""
    program = random_program(DIMS["all"], NUMBER_OF_VARIABLES, batch=32, rank=8)
    rng = np.random.default_rng(0)
    shapes = ((32, 8), (32, program.structure.m), (32, program.structure.m))
    for size in (1e-3, 1.0, 1e3, 1e150):
        start = [size * rng.standard_normal(shape) for shape in shapes]
        x, z, s = (v.copy() for v in start)
        residual = Engine(module, program.structure).polish(program, x, z, s)
        for i in range(32):
            if np.isfinite(residual[i]):
                assert residual_of(program, i, x[i], z[i], s[i]) <= 2e-13
            else:
                for after, before in zip((x, z, s), start, strict=True):
                    np.testing.assert_array_equal(after[i], before[i])


def test_the_polish_of_what_has_no_solution() -> None:
    """x ≤ −1 and x ≥ 1."""
    program = program_of([[1.0], [-1.0]], ConeDims(nonneg=2), batch=9)
    program.q[:], program.b[:] = 1.0, [-1.0, -1.0]
    x, z, s = np.ones((9, 1)), np.ones((9, 2)), np.ones((9, 2))
    residual = Engine(module, program.structure).polish(program, x, z, s)
    assert np.isinf(residual).all()
    assert (x == 1.0).all() and (z == 1.0).all() and (s == 1.0).all()


@pytest.mark.parametrize("where", ["q", "x"])
def test_what_no_row_sees_is_refused_too(where: str) -> None:
    """NaN for a variable that is in no row: nothing of it reaches s or w."""
    A = Pattern((1, 2), np.zeros(1, dtype=np.int32), np.array([0, 1, 1], dtype=np.int32))
    P = Pattern((2, 2), np.arange(2, dtype=np.int32), np.arange(3, dtype=np.int32))
    structure = ProblemStructure(ConeDims(nonneg=1), P, A)
    data = np.ones((3, 2)), -np.ones((3, 2)), np.ones((3, 1)), np.full((3, 1), 0.5)
    program = ConeProgram(structure, *data, 3)
    # ½ x² − x with x₁ <= ½.
    x, z, s = np.tile([0.5, 1.0], (3, 1)), np.full((3, 1), 0.5), np.zeros((3, 1))
    (program.q if where == "q" else x)[1, 1] = np.nan
    residual = Engine(module, structure).polish(program, x, z, s)
    assert np.isinf(residual[1]) and (residual[[0, 2]] <= 1e-15).all()
    np.testing.assert_array_equal(x[[0, 2]], [[0.5, 1.0]] * 2)


@pytest.mark.parametrize("part", ["P", "q", "A", "b"])
def test_data_that_are_not_finite_are_refused(part: str) -> None:
    program = random_program(ConeDims(nonneg=5, soc=(3,)), 4, batch=9, rank=4)
    answer = Clarabel(program.structure).solve(program, {})
    core = Engine(module, program.structure)
    expected = [v.copy() for v in (answer.x, answer.z, answer.s)]
    of_rest = core.polish(program, *expected)
    getattr(program, part)[3, 1] = np.nan
    getattr(program, part)[6, 0] = np.inf
    x, z, s = (v.copy() for v in (answer.x, answer.z, answer.s))
    residual = core.polish(program, x, z, s)
    assert np.isinf(residual[[3, 6]]).all()
    np.testing.assert_array_equal(x[[3, 6]], answer.x[[3, 6]])
    rest = [0, 1, 2, 4, 5, 7, 8]
    np.testing.assert_array_equal(residual[rest], of_rest[rest])
    for a, b in zip((x, z, s), expected, strict=True):
        np.testing.assert_array_equal(a[rest], b[rest])


@pytest.mark.parametrize("size", [1e-6, 1e-12])
def test_small_data_are_polished_in_their_own_unit(size: float) -> None:
    program = random_program(DIMS["all"], NUMBER_OF_VARIABLES, batch=9, rank=8)
    answer = Clarabel(program.structure).solve(program, {})
    core = Engine(module, program.structure)
    x, z, s = (v.copy() for v in (answer.x, answer.z, answer.s))
    good = np.isfinite(core.polish(program, x, z, s))
    tiny = replace(program, q=program.q * size, b=program.b * size)
    p, y, t = (v * size for v in (answer.x, answer.z, answer.s))
    also = np.isfinite(core.polish(tiny, p, y, t)) & good
    assert also.sum() >= 0.6 * good.sum() > 0
    for a, b in ((x, p), (z, y), (s, t)):
        np.testing.assert_allclose(b[also] / size, a[also], rtol=0, atol=1e-10 * np.abs(a).max())


def test_threads_on_one_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equalities that are there twice, and so a singular system, in two pieces, which two threads
    take at once. The primal part is that of one equality alone."""
    n, batch = 3, 20
    each = np.arange(n + 1, dtype=np.int32)
    A = Pattern((2, n), np.tile(np.arange(2, dtype=np.int32), n), 2 * each)
    structure = ProblemStructure(ConeDims(zero=2), Pattern((n, n), each[:-1], each), A)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((batch, n))
    program = ConeProgram(
        structure,
        rng.uniform(1, 2, (batch, n)),
        np.zeros((batch, n)),
        np.repeat(a, 2, axis=1),
        np.ones((batch, 2)),
        batch,
    )
    geometry = Geometry(structure, memory=10 * memory_of_factor(Geometry(structure)))
    x, z, s = np.zeros((batch, n)), np.zeros((batch, 2)), np.zeros((batch, 2))
    system = LaneSystem(Engine(module, structure), geometry, program, x, z, s)
    gradient = rng.standard_normal((batch, n))
    # u of P u + aᵀν = g, a u = 0.
    over = 1.0 / program.P
    nu = (a * over * gradient).sum(1) / (a * over * a).sum(1)
    expected = over * (gradient - a * nu[:, None])

    factored = LaneSystem._factored

    def slowly(*arguments: Any) -> Any:
        made = factored(*arguments)
        time.sleep(0.01)
        return made

    monkeypatch.setattr(LaneSystem, "_factored", slowly)
    with ThreadPoolExecutor(2) as pool:
        found = [f.result() for f in [pool.submit(system.newton, gradient, None) for _ in range(4)]]
    assert system.degenerate.all()
    for u, _ in found:
        np.testing.assert_allclose(u, expected, rtol=0, atol=1e-9)
