"""CUCLARABEL without Julia and without a device: what reaches Clarabel.jl, by stand-ins.

Nothing here says what Clarabel.jl makes of it.
"""

import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from cvxpy.reductions.solvers.conic_solvers.cuclarabel_conif import CUCLARABEL

from cvxlayers import UnsupportedProblemError
from cvxlayers.canonicalize import canonicalize
from cvxlayers.program import ConeDims
from cvxlayers.solvers.cuclarabel import CuClarabel
from cvxlayers.status import Status
from cvxlayers.torch import CvxpyLayer

from .julia import Arrived, Julia, install
from .random_programs import CONES, dense_data, kkt_residual, random_program
from .toys import program_of, scalar_batch


@pytest.fixture
def julia(monkeypatch: pytest.MonkeyPatch) -> Julia:
    return install(monkeypatch)


MIXED = replace(CONES["mixed"], psd=())
TAKEN = {name: dims for name, dims in CONES.items() if name not in ("psd", "mixed")}
TAKEN |= {"mixed": MIXED, "unsorted": ConeDims(zero=1, nonneg=2, soc=(3, 1, 7, 2, 6), exp=1)}


def problems() -> dict[str, tuple[cp.Problem, list[cp.Variable]]]:
    rng = np.random.default_rng(0)
    F, g = rng.standard_normal((4, 3)), rng.standard_normal(4)
    x, y, t = cp.Variable(3), cp.Variable(3, nonneg=True), cp.Variable()
    z = cp.Variable(3, bounds=[-1, 2])
    dense = cp.quad_form(x, F.T @ F) + cp.sum(x)
    return {
        "quadratic": (cp.Problem(cp.Minimize(dense), [x >= -1, cp.sum(x) == 1]), [x]),
        "linear": (cp.Problem(cp.Minimize(g[:3] @ y), [cp.sum(y) == 1, y <= 0.7]), [y]),
        "nonneg": (cp.Problem(cp.Minimize(cp.sum_squares(F @ y - g)), [cp.sum(y) <= 2]), [y]),
        "bounds": (cp.Problem(cp.Minimize(cp.sum_squares(z - g[:3])), [cp.sum(z) == 1]), [z]),
        "soc": (
            cp.Problem(cp.Minimize(t + cp.sum_squares(x)), [cp.norm(F @ x - g) <= t, x <= 1]),
            [x, t],
        ),
        "exp": (cp.Problem(cp.Maximize(cp.sum(cp.entr(y))), [np.abs(F[:2]) @ y == 1, y <= 2]), [y]),
        "pow": (
            cp.Problem(cp.Maximize(cp.geo_mean(y)), [cp.constraints.PowCone3D(*y, 0.3), y <= 2]),
            [y],
        ),
    }


def by_cvxpy(problem: cp.Problem, julia: Julia) -> Arrived:
    """What CVXPY itself hands over for a problem."""
    data, _, _ = problem.get_problem_data(cp.CUCLARABEL)
    for name in ("lower_bounds", "upper_bounds", "dir_cones"):  # in A, or nowhere
        assert data.get(name) is None
    CUCLARABEL().solve_via_data(data, False, False, {})
    return julia.arrived.pop()


@pytest.mark.parametrize("name", problems())
def test_what_arrives_is_what_cvxpy_hands_over(name: str, julia: Julia) -> None:
    """The same numbers but for P, of which CVXPY hands over the upper triangle: Clarabel.jl wants
    all of it on a device."""
    problem, variables = problems()[name]
    theirs = by_cvxpy(problem, julia)
    canonical = canonicalize(problem, [], variables)
    solution = CuClarabel(canonical.structure).solve(canonical.program([], 1), {})
    (ours,) = julia.arrived
    assert solution.solved.all()
    assert ours.cones == theirs.cones
    assert (ours.q == theirs.q).all()
    assert (ours.b == theirs.b).all()
    assert abs(ours.A - theirs.A).max() == 0.0
    assert abs(sp.triu(ours.P) - theirs.P).max() == 0.0
    assert abs(ours.P - ours.P.T).max() == 0.0
    assert ours.settings["direct_solve_method"] == ("Symbol", "cudss")


@pytest.mark.parametrize("rank", [0, 6])
@pytest.mark.parametrize("cone", TAKEN)
def test_optimality_conditions(cone: str, rank: int, julia: Julia) -> None:
    """In the order of our rows, and with new indices for every instance."""
    program = random_program(TAKEN[cone], 6, batch=3, rank=6 if cone == "zero" else rank, seed=1)
    solution = CuClarabel(program.structure).solve(program, {})
    assert (solution.status == Status.SOLVED).all()
    assert (solution.iterations >= 0).all()
    for i in range(3):
        point = (solution.x[i], solution.z[i], solution.s[i])
        assert kkt_residual(program, i, *point) < 1e-7
        P, q, A, b = dense_data(program, i)
        arrived = julia.arrived[i]
        assert (arrived.P.toarray() == P).all()
        assert (arrived.q == q).all()
        assert np.allclose(np.sort(arrived.b), np.sort(b), atol=0)
        assert np.isclose(arrived.A.toarray().sum(), A.sum())


def test_large_cones_come_first_and_single_rows_are_inequalities(julia: Julia) -> None:
    program = random_program(TAKEN["unsorted"], 6, rank=6)
    CuClarabel(program.structure).solve(program, {})
    assert julia.arrived[0].cones == [
        *(("ZeroCone", 1), ("NonnegativeCone", 3)),
        *(("SecondOrderCone", 7), ("SecondOrderCone", 6)),
        *(("SecondOrderCone", 3), ("SecondOrderCone", 2)),
        ("ExponentialCone",),
    ]


def test_every_row_has_its_own_status(julia: Julia) -> None:
    program, expected = scalar_batch()
    solution = CuClarabel(program.structure).solve(program, {})
    assert solution.status.tolist() == expected
    failed = solution.status != Status.SOLVED
    for rows in (solution.x, solution.z, solution.s):
        assert np.isnan(rows[failed]).all()
        assert np.isfinite(rows[~failed]).all()


@pytest.mark.parametrize("array", "PqAb")
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_data_that_are_not_numbers_fail_alone(array: str, value: float, julia: Julia) -> None:
    program = random_program(CONES["nonneg"], 6, batch=3, rank=6)
    values = getattr(program, array).copy()
    values[1, 0] = value
    solution = CuClarabel(program.structure).solve(replace(program, **{array: values}), {})
    assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]
    assert len(julia.arrived) == 2


def test_an_infinite_bound_binds_nothing(julia: Julia) -> None:
    program = program_of([[1.0], [1.0]], ConeDims(nonneg=2), batch=2)
    program.q[:] = -1.0
    program.b[:] = [[1.0, 1e20], [3.0, 2.0]]
    solution = CuClarabel(program.structure).solve(program, {})
    assert np.allclose(solution.x, [[1], [2]])
    assert solution.s[0, 1] == 1e20
    assert julia.arrived[0].A.toarray().tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("wrong", ["x", "z", "s"])
def test_what_is_called_solved_and_is_not(wrong: str, julia: Julia) -> None:
    program = random_program(MIXED, 6, batch=2, rank=6)
    solve = julia.Clarabel.solve_b

    def lie(solver: SimpleNamespace) -> None:
        solve(solver)
        getattr(solver.solution, wrong)[0] += 1.0 if len(julia.arrived) == 1 else np.nan

    julia.Clarabel.solve_b = lie
    solution = CuClarabel(program.structure).solve(program, {})
    assert (solution.status == Status.NUMERICAL_ERROR).all()
    assert np.isnan(solution.x).all()


def test_an_error_in_julia_fails_alone(julia: Julia) -> None:
    program = random_program(CONES["nonneg"], 6, batch=3, rank=6)
    solve, error = julia.Clarabel.solve_b, sys.modules["juliacall"].JuliaError

    def fail(solver: SimpleNamespace) -> None:
        if len(julia.arrived) == 2:
            raise error("CUDSS_STATUS_EXECUTION_FAILED")
        solve(solver)

    julia.Clarabel.solve_b = fail
    solution = CuClarabel(program.structure).solve(program, {})
    assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]


def test_limits(julia: Julia) -> None:
    program, expected = scalar_batch()
    solver = CuClarabel(program.structure)
    few = solver.solve(program, {"max_iter": 1})
    assert (few.status == Status.MAX_ITERATIONS).all()
    late = solver.solve(program, {}, deadline=time.monotonic() - 1)
    assert (late.status == Status.TIME_LIMIT).all()
    julia.arrived.clear()
    far = solver.solve(program, {}, deadline=time.monotonic() + 100)
    assert far.status.tolist() == expected
    limits = [given.settings["time_limit"] for given in julia.arrived]
    assert limits == sorted(limits, reverse=True)
    assert 0 < limits[-1] < limits[0] <= 100


def test_options_reach_clarabel(julia: Julia) -> None:
    program, _ = scalar_batch()
    solver = CuClarabel(program.structure)
    options = {"tol_feas": 1e-6, "max_iter": 50, "direct_solve_method": "cudssmixed"}
    solver.solve(program, options, verbose=False)
    settings = {**options, "direct_solve_method": ("Symbol", "cudssmixed"), "verbose": False}
    assert julia.arrived[0].settings == settings
    for wrong in ({"tol_feas": [1]}, {"no_such_option": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}'.: Clarabel does not take"):
            solver.solve(program, wrong)


def test_refusals(julia: Julia) -> None:
    x, X = cp.Variable(2), cp.Variable((3, 3), PSD=True)
    for objective, match in ((cp.sum_squares(x), "constraints"), (cp.trace(X), "psd")):
        with pytest.raises(UnsupportedProblemError, match=f"CUCLARABEL does not .*{match}"):
            problem = cp.Problem(cp.Minimize(objective))
            CvxpyLayer(problem, [], problem.variables(), solver="CUCLARABEL")


def test_the_layer(julia: Julia) -> None:
    """The projection onto the orthant, whose derivative is zero or one."""
    x, p = cp.Variable(3, nonneg=True), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)))
    layer = CvxpyLayer(problem, [p], [x], solver="CUCLARABEL")
    rows = [[1.0, -2.0, 3.0], [-1.0, 2.0, -3.0]]
    value = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    (found,) = layer(value)
    assert torch.allclose(found, value.clamp(min=0), atol=1e-8)
    found.sum().backward()
    assert torch.allclose(value.grad, (value.detach() > 0).double(), atol=1e-8)
    assert len(julia.arrived) == 2


def test_julia_without_clarabel(julia: Julia, monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = scalar_batch()
    error = sys.modules["juliacall"].JuliaError

    def seval(code: str) -> None:
        raise error("ArgumentError: Package Clarabel not found in current path.")

    monkeypatch.setattr(julia, "seval", seval)
    with pytest.raises(ImportError, match=r'Package Clarabel not found.*(?s:.)*rev=."CuClarabel'):
        CuClarabel(program.structure).solve(program, {})
