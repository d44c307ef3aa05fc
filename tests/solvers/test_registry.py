import subprocess
import sys

import cvxpy as cp
import pytest

import cvxlayers.numpy
from cvxlayers.solvers import SOLVERS, Solver, get_solver
from cvxlayers.solvers.retries import CHAIN


@pytest.mark.parametrize("name", SOLVERS)
def test_every_registered_solver_is_there(name: str) -> None:
    solver = get_solver(name)
    assert issubclass(solver, Solver)
    assert solver.name == name
    assert solver.cones <= {"zero", "nonneg", "soc", "psd", "exp", "pow"}
    assert solver.options


def test_names_are_cvxpys_and_case_does_not_matter() -> None:
    assert {"LANES", "DENSE", cp.CLARABEL, cp.SCS, cp.DIFFCP, cp.MOREAU, cp.CUCLARABEL} == set(
        SOLVERS
    )
    assert get_solver("scs") is get_solver(cp.SCS) is get_solver("Scs")


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(
        ValueError, match=r"'GUROBI'.*LANES, CLARABEL, SCS, DIFFCP, DENSE, MOREAU, CUCLARABEL"
    ):
        get_solver("GUROBI")


@pytest.mark.parametrize("name", [None, 3, cp.SCS.encode()])
def test_a_name_is_a_string(name: object) -> None:
    with pytest.raises(TypeError, match="pass the solver's name as a string"):
        get_solver(name)  # type: ignore[arg-type]


def test_importing_the_solvers_imports_none_of_the_packages_behind_them() -> None:
    code = (
        "import sys, cvxlayers.solvers as s, cvxlayers.solvers.options\n"
        "[s.get_solver(name).options for name in s.SOLVERS]\n"
        "of = {'clarabel', 'scs', 'diffcp', 'moreau', 'juliacall', 'cupy', 'cvxpy', 'torch'}\n"
        "print(sorted(of & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_solver_has_a_chain() -> None:
    assert set(CHAIN) == set(SOLVERS)


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [
        ("MOREAU", "moreau", "pip install 'moreau>=0.4.1'"),
        ("CUCLARABEL", "juliacall", "pip install juliacall==0.9.31 cupy-cuda12x"),
        ("CUCLARABEL", "cupy", "pip install juliacall==0.9.31 cupy-cuda12x"),
    ],
)
def test_a_package_that_is_not_installed(
    name: str, package: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is missed when the layer is made."""
    monkeypatch.setitem(sys.modules, package, None)
    x = cp.Variable(nonneg=True)
    problem = cp.Problem(cp.Minimize(x), [x >= 1])
    with pytest.raises(ImportError) as error:
        cvxlayers.numpy.CvxpyLayer(problem, parameters=[], variables=[x], solver=name)
    assert str(error.value).startswith(f"solver='{name}': ")
    assert command in str(error.value)
