import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import scs

from cvxlayers.errors import UnsupportedProblemError
from cvxlayers.program import ConeDims, ConeProgram, Pattern, ProblemStructure
from cvxlayers.solvers.clarabel import Clarabel
from cvxlayers.solvers.scs import SCS
from cvxlayers.status import Status

from .random_programs import CONES, kkt_residual, random_program
from .toys import program_of, scalar_batch


@pytest.mark.parametrize("rank", [0, 3, 6])
@pytest.mark.parametrize("cone", CONES)
def test_optimality_conditions(cone: str, rank: int) -> None:
    program = random_program(CONES[cone], 6, batch=4, rank=6 if cone == "zero" else rank, seed=1)
    solution = SCS(program.structure).solve(program, {})
    assert (solution.status == Status.SOLVED).all()
    for i in range(4):
        residual = kkt_residual(program, i, solution.x[i], solution.z[i], solution.s[i])
        assert residual < 1e-7


@pytest.mark.parametrize("cone", CONES)
def test_agrees_with_clarabel(cone: str) -> None:
    program = random_program(CONES[cone], 6, batch=4, rank=6, seed=2)
    one, other = (
        SCS(program.structure).solve(program, {}),
        Clarabel(program.structure).solve(program, {}),
    )
    for name in ("x", "z", "s"):
        assert np.allclose(getattr(one, name), getattr(other, name), atol=2e-3)


def test_options_are_those_of_the_package() -> None:
    program = random_program(CONES["nonneg"], 6)
    values = {"linear_solver": "qdldl", "write_data_filename": None, "log_csv_filename": None}
    numbers = {"scale": 0.1, "rho_x": 1e-6, "alpha": 1.5, "time_limit_secs": 0.0}
    values |= numbers | dict.fromkeys(("eps_abs", "eps_rel", "eps_infeas"), 1e-6)
    values |= dict.fromkeys(("normalize", "adaptive_scale", "acceleration_type_1"), True)
    values |= {"acceleration_regularization": 1e-8, "acceleration_relaxation": 1.0}
    for name in SCS.options:  # SCS itself refuses a name that it does not have
        solution = SCS(program.structure).solve(program, {name: values.get(name, 1000)})
        assert solution.solved.all(), name
    with pytest.raises(ValueError, match=r"SCS does not take .*'alpha'.*alpha must be in"):
        SCS(program.structure).solve(program, {"alpha": 5.0})
    with pytest.raises(ValueError, match="SCS does not take"):
        SCS(program.structure).solve(program, {"max_iters": "many"})
    with pytest.raises(ValueError, match="SCS does not take"):
        SCS(program.structure).solve(program, {"no_such_option": 1})


def test_every_row_has_its_own_status() -> None:
    program, expected = scalar_batch()
    solution = SCS(program.structure).solve(program, {})
    assert solution.status.tolist() == expected
    failed = solution.status != Status.SOLVED
    for rows in (solution.x, solution.z, solution.s):
        assert np.isnan(rows[failed]).all()
        assert np.isfinite(rows[~failed]).all()


def test_limits_are_named_and_early_answers_are_none() -> None:
    program, _ = scalar_batch()
    solver = SCS(program.structure)
    few = solver.solve(program, {"max_iters": 1})
    assert (few.status == Status.MAX_ITERATIONS).all()
    assert np.isnan(few.x).all()
    program = random_program(CONES["mixed"], 6, batch=2)
    late = SCS(program.structure).solve(program, {"time_limit_secs": 1e-9})
    assert (late.status == Status.TIME_LIMIT).all()


def test_almost_solved_keeps_the_point() -> None:
    program = random_program(CONES["soc"], 6, batch=2, rank=6)
    options = {"eps_abs": 0.0, "eps_rel": 0.0, "max_iters": 300}  # no point is that good
    solution = SCS(program.structure).solve(program, options)
    assert (solution.status == Status.ALMOST_SOLVED).all()
    assert kkt_residual(program, 0, solution.x[0], solution.z[0], solution.s[0]) < 1e-6


@pytest.mark.parametrize("array", "PqAb")
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_data_that_are_not_numbers_fail_alone(array: str, value: float) -> None:
    program = random_program(CONES["nonneg"], 6, batch=3, rank=6)
    values = getattr(program, array).copy()
    values[1, 0] = value
    solution = SCS(program.structure).solve(replace(program, **{array: values}), {})
    assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]


def test_a_quadratic_that_is_not_convex_fails_alone() -> None:
    program = random_program(CONES["nonneg"], 6, batch=3, rank=6)
    program.P[1] *= -1
    solution = SCS(program.structure).solve(program, {})
    assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]


def test_an_instance_does_not_depend_on_its_batch() -> None:
    program = random_program(CONES["mixed"], 6, batch=5, rank=3)
    solver = SCS(program.structure)
    together = solver.solve(program, {})
    for i in range(5):
        alone = solver.solve(program.take(np.array([i])), {})
        assert (alone.x[0] == together.x[i]).all()
        assert (alone.z[0] == together.z[i]).all()
        assert (alone.s[0] == together.s[i]).all()


@pytest.mark.parametrize("shared", ["P", "A", "PA"])
def test_a_shared_array_is_its_expansion(shared: str) -> None:
    program = random_program(CONES["mixed"], 6, batch=3, rank=3, shared=shared)
    P, A = (np.repeat(a, 3, axis=0) if len(a) == 1 else a for a in (program.P, program.A))
    expanded = ConeProgram(program.structure, P, program.q, A, program.b, 3)
    solver = SCS(program.structure)
    one, other = solver.solve(program, {}), solver.solve(expanded, {})
    assert (one.x == other.x).all()
    assert (one.z == other.z).all()


def test_the_program_is_not_changed() -> None:
    program = random_program(CONES["mixed"], 6, batch=2, rank=3)
    before = [a.copy() for a in (program.P, program.q, program.A, program.b)]
    SCS(program.structure).solve(program, {})
    after = (program.P, program.q, program.A, program.b)
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_without_constraints() -> None:
    program = random_program(ConeDims(), 3, batch=2, rank=3)
    solution = SCS(program.structure).solve(program, {})
    assert (solution.status == Status.SOLVED).all()
    assert solution.z.shape == (2, 0)
    for i in range(2):
        assert kkt_residual(program, i, solution.x[i], np.empty(0), np.empty(0)) < 1e-7
    program = random_program(ConeDims(), 3, batch=1)
    program.q[:] = 1.0
    assert SCS(program.structure).solve(program, {}).status[0] == Status.DUAL_INFEASIBLE


def test_without_variables_is_refused_by_name() -> None:
    empty = Pattern((0, 0), np.zeros(0, np.int32), np.zeros(1, np.int32))
    rows = Pattern((2, 0), np.zeros(0, np.int32), np.zeros(1, np.int32))
    with pytest.raises(UnsupportedProblemError, match="choose CLARABEL"):
        SCS(ProblemStructure(ConeDims(nonneg=2), empty, rows))


@pytest.mark.parametrize("infinity", [np.inf, 1e20])
def test_an_infinite_bound_binds_nothing(infinity: float) -> None:
    program = program_of([[1.0], [1.0]], ConeDims(nonneg=2), batch=2)
    program.q[:] = -1.0
    program.b[:] = [[1.0, infinity], [3.0, 2.0]]  # the second instance has both bounds
    solution = SCS(program.structure).solve(program, {})
    assert np.allclose(solution.x, [[1], [2]])
    assert np.allclose(solution.z, [[1, 0], [0, 1]])
    assert solution.s[0, 1] == 1e20


def test_interrupt_reaches_python() -> None:
    # No point is exact, so that this would run for long.
    program = random_program(ConeDims(nonneg=200), 100, rank=20)
    options = {"eps_abs": 0.0, "eps_rel": 0.0, "max_iters": 10**8}
    start = time.monotonic()
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        SCS(program.structure).solve(program, options)
    timer.join()
    assert time.monotonic() - start < 20


def test_packaged_version_is_one_that_the_file_speaks_of() -> None:
    assert scs.SOLVED_INACCURATE == 2
    assert scs.SIGINT == -5
