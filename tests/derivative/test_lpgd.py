"""Differences of solutions: closed forms at vertices, CVXPY's answers to the perturbed problems,
the exact derivative as their limit, and what becomes of sides that cannot be solved."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

from cvxlayers.derivative import Geometry, ImplicitDerivative, LpgdDerivative, polish
from cvxlayers.program import ConeDims, ConeProgram, ConeSolution, ProgramTangent, Wanted
from cvxlayers.solvers.clarabel import Clarabel
from derivative.test_implicit import (
    DIMS,
    dense,
    everything,
    program_of,
    random_tangent,
    solved,
)
from solvers.random_programs import random_program, smat, svec


def resolve(program: ConeProgram) -> ConeSolution:
    """Clarabel's answers, polished."""
    answer = Clarabel(program.structure).solve(program, {})
    rows = np.flatnonzero(answer.solved)
    if len(rows):
        start = answer.x[rows], answer.z[rows], answer.s[rows]
        point = polish(Geometry(program.structure), program.take(rows), *start)
        answer.x[rows], answer.z[rows], answer.s[rows] = point.x, point.z, point.s
    for array in (answer.x, answer.z, answer.s):
        array[~answer.solved] = np.nan
    return answer


def lpgd(
    program: ConeProgram,
    tau: float,
    solve: Callable[[ConeProgram], ConeSolution] = resolve,
    rows: np.ndarray | None = None,
) -> LpgdDerivative:
    point = resolve(program)
    assert point.solved.all()
    geometry = Geometry(program.structure)
    return LpgdDerivative(geometry, program, point.x, point.z, point.s, tau, solve, rows)


def differ(one: ProgramTangent, other: ProgramTangent) -> float:
    """The largest difference, relative to the largest entry of its array."""
    sizes = []
    for key, a in vars(one).items():
        b = getattr(other, key)
        assert a.shape == b.shape
        sizes.append(np.abs(a - b).max(initial=0) / (1e-300 + np.abs(b).max(initial=0)))
    return max(sizes)


def difference_of_lagrangians(
    program: ConeProgram, plus: tuple[Any, Any], minus: tuple[Any, Any], length: float
) -> ProgramTangent:
    """(∇L(x₊, z₊) − ∇L(x₋, z₋))/length of one instance, at the stored entries, with dense
    matrices."""
    P, A = program.structure.P, program.structure.A

    def slope(x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, ...]:
        whole = np.outer(x, x)
        both = whole[P.rows, P.cols] * np.where(P.rows == P.cols, 0.5, 1.0)
        return both, x, np.outer(z, x)[A.rows, A.cols], -z

    pairs = zip(slope(*plus), slope(*minus), strict=True)
    return ProgramTangent(*((a - b)[None] / length for a, b in pairs))


# Where the exact derivative exists.


@pytest.mark.parametrize("name", ["equality", "nonneg"])
def test_the_exact_derivative_where_the_solution_is_piecewise_affine(name: str) -> None:
    """In q and b that of a quadratic program is, so that any step within one piece will do."""
    program = random_program(DIMS[name], 6, batch=3, rank=6, seed=1)
    exact, found = solved(program), lpgd(program, 1e-3)
    rng = np.random.default_rng(2)
    gx, gz = rng.standard_normal(exact.x.shape), rng.standard_normal(exact.z.shape)
    wanted = everything(program)
    assert differ(found.vjp(gx, gz, wanted), exact.vjp(gx, gz, wanted)) <= 1e-10
    assert differ(found.vjp(gx, None, wanted), exact.vjp(gx, None, wanted)) <= 1e-10
    tangent = random_tangent(program, rng)
    tangent = replace(tangent, P=0.0 * tangent.P, A=0.0 * tangent.A)
    for a, b in zip(found.jvp(tangent, wanted), exact.jvp(tangent, wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())


@pytest.mark.parametrize("name", [name for name in DIMS if name not in ("equality", "nonneg")])
def test_the_error_is_of_second_order(name: str) -> None:
    program = random_program(DIMS[name], 6, batch=2, rank=6, seed=1)
    exact, wanted = solved(program), everything(program)
    rng = np.random.default_rng(2)
    gx, gz = rng.standard_normal(exact.x.shape), rng.standard_normal(exact.z.shape)
    tangent = random_tangent(program, rng)
    gradient, (dx, dz) = exact.vjp(gx, gz, wanted), exact.jvp(tangent, wanted)
    errors = []
    for tau in (1e-2, 1e-3):
        derivative = lpgd(program, tau)
        x, z = derivative.jvp(tangent, wanted)
        found = derivative.vjp(gx, gz, wanted)
        parts = [np.abs(getattr(found, k) - getattr(gradient, k)).max() for k in "PqAb"]
        errors.append([*parts, np.abs(x - dx).max(), np.abs(z - dz).max()])
    assert max(errors[1]) <= 1e-3 * (1 + np.abs(dz).max())
    np.testing.assert_allclose(np.log10(errors[0]) - np.log10(errors[1]), 2.0, atol=0.1)


# Closed forms.


def simplex(Q: np.ndarray, c: np.ndarray) -> ConeProgram:
    """min ½ xᵀQ x + cᵀx over the simplex, for every row of c."""
    n = c.shape[1]
    A, b = np.vstack([np.ones((1, n)), -np.eye(n)]), np.r_[1.0, np.zeros(n)]
    one = program_of(Q, c[0], A, b, ConeDims(zero=1, nonneg=n))
    return replace(one, q=c, batch=len(c))


COSTS = np.array([[0.3, 0.1, 0.5, 0.9], [1.0, 1.2, 0.2, 0.4], [1.0, 0.0, 0.01, 3.0]])


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_vertices_of_the_simplex(tau: float) -> None:
    """(e_j − e_k)/2τ with the least entries j and k of c ± τ g, where the exact one is zero."""
    program = simplex(np.zeros((4, 4)), COSTS)
    g = np.random.default_rng(3).standard_normal(COSTS.shape)
    found = lpgd(program, tau).vjp(g, None, everything(program)).q
    ends = [np.eye(4)[(COSTS + t * g).argmin(axis=1)] for t in (tau, -tau)]
    assert (ends[0] != ends[1]).any()
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / (2 * tau), atol=1e-10)
    exact = solved(program).vjp(g, None, everything(program))
    np.testing.assert_allclose(exact.q, 0.0, atol=1e-10)


def nearest_of_simplex(y: np.ndarray) -> np.ndarray:
    """max(y − ν, 0) with ν such that the entries sum to one."""
    descending = np.sort(y)[::-1]
    levels = (np.cumsum(descending) - 1.0) / np.arange(1, len(y) + 1)
    return np.maximum(y - levels[descending > levels][-1], 0.0)


def test_projection_onto_the_simplex() -> None:
    """Steps that change the support."""
    points, tau = COSTS, 0.5
    program = simplex(np.eye(4), -points)
    g = np.random.default_rng(4).standard_normal(points.shape)
    found = lpgd(program, tau).vjp(g, None, everything(program)).q
    for i, (y, d) in enumerate(zip(points, g, strict=True)):
        ends = [nearest_of_simplex(y - t * d) for t in (tau, -tau)]
        assert ((ends[0] > 0) != (ends[1] > 0)).any()
        np.testing.assert_allclose(found[i], (ends[0] - ends[1]) / (2 * tau), atol=1e-9)


def test_box() -> None:
    """min cᵀx, −l <= x <= u: x is u or −l by the sign of c, z its two parts; both ends move."""
    c, tau = np.array([0.3, -0.2, 0.5, -1.0]), 0.4
    A, b = np.vstack([np.eye(4), -np.eye(4)]), np.array([1.0, 2, 3, 4, 0, 1, 0, 2])
    program = program_of(np.zeros((4, 4)), c, A, b, ConeDims(nonneg=8))
    gx, gz = np.array([[1.0, 1.0, -2.0, 0.5]]), np.linspace(-1, 1, 8)[None]

    def at(t: float) -> tuple[np.ndarray, np.ndarray]:
        cost, bound = c + t * gx[0], b - t * gz[0]
        x = np.where(cost < 0, bound[:4], -bound[4:])
        return x, np.r_[np.maximum(-cost, 0), np.maximum(cost, 0)]

    found = lpgd(program, tau).vjp(gx, gz, everything(program))
    true = difference_of_lagrangians(program, at(tau), at(-tau), 2 * tau)
    assert (np.abs(true.q) > 1).any()
    assert differ(found, true) <= 1e-9


# Another solver, another path through the data.


def with_cvxpy(program: ConeProgram, i: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, z) of instance i, stated in CVXPY's own words."""
    P, q, A, b = dense(program, i)
    dims = program.structure.dims
    x = cp.Variable(len(q))
    s = b - A @ x
    starts = np.cumsum([0, dims.zero, dims.nonneg, *dims.soc])
    constraints = [s[: dims.zero] == 0, s[dims.zero : starts[2]] >= 0]
    blocks: list[Callable[[], np.ndarray]] = []
    for k in range(len(dims.soc)):
        cone = cp.SOC(s[starts[2 + k]], s[starts[2 + k] + 1 : starts[3 + k]])
        constraints.append(cone)
        blocks.append(lambda c=cone: np.r_[c.dual_value[0], np.ravel(c.dual_value[1])])
    at = starts[-1]
    for k in dims.psd:
        units = [smat(e) for e in np.eye(k * (k + 1) // 2)]
        cone = sum(s[at + j] * unit for j, unit in enumerate(units)) >> 0
        constraints.append(cone)
        blocks.append(lambda c=cone: svec(c.dual_value))
        at += len(units)
    for _ in range(dims.exp):
        cone = cp.ExpCone(s[at], s[at + 1], s[at + 2])
        constraints.append(cone)
        blocks.append(lambda c=cone: np.ravel(c.dual_value))
        at += 3
    problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, cp.psd_wrap(P)) + q @ x), constraints)
    tight = dict.fromkeys(["tol_gap_abs", "tol_gap_rel", "tol_feas"], 1e-10)
    problem.solve(solver=cp.CLARABEL, **tight)
    equality, inequality = (np.ravel(c.dual_value) for c in constraints[:2])
    # CVXPY states f + yᵀ(s − 0), and s = b − A x.
    z = np.concatenate([-equality, inequality, *(block() for block in blocks)])
    np.testing.assert_allclose(P @ x.value + q + A.T @ z, 0.0, atol=1e-7)
    return x.value, z


MIXED = ConeDims(zero=1, nonneg=5, soc=(3,), psd=(2,), exp=1)


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_a_loop_of_perturbed_problems_in_cvxpy(tau: float) -> None:
    program = random_program(MIXED, 5, batch=2, rank=2, seed=5)
    rng = np.random.default_rng(6)
    gx, gz = rng.standard_normal((2, 5)), 0.1 * rng.standard_normal((2, MIXED.m))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = lpgd(program, tau).vjp(gx, gz, everything(program))
    for i in range(2):
        sides = [
            with_cvxpy(replace(program, q=program.q + t * gx, b=program.b - t * gz), i)
            for t in (tau, -tau)
        ]
        true = difference_of_lagrangians(program, sides[0], sides[1], 2 * tau)
        mine = ProgramTangent(**{key: value[i : i + 1] for key, value in vars(found).items()})
        assert differ(mine, true) <= 1e-5 / tau  # CVXPY answers with about six digits


def test_forward_mode_is_a_difference_of_solutions_in_cvxpy() -> None:
    program, tau = random_program(MIXED, 5, batch=2, rank=5, seed=5), 0.05
    tangent = random_tangent(program, np.random.default_rng(7))
    dx, dz = lpgd(program, tau).jvp(tangent, everything(program))
    for i in range(2):
        sides = []
        for t in (tau, -tau):
            data = {k: getattr(program, k) + t * v for k, v in vars(tangent).items()}
            sides.append(with_cvxpy(replace(program, **data), i))
        for mine, plus, minus in zip((dx[i], dz[i]), *sides, strict=True):
            np.testing.assert_allclose(mine, (plus - minus) / (2 * tau), atol=1e-5 / tau)


# The step, and what is asked for.


def test_the_step_is_tau_times_the_gradient() -> None:
    program = simplex(np.eye(4), -COSTS)
    g, wanted = np.random.default_rng(8).standard_normal(COSTS.shape), everything(program)
    once, thrice = (
        lpgd(program, 0.6).vjp(g, None, wanted),
        lpgd(program, 0.2).vjp(3 * g, None, wanted),
    )
    assert differ(ProgramTangent(*(3.0 * value for value in vars(once).values())), thrice) <= 1e-9


def test_shared_data_have_the_sum_of_their_gradients() -> None:
    program = random_program(DIMS["all"], 6, batch=3, rank=6, seed=9)
    derivative = lpgd(program, 0.01)
    rng = np.random.default_rng(10)
    gx, gz = rng.standard_normal((3, 6)), rng.standard_normal((3, program.structure.m))
    each = derivative.vjp(gx, gz, everything(program))
    names = {key: value.sum(axis=0, keepdims=True) for key, value in vars(each).items()}
    found = derivative.vjp(gx, gz, everything(program, frozenset("PqAb")))
    assert differ(found, ProgramTangent(**names)) <= 1e-11


def some(program: ConeProgram) -> Wanted:
    return Wanted(
        np.array([1, 3]), np.array([0, 4]), np.array([2, 5, 6]), np.array([7, 1]), frozenset()
    )


def test_wanted_entries_are_those_of_the_full_gradient() -> None:
    program = random_program(DIMS["all"], 6, batch=2, rank=6, seed=11)
    derivative = lpgd(program, 0.01)
    rng = np.random.default_rng(12)
    gx, gz = rng.standard_normal((2, 6)), rng.standard_normal((2, program.structure.m))
    full, few = derivative.vjp(gx, gz, everything(program)), some(program)
    part = derivative.vjp(gx, gz, few)
    for key in "PqAb":
        np.testing.assert_array_equal(getattr(part, key), getattr(full, key)[:, getattr(few, key)])
    tangent = random_tangent(program, rng)
    held = {key: np.zeros_like(value) for key, value in vars(tangent).items()}
    for key, value in held.items():
        value[:, getattr(few, key)] = getattr(tangent, key)[:, getattr(few, key)]
    short = ProgramTangent(**{k: v[:, getattr(few, k)] for k, v in vars(tangent).items()})
    both = derivative.jvp(short, few), derivative.jvp(ProgramTangent(**held), everything(program))
    for a, b in zip(*both, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_direction_that_the_batch_shares() -> None:
    """It gives what a copy for every instance gives, and shared matrices are not copied."""
    program = random_program(DIMS["all"], 6, batch=3, rank=6, seed=13, shared="PA")
    asked: list[ConeProgram] = []

    def watched(part: ConeProgram) -> ConeSolution:
        asked.append(part)
        return resolve(part)

    derivative = lpgd(program, 0.01, watched)
    tangent = random_tangent(program, np.random.default_rng(14))
    one = ProgramTangent(**{key: value[:1] for key, value in vars(tangent).items()})
    copies = ProgramTangent(**{k: np.repeat(v, 3, axis=0) for k, v in vars(one).items()})
    expected = derivative.jvp(copies, everything(program))
    asked.clear()
    found = derivative.jvp(one, everything(program))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(len(part.P) == 1 and len(part.A) == 1 for part in asked)
    asked.clear()
    derivative.vjp(np.ones((3, 6)), None, everything(program))
    assert [(part.batch, len(part.P), len(part.A)) for part in asked] == [(6, 1, 1)]


def test_where_nothing_moves_nothing_is_solved() -> None:
    program = random_program(DIMS["all"], 6, batch=4, rank=6, seed=15)
    asked: list[int] = []

    def watched(part: ConeProgram) -> ConeSolution:
        asked.append(part.batch)
        return resolve(part)

    derivative, wanted = lpgd(program, 0.01, watched), everything(program)
    gx, gz = np.zeros((4, 6)), np.zeros((4, program.structure.m))
    zero = ProgramTangent(*(0.0 * v for v in vars(random_tangent(program, RNG)).values()))
    for gradient in (derivative.vjp(gx, None, wanted), derivative.vjp(gx, gz, wanted)):
        assert not any(value.any() for value in vars(gradient).values())
    assert not any(value.any() for value in derivative.jvp(zero, wanted))
    assert asked == []
    gx[1], gz[3] = 1.0, 1.0
    gradient = derivative.vjp(gx, gz, wanted)
    assert asked == [4]
    for value in vars(gradient).values():
        np.testing.assert_array_equal(value.any(axis=1), [False, True, False, True])
    # No gradient for the dual is one of zeros.
    one, other = derivative.vjp(gx, None, wanted), derivative.vjp(gx, 0.0 * gz, wanted)
    assert differ(one, other) == 0.0


RNG = np.random.default_rng(16)


# Sides that cannot be solved.

# min cᵀx, x >= 0, x₁ + x₂ >= 1: unbounded as soon as c has a negative entry.
OPEN = program_of(
    np.zeros((2, 2)),
    np.array([1.0, 1.05]),
    np.array([[-1.0, -1.0], [-1.0, 0.0], [0.0, -1.0]]),
    np.array([-1.0, 0.0, 0.0]),
    ConeDims(nonneg=3),
)


def corner(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its solution."""
    least = c.min()
    return np.eye(2)[c.argmin()], np.r_[least, c - least]


C = OPEN.q[0]
# With τ = 0.1: a gradient, and the costs of the two points that the quotient is taken of, and
# how far apart these are in units of the gradient.
SIDES = {
    "both": ([2.0, 0.0], lambda g: (C + 0.1 * g, C - 0.1 * g, 0.2)),
    "plus": ([12.0, 0.0], lambda g: (C + 0.1 * g, C, 0.1)),
    "minus": ([-12.0, 0.0], lambda g: (C, C - 0.1 * g, 0.1)),
    "a tenth": ([12.0, -12.0], lambda g: (C + 0.01 * g, C - 0.01 * g, 0.02)),
    "a hundredth": ([120.0, -120.0], lambda g: (C + 1e-3 * g, C - 1e-3 * g, 2e-3)),
    "plus of a tenth": ([102.0, -12.0], lambda g: (C + 0.01 * g, C, 0.01)),
}


@pytest.mark.parametrize("name", SIDES)
def test_one_side_or_a_shorter_step(name: str) -> None:
    gradient, costs = SIDES[name]
    g = np.array(gradient)
    plus, minus, length = costs(g)
    found = lpgd(OPEN, 0.1).vjp(g[None], None, everything(OPEN))
    true = difference_of_lagrangians(OPEN, corner(plus), corner(minus), length)
    assert true.q.any()
    assert differ(found, true) <= 1e-8
    # The same in forward mode, along c.
    tangent = ProgramTangent(*(np.zeros((1, k)) for k in (3, 2, 6, 3)))
    dx, dz = lpgd(OPEN, 0.1).jvp(replace(tangent, q=g[None]), everything(OPEN))
    np.testing.assert_allclose(dx, true.q, atol=1e-8)
    np.testing.assert_allclose(dz, -true.b, atol=1e-8 * np.abs(true.b).max())


def test_no_side_at_all() -> None:
    """A warning names the instances, whose gradients are zero; the others are as they were."""
    g = np.array([[2.0, 0.0], [1e4, -1e4], [0.0, 0.0], [12.0, 0.0], [-1e4, 1e4]])
    program, wanted = replace(OPEN, q=np.repeat(OPEN.q, 5, axis=0), batch=5), everything(OPEN)
    with pytest.warns(UserWarning, match=r"2 of 5 instances \(1, 4\).*smaller smoothing"):
        found = lpgd(program, 0.1).vjp(g, None, wanted)
    for value in vars(found).values():
        assert not value[[1, 2, 4]].any()
        assert value[0].any() and value[3].any()
    tangent = ProgramTangent(*(np.zeros((1, k)) for k in (3, 2, 6, 3)))
    names = np.array([10, 20, 30, 40, 50])
    with pytest.warns(UserWarning, match=r"\(20, 50\)"):
        dx, dz = lpgd(program, 0.1, rows=names).jvp(replace(tangent, q=g), wanted)
    for value in (dx, dz):
        np.testing.assert_array_equal(np.isnan(value).any(axis=1), [0, 1, 0, 0, 1])
        assert np.isnan(value[[1, 4]]).all() and not value[2].any()
    np.testing.assert_allclose(dx[[0, 3]], found.q[[0, 3]], atol=1e-9)
    shared = replace(wanted, shared=frozenset("PqAb"))
    with pytest.warns(UserWarning, match="2 of 5"):
        total = lpgd(program, 0.1).vjp(g, None, shared)
    np.testing.assert_allclose(total.q[0], found.q[[0, 3]].sum(axis=0), atol=1e-9)


def test_a_dual_that_is_not_unique() -> None:
    """One of two equal equations moved leaves no feasible point, whichever way."""
    A = np.ones((2, 3))
    program = program_of(np.eye(3), np.arange(3.0), A, np.ones(2), ConeDims(zero=2))
    with pytest.warns(UserWarning, match=r"1 of 1 instances \(0\)"):
        found = lpgd(program, 0.1).vjp(
            np.zeros((1, 3)), np.array([[1.0, 0.0]]), everything(program)
        )
    assert not any(value.any() for value in vars(found).values())


@pytest.mark.parametrize("name", ["nonneg", "soc", "psd", "all"])
def test_an_instance_does_not_depend_on_its_neighbours_to_the_last_bit(name: str) -> None:
    program = random_program(DIMS[name], 6, batch=4, rank=6, seed=17)
    rng = np.random.default_rng(18)
    gx, gz = rng.standard_normal((4, 6)), rng.standard_normal((4, program.structure.m))
    gx[2], gz[2] = 0.0, 0.0
    tangent, wanted = random_tangent(program, rng), everything(program)
    together = lpgd(program, 0.01)
    gradient, along = together.vjp(gx, gz, wanted), together.jvp(tangent, wanted)
    for i in range(4):
        row = slice(i, i + 1)
        alone = lpgd(program.take(row), 0.01)
        mine = alone.vjp(gx[row], gz[row], wanted)
        for key in "PqAb":
            np.testing.assert_array_equal(getattr(mine, key), getattr(gradient, key)[row])
        part = ProgramTangent(**{key: value[row] for key, value in vars(tangent).items()})
        for a, b in zip(alone.jvp(part, wanted), along, strict=True):
            np.testing.assert_array_equal(a, b[row])


def test_nor_on_how_far_they_go() -> None:
    g, wanted = np.array([gradient for gradient, _ in SIDES.values()]), everything(OPEN)
    program = replace(OPEN, q=np.repeat(OPEN.q, len(g), axis=0), batch=len(g))
    together = lpgd(program, 0.1).vjp(g, None, wanted)
    for i in range(len(g)):
        alone = lpgd(OPEN, 0.1).vjp(g[i : i + 1], None, wanted)
        for key in "PqAb":
            np.testing.assert_array_equal(getattr(alone, key)[0], getattr(together, key)[i])


def test_what_is_given_is_left_as_it_was() -> None:
    program = random_program(DIMS["all"], 6, batch=2, rank=6, seed=19)
    derivative, tangent = lpgd(program, 0.01), random_tangent(program, np.random.default_rng(20))
    gx, gz = np.ones((2, 6)), np.ones((2, program.structure.m))
    held = [derivative.x, derivative.z, derivative.s, gx, gz, *vars(tangent).values()]
    held += [program.P, program.q, program.A, program.b]
    copies = [v.copy() for v in held]
    derivative.vjp(gx, gz, everything(program))
    derivative.jvp(tangent, everything(program))
    for before, after in zip(copies, held, strict=True):
        np.testing.assert_array_equal(before, after)


def test_an_empty_batch() -> None:
    program = replace(OPEN, q=np.zeros((0, 2)), batch=0)
    x, z = np.zeros((0, 2)), np.zeros((0, 3))
    derivative = LpgdDerivative(Geometry(OPEN.structure), program, x, z, z, 0.1, resolve)
    found = derivative.vjp(x, z, everything(program, frozenset("A")))
    assert found.q.shape == (0, 2) and not found.A.any() and found.A.shape == (1, 6)
    assert [v.shape for v in derivative.jvp(random_tangent(OPEN, RNG), everything(program))] == [
        (0, 2),
        (0, 3),
    ]


def test_what_is_not_there_is_refused() -> None:
    derivative, wanted = lpgd(OPEN, 0.1), everything(OPEN)
    tangent = random_tangent(OPEN, RNG)
    with pytest.raises(NotImplementedError, match="lpgd derivative has no derivative of its own"):
        derivative.hvp(derivative.x, None, tangent, wanted)
    with pytest.raises(NotImplementedError, match="lpgd derivative has no derivative of its own"):
        derivative.jvp2(tangent, tangent, wanted)
    for tau in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="must be positive and finite"):
            lpgd(OPEN, tau)
    assert not isinstance(derivative, ImplicitDerivative)
