"""A bracketed Newton iteration on many scalar equations at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cvxlayers.cones.base import EPS, Array, within

__all__ = ["CLOSE", "find_root"]

# One more Newton step from this close is at rounding level.
CLOSE = 1e-10
# Bisection alone narrows the widest bracket in use (2200) to rounding in 64 steps; a Newton step
# is taken at most every other time without halving either the bracket or the step.
MAX_ITERATIONS = 130


def find_root(
    xp: Any,
    evaluate: Callable[[Array], tuple[Array, tuple[Array, ...], Array]],
    lower: Array,
    upper: Array,
    start: Array,
) -> Array:
    """Approximate root of a function that is negative left of it and positive right of it.

    Dekker's safeguard, as in `rtsafe` (Press et al., Numerical Recipes, §9.4): a Newton step is
    taken if it stays inside the bracket and at least halves the step before; else bisect.

    Parameters
    ----------
    xp : namespace
        Array namespace of the arrays.
    evaluate : callable
        x ↦ (f, steps, converged): the value, whose sign moves the bracket; proposed steps, the
        preferred first; and where one more Newton step is enough.
    lower, upper, start : array
        Bracket and first guess, of one shape; the guess may be anything, even NaN.
    """
    x = xp.where((start >= lower) & (start <= upper), start, 0.5 * (lower + upper))
    first, last, last_step = lower, upper, upper - lower
    for _ in range(MAX_ITERATIONS):
        f, steps, converged = evaluate(x)
        lower = xp.where(f < 0.0, x, lower)
        upper = xp.where(f > 0.0, x, upper)
        tight = upper - lower <= EPS * (1.0 + xp.abs(x))
        # Not f = 0, so that NaN ends too.
        done = converged | tight | ~((f < 0.0) | (f > 0.0))
        if bool(xp.all(done)):
            break
        following = 0.5 * (lower + upper)
        for step in reversed(steps):
            proposal = within(xp, x + step, first, last)
            fits = (proposal >= lower) & (proposal <= upper) & (proposal != x)
            shorter = xp.abs(proposal - x) <= 0.5 * last_step
            # Some roots lie within rounding of an end: look there, which happens once at most.
            fits = fits & (shorter | (proposal == first) | (proposal == last))
            following = xp.where(fits, proposal, following)
        following = xp.where(done, x, following)
        last_step = xp.abs(following - x)
        x = following
    return x
