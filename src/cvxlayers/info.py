"""What became of every instance of a call."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from cvxlayers.status import Status

__all__ = ["FIELDS", "Info"]


@dataclass(frozen=True, eq=False)
class Info:
    """What became of every instance of a call.

    The arrays are NumPy's, of the shape of the batch.

    Attributes
    ----------
    status : array of int
        Values of `cvxlayers.Status`.
    iterations : array of int
        Of the solver that gave the answer.
    attempt : array of int
        Which entry of the chain of second tries gave the answer; 0 is the solver itself, and after
        LANES 1 is Clarabel with the same options.
    solve_time : array of float
        Seconds that the solver was at work on the instance, second tries included.
    primal_residual, dual_residual : array of float
        By how much the answer misses ``A x + s = b`` and ``P x + q + Aᵀz = 0``, relative to their
        terms.
    gap : array of float
        The difference of the primal and the dual objective, relative to them.
    degenerate : array of bool
        Whether the derivative is one of several: the system for it is singular, and its solution of
        smallest norm is taken (redundant constraints, many optima); or a constraint holds with
        equality and its dual is zero, and the derivative of one side is taken. False where no
        derivative was asked for.
    adjoint_residual : array of float
        By how much the linear system of the last derivative is missed, relative to its right-hand
        side. NaN until a derivative is taken; it is entered here then.
    times : dict of str to float
        Seconds that the whole batch took: to compute the data from the ``parameters``, in the
        ``solver``, to ``polish`` and to prepare the derivative; and, once it is taken, in the
        ``derivative``.
    """

    status: Any
    iterations: Any
    attempt: Any
    solve_time: Any
    primal_residual: Any
    dual_residual: Any
    gap: Any
    degenerate: Any
    adjoint_residual: Any
    times: dict[str, float] = field(default_factory=dict)

    @property
    def solved(self) -> Any:
        """Which instances are solved: an array of bool."""
        return self.status == int(Status.SOLVED)

    def summary(self) -> dict[str, int]:
        """How many instances have each status, by its name."""
        counts = Counter(np.asarray(self.status).ravel().tolist())
        return {Status(value).name: count for value, count in sorted(counts.items())}

    def __str__(self) -> str:
        columns = {name: np.asarray(getattr(self, name)) for name in FIELDS}
        shape = columns["status"].shape
        shown = list(np.ndindex(shape))[:ROWS]
        rows = [["instance", *columns]]
        for index in shown:
            rows.append(
                [
                    ", ".join(map(str, index)) or "-",
                    Status(int(columns["status"][index])).name,
                    *(_text(column[index]) for column in list(columns.values())[1:]),
                ]
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) if k < 2 else cell.rjust(w)
                for k, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        hidden = columns["status"].size - len(shown)
        if hidden:
            lines.append(f"… and {hidden} more")
        counts = ", ".join(f"{count} {name}" for name, count in self.summary().items())
        if self.times:
            lines.append(", ".join(f"{name} {s:.2g} s" for name, s in self.times.items()))
        return "\n".join([*lines, counts or "no instances"])


FIELDS = tuple(f.name for f in fields(Info) if f.name != "times")
# Rows that a table shows.
ROWS = 20


def _text(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{value:d}" if isinstance(value, int | np.integer) else f"{value:.1e}"
