"""The oracle for second derivatives against closed forms, and on every case of the table."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest

from .curvature import Curvature, _kink, curvature, direction, relative_error
from .oracle import gradient, solution, weights
from .problems import CASES, Case
from .problems.case import Built, cones
from .tight import TightSolver

Array = np.ndarray
Bilinear = Callable[[list[Array], list[Array]], float]

BY_NAME = {case.name: case for case in CASES}

each_case = pytest.mark.parametrize("case", CASES, ids=str)


# The oracle on every case


@each_case
def test_oracle_is_accurate(case: Case) -> None:
    truth = curvature(case)
    print(f"{case.name}: {truth.seconds:.2f} s, estimated error {truth.error:.1e}")
    np.testing.assert_array_equal(truth.second, truth.second.T)
    assert truth.error <= 1e-7
    assert truth.kink <= 1e-5, "the solution is not twice differentiable here"


@each_case
def test_directions_respect_attributes(case: Case) -> None:
    _, parameters, _ = case.build()
    for ds in curvature(case).directions:
        for parameter, value, d in zip(parameters, case.values(), ds, strict=True):
            assert np.abs(d).max() > 0
            for step in (1e-2, -1e-2):
                parameter.value = value + step * d  # CVXPY raises where an attribute is violated


@each_case
def test_second_derivatives_hold_at_a_small_scale(case: Case) -> None:
    # Extrapolation from large steps does not see what happens below them. A plain difference does,
    # along a line that is none of those which were extrapolated.
    truth, values, solve = curvature(case), case.values(), TightSolver(case).solve
    mix = np.array([0.5, -0.8, 0.3])
    shifts = [
        sum(m * d for m, d in zip(mix, ds, strict=True))
        for ds in zip(*truth.directions, strict=True)
    ]
    h = 2e-4 * np.sqrt(np.abs(truth.first).max() / truth.scale)

    def loss(step: float) -> float:
        outputs = solve([v + step * d for v, d in zip(values, shifts, strict=True)])
        return sum(float(np.vdot(c, x)) for c, x in zip(weights(case), outputs, strict=True))

    difference = (loss(h) - 2 * loss(0) + loss(-h)) / h**2
    assert abs(difference - mix @ truth.second @ mix) <= 1e-3 * truth.scale


@pytest.mark.parametrize(
    "case", [case for case in CASES if max(v.size for v in case.values()) <= 12], ids=str
)
def test_first_derivatives_agree_with_those_of_one_parameter_at_a_time(case: Case) -> None:
    truth, single = curvature(case), gradient(case)
    found = np.zeros_like(truth.first)
    for i, ds in enumerate(single.directions):
        basis = ds.reshape(len(ds), -1).T
        joint = np.array([shifts[i].ravel() for shifts in truth.directions]).T
        coordinates = np.linalg.lstsq(basis, joint, rcond=None)[0]
        np.testing.assert_allclose(basis @ coordinates, joint, atol=1e-12)
        found += single.derivatives[i] @ coordinates
    np.testing.assert_allclose(found, truth.first, rtol=0, atol=1e-7 * np.abs(found).max())


# Closed forms


def _matrix(truth: Curvature, second: Bilinear) -> Array:
    return np.array([[second(a, b) for b in truth.directions] for a in truth.directions])


def _linear_system(
    c: Array, K: Array, r: Array, dK: Callable[..., Array], dr: Callable[..., Array]
) -> Bilinear:
    """Return the second derivative of c'K^-1 r, where K and r are linear in the parameters."""
    inverse = np.linalg.inv(K)
    y = inverse @ r

    def first(d: list[Array]) -> Array:
        return inverse @ (dr(*d) - dK(*d) @ y)

    # K y = r twice: K y_ab = -K_a y_b - K_b y_a.
    return lambda a, b: -float(c @ inverse @ (dK(*a) @ first(b) + dK(*b) @ first(a)))


def _no_constraints(case: Case) -> Bilinear:
    # x = -(2 P)^-1 q.
    (c,), (P, q) = weights(case), case.values()
    return _linear_system(c, 2 * P, -q, lambda dP, dq: 2 * dP, lambda dP, dq: -dq)


def _hedge(case: Case) -> Bilinear:
    # Stationarity 2 S x + F'y = 0 and F x = e.
    problem, _, _ = case.build()
    (equality,) = problem.constraints
    F = equality.args[0].args[0].value

    def blocks(S: Array, F: Array) -> Array:
        return np.block([[2 * S, F.T], [F, np.zeros((3, 3))]])

    S, e = case.values()
    return _linear_system(
        np.concatenate(weights(case)),
        blocks(S, F),
        np.concatenate([np.zeros(8), e]),
        lambda dS, de: blocks(dS, np.zeros_like(F)),
        lambda dS, de: np.concatenate([np.zeros(8), de]),
    )


def _least_squares(case: Case) -> Bilinear:
    # r + A x = b and A'r = 0.
    (c,), (A, b) = weights(case), case.values()

    def blocks(top_left: Array, A: Array) -> Array:
        return np.block([[top_left, A], [A.T, np.zeros((4, 4))]])

    return _linear_system(
        np.concatenate([np.zeros(12), c]),
        blocks(np.eye(12), A),
        np.concatenate([b, np.zeros(4)]),
        lambda dA, db: blocks(np.zeros((12, 12)), dA),
        lambda dA, db: np.concatenate([db, np.zeros(4)]),
    )


def _softmax(case: Case) -> Bilinear:
    (c,), (score,) = weights(case), case.values()
    x = np.exp(score) / np.exp(score).sum()

    def second(a: list[Array], b: list[Array]) -> float:
        da, db = a[0] - x @ a[0], b[0] - x @ b[0]
        return float(c @ (x * (da * db - x @ (da * db))))

    return second


def _water_filling(case: Case) -> Bilinear:
    # On the support, x = level - noise; the multiplier is 1 / level, and x linear.
    (_, c), (noise, total), (x, y) = weights(case), case.values(), solution(case)
    support = x > 1e-6
    level = (total + noise[support].sum()) / support.sum()
    np.testing.assert_allclose(np.abs(y), 1 / level, rtol=1e-11)

    def rise(d: list[Array]) -> float:
        return float((d[1] + d[0][support].sum()) / support.sum())

    return lambda a, b: float(c * np.sign(y)) * 2 / level**3 * rise(a) * rise(b)


def _simplex_projection(case: Case) -> Bilinear:
    return lambda a, b: 0.0


def _build_ball() -> Built:
    y, radius = cp.Parameter(4), cp.Parameter(nonneg=True)
    x = cp.Variable(4)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [cp.norm(x) <= radius])
    return problem, [y, radius], [x]


def _ball(case: Case) -> Bilinear:
    # x = radius n with n = y / |y|.
    (c,), (y, radius) = weights(case), case.values()
    size = np.linalg.norm(y)
    n = y / size

    def first(a: Array) -> Array:
        return (a - n * (n @ a)) / size

    def second(a: list[Array], b: list[Array]) -> float:
        (da, ra), (db, rb) = a, b
        mixed = 3 * (n @ da) * (n @ db) * n - (n @ da) * db - (n @ db) * da - (da @ db) * n
        return float(c @ (radius * mixed / size**2 + ra * first(db) + rb * first(da)))

    return second


def _build_logarithm() -> Built:
    a = cp.Parameter(3, nonneg=True)
    x = cp.Variable(3)
    return cp.Problem(cp.Minimize(cp.sum(cp.exp(x)) - a @ x)), [a], [x]


def _logarithm(case: Case) -> Bilinear:
    (c,), (value,) = weights(case), case.values()
    return lambda a, b: -float(c @ (a[0] * b[0] / value**2))


def _build_square_root() -> Built:
    a, b = cp.Parameter(pos=True), cp.Parameter(pos=True)
    x = cp.Variable(pos=True)
    return cp.Problem(cp.Minimize(a / x + b * x)), [a, b], [x]


def _square_root(case: Case) -> Bilinear:
    # x = exp(u / 2) with u = log a - log b.
    (c,), values = weights(case), case.values()
    x = np.sqrt(values[0] / values[1])

    def second(a: list[Array], b: list[Array]) -> float:
        (a1, a2), (b1, b2) = ([d / v for d, v in zip(ds, values, strict=True)] for ds in (a, b))
        return float(c * x * ((a1 - a2) * (b1 - b2) / 4 + (a2 * b2 - a1 * b1) / 2))

    return second


BALL = Case(
    "ball", _build_ball, lambda rng: [np.array([1.0, -2.0, 0.5, 1.5]), 1.2], cones("nonneg soc")
)
LOGARITHM = Case(
    "logarithm", _build_logarithm, lambda rng: [np.array([0.5, 1.0, 3.0])], cones("exp")
)
SQUARE_ROOT = Case(
    "square_root", _build_square_root, lambda rng: [3.0, 0.7], cones("nonneg exp"), gp=True
)


@pytest.mark.parametrize(
    ("case", "closed_form"),
    [
        (BY_NAME["qp_no_constraints"], _no_constraints),
        (BY_NAME["equality_only_hedge"], _hedge),
        (BY_NAME["least_squares"], _least_squares),
        (BY_NAME["entropy_softmax"], _softmax),
        (BY_NAME["water_filling"], _water_filling),
        (BY_NAME["simplex_projection"], _simplex_projection),
        (BALL, _ball),
        (LOGARITHM, _logarithm),
        (SQUARE_ROOT, _square_root),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_oracle_agrees_with_closed_form(case: Case, closed_form: Callable) -> None:
    truth = curvature(case)
    error = relative_error(_matrix(truth, closed_form(case)), truth)
    print(f"{case.name}: error {error:.1e}, estimated {truth.error:.1e}")
    assert error < 1e-8
    assert error < 10 * truth.error + 1e-10


# What the oracle is to notice


def test_relative_error_sees_a_wrong_entry() -> None:
    truth = curvature(BY_NAME["least_squares"])
    wrong = truth.second.copy()
    wrong[0, 1] += 0.01 * np.abs(truth.second).max()
    assert relative_error(truth.second, truth) == 0
    assert relative_error(wrong, truth) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="shape"):
        relative_error(truth.second[:2, :2], truth)


def test_relative_error_of_a_linear_solution_is_relative_to_first_derivatives() -> None:
    truth = curvature(BY_NAME["simplex_projection"])
    assert truth.scale == np.abs(truth.first).max()
    assert relative_error(np.full((3, 3), 0.01 * truth.scale), truth) == pytest.approx(0.01)


def test_error_shows_a_kink_of_the_solution() -> None:
    def build() -> Built:
        y, x = cp.Parameter(2), cp.Variable(2)
        return cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [x >= 1]), [y], [x]

    # The second entry is at the change from tight to loose.
    case = Case("kink", build, lambda rng: [np.array([2.0, 1.0])], cones("nonneg"))
    assert curvature(case).error > 1e-2


def test_kink_shows_a_jump_of_the_second_derivative() -> None:
    def firsts(jump: float) -> list[Array]:
        def f(h: float) -> float:
            return np.sin(1 + 3 * h) + jump * max(h, 0) ** 2 / 2

        return [np.array([(f(h) - f(-h)) / (2 * h)]) for h in steps]

    steps = [0.1 / 2**k for k in range(5)]
    assert _kink(steps, firsts(jump=0.0)) < 1e-6
    assert _kink(steps, firsts(jump=0.3)) == pytest.approx(0.3, rel=0.05)


# Directions


def _draw(parameter: cp.Parameter, value: Array) -> Array:
    d = direction(np.random.default_rng(0), parameter, value)
    assert d.shape == value.shape
    assert np.abs(d).max() > 0
    return d


@pytest.mark.parametrize("attribute", ["symmetric", "PSD", "NSD"])
def test_direction_of_a_symmetric_parameter(attribute: str) -> None:
    sign = -1 if attribute == "NSD" else 1
    d = _draw(cp.Parameter((3, 3), **{attribute: True}), sign * np.diag([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(d, d.T)
    assert (d != 0).all()


def test_direction_of_a_diagonal_parameter() -> None:
    d = _draw(cp.Parameter((3, 3), diag=True), np.diag([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(d != 0, np.eye(3, dtype=bool))


def test_direction_of_a_sparse_parameter() -> None:
    value = np.zeros((2, 3))
    value[0, 1] = 2.0
    d = _draw(cp.Parameter((2, 3), sparsity=[(0, 1), (1, 2)]), value)
    # An entry of the pattern moves even if it is zero.
    np.testing.assert_array_equal(d != 0, [[False, True, False], [False, False, True]])


@pytest.mark.parametrize("sign", [1, -1])
def test_direction_of_a_signed_parameter(sign: int) -> None:
    value = sign * np.array([0.0, 1e-3, 2.0])
    attribute = {"nonneg": True} if sign > 0 else {"nonpos": True}
    d = _draw(cp.Parameter(3, **attribute), value)
    np.testing.assert_array_equal(d != 0, [False, True, True])
    assert (np.abs(d) <= np.abs(value)).all()


def test_direction_of_a_bounded_parameter() -> None:
    d = _draw(cp.Parameter(3, bounds=[-1, 2]), np.array([-1.0, 1.99, 0.5]))
    assert d[0] == 0
    assert 0 < abs(d[1]) <= 0.01 + 1e-12
