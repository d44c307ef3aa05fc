"""The true second derivatives of a case's loss, from tight solves (``tight.py``) and nothing else.

The loss is that of ``oracle.py``. Along a direction d of all parameters together, its second
derivative q(d) is the limit of (f(h) - 2 f(0) + f(-h)) / h^2 at the steps h, h/2, h/4, ...,
extrapolated to h = 0 as the first derivatives are. Three directions and their pairwise sums give
the second derivative along each pair, by polarisation:

    2 B(a, b) = q(a + b) - q(a) - q(b).

The steps start at 10 % of the parameters and shrink until two extrapolations agree: truncation and
changes of the active set go with h, the solver's error grows with 1 / h^2.

Differenced are the terms c_ij x_ij of the loss and not only their sum. The error is estimated from
all of them: that of a single number comes out too small now and then, by chance. A jump of the
second derivative is invisible to differences that are even in h: they return the mean of the two
sides, consistently. Those that are odd show it, see ``_kink``.

``python -m conformance.curvature`` in tests/ prints the table.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import cvxpy as cp
import numpy as np

from .oracle import extrapolate, sizes, weights
from .problems import CASES, Case
from .tight import TightSolver

Array = np.ndarray

_DIRECTIONS = 3
_FIRST_STEP = 0.1
_RATIO = 2.0
# Down to 3e-6. Most cases stop at 1e-2. qp_badly_scaled needs 1e-5: its small entries move by the
# size of the large ones, and from steps of 1e-3 alone its curvature looks a hundred times smaller.
_LEVELS = 16
_ENOUGH = 1e-9  # relative error estimate at which no smaller step is tried
_SEED = 11
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Curvature:
    """First and second derivatives of the loss along directions of all parameters together.

    Parameters
    ----------
    directions
        For each direction one array per parameter, in the parameter's shape. Scaled by the
        entries' own sizes: a step of 1e-2 changes an entry by at most about 1 %. Symmetric for
        symmetric, PSD and NSD parameters, zero off the pattern of diagonal and sparse ones. Steps
        of up to 0.1 along a direction, or along the sum of two, leave every parameter's attributes
        satisfied, definiteness up to the largest step that does.
    first
        Of shape ``(k,)``: the derivative along each direction.
    second
        Of shape ``(k, k)``, symmetric: the second derivative along each pair.
    error
        Estimated error of the worst entry of ``second``, relative to ``scale``.
    kink
        Largest jump of the second derivative along a line through the parameters' values,
        relative to ``scale``. About zero where the solution is twice differentiable.
    seconds
        Time the oracle took for this case.
    """

    directions: list[list[Array]]
    first: Array
    second: Array
    error: float
    kink: float
    seconds: float

    @property
    def scale(self) -> float:
        """What errors are relative to."""
        return _scale(self.first, self.second)


@dataclass(frozen=True)
class _Line:
    """Derivatives of the loss at h = 0 along one line, errors and jumps as in ``_total``."""

    first: float
    second: float
    error: float
    kink: float


@cache
def curvature(case: Case) -> Curvature:
    """Return the true second derivatives of the case's loss, computed once per process."""
    start = time.perf_counter()
    values, cs, solve = case.values(), weights(case), TightSolver(case).solve
    _, parameters, _ = case.build()
    rng = np.random.default_rng(_SEED)
    directions = [
        [direction(rng, p, v) for p, v in zip(parameters, values, strict=True)]
        for _ in range(_DIRECTIONS)
    ]
    pairs = list(combinations(range(_DIRECTIONS), 2))
    moves = directions + [
        [a + b for a, b in zip(directions[i], directions[j], strict=True)] for i, j in pairs
    ]
    first_step = _first_step(parameters, values, moves)

    def terms(move: list[Array], h: float) -> Array:
        moved = [v + h * d for v, d in zip(values, move, strict=True)]
        try:
            found = solve(moved)
        except RuntimeError:  # no solution that far away: NaN is never the best of a tableau
            found = [np.full(c.shape, np.nan) for c in cs]
        return np.concatenate([(c * x).ravel() for c, x in zip(cs, found, strict=True)])

    center = terms(directions[0], 0.0)
    lines = []
    for move in moves:
        sides: dict[float, tuple[Array, Array]] = {}

        def seconds(h: float, move: list[Array] = move, sides: dict = sides) -> Array:
            sides[h] = terms(move, h), terms(move, -h)
            return (sides[h][0] - 2 * center + sides[h][1]) / h**2

        second, error = extrapolate(
            seconds, first_step=first_step, ratio=_RATIO, levels=_LEVELS, enough=_ENOUGH
        )
        odd = {h: (plus - minus) / (2 * h) for h, (plus, minus) in sides.items()}
        first, _ = extrapolate(
            odd.__getitem__, first_step=first_step, ratio=_RATIO, levels=len(odd), enough=0.0
        )
        kink = _kink(list(odd), list(odd.values()))
        lines.append(_Line(first.sum(), second.sum(), _total(error), kink))

    first = np.array([line.first for line in lines[:_DIRECTIONS]])
    second = np.diag([line.second for line in lines[:_DIRECTIONS]])
    errors = np.diag([line.error for line in lines[:_DIRECTIONS]])
    for (i, j), line in zip(pairs, lines[_DIRECTIONS:], strict=True):
        second[i, j] = second[j, i] = (line.second - second[i, i] - second[j, j]) / 2
        errors[i, j] = errors[j, i] = (line.error + errors[i, i] + errors[j, j]) / 2
    scale = _scale(first, second)
    return Curvature(
        directions,
        first,
        second,
        error=float(errors.max()) / scale,
        kink=max(line.kink for line in lines) / scale,
        seconds=time.perf_counter() - start,
    )


def relative_error(found_second: Array, truth: Curvature) -> float:
    """Return how far second derivatives are from the true ones, relative to ``truth.scale``.

    Parameters
    ----------
    found_second
        The second derivative along each pair of ``truth.directions``.
    truth
        What ``curvature`` returned.
    """
    if np.shape(found_second) != truth.second.shape:
        raise ValueError(f"shape {np.shape(found_second)}, not {truth.second.shape}")
    return float(np.abs(np.asarray(found_second, float) - truth.second).max()) / truth.scale


def direction(rng: np.random.Generator, parameter: cp.Parameter, value: Array) -> Array:
    """Draw a direction that respects the parameter's attributes (definiteness for small steps)."""
    lower, upper = parameter.get_bounds()
    # An entry on its bound does not move: the loss would not be defined on both sides.
    room = np.minimum(value - lower, upper - value)
    drawn = rng.uniform(-1, 1, value.shape) * np.minimum(sizes(value), room)
    if parameter.is_symmetric() and value.ndim == 2:
        drawn = (drawn + drawn.T) / 2
    if parameter.attributes["diag"]:
        drawn = np.diag(np.diag(drawn))
    if parameter.attributes["sparsity"]:
        pattern = np.zeros(value.shape, bool)
        pattern[tuple(parameter.sparse_idx)] = True
        drawn = np.where(pattern, drawn, 0.0)
    return drawn


def _first_step(
    parameters: Sequence[cp.Parameter], values: list[Array], moves: list[list[Array]]
) -> float:
    """Return the largest step that keeps definite parameters definite along all lines."""

    def definite(parameter: cp.Parameter, value: Array) -> bool:
        sign = 1 if parameter.attributes["PSD"] else -1
        return bool(np.linalg.eigvalsh(sign * value).min() > 0)

    step = _FIRST_STEP
    checked = [i for i, p in enumerate(parameters) if p.attributes["PSD"] or p.attributes["NSD"]]
    while not all(
        definite(parameters[i], values[i] + side * move[i])
        for i in checked
        for move in moves
        for side in (step, -step)
    ):
        step /= _RATIO
    return step


def _scale(first: Array, second: Array) -> float:
    """Return what errors of second derivatives are relative to.

    That is the largest second derivative, or, where that is negligible, the largest first one: a
    unit step along a direction changes the parameters by all their size, which makes the two
    comparable. The solution may well be linear in the parameters.
    """
    largest_first, largest = float(np.abs(first).max()), float(np.abs(second).max())
    return largest if largest > _NEGLIGIBLE * largest_first else largest_first


def _total(errors: Array) -> float:
    """Return the size of the sum of terms with these errors, as if of random signs."""
    return float(np.linalg.norm(errors))


def _kink(steps: list[float], firsts: list[Array]) -> float:
    """Return the jump of the second derivative at h = 0.

    D(h) = (f(h) - f(-h)) / 2h is even in h for a smooth f, and a jump of f'' adds a quarter of it
    times |h|. A few steps in a row determine the coefficients of 1, |h|, h^2, h^4, ... A jump at
    h = 0 is in all of them; the least one is the least affected by a change of the active set
    farther out, by truncation and by the solver's error.
    """
    jumps = [np.inf]
    for count in (3, 4, 5):
        powers = [0, 1, *range(2, 2 * count - 3, 2)]
        for k in range(len(steps) - count + 1):
            vandermonde = np.array(steps[k : k + count])[:, None] ** powers
            jump = 4 * np.linalg.solve(vandermonde, np.array(firsts[k : k + count]))[1]
            jumps.append(_total(jump))
    return float(np.nanmin(jumps))


def main() -> None:
    """Print one line for each case, as Markdown."""
    print("| case | seconds | error | kink | largest first | largest second |")
    print("|---|---:|---:|---:|---:|---:|")
    total = 0.0
    for case in CASES:
        truth = curvature(case)
        print(
            f"| {case.name} | {truth.seconds:.2f} | {truth.error:.0e} | {truth.kink:.0e} "
            f"| {np.abs(truth.first).max():.1e} | {np.abs(truth.second).max():.1e} |"
        )
        total += truth.seconds
    print(f"\n{len(CASES)} cases, {total:.1f} s")


if __name__ == "__main__":
    main()
