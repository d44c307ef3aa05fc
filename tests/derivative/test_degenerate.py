"""Derivatives where they are not unique or where the solution has a kink.

The points are written down, not solved for, so that ties are exact. The oracle assembles the
reduced system of docs/how_it_works with dense matrices, from projections' derivatives that are
written down as well, and applies NumPy's pseudoinverse. Where a derivative is known in closed form,
that is checked, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from cvxlayers.derivative import Geometry, ImplicitDerivative, system
from cvxlayers.numpy import CvxpyLayer as NumpyLayer
from cvxlayers.program import (
    ConeDims,
    ConeProgram,
    Pattern,
    ProblemStructure,
    ProgramTangent,
    Wanted,
)
from cvxlayers.torch import CvxpyLayer
from solvers.random_programs import svec

Array = np.ndarray
E = np.e


@dataclass
class Case:
    """A program in Clarabel's form, a solution of it, and DΠ at s − z, all dense.

    `singular` is whether K is, apart from variables that are in nothing. `moves` is dx/dc for
    q = −c where a closed form is known.
    """

    dims: ConeDims
    A: Array
    b: Array
    x: Array
    z: Array
    D: Array
    P: Array
    singular: bool = False
    moves: Array | None = None
    q: Array = field(init=False)
    s: Array = field(init=False)

    def __post_init__(self) -> None:
        self.s = self.b - self.A @ self.x
        self.q = -self.P @ self.x - self.A.T @ self.z


def linear(
    A: Any,
    b: Any,
    x: Any,
    z: Any,
    zero: int = 0,
    P: Any = None,
    singular: bool = False,
    moves: Any = None,
) -> Case:
    """Equations first, then inequalities. A row with s = 0 counts as binding, with z = 0 too."""
    A, b, x, z = (np.array(v, dtype=float) for v in (A, b, x, z))
    binding = np.arange(len(b)) < zero
    D = np.diag(np.where(binding | (b - A @ x <= z), 0.0, 1.0))
    P = np.eye(len(x)) if P is None else np.array(P, dtype=float)
    moves = None if moves is None else np.array(moves, dtype=float)
    return Case(ConeDims(zero=zero, nonneg=len(b) - zero), A, b, x, z, D, P, singular, moves)


def onto(dims: ConeDims, c: Any, s: Any, D: Any) -> Case:
    """The projection s of c onto a cone, where its derivative is D."""
    c, s, D = (np.array(v, dtype=float) for v in (c, s, D))
    n = len(c)
    return Case(dims, -np.eye(n), np.zeros(n), s, s - c, D, np.eye(n), moves=D)


def stated_twice(case: Case) -> Case:
    """The same with its cone twice and the dual shared out unevenly: K is singular where a
    direction is fixed.

    D belongs to w = s − z, so a share of z has another D of its own: with DΠ(s − z) known,
    DΠ(s − t z) has the eigenvalues λ/(λ + t (1 − λ)).
    """
    dims = case.dims
    twice = ConeDims(
        2 * dims.zero, 2 * dims.nonneg, 2 * dims.soc, 2 * dims.psd, 2 * dims.exp, 2 * dims.pow
    )
    lam, U = np.linalg.eigh(case.D)
    blocks = []
    for t in (0.25, 0.75):
        spread = lam / np.where(lam > 0, lam + t * (1 - lam), 1.0)
        blocks.append((U * spread) @ U.T)
    D = np.block([[blocks[0], 0 * case.D], [0 * case.D, blocks[1]]])
    return Case(
        twice,
        np.vstack([case.A, case.A]),
        np.concatenate([case.b, case.b]),
        case.x,
        np.concatenate([0.25 * case.z, 0.75 * case.z]),
        D,
        case.P,
        singular=bool((lam < 1e-12).any()),
        moves=case.moves,
    )


def on_second_order(w: Any) -> Case:
    """D as the matrix of Busseti, Moursi & Boyd (2019), the smaller element on the kinks."""
    w = np.array(w, dtype=float)
    w0, tail, size = w[0], w[1:], np.linalg.norm(w[1:])
    q = len(w)
    if w0 <= -size:
        return onto(ConeDims(soc=(q,)), w, 0 * w, np.zeros((q, q)))
    if w0 > size:
        return onto(ConeDims(soc=(q,)), w, w, np.eye(q))
    u = tail / size
    tangent = (w0 / size + 1) * np.eye(q - 1) - w0 / size * np.outer(u, u)
    D = 0.5 * np.block([[np.ones((1, 1)), u[None]], [u[:, None], tangent]])
    s = 0.5 * (w0 + size) * np.concatenate([[1.0], u])
    return onto(ConeDims(soc=(q,)), w, s, D)


def on_psd(values: list[float]) -> Case:
    """Projection of a diagonal matrix; entry (i, j) has the divided difference of max(·, 0)."""
    values = np.array(values, dtype=float)
    k = len(values)
    up, size = np.maximum(values, 0), np.abs(values)
    total = size[:, None] + size
    ratio = (up[:, None] + up) / np.where(total > 0, total, 1.0)
    pairs = [(i, j) for j in range(k) for i in range(j + 1)]
    D = np.diag([ratio[i, j] for i, j in pairs])
    return onto(ConeDims(psd=(k,)), svec(np.diag(values)), svec(np.diag(up)), D)


def without(*normals: Any) -> Array:
    """The projection onto the complement of orthogonal vectors."""
    D = np.eye(3)
    for normal in normals:
        n = np.array(normal, dtype=float)
        D -= np.outer(n, n) / (n @ n)
    return D


EXP = ConeDims(exp=1)


def power_edge(alpha: float, across: float) -> Case:
    """w = (2, −1, 0) lies beside the edge y = z = 0 of the cone."""
    return onto(ConeDims(pow=(alpha,)), [2.0, -1.0, 0.0], [2.0, 0.0, 0.0], np.diag([1, 0, across]))


PROJECTIONS: dict[str, Callable[[], Case]] = {
    "orthant, all weak": lambda: linear(
        -np.eye(3), np.zeros(3), np.zeros(3), np.zeros(3), moves=np.zeros((3, 3))
    ),
    "orthant, one weak": lambda: linear(
        -np.eye(3), np.zeros(3), [2.0, 0, 0], [0, 0, 3.0], moves=np.diag([1, 0, 0])
    ),
    "second-order, apex": lambda: on_second_order([0.0, 0.0, 0.0]),
    "second-order, from inside the polar cone": lambda: on_second_order([-5.0, 0.0, 4.0]),
    "second-order, from its boundary": lambda: on_second_order([-5.0, 3.0, 4.0]),
    "second-order, weak": lambda: on_second_order([5.0, 3.0, 4.0]),
    "second-order, length two": lambda: on_second_order([1.0, 1.0]),
    "long second-order, apex": lambda: on_second_order(np.zeros(120)),
    "long second-order, polar": lambda: on_second_order([-300.0, *range(17), *[0] * 110]),
    "long second-order, weak": lambda: on_second_order([5.0, 3.0, 4.0, *[0.0] * 110]),
    "semidefinite, zero": lambda: on_psd([0.0, 0.0, 0.0]),
    "semidefinite, repeated zero": lambda: on_psd([2.0, 0.0, 0.0, 3.0]),
    "semidefinite, repeated negative": lambda: on_psd([-1.0, 2.0, -1.0, -1.0]),
    "semidefinite, everything": lambda: on_psd([2.0, 0.0, -1.0, 0.0, -1.0]),
    "exponential, apex": lambda: onto(EXP, [0, 0, 0], [0, 0, 0], np.zeros((3, 3))),
    "exponential, face": lambda: onto(EXP, [-1, -2, 3], [-1, 0, 3], np.diag([1, 0, 1])),
    "exponential, face, weak": lambda: onto(EXP, [-1, 0, 3], [-1, 0, 3], np.diag([1, 0, 1])),
    "exponential, x on the edge": lambda: onto(EXP, [0, -2, 3], [0, 0, 3], np.diag([0, 0, 1])),
    "exponential, z on the edge": lambda: onto(EXP, [-1, -2, 0], [-1, 0, 0], np.diag([1, 0, 0])),
    "exponential, ray of z": lambda: onto(EXP, [0, 0, 3], [0, 0, 3], np.diag([0, 0, 1])),
    "exponential, polar": lambda: onto(EXP, [1, 1, -2], [0, 0, 0], np.zeros((3, 3))),
    "exponential, polar, its boundary": lambda: onto(EXP, [1, 1, -1], [0, 0, 0], np.zeros((3, 3))),
    "exponential, polar, its edge": lambda: onto(EXP, [0, -1, -1], [0, 0, 0], np.zeros((3, 3))),
    "exponential, weak": lambda: onto(EXP, [0, 2, 2], [0, 2, 2], without([1, 1, -1])),
    "power, apex": lambda: onto(ConeDims(pow=(0.3,)), [0, 0, 0], [0, 0, 0], np.zeros((3, 3))),
    "power, polar": lambda: onto(ConeDims(pow=(0.5,)), [-2, -2, 1], [0, 0, 0], np.zeros((3, 3))),
    "power, polar, its edge": lambda: onto(
        ConeDims(pow=(0.3,)), [-2, 0, 0], [0, 0, 0], np.zeros((3, 3))
    ),
    "power, weak": lambda: onto(
        ConeDims(pow=(0.5,)), [2, 2, 2], [2, 2, 2], without([-0.5, -0.5, 1.0])
    ),
    "power, sharp edge": lambda: power_edge(0.3, 0.0),
    "power, round edge": lambda: power_edge(0.5, 0.5),
    "power, flat edge": lambda: power_edge(0.7, 1.0),
    "power, on the edge": lambda: onto(
        ConeDims(pow=(0.3,)), [2, 0, 0], [2, 0, 0], np.diag([1, 0, 0])
    ),
}

ZEROS = np.zeros((3, 3))
LINEAR: dict[str, Callable[[], Case]] = {
    "an inequality three times": lambda: linear(
        [[1, 0], [1, 0], [1, 0]],
        [1, 1, 1],
        [1, 5],
        [3, 2, 1],
        singular=True,
        moves=[[0, 0], [0, 1]],
    ),
    "multiples of an inequality": lambda: linear(
        [[1, 1], [3, 3]], [2, 6], [1, 1], [1, 1], singular=True, moves=[[0.5, -0.5], [-0.5, 0.5]]
    ),
    "a vertex of too many inequalities": lambda: linear(
        [[1, 0], [0, 1], [1, 1]], [1, 1, 2], [1, 1], [1, 1, 1], singular=True, moves=ZEROS[:2, :2]
    ),
    "dependent equations": lambda: linear(
        [[1, 1, 0], [1, -1, 0], [2, 0, 0]],
        [3, 1, 4],
        [2, 1, 7],
        [1, -1, 2],
        zero=3,
        singular=True,
        moves=np.diag([0, 0, 1]),
    ),
    "an inequality implied by an equation": lambda: linear(
        [[1, 1], [1, 1]],
        [2, 2],
        [1, 1],
        [1, 1],
        zero=1,
        singular=True,
        moves=[[0.5, -0.5], [-0.5, 0.5]],
    ),
    "equations that fix everything": lambda: linear(
        [[1, 2], [3, 4]], [5, 11], [1, 2], [1, -1], zero=2, moves=ZEROS[:2, :2]
    ),
    "more equations than that": lambda: linear(
        [[1, 2], [3, 4], [4, 6]],
        [5, 11, 16],
        [1, 2],
        [1, -1, 2],
        zero=3,
        singular=True,
        moves=ZEROS[:2, :2],
    ),
    "equations that fix a linear program": lambda: linear(
        [[1, 2], [3, 4]], [5, 11], [1, 2], [1, -1], zero=2, P=ZEROS[:2, :2], moves=ZEROS[:2, :2]
    ),
    "a zero row that does not bind": lambda: linear(
        [[0, 0], [1, 0]], [4, 1], [1, 5], [0, 2], moves=np.diag([0, 1])
    ),
    "all rows zero": lambda: linear([[0, 0], [0, 0]], [4, 1], [1, 5], [0, 0], moves=np.eye(2)),
    "every point optimal": lambda: linear(
        [[1, 1, 1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]],
        [1, 0, 0, 0],
        [0.5, 0.25, 0.25],
        [0, 0, 0, 0],
        zero=1,
        P=ZEROS,
        singular=True,
    ),
    "a face optimal, from its inside": lambda: linear(
        [[-1, -1, -1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]],
        [-1, 0, 0, 0],
        [0.5, 0.5, 0],
        [2, 0, 0, 1],
        P=ZEROS,
        singular=True,
    ),
    # Here the vertex is taken to be fixed, so that K is regular.
    "a face optimal, at its vertex": lambda: linear(
        [[-1, -1, -1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]],
        [-1, 0, 0, 0],
        [1, 0, 0],
        [2, 0, 0, 1],
        P=ZEROS,
    ),
    "a vertex with one inequality too many": lambda: linear(
        [[-1, 0], [0, -1], [-1, -1]], [0, 0, 0], [0, 0], [1, 1, 1], P=ZEROS[:2, :2], singular=True
    ),
    "a direction without curvature": lambda: linear(
        [[1, 0, 0]], [1], [1, 2, 3], [1], P=[[1, 0, 0], [0, 1, -1], [0, -1, 1]], singular=True
    ),
    # The bounds of an apex: ‖x − (1, 2)‖ <= 0 has one point.
    "a second-order cone with slack zero": lambda: Case(
        ConeDims(soc=(3,)),
        np.array([[0, 0], [-1, 0], [0, -1.0]]),
        np.array([0, -1, -2.0]),
        np.array([1, 2.0]),
        np.array([5, 3, 0.0]),
        ZEROS,
        np.eye(2),
        singular=True,
        moves=ZEROS[:2, :2],
    ),
    "a linear objective on a ray of a cone": lambda: Case(
        ConeDims(soc=(3,)),
        -np.eye(3),
        np.zeros(3),
        np.array([5, 3, 4.0]),
        np.array([5, -3, -4.0]),
        on_second_order([0, 6, 8]).D,
        ZEROS,
        singular=True,
    ),
    "a linear objective on a ray of a long cone": lambda: Case(
        ConeDims(soc=(113,)),
        -np.eye(113),
        np.zeros(113),
        np.array([5, 3, 4.0, *[0] * 110]),
        np.array([5, -3, -4.0, *[0] * 110]),
        on_second_order([0, 6, 8, *[0] * 110]).D,
        np.zeros((113, 113)),
        singular=True,
    ),
}

CASES = {
    **LINEAR,
    **PROJECTIONS,
    **{
        f"{name}, stated twice": lambda make=make: stated_twice(make())
        for name, make in PROJECTIONS.items()
    },
}


@pytest.fixture(params=["lanes", "dense", "sparse"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways of solving the systems, whatever the size. Lanes leave singular ones to `factor`."""
    if request.param != "lanes":
        monkeypatch.setattr(Geometry, "engine_for", lambda *_: None)
    sparse = request.param == "sparse"
    monkeypatch.setattr(system, "DENSE_SIZE", -1 if sparse else 10**6)
    monkeypatch.setattr(system, "DENSE_LIMIT", -1)
    return request.param


def everywhere(shape: tuple[int, int]) -> Pattern:
    """The pattern of a matrix without zeros."""
    rows, columns = np.tile(np.arange(shape[0]), shape[1]), np.arange(shape[1] + 1) * shape[0]
    return Pattern(shape, rows.astype(np.int32), columns.astype(np.int32))


def derivative_at(case: Case) -> tuple[ImplicitDerivative, Wanted]:
    """The library's, with respect to every entry of the data, zeros included."""
    m, n = case.A.shape
    j, i = np.tril_indices(n)
    starts = np.searchsorted(j, np.arange(n + 1)).astype(np.int32)
    upper = Pattern((n, n), i.astype(np.int32), starts)
    structure = ProblemStructure(case.dims, upper, everywhere((m, n)))
    P, q, A, b = case.P[i, j], case.q, case.A.ravel(order="F"), case.b
    program = ConeProgram(structure, P[None], q[None], A[None], b[None], batch=1)
    wanted = Wanted(*(np.arange(v.size) for v in (P, q, A, b)), shared=frozenset())
    point = (v[None] for v in (case.x, case.z, case.s))
    return ImplicitDerivative(Geometry(structure), program, *point), wanted


def system_of(case: Case) -> tuple[Array, Array]:
    """K of the coupled directions, and U of these directions."""
    lam, U = np.linalg.eigh(case.D)
    U, lam = U[:, lam < 1 - 1e-12], lam[lam < 1 - 1e-12]
    B = U.T @ case.A
    M = np.diag(np.where(lam > 1e-12, lam, 0.0) / (1 - lam))
    return np.block([[case.P, B.T], [B, -M]]), U


def apply(case: Case, r1: Array, r2: Array) -> tuple[Array, Array]:
    """(u, v) by the oracle."""
    K, U = system_of(case)
    y = np.linalg.pinv(K, rcond=1e-10, hermitian=True) @ np.concatenate([r1, U.T @ r2])
    return y[: len(r1)], U @ y[len(r1) :]


def close(found: Array, true: Array, bound: float) -> None:
    np.testing.assert_allclose(found, true, rtol=0, atol=bound * (1 + np.abs(true).max(initial=0)))


def accuracy(name: str, route: str) -> float:
    """On the boundary of a long cone the sparse system takes an eigenvalue 1 for 1 - 1e-8."""
    return 1e-6 if route == "sparse" and "long" in name else 1e-9


@pytest.mark.parametrize("name", CASES)
def test_the_table_holds_solutions(name: str) -> None:
    """They are complementary, and D is that of the cone."""
    case = CASES[name]()
    derivative, _ = derivative_at(case)
    cone = derivative.geometry.cone
    w = (case.s - case.z)[None]
    np.testing.assert_allclose(cone.project(w)[0], case.s, atol=1e-12)
    spectrum = cone.spectrum(w)
    columns = [spectrum.apply(axis[None])[0] for axis in np.eye(len(case.s))]
    np.testing.assert_allclose(np.array(columns).T, case.D, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_the_least_one(name: str, route: str) -> None:
    case = CASES[name]()
    derivative, wanted = derivative_at(case)
    rng = np.random.default_rng(0)
    gx, gz = rng.standard_normal(len(case.x)), rng.standard_normal(len(case.z))
    bound = accuracy(name, route)
    # Known without a right-hand side, so that `solve` can say so.
    assert derivative.system.degenerate.tolist() == [case.singular]
    for g in (np.zeros_like(gz), gz):
        found = derivative.vjp(gx[None], g[None] if g.any() else None, wanted)
        u, v = apply(case, gx, g)
        if name == "a linear objective on a ray of a long cone" and route == "sparse":
            # The norm is that of more unknowns: a least-squares solution, but not the smallest.
            K, U = system_of(case)
            difference = np.concatenate([-found.q[0] - u, U.T @ (found.b[0] - v)])
            close(K @ difference, np.zeros(len(K)), bound)
            continue
        close(found.q[0], -u, bound)
        close(found.b[0], v, bound)
        close(found.A[0], -(np.outer(case.z, u) + np.outer(v, case.x)).ravel(order="F"), bound)
        j, i = np.tril_indices(len(u))
        dP = -0.5 * (np.outer(u, case.x) + np.outer(case.x, u))
        close(found.P[0], np.where(i == j, 1.0, 2.0) * dP[i, j], bound)
    assert derivative.system.degenerate.tolist() == [case.singular]


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]().moves is not None])
def test_the_solution_moves_as_in_closed_form(name: str, route: str) -> None:
    """Also where the system is singular, because there only the dual is not unique."""
    case = CASES[name]()
    derivative, wanted = derivative_at(case)
    for g in np.random.default_rng(1).standard_normal((3, len(case.x))):
        found = derivative.vjp(g[None], None, wanted)
        close(-found.q[0], case.moves @ g, accuracy(name, route))


@pytest.mark.parametrize("name", CASES)
def test_jvp_and_vjp_are_adjoint(name: str, route: str) -> None:
    case = CASES[name]()
    derivative, wanted = derivative_at(case)
    rng = np.random.default_rng(2)
    for _ in range(3):
        sizes = (len(entries) for entries in (wanted.P, wanted.q, wanted.A, wanted.b))
        tangent = ProgramTangent(*(rng.standard_normal((1, size)) for size in sizes))
        gx, gz = rng.standard_normal((1, len(case.x))), rng.standard_normal((1, len(case.z)))
        dx, dz = derivative.jvp(tangent, wanted)
        gradient = derivative.vjp(gx, gz, wanted)
        left = (gx * dx).sum() + (gz * dz).sum()
        right = sum((g * getattr(tangent, k)).sum() for k, g in vars(gradient).items())
        scale = np.linalg.norm(gx) * np.linalg.norm(dx) + np.linalg.norm(gz) * np.linalg.norm(dz)
        assert abs(left - right) <= 1e-9 * (1 + scale)


def test_copies_of_a_row_share_its_gradient(route: str) -> None:
    """min ½‖x − c‖² with x₁ <= b stated three times: dx₁/db = 1 and dz/dc₁ = 1, a third each."""
    derivative, wanted = derivative_at(CASES["an inequality three times"]())
    gradient = derivative.vjp(np.array([[1.0, 0.0]]), None, wanted)
    close(gradient.b, np.full((1, 3), 1 / 3), 1e-9)
    # Of a gradient for the multipliers, their mean moves; what else there is of it has no effect.
    gradient = derivative.vjp(np.zeros((1, 2)), np.array([[1.0, 2.0, 6.0]]), wanted)
    close(gradient.q, np.array([[-3.0, 0.0]]), 1e-9)
    close(gradient.b, np.full((1, 3), -1.0), 1e-9)


@pytest.mark.parametrize("side", ["x", "z"])
def test_what_nothing_determines_gets_no_gradient(side: str, route: str) -> None:
    """x₂ is in no term, and the second equation is 0ᵀx = 0, so that its dual is in none."""
    case = linear([[1, 0], [0, 0]], [3, 0], [3, 0], [2, 0], zero=2, P=np.diag([1.0, 0.0]))
    derivative, wanted = derivative_at(case)
    gx, gz = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]])
    found = derivative.vjp(gx, gz, wanted)
    close(found.q, np.array([[-1.0, 0.0]]), 1e-12)
    close(found.b, np.zeros((1, 2)), 1e-12)
    (gx if side == "x" else gz)[0, 1] = 7.0
    asked = derivative.vjp(gx, gz, wanted)
    for one, other in zip(vars(asked).values(), vars(found).values(), strict=True):
        close(one, other, 1e-12)
    assert derivative.system.degenerate.all()


@pytest.mark.parametrize("k", [2, 3, 6])
def test_a_turned_matrix_with_repeated_eigenvalues(k: int, route: str) -> None:
    """Rounding decides on which side a zero eigenvalue is: some element of the derivative between
    the two that the kink has."""
    rng = np.random.default_rng(k)
    V = np.linalg.qr(rng.standard_normal((k, k)))[0]
    values = np.array([-1.0, 0, 0, 2, 2, -1])[:k]
    c, s = (svec((V * v) @ V.T) for v in (values, np.maximum(values, 0)))
    derivative, wanted = derivative_at(onto(ConeDims(psd=(k,)), c, s, np.eye(len(c))))
    D = np.array([-derivative.vjp(g[None], None, wanted).q[0] for g in np.eye(len(c))])
    close(D, D.T, 1e-9)
    eigenvalues = np.linalg.eigvalsh(D)
    assert eigenvalues[0] >= -1e-9 and eigenvalues[-1] <= 1 + 1e-9


# --- The same through a layer: what the solver and the polish leave of a tie.


def projections() -> dict[str, tuple[Callable[[Any, Any], list], int]]:
    """The constraints on the projection x of c, and its length."""
    return {
        "nonneg": (lambda x: [x >= 0], 3),
        "soc": (lambda x: [cp.SOC(x[0], x[1:])], 3),
        "psd": (lambda x: [cp.bmat([[x[0], x[1]], [x[1], x[2]]]) >> 0], 3),
        "exp": (lambda x: [cp.ExpCone(x[0], x[1], x[2])], 3),
        "pow": (lambda x: [cp.PowCone3D(x[0], x[1], x[2], 0.5)], 3),
    }


def projection_layer(kind: str) -> CvxpyLayer:
    constraints, n = projections()[kind]
    x, c = cp.Variable(n), cp.Parameter(n)
    return CvxpyLayer(
        cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - c)), constraints(x)), [c], [x]
    )


# Without points that rounding leaves duals of 1e-17 and a slack off the boundary at, such as the
# matrix of ones: these are not told from points with a small dual (see `is_strict`).
WEAK = {
    "nonneg": [[0.0, 1.0, -1.0], [0.0, 0.0, 0.0]],
    "soc": [[5.0, 3.0, 4.0], [-5.0, 3.0, 4.0], [0.0, 0.0, 0.0]],
    "psd": [[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]],
    "exp": [[0.0, 2.0, 2.0], [1.0, 1.0, E]],
    "pow": [[1.0, 4.0, -2.0]],
}
ORDINARY = {
    "nonneg": [[0.5, 1.0, -1.0], [-0.5, -0.5, -0.5]],
    "soc": [[6.0, 3.0, 4.0], [4.0, 3.0, 4.0], [-6.0, 3.0, 4.0]],
    "psd": [[1.0, 0.5, 1.0], [1.0, 2.0, 1.0], [-1.0, 0.0, -1.0]],
    "exp": [[0.0, 2.0, 3.0], [0.0, 2.0, 1.0], [1.0, 1.0, 1.0]],
    "pow": [[2.0, 2.0, 1.0], [2.0, 2.0, 3.0], [-1.0, 2.0, 1.0]],
}


@pytest.mark.parametrize("weak", [True, False], ids=["weak", "ordinary"])
@pytest.mark.parametrize("kind", projections())
def test_weakly_active_constraints_are_flagged(kind: str, weak: bool) -> None:
    """Constraints that hold with equality and without force, and the same problems elsewhere."""
    values = (WEAK if weak else ORDINARY)[kind]
    c = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    _, info = projection_layer(kind).solve(c)
    assert info.solved.all()
    assert info.degenerate.tolist() == [weak] * len(values)


@pytest.mark.parametrize("kind", projections())
def test_the_gradient_of_a_weak_projection_is_that_of_some_projection(kind: str) -> None:
    """An element of the generalised derivative: symmetric, finite, with eigenvalues in [0, 1]."""
    layer = projection_layer(kind)
    for value in WEAK[kind]:
        c = torch.tensor(value, dtype=torch.float64)
        J = torch.func.jacrev(lambda c: layer(c)[0])(c).numpy()
        close(J, J.T, 1e-7)
        eigenvalues = np.linalg.eigvalsh(J)
        assert eigenvalues[0] >= -1e-7 and eigenvalues[-1] <= 1 + 1e-7


def test_a_degenerate_large_problem() -> None:
    """Big enough for the sparse system: projection onto x >= 0 stated twice, one entry at zero."""
    n = 300
    x, c = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - c)), [x >= 0, 2 * x >= 0])
    value = torch.linspace(-1, 2, n, dtype=torch.float64)
    value[50] = 0.0
    leaf = value.clone().requires_grad_()
    (found,), info = CvxpyLayer(problem, [c], [x]).solve(leaf)
    torch.testing.assert_close(found.detach(), value.clamp(min=0), rtol=0, atol=1e-9)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert -1e-9 <= gradient[50] <= 1 + 1e-9
    true = (value > 0).double()
    true[50] = gradient[50]
    torch.testing.assert_close(gradient, true, rtol=0, atol=1e-9)
    assert bool(info.degenerate)


# --- Across a kink: the solution is continuous, and each side has its own derivative.

DISTANCES = 10.0 ** -np.arange(1, 10)
STEPS = np.concatenate([-DISTANCES, DISTANCES[::-1]])


def along(layer: NumpyLayer, values: Array, direction: Any = None) -> tuple[Array, Array]:
    """Solutions, and their derivatives along a direction, by default that of the values, which are
    linear in t: one row for each of STEPS."""
    if direction is None:
        direction = (values[-1] - values[0]) / (STEPS[-1] - STEPS[0])
    (x,), (dx,) = layer.jvp([values], [np.broadcast_to(direction, values.shape)])
    return x, dx


@pytest.mark.parametrize("copies", [1, 2])
def test_a_bound_that_begins_to_bind(copies: int) -> None:
    """x = max(t, 0), coupled with a second entry that has a bound of its own."""
    x, c = cp.Variable(2), cp.Parameter(2)
    constraints = [x >= 0, x[1] <= 1] * copies
    P = np.array([[2.0, 1.0], [1.0, 2.0]])
    problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, P) - c @ x), constraints)
    # P x − c = 0 at x₂ = 1 for c₁ = 1 + 2 x₁: x₁ = t/2 where t > 0.
    values = np.stack([1 + STEPS, np.full_like(STEPS, 5.0)], axis=1)
    found, slope = along(NumpyLayer(problem, [c], [x]), values)
    close(found, np.stack([np.maximum(STEPS, 0) / 2, np.ones_like(STEPS)], axis=1), 1e-12)
    close(slope, np.stack([np.where(STEPS > 0, 0.5, 0.0), 0 * STEPS], axis=1), 1e-9)


@pytest.mark.parametrize("q", [3, 120])
@pytest.mark.parametrize("sign", [1, -1], ids=["cone", "polar cone"])
def test_a_point_that_leaves_a_second_order_cone(sign: int, q: int) -> None:
    x, c = cp.Variable(q), cp.Parameter(q)
    # Not as a norm, whose bound would be one more variable, in a system that is then
    # ill-conditioned near the apex.
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - c)), [cp.SOC(x[0], x[1:])])
    u = np.zeros(q - 1)
    u[:2] = 0.6, 0.8
    values = np.concatenate([sign * (1 + STEPS[:, None]), np.tile(u, (len(STEPS), 1))], axis=1)
    found, slope = along(NumpyLayer(problem, [c], [x]), values)
    e0, ray = np.eye(q)[0], np.concatenate([[1.0], u])
    inside, outside = (STEPS > 0)[:, None], values[:, :1]
    between = 0.5 * (outside + 1) * ray
    close(found, np.where(inside, values if sign > 0 else 0.0, between), 1e-8)
    # Next to the kink the slack or the dual is as small as the distance, with the rounding of one.
    true = np.where(inside, e0 if sign > 0 else 0.0, 0.5 * sign * ray)
    close(slope, true, 1e-4)
    clear = np.abs(STEPS) >= 1e-6
    close(slope[clear], true[clear], 1e-6)


def test_an_eigenvalue_that_changes_its_sign() -> None:
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    layer = NumpyLayer(cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X - C)), [X >> 0]), [C], [X])
    V = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    values = np.array([(V * [2.0, t, -1.0]) @ V.T for t in STEPS])
    found, slope = along(layer, values)
    true = np.array([(V * [2.0, max(t, 0), 0.0]) @ V.T for t in STEPS])
    close(found, true, 1e-9)
    middle = np.outer(V[:, 1], V[:, 1])
    close(slope, np.where(STEPS > 0, 1.0, 0.0)[:, None, None] * middle, 1e-6)
    # Across the direction of t: the entry of v₂ and v₃ has (t⁺ + 0)/(|t| + 1).
    turn = np.outer(V[:, 1], V[:, 2]) + np.outer(V[:, 2], V[:, 1])
    _, slope = along(layer, values, turn)
    ratio = np.maximum(STEPS, 0) / (np.abs(STEPS) + 1)
    close(slope, ratio[:, None, None] * turn, 1e-6)


def test_a_linear_program_that_changes_its_basis() -> None:
    """min x₁ + 2 x₂ with x₁ + x₂ >= 1 and 0 <= x₁ <= 1 + t: x = (1, 0), and (1 + t, −t) before."""
    x, b = cp.Variable(2), cp.Parameter(1)
    problem = cp.Problem(cp.Minimize(x[0] + 2 * x[1]), [x[0] + x[1] >= 1, x >= 0, x[0] <= b])
    layer = NumpyLayer(problem, [b], [x])
    values = 1 + STEPS[:, None]
    found, slope = along(layer, values)
    before = np.minimum(STEPS, 0)
    close(found, np.stack([1 + before, -before], axis=1), 1e-8)
    true = np.where(STEPS < 0, 1.0, 0.0)[:, None] * np.array([1.0, -1.0])
    # Nearer than this the solver's tolerance hides which of the three constraints does not bind.
    clear = np.abs(STEPS) >= 1e-7 * (1 - 1e-9)
    close(slope[clear], true[clear], 1e-9)
