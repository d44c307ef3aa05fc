"""MOREAU against the optimality conditions, closed forms and Clarabel, where it is installed."""

import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch

import cvxlayers
from cvxlayers.program import ConeDims, ConeProgram, Pattern, ProblemStructure
from cvxlayers.solvers import moreau as adapter
from cvxlayers.solvers.clarabel import Clarabel
from cvxlayers.solvers.moreau import Moreau
from cvxlayers.status import Status
from cvxlayers.torch import CvxpyLayer

from .random_programs import CONES, kkt_residual, pattern, random_program
from .toys import program_of, scalar_batch

moreau = pytest.importorskip("moreau", reason="moreau is not installed: pip install moreau")


@pytest.mark.parametrize("rank", [0, 3, 6])
@pytest.mark.parametrize("cone", CONES)
def test_optimality_conditions(cone: str, rank: int) -> None:
    program = random_program(CONES[cone], 6, batch=4, rank=6 if cone == "zero" else rank, seed=1)
    solution = Moreau(program.structure).solve(program, {})
    assert (solution.status == Status.SOLVED).all()
    for i in range(4):
        residual = kkt_residual(program, i, solution.x[i], solution.z[i], solution.s[i])
        assert residual < 1e-7


@pytest.mark.parametrize("cone", CONES)
def test_agrees_with_clarabel(cone: str) -> None:
    program = random_program(CONES[cone], 6, batch=4, rank=6, seed=2)
    one = Moreau(program.structure).solve(program, {})
    other = Clarabel(program.structure).solve(program, {})
    for name in ("x", "z", "s"):
        assert np.allclose(getattr(one, name), getattr(other, name), atol=2e-3)


def test_the_settings_that_reach_it() -> None:
    """Not the active-set method, whose primal tolerance is 1e-6, and 1e-8 for the other."""
    settings = adapter._settings({}, 3, False, 0.5)
    assert settings.solver is moreau.SolverType.IPM
    assert (settings.device, settings.batch_size, settings.time_limit) == ("cpu", 3, 0.5)
    own = settings.ipm_settings
    assert own.tol_gap_abs == own.tol_gap_rel == own.tol_feas == 1e-8


def test_options_are_those_of_the_package() -> None:
    """All of them but those that are this library's to choose: how batches are made up, what
    is printed, how long it takes, and its derivatives."""
    general = moreau.Settings.model_fields.keys() - {
        *("solver", "batch_size", "enable_grad", "auto_tune", "yolo", "yolo_num_iters"),
        *("time_limit", "verbose", "ipm_settings", "active_set_settings"),
    }
    own = moreau.IPMSettings.model_fields.keys() - {
        *("diff_method", "diff_smoothing_mu", "diff_smoothing_step_factor", "warm_start_no_retry"),
    }
    assert Moreau.general == general
    assert Moreau.options == general | own
    program = random_program(CONES["mixed"], 6)
    defaults = {**moreau.Settings().model_dump(), **moreau.IPMSettings().model_dump()}
    for name in Moreau.options - {"device"}:
        solution = Moreau(program.structure).solve(program, {name: defaults[name]})
        assert solution.solved.all(), name


@pytest.mark.parametrize(
    "options",
    [{"max_iter": "many"}, {"tol_feas": -1.0}, {"device": "abacus"}, {"no_such_option": 1}],
)
def test_wrong_options(options: dict[str, object]) -> None:
    program, _ = scalar_batch()
    with pytest.raises(ValueError, match=f"Moreau .*{next(iter(options))}"):
        Moreau(program.structure).solve(program, options)


@pytest.mark.skipif(moreau.device_available("cuda"), reason="Moreau's CUDA backend is installed")
def test_cuda_without_its_backend() -> None:
    program, _ = scalar_batch()
    with pytest.raises(ValueError, match=r"no backend for 'cuda'.*pip install 'moreau\[cuda\]'"):
        Moreau(program.structure).solve(program, {"device": "cuda"})


def test_every_status_has_a_meaning() -> None:
    assert set(adapter._STATUSES) == {int(status) for status in moreau.SolverStatus}
    solved = [number for number, ours in adapter._STATUSES.items() if ours is Status.SOLVED]
    assert solved == [moreau.SolverStatus.Solved]


def test_every_row_has_its_own_status() -> None:
    program, expected = scalar_batch()
    solution = Moreau(program.structure).solve(program, {})
    assert solution.status.tolist() == expected
    failed = solution.status != Status.SOLVED
    for rows in (solution.x, solution.z, solution.s):
        assert np.isnan(rows[failed]).all()
        assert np.isfinite(rows[~failed]).all()


def test_limits_are_named_and_early_answers_are_none() -> None:
    program, _ = scalar_batch()
    few = Moreau(program.structure).solve(program, {"max_iter": 1})
    assert (few.status == Status.MAX_ITERATIONS).all()
    assert np.isnan(few.x).all()
    late = Moreau(program.structure).solve(program, {}, deadline=time.monotonic() - 1)
    assert (late.status == Status.TIME_LIMIT).all()
    far = Moreau(program.structure).solve(program, {}, deadline=time.monotonic() + 100)
    assert far.status.tolist() == scalar_batch()[1]


def test_a_deadline_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls grow while they are short beside the time left, and none begins after it."""
    program = random_program(CONES["nonneg"], 6, batch=20, rank=6)
    left = iter([100.0, 100.0, 100.0, -1.0])
    monkeypatch.setattr(adapter, "seconds_left", lambda deadline: next(left))
    monkeypatch.setattr(adapter, "workers", lambda: 2)
    solver = Moreau(program.structure)
    solution = solver.solve(program, {}, deadline=1.0)
    begun = 2 + 4 + 8
    assert (solution.status[:begun] == Status.SOLVED).all()
    assert (solution.status[begun:] == Status.TIME_LIMIT).all()
    assert np.isnan(solution.x[begun:]).all()
    assert not solver._kept


def test_a_deadline_within_an_instance() -> None:
    program = random_program(ConeDims(nonneg=300), 300, rank=300)
    solution = Moreau(program.structure).solve(program, {}, deadline=time.monotonic() + 1e-3)
    assert solution.status.tolist() == [Status.TIME_LIMIT]


def test_threads_that_share_a_layer() -> None:
    program = random_program(CONES["mixed"], 6, batch=40, rank=3)
    solver = Moreau(program.structure)
    expected = solver.solve(program, {}).x
    with ThreadPoolExecutor(4) as pool:
        parts = [program.take(slice(i, i + 10)) for i in (0, 10, 20, 30)] * 4
        found = list(pool.map(lambda part: solver.solve(part, {}).x, parts))
    for i, x in enumerate(found):
        assert (x == expected[10 * (i % 4) : 10 * (i % 4) + 10]).all()


def test_almost_solved_keeps_the_point() -> None:
    program = random_program(CONES["soc"], 6, batch=2, rank=6)
    tight = dict.fromkeys(Moreau.tolerances, 1e-300)  # no point is that good
    solution = Moreau(program.structure).solve(program, tight)
    assert (solution.status == Status.ALMOST_SOLVED).all()
    assert kkt_residual(program, 0, solution.x[0], solution.z[0], solution.s[0]) < 1e-6


@pytest.mark.parametrize("array", "PqAb")
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_data_that_are_not_numbers_fail_alone(array: str, value: float) -> None:
    program = random_program(CONES["nonneg"], 6, batch=3, rank=6)
    values = getattr(program, array).copy()
    values[1, 0] = value
    solution = Moreau(program.structure).solve(replace(program, **{array: values}), {})
    assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]
    clean = Moreau(program.structure).solve(program, {})
    for name in ("x", "z", "s"):
        assert (getattr(solution, name)[[0, 2]] == getattr(clean, name)[[0, 2]]).all()


def test_a_quadratic_that_is_not_convex_fails_alone() -> None:
    program = random_program(CONES["nonneg"], 6, batch=3, rank=6)
    program.P[1] *= -1
    solution = Moreau(program.structure).solve(program, {})
    assert solution.status[[0, 2]].tolist() == [Status.SOLVED] * 2
    assert not solution.solved[1]
    assert np.isnan(solution.x[1]).all()


def test_an_instance_does_not_depend_on_its_batch() -> None:
    program = random_program(CONES["mixed"], 6, batch=5, rank=3)
    solver = Moreau(program.structure)
    together = solver.solve(program, {})
    for i in range(5):
        alone = solver.solve(program.take(np.array([i])), {})
        for name in ("x", "z", "s"):
            assert (getattr(alone, name)[0] == getattr(together, name)[i]).all()


def test_an_instance_does_not_depend_on_its_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    program = random_program(CONES["mixed"], 6, batch=7, rank=3)
    whole = Moreau(program.structure).solve(program, {})
    monkeypatch.setattr(adapter, "WORK", 1000)
    solver = Moreau(program.structure)
    pieces = solver.solve(program, {})
    assert all(count < 7 for _, count, *_ in solver._kept)
    for name in ("x", "z", "s"):
        assert (getattr(pieces, name) == getattr(whole, name)).all()


def test_a_compiled_solver_that_is_kept_remembers_nothing() -> None:
    program = random_program(CONES["mixed"], 6, batch=3, rank=3)
    other = replace(program, P=1.3 * program.P, q=program.q + 0.1, A=0.9 * program.A)
    solver = Moreau(program.structure)
    fresh = solver.solve(program, {})
    solver.solve(other, {})
    (kept,) = solver._kept.values()
    again = solver.solve(program, {})
    assert list(solver._kept.values()) == [kept]
    for name in ("x", "z", "s"):
        assert (getattr(again, name) == getattr(fresh, name)).all()


@pytest.mark.parametrize("shared", ["P", "A", "PA"])
def test_a_shared_array_is_its_expansion(shared: str) -> None:
    program = random_program(CONES["mixed"], 6, batch=3, rank=3, shared=shared)
    P, A = (np.repeat(a, 3, axis=0) if len(a) == 1 else a for a in (program.P, program.A))
    expanded = ConeProgram(program.structure, P, program.q, A, program.b, 3)
    one, other = (Moreau(program.structure).solve(p, {}) for p in (program, expanded))
    assert (one.x == other.x).all()
    assert (one.z == other.z).all()


def test_the_program_is_not_changed() -> None:
    program = random_program(CONES["mixed"], 6, batch=2, rank=3)
    before = [a.copy() for a in (program.P, program.q, program.A, program.b)]
    Moreau(program.structure).solve(program, {})
    after = (program.P, program.q, program.A, program.b)
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_without_constraints() -> None:
    program = random_program(ConeDims(), 3, batch=2, rank=3)
    solution = Moreau(program.structure).solve(program, {})
    assert (solution.status == Status.SOLVED).all()
    assert solution.z.shape == (2, 0)
    for i in range(2):
        assert kkt_residual(program, i, solution.x[i], np.empty(0), np.empty(0)) < 1e-7
    program = random_program(ConeDims(), 3, batch=1)
    program.q[:] = 1.0
    assert Moreau(program.structure).solve(program, {}).status[0] == Status.DUAL_INFEASIBLE


def test_without_variables_is_refused() -> None:
    empty = Pattern((0, 0), np.zeros(0, np.int32), np.zeros(1, np.int32))
    rows = Pattern((2, 0), np.zeros(0, np.int32), np.zeros(1, np.int32))
    structure = ProblemStructure(ConeDims(nonneg=2), empty, rows)
    assert "without variables" in str(Moreau.refusal(structure))
    assert Moreau.refusal(program_of([[1.0]], ConeDims(nonneg=1)).structure) is None


@pytest.mark.parametrize("infinity", [np.inf, 1e20])
def test_an_infinite_bound_binds_nothing(infinity: float) -> None:
    """Moreau itself calls the first instance unbounded with a bound of 1e20."""
    program = program_of([[1.0], [1.0]], ConeDims(nonneg=2), batch=2)
    program.q[:] = -1.0
    program.b[:] = [[1.0, infinity], [3.0, 2.0]]  # the second instance has both bounds
    solution = Moreau(program.structure).solve(program, {})
    assert np.allclose(solution.x, [[1], [2]])
    assert np.allclose(solution.z, [[1, 0], [0, 1]], atol=1e-7)
    assert solution.s[0, 1] == 1e20


def test_a_verdict_needs_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of these have a solution by construction, and Moreau calls some infeasible."""
    program = random_program(ConeDims(zero=1, nonneg=9), 6, batch=480, rank=3, seed=0)
    program = replace(program, q=1e5 * program.q, b=1e5 * program.b)
    verdicts = (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE)
    solution = Moreau(program.structure).solve(program, {})
    assert not np.isin(solution.status, verdicts).any()
    assert np.isnan(solution.x[~solution.solved]).all()
    monkeypatch.setattr(adapter, "demand_proof", lambda program, solution: None)
    believed = Moreau(program.structure).solve(program, {})
    assert np.isin(believed.status, verdicts).any()


def test_the_chain_solves_what_it_gave_up() -> None:
    """The projection onto the simplex of vectors of all sizes, by the layer."""
    x, p = cp.Variable(8), cp.Parameter(8)
    objective = cp.Minimize(cp.sum_squares(x - p))
    layer = CvxpyLayer(cp.Problem(objective, [x >= 0, cp.sum(x) == 1]), [p], [x], solver="MOREAU")
    sizes = 10.0 ** torch.arange(-3, 7, dtype=torch.float64)[:, None]
    points = sizes * torch.tensor(np.random.default_rng(0).standard_normal((10, 8)))
    (projected,) = layer(points.requires_grad_())
    for point, found in zip(points.detach().numpy(), projected.detach().numpy(), strict=True):
        ordered = np.sort(point)[::-1]
        excess = (np.cumsum(ordered) - 1) / np.arange(1, 9)
        level = excess[np.flatnonzero(ordered > excess)[-1]]
        assert np.allclose(found, np.maximum(point - level, 0), atol=1e-7)


def test_attributes_of_variables_are_constraints() -> None:
    """Those that CVXPY's interface would pass beside A."""
    x, p = cp.Variable(3, nonneg=True), cp.Parameter(3)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p))), [p], [x], solver="MOREAU")
    value = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    (found,) = layer(value)
    assert torch.allclose(found, value.clamp(min=0), atol=1e-8)
    found.sum().backward()
    assert torch.allclose(value.grad, (value.detach() > 0).double(), atol=1e-8)

    X, S = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3), symmetric=True)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - S))), [S], [X], solver="MOREAU")
    matrix = np.random.default_rng(1).standard_normal((3, 3))
    matrix += matrix.T - np.eye(3)
    eigenvalues, vectors = np.linalg.eigh(matrix)
    assert eigenvalues[0] < -0.1
    (nearest,) = layer(torch.tensor(matrix))
    assert np.allclose(nearest, (vectors * eigenvalues.clip(0)) @ vectors.T, atol=1e-6)

    y = cp.Variable(2, bounds=[-1, 2])
    c = cp.Parameter(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(c @ y)), [c], [y], solver="MOREAU")
    (corner,) = layer(torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert torch.allclose(corner, torch.tensor([-1.0, 2.0], dtype=torch.float64), atol=1e-7)


def test_rows_that_fail_in_the_layer() -> None:
    low, high = cp.Parameter(), cp.Parameter()
    x = cp.Variable()
    problem = cp.Problem(cp.Minimize(cp.square(x)), [x >= low, x <= high])
    layer = CvxpyLayer(problem, [low, high], [x], solver="MOREAU", on_failure="nan")
    values = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    (found,) = layer(values, torch.tensor([2.0, 1.0, 5.0], dtype=torch.float64))
    assert torch.isnan(found).tolist() == [False, True, False]
    found.nansum().backward()
    assert torch.allclose(values.grad, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    strict = CvxpyLayer(problem, [low, high], [x], solver="MOREAU")
    with pytest.raises(cvxlayers.SolverError, match="not solved by MOREAU"):
        strict(values, torch.tensor([2.0, 1.0, 5.0], dtype=torch.float64))


def test_progress_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    program = random_program(CONES["nonneg"], 6, batch=2)
    Moreau(program.structure).solve(program, {}, verbose=False)
    assert capfd.readouterr().out == ""
    Moreau(program.structure).solve(program, {}, verbose=True)
    assert capfd.readouterr().out.count("Terminated with status = Solved") == 2


def test_a_large_problem() -> None:
    """From 500 variables and rows on Moreau factors by another method."""
    n = 400
    upper = pattern(np.eye(n))
    structure = ProblemStructure(ConeDims(nonneg=n), upper, pattern(-np.eye(n)))
    q = -np.random.default_rng(0).standard_normal((2, n))
    one = np.ones((1, n))
    program = ConeProgram(structure, one, q, -one, np.zeros((1, n)), 2)
    solution = Moreau(structure).solve(program, {})
    assert solution.solved.all()
    for i in range(2):
        point = (solution.x[i], solution.z[i], solution.s[i])
        assert kkt_residual(program, i, *point) < 1e-7
    assert np.allclose(solution.x, np.maximum(-q, 0), atol=1e-4)


def test_a_copy_is_made_anew() -> None:
    program, expected = scalar_batch()
    solver = Moreau(program.structure)
    solver.solve(program, {})
    assert solver._kept
    copy = pickle.loads(pickle.dumps(solver))
    assert not copy._kept
    assert copy.solve(program, {}).status.tolist() == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_after_a_solve() -> None:
    """A compiled solver of the parent's would wait for threads that are not there."""
    code = (
        "import os, signal\n"
        "from solvers.toys import scalar_batch\n"
        "from cvxlayers.solvers.moreau import Moreau\n"
        "program, expected = scalar_batch(); solver = Moreau(program.structure)\n"
        "solver.solve(program, {})\n"
        "child = os.fork()\n"
        "if not child: signal.alarm(60)  # in place of waiting forever\n"
        "assert solver.solve(program, {}).status.tolist() == expected\n"
        "if not child: os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    tests = os.path.dirname(os.path.dirname(__file__))
    path = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})
