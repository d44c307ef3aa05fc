"""The solver LANES: options, statuses, the ends of what it takes, and when it is the default."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from cvxlayers import SolverError, Status
from cvxlayers.errors import UnsupportedProblemError
from cvxlayers.lanes import load
from cvxlayers.program import ConeDims, ConeProgram, Pattern, ProblemStructure
from cvxlayers.solvers.clarabel import Clarabel
from cvxlayers.solvers.lanes import Lanes
from cvxlayers.solvers.retries import take_over
from cvxlayers.torch import CvxpyLayer
from solvers.random_programs import CONES, interior_points, kkt_residual, random_program
from solvers.toys import ONE_VARIABLE, program_of, scalar_batch

module = load()
pytestmark = pytest.mark.skipif(module is None, reason="not compiled")

Array = np.ndarray
RANKS = (0, 3, 6)


def solve(program: ConeProgram, **options: Any) -> Any:
    return Lanes(program.structure).solve(program, options)


def program_from(
    P: Array, q: Array, A: Array, b: Array, dims: ConeDims, batch: int = 1
) -> ConeProgram:
    """A batch of one instance, repeated; all entries are stored."""
    n, m = len(q), len(b)

    def full(rows: int) -> Pattern:
        indices = np.tile(np.arange(rows, dtype=np.int32), n)
        return Pattern((rows, n), indices, rows * np.arange(n + 1, dtype=np.int32))

    upper = sp.csc_array(np.triu(np.ones((n, n))) if P.any() else np.zeros((n, n)))
    of_P = Pattern((n, n), upper.indices.astype(np.int32), upper.indptr.astype(np.int32))
    structure = ProblemStructure(dims, of_P, full(m))

    def rows(values: Array) -> Array:
        return np.tile(values, (batch, 1)).astype(float)

    return ConeProgram(
        structure, rows(P[of_P.rows, of_P.cols]), rows(q), rows(A.T.ravel()), rows(b), batch
    )


# ---- answers ----


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("cone", CONES)
def test_optimality_conditions(cone: str, rank: int) -> None:
    program = random_program(CONES[cone], 6, batch=9, rank=6 if cone == "zero" else rank, seed=1)
    solution = solve(program)
    assert (solution.status == Status.SOLVED).all()
    assert (solution.attempt == 0).all()
    assert (solution.iterations > 0).all() and (solution.seconds > 0.0).all()
    for i in range(9):
        residual = kkt_residual(program, i, solution.x[i], solution.z[i], solution.s[i])
        assert residual < 1e-6


def test_every_row_has_its_own_status() -> None:
    program, expected = scalar_batch()
    solution = solve(program)
    assert solution.status.tolist() == expected
    for point in (solution.x, solution.z, solution.s):
        assert np.isfinite(point[[0, 3]]).all() and np.isnan(point[[1, 2]]).all()
    np.testing.assert_allclose(solution.x[[0, 3], 0], [1.0, 1.5], atol=1e-7)


def test_a_closed_form() -> None:
    """The projection of (3, 4, 0) on {(t, x): ‖x‖ ≤ t}: half the sum with its mirror image."""
    program = program_from(
        np.eye(3), np.array([0.0, -3.0, -4.0]), -np.eye(3), np.zeros(3), ConeDims(soc=(3,))
    )
    np.testing.assert_allclose(solve(program).x[0], [2.5, 1.5, 2.0], atol=1e-7)


# ---- options ----


def test_a_looser_tolerance_takes_fewer_iterations() -> None:
    program = random_program(CONES["mixed"], 6, batch=8, rank=3)
    loose = solve(program, tol_gap_abs=1e-3, tol_gap_rel=1e-3, tol_feas=1e-3)
    tight = solve(program, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    assert loose.solved.all()
    assert (loose.iterations <= tight.iterations).all()
    assert loose.iterations.sum() < tight.iterations.sum()


def test_common_options() -> None:
    expected = {"tol_gap_abs": 1e-5, "tol_gap_rel": 1e-5, "tol_feas": 1e-5, "max_iter": 7}
    assert Lanes.common_options(1e-5, 7) == expected
    assert Lanes.common_options(None, None) == {}
    assert set(expected) == Lanes.options


def test_the_iteration_limit() -> None:
    program = random_program(CONES["mixed"], 6, batch=9)
    solution = solve(program, max_iter=2)
    assert (solution.status == Status.MAX_ITERATIONS).all()
    assert (solution.iterations == 2).all()
    assert np.isnan(solution.x).all()


@pytest.mark.parametrize("name", sorted(Lanes.options))
@pytest.mark.parametrize("value", ["many", None, True, 0, -1, np.nan, [1], 1j])
def test_a_wrong_value_names_its_option(name: str, value: Any) -> None:
    program = random_program(CONES["nonneg"], 6)
    with pytest.raises(ValueError, match=re.escape(f"'{name}'") + ".*expected"):
        solve(program, **{name: value})


@pytest.mark.parametrize("value", [0.5, 1e300, np.inf, 2**31, 2**80])
def test_a_limit_that_is_no_number_of_iterations(value: float) -> None:
    """It is refused, or it is no limit; not an error from inside."""
    program = random_program(CONES["nonneg"], 6)
    try:
        solution = solve(program, max_iter=value)
    except ValueError as error:
        assert "'max_iter'" in str(error)
    else:
        assert value > 1 and solution.solved.all()


def test_numbers_of_numpy() -> None:
    program = random_program(CONES["nonneg"], 6)
    assert solve(program, max_iter=np.int64(50), tol_feas=np.float32(1e-6)).solved.all()


@pytest.mark.parametrize("limit", range(3, 12))
def test_almost_solved_at_the_limit_of_iterations(limit: int) -> None:
    """As Clarabel says, which takes the same steps."""
    program = random_program(ConeDims(nonneg=20), 10, batch=8, rank=10, seed=1)
    found = solve(program, max_iter=limit)
    expected = Clarabel(program.structure).solve(program, {"max_iter": limit})
    # Rounding puts the tolerances of one or two a step apart.
    assert (found.status == expected.status).mean() >= 0.75


def test_verbose_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    program, expected = scalar_batch()
    solution = Lanes(program.structure).solve(program, {}, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].split() == ["instance", "iterations", "status"]
    for i, line in enumerate(lines[1:]):
        assert line.split() == [str(i), str(solution.iterations[i]), expected[i].name]
    Lanes(program.structure).solve(program, {})
    assert not capsys.readouterr().out


# ---- deadlines ----


def test_a_deadline_that_has_passed() -> None:
    program = random_program(CONES["mixed"], 6, batch=20)
    solution = Lanes(program.structure).solve(program, {}, deadline=time.monotonic() - 1.0)
    assert (solution.status == Status.TIME_LIMIT).all()
    assert np.isnan(solution.x).all() and np.isnan(solution.z).all()


def test_a_deadline_on_the_way() -> None:
    """After a while some are solved and some are not."""
    program = random_program(ConeDims(psd=(8,), exp=4), 12, batch=50)
    program = program.take(np.tile(np.arange(50), 400))
    solver = Lanes(program.structure)
    solver.solve(program.take(slice(9)), {})
    for seconds in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2):
        start = time.monotonic()
        solution = solver.solve(program, {}, deadline=start + seconds)
        assert time.monotonic() - start < seconds + 2.0
        over = solution.status == Status.TIME_LIMIT
        assert (over | solution.solved).all()
        assert np.isnan(solution.x[over]).all()
        assert np.isfinite(solution.x[solution.solved]).all()
        if over.any() and solution.solved.any():
            return
    raise AssertionError("never on the way")


def test_a_far_deadline() -> None:
    program = random_program(CONES["nonneg"], 6, batch=2)
    for seconds in (1e3, 1e12, np.inf):
        found = Lanes(program.structure).solve(program, {}, deadline=time.monotonic() + seconds)
        assert found.solved.all()


# ---- data ----


@pytest.mark.parametrize("size", [1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("cone", CONES)
def test_tiny_data(cone: str, size: float) -> None:
    """All of the answer is of the size of q and b; so is its error."""
    program = random_program(CONES[cone], 6, batch=4, rank=6, seed=3)
    expected = solve(program)
    tiny = replace(program, q=program.q * size, b=program.b * size)
    found = solve(tiny)
    assert expected.solved.all() and found.solved.all()
    for i in range(4):
        scale = 1.0 + np.abs(expected.x[i]).max()
        assert np.abs(found.x[i] / size - expected.x[i]).max() < 1e-4 * scale


def test_tiny_data_are_infeasible_all_the_same() -> None:
    program, expected = scalar_batch()
    tiny = replace(program, q=program.q * 1e-6, b=program.b * 1e-6)
    assert solve(tiny).status.tolist() == expected


@pytest.mark.parametrize("bound", [1e20, 1e30])
def test_bounds_that_are_none_are_left_to_clarabel(bound: float) -> None:
    program = program_of([[1.0], [-1.0]], ConeDims(nonneg=2), batch=3)
    program.q[:], program.b[:] = -1.0, [[2.0, 1.0], [2.0, bound], [3.0, 1.0]]
    solution = solve(program)
    assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]
    assert solution.iterations[1] == 0
    take_over("LANES", program, solution, {})
    assert solution.solved.all()
    np.testing.assert_allclose(solution.x[:, 0], [2.0, 2.0, 3.0], atol=1e-6)
    assert solution.attempt.tolist() == [0, 1, 0]


def test_rows_that_are_not_finite() -> None:
    program = random_program(CONES["mixed"], 6, batch=12, rank=3)
    expected = solve(program)
    spoilt = {"P": 1, "q": 3, "A": 5, "b": 7}
    for name, row in spoilt.items():
        getattr(program, name)[row, 0] = np.nan
        getattr(program, name)[row + 1, -1] = np.inf
    solution = solve(program)
    bad = sorted([*spoilt.values(), *(row + 1 for row in spoilt.values())])
    assert (solution.status[bad] == Status.NUMERICAL_ERROR).all()
    good = np.setdiff1d(np.arange(12), bad)
    np.testing.assert_array_equal(solution.x[good], expected.x[good])
    take_over("LANES", program, solution, {})
    assert (solution.attempt == 0).all()


def test_an_empty_batch() -> None:
    program = random_program(CONES["mixed"], 6, batch=2).take(np.zeros(0, dtype=np.intp))
    solution = solve(program)
    assert solution.x.shape == (0, 6) and solution.status.shape == (0,)


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_no_constraints(batch: int) -> None:
    rng = np.random.default_rng(0)
    F, q = rng.standard_normal((4, 4)), rng.standard_normal(4)
    program = program_from(F @ F.T, q, np.zeros((0, 4)), np.zeros(0), ConeDims(), batch)
    solution = solve(program)
    assert solution.solved.all()
    np.testing.assert_allclose(solution.x, np.tile(-np.linalg.solve(F @ F.T, q), (batch, 1)), 1e-6)
    assert solution.z.shape == (batch, 0)


def test_no_constraints_and_no_minimum() -> None:
    P = np.diag([1.0, 0.0])
    program = program_from(P, np.array([1.0, 1.0]), np.zeros((0, 2)), np.zeros(0), ConeDims(), 2)
    solution = solve(program)
    take_over("LANES", program, solution, {})
    assert (solution.status == Status.DUAL_INFEASIBLE).all()


@pytest.mark.parametrize("batch", [1, 9])
def test_equalities_alone(batch: int) -> None:
    rng = np.random.default_rng(1)
    A, q, b = rng.standard_normal((2, 4)), rng.standard_normal(4), rng.standard_normal(2)
    program = program_from(np.eye(4), q, A, b, ConeDims(zero=2), batch)
    solution = solve(program)
    K = np.block([[np.eye(4), A.T], [A, np.zeros((2, 2))]])
    expected = np.linalg.solve(K, [*-q, *b])
    assert solution.solved.all()
    np.testing.assert_allclose(solution.x[-1], expected[:4], atol=1e-7)
    np.testing.assert_allclose(solution.z[-1], expected[4:], atol=1e-7)


@pytest.mark.parametrize(("dims", "A", "b", "x"), ONE_VARIABLE)
def test_one_variable(dims: ConeDims, A: list[list[float]], b: list[float], x: float) -> None:
    """min x, bounded from below by one constraint of every kind."""
    for P in (0.0, 1.0):
        program = program_from(
            np.array([[P]]), np.array([1.0]), np.array(A), np.array(b), dims, batch=3
        )
        solution = solve(program)
        assert solution.solved.all(), (P, solution.status)
        np.testing.assert_allclose(solution.x[:, 0], x, atol=1e-6)


@pytest.mark.parametrize("cone", ["nonneg", "soc", "psd", "exp", "pow", "mixed"])
def test_verdicts_over_every_cone(cone: str) -> None:
    """Rows s ∈ K with A = 0 and b outside K; and a direction of descent inside K."""
    dims = CONES[cone]
    program = random_program(dims, 6, batch=3)
    inside = random_program(dims, 6, batch=1, seed=5)
    s, z = interior_points(dims, np.random.default_rng(7))
    outside = replace(program, A=0.0 * program.A, b=np.tile(-z - s, (3, 1)), q=0.0 * program.q)
    assert (solve(outside).status == Status.PRIMAL_INFEASIBLE).all()
    # One variable t with s = b + t d, d ∈ int K, min −t.
    A, b = -s[:, None], s
    t = program_from(np.zeros((1, 1)), np.array([-1.0]), A, b, dims, batch=3)
    assert (solve(t).status == Status.DUAL_INFEASIBLE).all()
    assert solve(inside).solved.all()


def test_redundant_constraints() -> None:
    """Equal rows, and rows without an entry."""
    rows = [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [-1.0, 0.0], [0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]]
    program = program_of(rows, ConeDims(zero=3, nonneg=4), batch=9)
    program.q[:], program.b[:] = [1.0, 2.0], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 5.0]
    solution = solve(program)
    assert solution.solved.all()
    np.testing.assert_allclose(solution.x, np.tile([1.0, 0.0], (9, 1)), atol=1e-7)


# ---- what is not taken ----


def test_a_large_semidefinite_matrix_is_refused() -> None:
    X, c = cp.Variable((40, 40), symmetric=True), cp.Parameter((40, 40))
    problem = cp.Problem(cp.Minimize(cp.norm(X - c, "fro")), [X >> 0])
    with pytest.raises(UnsupportedProblemError, match=r"LANES takes semidefinite .*16.*40"):
        CvxpyLayer(problem, [c], [X], solver="LANES")
    assert solver_of(CvxpyLayer(problem, [c], [X])) == "CLARABEL"


def test_too_many_variables_are_refused() -> None:
    n = 20_001
    eye = Pattern((n, n), np.arange(n, dtype=np.int32), np.arange(n + 1, dtype=np.int32))
    none = Pattern((0, n), np.zeros(0, np.int32), np.zeros(n + 1, np.int32))
    structure = ProblemStructure(ConeDims(), eye, none)
    assert re.search(r"LANES .*20,000.*20,001", str(Lanes.refusal(structure)))


def test_without_compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    x, c = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0])
    monkeypatch.setenv("CVXLAYERS_LANES", "off")
    with pytest.raises(UnsupportedProblemError, match="was not compiled"):
        CvxpyLayer(problem, [c], [x], solver="LANES")
    layer = CvxpyLayer(problem, [c], [x])
    assert solver_of(layer) == "CLARABEL"
    (value,) = layer(torch.tensor([1.0, -1.0], dtype=torch.float64))
    np.testing.assert_allclose(value, [1.0, 0.0], atol=1e-6)


# ---- the choice between LANES and CLARABEL ----


def solver_of(layer: CvxpyLayer) -> str:
    found = re.search(r"solver=(\w+)", repr(layer))
    assert found is not None
    return found.group(1)


def small_problem() -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    x, c = cp.Variable(2, name="x"), cp.Parameter(2, name="c")
    return cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0, cp.sum(x) <= 1]), [c], [x]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The solvers that were called, in order."""
    names: list[str] = []
    for kind in (Lanes, Clarabel):
        original: Callable[..., Any] = kind.solve

        def solve(
            self: Any, *args: Any, _original: Callable[..., Any] = original, **named: Any
        ) -> Any:
            names.append(self.name)
            return _original(self, *args, **named)

        monkeypatch.setattr(kind, "solve", solve)
    yield names


VALUE = torch.tensor([[0.2, 0.3], [3.0, -1.0]], dtype=torch.float64)


def test_the_default(called: list[str]) -> None:
    layer = CvxpyLayer(*small_problem())
    assert solver_of(layer) == "LANES"
    layer(VALUE)
    assert called == ["LANES"]


@pytest.mark.parametrize(
    "options",
    [{"eps": 1e-7}, {"max_iters": 40}, {"tol_feas": 1e-7}, {"time_limit": 60.0}, {"polish": True}],
)
def test_options_that_lanes_has(called: list[str], options: dict[str, Any]) -> None:
    CvxpyLayer(*small_problem(), solver_args=options)(VALUE)
    CvxpyLayer(*small_problem())(VALUE, solver_args=options)
    assert called == ["LANES", "LANES"]


@pytest.mark.parametrize("options", [{"tol_infeas_abs": 1e-7}, {"equilibrate_enable": False}])
def test_an_option_of_clarabel_alone(called: list[str], options: dict[str, Any]) -> None:
    assert solver_of(CvxpyLayer(*small_problem(), solver_args=options)) == "CLARABEL"
    layer = CvxpyLayer(*small_problem())
    layer(VALUE, solver_args=options)
    layer(VALUE)
    assert called == ["CLARABEL", "LANES"]


def test_progress_is_printed_by_clarabel(
    called: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    CvxpyLayer(*small_problem(), verbose=True)(VALUE)
    CvxpyLayer(*small_problem(), solver_args={"verbose": True})(VALUE)
    CvxpyLayer(*small_problem())(VALUE, solver_args={"verbose": True})
    assert called == ["CLARABEL"] * 3
    assert "Clarabel" in capfd.readouterr().out


def test_the_last_word_on_progress_counts(called: list[str]) -> None:
    CvxpyLayer(*small_problem(), verbose=True)(VALUE, solver_args={"verbose": False})
    layer = CvxpyLayer(*small_problem(), solver_args={"verbose": True})
    layer(VALUE, solver_args={"verbose": False})
    assert called == ["LANES"] * 2


def test_progress_of_a_solver_that_was_named(
    called: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    CvxpyLayer(*small_problem(), solver="LANES", verbose=True)(VALUE)
    assert called == ["LANES"]
    assert "iterations" in capfd.readouterr().out


def test_an_option_of_clarabel_for_lanes_by_name(called: list[str]) -> None:
    with pytest.warns(UserWarning, match="tol_infeas_abs"):
        layer = CvxpyLayer(*small_problem(), solver="LANES", solver_args={"tol_infeas_abs": 1e-7})
    layer(VALUE)
    assert called == ["LANES"]


def test_an_option_of_nobody() -> None:
    with pytest.raises(ValueError, match="'tol_faes'"):
        CvxpyLayer(*small_problem(), solver_args={"tol_faes": 1e-7})


def test_the_time_limit_of_a_call() -> None:
    layer = CvxpyLayer(*small_problem())
    with pytest.raises(SolverError, match="TIME_LIMIT"):
        layer(VALUE, solver_args={"time_limit": 1e-9})


def test_the_iteration_limit_of_a_call(called: list[str]) -> None:
    """Meant by who sets it: nobody takes over."""
    layer = CvxpyLayer(*small_problem(), on_failure="nan")
    _, info = layer.solve(VALUE, solver_args={"max_iters": 1})
    assert (info.status == Status.MAX_ITERATIONS).all()
    assert called == ["LANES"]


def test_who_took_over_is_told(called: list[str]) -> None:
    x, b = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [x <= b])
    layer = CvxpyLayer(problem, [b], [x])
    values = torch.tensor([[0.5, 0.5], [1e20, 0.5], [0.5, 0.25]], dtype=torch.float64)
    (found,), info = layer.solve(values)
    assert info.attempt.tolist() == [0, 1, 0]
    assert (info.status == Status.SOLVED).all()
    np.testing.assert_allclose(found, [[0.5, 0.5], [1.0, 0.5], [0.5, 0.25]], atol=1e-7)
    assert called == ["LANES", "CLARABEL"]


def test_who_takes_over_has_a_limit_too(called: list[str]) -> None:
    """No number of iterations is an error for some instances, and none for others."""
    x, b = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [x <= b])
    layer = CvxpyLayer(problem, [b], [x], solver_args={"max_iters": 2**40})
    (found,) = layer(torch.tensor([[0.5, 0.5], [1e20, 0.5]], dtype=torch.float64))
    np.testing.assert_allclose(found, [[0.5, 0.5], [1.0, 0.5]], atol=1e-7)
    with pytest.raises(ValueError, match=r"max_iter.*below 2\*\*31, got 1099511627776"):
        layer(VALUE, solver_args={"max_iter": 2**40})


def test_float32() -> None:
    layer = CvxpyLayer(*small_problem())
    (found,) = layer(VALUE.to(torch.float32))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, [[0.2, 0.3], [1.0, 0.0]], atol=1e-6)
