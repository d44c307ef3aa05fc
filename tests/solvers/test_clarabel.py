import time

import clarabel
import numpy as np
import pytest

from cvxlayers.program import ConeDims, ConeProgram, Pattern, ProblemStructure
from cvxlayers.solvers.clarabel import Clarabel
from cvxlayers.status import Status

from .random_programs import CONES, kkt_residual, random_program
from .toys import scalar_batch

RANKS = (0, 3, 6)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("cone", CONES)
def test_optimality_conditions(cone: str, rank: int) -> None:
    program = random_program(CONES[cone], 6, batch=4, rank=6 if cone == "zero" else rank, seed=1)
    solution = Clarabel(program.structure).solve(program, {})
    assert (solution.status == Status.SOLVED).all()
    for i in range(4):
        residual = kkt_residual(program, i, solution.x[i], solution.z[i], solution.s[i])
        assert residual < 1e-6


def test_options_are_those_of_the_package() -> None:
    settings = {name for name in dir(clarabel.DefaultSettings()) if not name.startswith("_")}
    # The rest is ours: `verbose` and the deadline are arguments of `solve`, and `default` is a
    # constructor.
    ours = ("verbose", "time_limit")
    rest = {name for name in settings if name in ours or name.startswith("default")}
    assert settings - rest == Clarabel.options


def test_a_wrong_value_names_its_option() -> None:
    program = random_program(CONES["nonneg"], 6)
    with pytest.raises(ValueError, match=r"'max_iter'.*'many'"):
        Clarabel(program.structure).solve(program, {"max_iter": "many"})


def test_every_row_has_its_own_status() -> None:
    program, expected = scalar_batch()
    solution = Clarabel(program.structure).solve(program, {})
    assert solution.status.tolist() == expected
    failed = solution.status != Status.SOLVED
    for rows in (solution.x, solution.z, solution.s):
        assert np.isnan(rows[failed]).all()
        assert np.isfinite(rows[~failed]).all()


def test_limits() -> None:
    program = random_program(CONES["mixed"], 6, batch=2)
    solver = Clarabel(program.structure)
    few = solver.solve(program, {"max_iter": 2})
    assert (few.status == Status.MAX_ITERATIONS).all()
    assert (few.iterations == 2).all()
    assert np.isnan(few.x).all()
    late = solver.solve(program, {}, deadline=time.monotonic())
    assert (late.status == Status.TIME_LIMIT).all()


def test_an_instance_does_not_depend_on_its_batch() -> None:
    program = random_program(CONES["mixed"], 6, batch=5, rank=3)
    solver = Clarabel(program.structure)
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
    solver = Clarabel(program.structure)
    one, other = solver.solve(program, {}), solver.solve(expanded, {})
    assert (one.x == other.x).all()
    assert (one.z == other.z).all()


def test_without_constraints() -> None:
    program = random_program(ConeDims(), 3, batch=2, rank=3)
    solution = Clarabel(program.structure).solve(program, {})
    assert (solution.status == Status.SOLVED).all()
    assert (
        max(kkt_residual(program, i, solution.x[i], np.empty(0), np.empty(0)) for i in (0, 1))
        < 1e-8
    )


@pytest.mark.parametrize(
    ("bound", "status"),
    [
        (1e20, Status.SOLVED),
        # Clarabel would take a NaN for an infinite bound.
        (np.nan, Status.NUMERICAL_ERROR),
        (np.inf, Status.NUMERICAL_ERROR),
    ],
)
def test_data_that_overflowed_is_not_solved(bound: float, status: Status) -> None:
    # minimize -x subject to x <= 1, x <= bound
    empty, column = Pattern((1, 1), *_csc([], [0, 0])), Pattern((2, 1), *_csc([0, 1], [0, 2]))
    structure = ProblemStructure(ConeDims(nonneg=2), empty, column)
    b = np.array([[1.0, bound], [1.0, 2.0]])
    program = ConeProgram(structure, np.zeros((1, 0)), -np.ones((1, 1)), np.ones((1, 2)), b, 2)
    solution = Clarabel(structure).solve(program, {})
    assert list(solution.status) == [status, Status.SOLVED]
    assert np.allclose(solution.x[1], 1)
    if status == Status.SOLVED:
        assert np.allclose(solution.x[0], 1)
        assert np.allclose(solution.z[0], [1, 0])


def _csc(indices: list[int], indptr: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(indices, dtype=np.int32), np.array(indptr, dtype=np.int32)
