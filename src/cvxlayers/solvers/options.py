"""Solver options: those that every solver understands, and each solver's own.

`eps`, `max_iters`, `time_limit`, `polish` and `verbose` mean the same for every solver. All other
names are the solver's own. Options come in layers (the constructor's, then the call's), and a
later layer wins over an earlier one; within a layer the more specific name wins over `eps` and
`max_iters`.
"""

from __future__ import annotations

import difflib
import math
import numbers
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cvxlayers.solvers import SOLVERS, get_solver
from cvxlayers.solvers.base import MOST_ITERATIONS, Solver
from cvxlayers.warning import warn

__all__ = ["COMMON_OPTIONS", "Options", "knows_options", "resolve_options"]

# Names of tolerances, and the value from which on a solution is expected to be inaccurate.
_TOLERANCES = frozenset(
    {"tol_gap_abs", "tol_gap_rel", "tol_feas", "eps_abs", "eps_rel", "abstol", "reltol", "feastol"}
)
LOOSE = 1e-7
#: The options that every solver understands.
COMMON_OPTIONS = ("eps", "max_iters", "time_limit", "polish", "verbose")


@dataclass(frozen=True)
class Options:
    """Options of one call.

    Attributes
    ----------
    kind : type of Solver
        The solver that they are for.
    solver : dict
        Options under the solver's own names, for `Solver.solve`. A fresh dict.
    polish : bool or None
        Whether Newton steps polish the solution before it is differentiated; None where nothing
        was said.
    verbose : bool or None
        Whether the solver prints its progress; None where nothing was said.
    time_limit : float or None
        Seconds that the solver may take for all instances together.
    """

    kind: type[Solver]
    solver: dict[str, Any]
    polish: bool | None = None
    verbose: bool | None = None
    time_limit: float | None = None

    @property
    def is_loose(self) -> bool:
        """Whether a tolerance was chosen that is far from those by default."""
        return any(
            isinstance(value, int | float) and value > LOOSE
            for name, value in self.solver.items()
            if name in _TOLERANCES
        )

    def deadline(self) -> float | None:
        """When a solve that begins now has to end, on the clock of `time.monotonic`."""
        return None if self.time_limit is None else time.monotonic() + self.time_limit


def resolve_options(solver: type[Solver], *layers: Mapping[str, Any] | None) -> Options:
    """Merge layers of options, later over earlier, into one solver's own names.

    Parameters
    ----------
    solver : type of Solver
    *layers : mapping or None
        Options by name. None of them is changed. An option whose value is None counts as not
        given if it is one of `COMMON_OPTIONS`.

    Raises
    ------
    TypeError
        A layer is not a mapping, or an option's name is not a string.
    ValueError
        No solver has an option of that name, or a common option has an impossible value.

    Warns
    -----
    UserWarning
        Some options belong to other solvers. They are dropped, so that code which names one
        solver's options keeps running with another.
    """
    merged: dict[str, Any] = {}
    flags: dict[str, Any] = {}
    foreign: dict[str, list[str]] = {}
    for layer in layers:
        if layer is None:
            continue
        if not isinstance(layer, Mapping):
            message = (
                f"solver_args: expected a dict of options, got {layer!r} of type "
                f"{type(layer).__name__}; write it as solver_args={{'eps': 1e-8}}"
            )
            raise TypeError(message)
        native: dict[str, Any] = {}
        common: dict[str, Any] = {"eps": None, "max_iters": None}
        for name, value in layer.items():
            if name in COMMON_OPTIONS:
                if value is None:
                    continue
                (common if name in common else flags)[name] = _checked(name, value)
            elif name in solver.options:
                native[name] = value
            elif owners := _owners(name):
                foreign[name] = owners
            else:
                raise _unknown(solver, name)
        merged |= solver.common_options(**common)
        merged |= native
    if foreign:
        warn(_foreign_message(solver, foreign), UserWarning)
    return Options(
        solver, merged, flags.get("polish"), flags.get("verbose"), flags.get("time_limit")
    )


def knows_options(solver: type[Solver], *layers: Mapping[str, Any] | None) -> bool:
    """Whether a solver has all the options that some solver has."""
    named = {name for layer in layers if isinstance(layer, Mapping) for name in layer}
    others = named - solver.options - set(COMMON_OPTIONS)
    return not any(isinstance(name, str) and _owners(name) for name in others)


def _checked(name: str, value: Any) -> Any:
    """The value of a common option, or a ValueError that says what was expected."""
    if name in ("eps", "time_limit"):
        # bool is a Real and an Integral in Python, and never what was meant here.
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number) and number > 0:
                return number
        example = "1e-8" if name == "eps" else "0.5 (seconds, for all instances together)"
        expected = f"a positive finite number, such as {example}"
    elif name == "max_iters":
        if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) > 0:
            return min(int(value), MOST_ITERATIONS)
        expected = "a positive integer, such as 1000"
    else:
        if isinstance(value, bool):
            return value
        expected = "True or False"
    message = f"solver_args[{name!r}]: expected {expected}, got {value!r}"
    raise ValueError(message)


def _owners(option: str) -> list[str]:
    """Names of the registered solvers that have this option."""
    return [name for name in SOLVERS if option in get_solver(name).options]


def _foreign_message(solver: type[Solver], foreign: Mapping[str, list[str]]) -> str:
    listed = ", ".join(f"{name!r} (of {' and '.join(foreign[name])})" for name in foreign)
    every = sorted({owner for owners in foreign.values() for owner in owners})
    choice = " or ".join(f"solver={owner!r}" for owner in every)
    return (
        f"solver_args: {solver.name} has no option {listed}; ignored. Leave out what {solver.name} "
        f"does not have, or choose {choice}"
    )


def _unknown(solver: type[Solver], name: object) -> Exception:
    if not isinstance(name, str):
        return TypeError(f"solver_args: the name of an option is a string, got {name!r}")
    known = sorted({*COMMON_OPTIONS, *solver.options})
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ValueError(
        f"solver_args: no solver has an option {name!r}.{hint} {solver.name} has: "
        f"{', '.join(known)}"
    )
