"""What became of one instance of a batch."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Status"]


class Status(IntEnum):
    """Outcome of one solve; `sentence` says it in words and names the likely remedy.

    Only `SOLVED` is a solution. "Almost solved" is a status of its own and is never passed off
    as solved.
    """

    sentence: str

    def __new__(cls, value: int, sentence: str = "") -> Status:
        member = int.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member

    SOLVED = 0, "solved to the tolerance asked for"
    ALMOST_SOLVED = (
        1,
        "solved to a reduced accuracy only; rescale the data, or ask for a looser eps",
    )
    PRIMAL_INFEASIBLE = (
        2,
        (
            "infeasible: no point satisfies the constraints at these values; check them, or soften "
            "the constraints with slack variables"
        ),
    )
    DUAL_INFEASIBLE = (
        3,
        "unbounded: the objective improves without end at these values; bound the variables, or "
        "check the sign of the objective",
    )
    MAX_ITERATIONS = 4, "stopped at the iteration limit; raise max_iters"
    TIME_LIMIT = 5, "stopped at the time limit"
    NUMERICAL_ERROR = (
        6,
        "stopped by numerical trouble; check the scale of the data, or try another solver",
    )
    INSUFFICIENT_PROGRESS = (
        7,
        "stopped because the iterates no longer improved; check that quadratic parameters are "
        "positive semidefinite, rescale the data, or loosen eps",
    )
    INTERRUPTED = 8, "interrupted before it ended"
