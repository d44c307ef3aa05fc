"""The solvers, one file each, found by name and imported when asked for.

Importing this package, or the files in it, imports none of the packages behind them.
"""

from __future__ import annotations

from importlib import import_module

from cvxlayers.solvers.base import Solver

__all__ = ["DEFAULTS", "SOLVERS", "Solver", "get_solver"]

#: The name of every solver, CVXPY's own but for the library's, LANES and DENSE, and where its class
#: is: ``module:Class``.
SOLVERS: dict[str, str] = {
    "LANES": "cvxlayers.solvers.lanes:Lanes",
    "CLARABEL": "cvxlayers.solvers.clarabel:Clarabel",
    "SCS": "cvxlayers.solvers.scs:SCS",
    "DIFFCP": "cvxlayers.solvers.diffcp:Diffcp",
    "DENSE": "cvxlayers.solvers.dense:Dense",
    "MOREAU": "cvxlayers.solvers.moreau:Moreau",
    "CUCLARABEL": "cvxlayers.solvers.cuclarabel:CuClarabel",
}

#: Which of them are used where none was named: the first that takes the problem.
DEFAULTS = ("LANES", "CLARABEL")


def get_solver(name: str) -> type[Solver]:
    """The class of the solver that has this name.

    Parameters
    ----------
    name : str
        A key of `SOLVERS` in any case, such as ``"SCS"`` or ``cvxpy.SCS``.

    Raises
    ------
    TypeError
        The name is not a string.
    ValueError
        There is no such solver.
    """
    if not isinstance(name, str):
        message = (
            f"solver: expected a name such as 'CLARABEL' or cvxpy.SCS, got {name!r} of type "
            f"{type(name).__name__}; pass the solver's name as a string"
        )
        raise TypeError(message)
    address = SOLVERS.get(name.upper())
    if address is None:
        message = f"solver: there is no solver {name!r}; choose one of {', '.join(SOLVERS)}"
        raise ValueError(message)
    module, _, attribute = address.partition(":")
    solver: type[Solver] = getattr(import_module(module), attribute)
    return solver
