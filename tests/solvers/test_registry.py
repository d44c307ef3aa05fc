import subprocess
import sys

import cvxpy as cp
import pytest

from cvxlayers.solvers import SOLVERS, Solver, get_solver


@pytest.mark.parametrize("name", SOLVERS)
def test_every_registered_solver_is_there(name: str) -> None:
    solver = get_solver(name)
    assert issubclass(solver, Solver)
    assert solver.name == name
    assert solver.cones <= {"zero", "nonneg", "soc", "psd", "exp", "pow"}
    assert solver.options


def test_names_are_cvxpys_and_case_does_not_matter() -> None:
    assert {"LANES", cp.CLARABEL, cp.SCS, cp.DIFFCP} == set(SOLVERS)
    assert get_solver("scs") is get_solver(cp.SCS) is get_solver("Scs")


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'GUROBI'.*LANES, CLARABEL, SCS, DIFFCP"):
        get_solver("GUROBI")


@pytest.mark.parametrize("name", [None, 3, cp.SCS.encode()])
def test_a_name_is_a_string(name: object) -> None:
    with pytest.raises(TypeError, match="pass the solver's name as a string"):
        get_solver(name)  # type: ignore[arg-type]


def test_importing_the_solvers_imports_none_of_the_packages_behind_them() -> None:
    code = (
        "import sys, cvxlayers.solvers as s, cvxlayers.solvers.options\n"
        "[s.get_solver(name).options for name in s.SOLVERS]\n"
        "print(sorted({'clarabel', 'scs', 'diffcp', 'cvxpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
