"""A second try for the instances that a solver did not bring to its tolerance.

What is tried, and in which order, is declared in `CHAIN`. An instance whose answer comes from here
counts as almost solved until its optimality conditions have been checked. The solvers of a chain
are the host's: the data of the instances that need another try are copied there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.arrays import fetched, largest, put, sent
from cvxlayers.program import ConeProgram, ConeSolution
from cvxlayers.solvers import get_solver
from cvxlayers.status import Status

__all__ = ["CHAIN", "Retry", "retry", "take_over"]


@dataclass(frozen=True)
class Retry:
    """One try: a solver, by CVXPY's name, and its options."""

    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Whether it is asked as if it had been chosen: with the same options, and its word counts.
    takes_over: bool = False


_AFTER_CLARABEL = (
    # Ill-conditioned systems: more regularisation, more careful steps and scaling.
    Retry(
        "CLARABEL",
        {
            "static_regularization_constant": 1e-7,
            "iterative_refinement_max_iter": 50,
            "equilibrate_max_iter": 50,
            "max_step_fraction": 0.9,
            "max_iter": 500,
        },
    ),
    # It also tells infeasible and unbounded problems that Clarabel gets lost in, such as one in
    # four of min cᵀx with a single equality.
    Retry("SCS", {"eps_abs": 1e-9, "eps_rel": 1e-9, "eps_infeas": 1e-10, "max_iters": 50_000}),
)
#: What is tried after each solver. DIFFCP brings a derivative of its own for its own answers.
CHAIN: dict[str, tuple[Retry, ...]] = {
    "LANES": (Retry("CLARABEL", takes_over=True), *_AFTER_CLARABEL),
    "DENSE": (Retry("CLARABEL", takes_over=True), *_AFTER_CLARABEL),
    "CLARABEL": _AFTER_CLARABEL,
    "SCS": (Retry("CLARABEL"),),
    "DIFFCP": (),
    "MOREAU": (Retry("CLARABEL"),),
    "CUCLARABEL": (Retry("CLARABEL"),),
}

_WORTH = [
    int(s) for s in (Status.ALMOST_SOLVED, Status.NUMERICAL_ERROR, Status.INSUFFICIENT_PROGRESS)
]
_VERDICTS = [int(Status.PRIMAL_INFEASIBLE), int(Status.DUAL_INFEASIBLE)]
# Up to this size of all numbers of an instance another solver's verdict is taken.
MODERATE = 1e3
_LIMIT = int(Status.MAX_ITERATIONS)
_SOLVED, _ALMOST = int(Status.SOLVED), int(Status.ALMOST_SOLVED)
# An iteration limit that the caller chose is meant.
_LIMITS = ("max_iter", "max_iters")


def take_over(
    solver: str,
    program: ConeProgram,
    solution: ConeSolution,
    options: Mapping[str, Any],
    deadline: float | None = None,
) -> None:
    """Give the instances to another solver that the chosen one ended at without an answer, where
    its chain begins with one that takes over. Arguments as in `retry`."""
    if (solution.status == _SOLVED).all():
        return
    chain = CHAIN[solver]
    rows = np.flatnonzero(_worth_trying(program, solution, options))
    if not len(rows) or not chain or not chain[0].takes_over:
        return
    kind = get_solver(chain[0].solver)
    part = program.take(rows).on_host()
    found = kind(program.structure).solve(part, options, deadline=deadline)
    solution.seconds[rows] += found.seconds
    # An almost solved point is better than none.
    kept = (solution.status[rows] == _ALMOST) & ~np.isin(found.status, [_SOLVED, _ALMOST])
    _enter(solution, rows[~kept], found, ~kept, ("x", "z", "s", "status", "iterations"))
    solution.attempt[rows[~kept]] = 1


def retry(
    solver: str,
    program: ConeProgram,
    solution: ConeSolution,
    options: Mapping[str, Any],
    deadline: float | None = None,
) -> None:
    """Try the instances again that are not solved, not proven infeasible and not out of time.

    Parameters
    ----------
    solver : str
        Which gave the solution.
    program : ConeProgram
    solution : ConeSolution
        What a try finds is put into it, as almost solved, with the number of the try.
    options : mapping
        Those that the solver was given.
    deadline : float, optional
        A value of `time.monotonic` at which to stop.
    """
    if (solution.status == _SOLVED).all():
        return
    failed = _worth_trying(program, solution, options)
    if not failed.any():
        return
    kinds = program.structure.dims.kinds
    moderate = np.ones(program.batch, dtype=bool)
    for values in (program.P, program.q, program.A, program.b):
        moderate &= fetched(largest(values) <= MODERATE)
    for number, step in enumerate(CHAIN[solver], 1):
        # What another solver has taken over has been tried.
        rows = np.flatnonzero(failed & ~(step.takes_over & (solution.attempt == number)))
        kind = get_solver(step.solver)
        if not len(rows) or kinds - kind.cones:
            continue
        part = program.take(rows).on_host()
        found = kind(program.structure).solve(part, step.options, deadline=deadline)
        solution.seconds[rows] += found.seconds
        solved = found.status == _SOLVED
        better = rows[solved]
        _enter(solution, better, found, solved, ("x", "z", "s", "iterations"))
        solution.status[better] = _ALMOST
        solution.attempt[better] = number
        # A certificate of infeasibility is one relative to the size of the data.
        told = np.isin(found.status, _VERDICTS) & moderate[rows]
        solution.status[rows[told]] = found.status[told]
        solution.attempt[rows[told]] = number
        failed[rows[solved | told]] = False


def _enter(
    solution: ConeSolution,
    rows: NDArray[np.intp],
    found: ConeSolution,
    chosen: NDArray[np.bool_],
    names: tuple[str, ...],
) -> None:
    """Put what was found for the instances `chosen`, on the host, in the place of `rows`."""
    for name in names:
        values = getattr(solution, name)
        put(values, rows, sent(getattr(found, name)[chosen], values))


def _worth_trying(
    program: ConeProgram, solution: ConeSolution, options: Mapping[str, Any]
) -> NDArray[np.bool_]:
    """Shape (B,): which instances another try may help."""
    worth = _WORTH if any(name in options for name in _LIMITS) else [*_WORTH, _LIMIT]
    failed = np.isin(solution.status, worth)
    if not failed.any():
        return failed
    failed &= program.is_finite()
    for name in _LIMITS:
        # Clarabel calls almost solved what it was stopped at, too.
        if name in options:
            failed &= solution.iterations < options[name]
    return failed
