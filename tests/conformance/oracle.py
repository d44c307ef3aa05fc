"""The true gradient of a case, from tight solves (``tight.py``) and nothing else.

The loss is ``sum_i <c_i, variable_i>`` with fixed random weights ``c_i``. Along a direction of one
parameter it is differentiated by central differences D(h) = (f(h) - f(-h)) / 2h at the steps
h, h/3, h/9, ..., extrapolated to h = 0 by Richardson's tableau

    T[k, 0] = D(h / 3^k),    T[k, j] = T[k, j-1] + (T[k, j-1] - T[k-1, j-1]) / (9^j - 1).

The difference between the last two columns, and between the last two rows, is the error estimate
(Ridders 1982; Numerical Recipes 5.7). Steps shrink until it is small: truncation falls with h,
the solver's error over h grows.

A kink is invisible to central differences of a piecewise linear solution: they return the mean of
the two sides, consistently. The second difference shows it, see ``_kink``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import cvxpy as cp
import numpy as np

from .problems import Case
from .tight import TightSolver

Array = np.ndarray

_FIRST_STEP = 1e-2
_RATIO = 3.0
_LEVELS = 10
_ENOUGH = 1e-8  # relative error estimate at which no smaller step is tried
_ALL_ENTRIES = 12
_DIRECTIONS = 8


@dataclass(frozen=True)
class DirectionalDerivatives:
    """Derivatives of the loss along directions of each parameter.

    Lists have one item per parameter, with ``k`` directions each.

    Parameters
    ----------
    directions
        Arrays of shape ``(k, *parameter.shape)``. Scaled by the entries' own sizes, so that the
        parameters' derivatives are comparable. Symmetric for symmetric and PSD parameters.
    derivatives
        Arrays of shape ``(k,)``.
    errors
        Error estimates of ``derivatives``, of the same shapes.
    kinks
        For each parameter, the jump of the one-sided derivatives, relative as in
        ``relative_error``. About zero where the solution is differentiable.
    seconds
        Time the oracle took for this case.
    """

    directions: list[Array]
    derivatives: list[Array]
    errors: list[Array]
    kinks: list[float]
    seconds: float

    @property
    def relative_error(self) -> float:
        """The estimated relative error, the worst over the parameters."""
        return _worst(self.errors, self.derivatives)


def weights(case: Case) -> list[Array]:
    """Return the loss's weights ``c_i``, one array in the shape of each of the case's variables."""
    _, _, variables = case.build()
    rng = np.random.default_rng(7)
    return [rng.standard_normal(variable.shape) for variable in variables]


@cache
def solution(case: Case) -> list[Array]:
    """Return the tightly solved values of the case's variables. Treat them as read-only."""
    return TightSolver(case).solve(case.values())


@cache
def gradient(case: Case) -> DirectionalDerivatives:
    """Return the true directional derivatives of the case's loss, computed once per process.

    Every entry is a direction of its own for parameters of at most 12 entries; larger ones get 8
    dense random directions.
    """
    start = time.perf_counter()
    values, cs, solve = case.values(), weights(case), TightSolver(case).solve
    _, parameters, _ = case.build()
    directions = [_directions(p, v) for p, v in zip(parameters, values, strict=True)]

    def loss(i: int, shift: Array) -> float:
        moved = [v + shift if j == i else v for j, v in enumerate(values)]
        return sum(float(np.vdot(c, x)) for c, x in zip(cs, solve(moved), strict=True))

    center = loss(0, np.zeros_like(values[0]))
    results = []
    for i, ds in enumerate(directions):

        def sides(h: float, i: int = i, ds: Array = ds) -> tuple[Array, Array]:
            return np.array([loss(i, h * d) for d in ds]), np.array([loss(i, -h * d) for d in ds])

        results.append(_extrapolate(sides, center))
    derivatives, errors, jumps = (list(column) for column in zip(*results, strict=True))
    kinks = _relative(jumps, derivatives)
    return DirectionalDerivatives(
        directions, derivatives, errors, kinks, time.perf_counter() - start
    )


def relative_error(gradients: Sequence[Array], truth: DirectionalDerivatives) -> float:
    """Return how far full gradients are from the true directional derivatives.

    Parameters
    ----------
    gradients
        One array per parameter, in the parameter's shape. For a symmetric parameter the symmetric
        G with ``<G, dP>`` the derivative along a symmetric dP.
    truth
        What ``gradient`` returned.

    Returns
    -------
    float
        Euclidean norm of the error over the directions of one parameter, relative to the norm of
        the true derivatives, the worst over parameters. A parameter without influence (below 1e-6
        of the most influential one) is measured against the most influential one.
    """
    errors = []
    for G, ds, exact in zip(gradients, truth.directions, truth.derivatives, strict=True):
        if np.shape(G) != ds.shape[1:]:
            raise ValueError(f"gradient of shape {np.shape(G)}, parameter of shape {ds.shape[1:]}")
        errors.append(np.tensordot(ds, np.asarray(G, float), axes=np.ndim(G)) - exact)
    return _worst(errors, truth.derivatives)


def _worst(errors: Sequence[Array], exact: Sequence[Array]) -> float:
    return max(_relative(errors, exact))


def _relative(errors: Sequence[Array], exact: Sequence[Array]) -> list[float]:
    norms = [float(np.linalg.norm(e)) for e in exact]
    largest = max(norms)
    return [
        float(np.linalg.norm(error)) / (norm if norm > 1e-6 * largest else largest)
        for error, norm in zip(errors, norms, strict=True)
    ]


def _directions(parameter: cp.Parameter, value: Array) -> Array:
    """Return directions of a parameter, scaled so that a step of 1e-2 changes it by about 1 %."""
    scale = sizes(value)
    # Fixed, and the same for parameters of the same size: nothing depends on their order.
    rng = np.random.default_rng(value.size)
    if value.size <= _ALL_ENTRIES:
        ds = np.eye(value.size).reshape(value.size, *value.shape) * scale
    else:
        ds = rng.standard_normal((_DIRECTIONS, *value.shape)) * scale
    if parameter.is_symmetric() and value.ndim == 2:
        ds = (ds + ds.swapaxes(1, 2)) / 2
    return ds


def sizes(value: Array) -> Array:
    """Return the size of each entry, that of a zero from the others'."""
    typical = np.sqrt(np.mean(value**2)) or 1.0
    return np.abs(value) + 0.1 * typical


def _extrapolate(
    sides: Callable[[float], tuple[Array, Array]], center: float
) -> tuple[Array, Array, Array]:
    """Return derivatives, error estimates and kinks along all directions of one parameter."""
    steps, seconds = [], []

    def differences(h: float) -> Array:
        plus, minus = sides(h)
        steps.append(h)
        seconds.append((plus - 2 * center + minus) / (2 * h))
        return (plus - minus) / (2 * h)

    best, error = extrapolate(differences)
    return best, error, _kink(steps, seconds)


def extrapolate(
    differences: Callable[[float], Array],
    *,
    first_step: float = _FIRST_STEP,
    ratio: float = _RATIO,
    levels: int = _LEVELS,
    enough: float = _ENOUGH,
) -> tuple[Array, Array]:
    """Return the limit, and its error estimate, of differences that are even in the step.

    Parameters
    ----------
    differences
        Called with the steps ``first_step / ratio**k``. An array: the best entry of the tableau
        is chosen by the norm of the error.
    first_step, ratio, levels
        The steps.
    enough
        Relative error estimate at which no smaller step is tried.
    """
    best, best_error = np.zeros(0), np.full(1, np.inf)
    h, row = first_step, []
    for _ in range(levels):
        previous, row = row, [differences(h)]
        for j, coarse in enumerate(previous):
            row.append(row[j] + (row[j] - coarse) / (ratio ** (2 * (j + 1)) - 1))
            error = np.maximum(np.abs(row[j + 1] - row[j]), np.abs(row[j + 1] - coarse))
            if np.linalg.norm(error) < np.linalg.norm(best_error):
                best, best_error = row[j + 1], error
        if np.linalg.norm(best_error) <= enough * np.linalg.norm(best):
            break
        h /= ratio
    return best, best_error


def _kink(steps: list[float], seconds: list[Array]) -> Array:
    """Return the jump of the one-sided derivatives at h = 0.

    S(h) = (f(h) - 2 f(0) + f(-h)) / 2h is h f''/2 + O(h^3) for a smooth f and tends to half the
    jump of the derivative at a kink. The last two steps give the linear extrapolation to h = 0.
    """
    (h1, h0), (s1, s0) = steps[-2:], seconds[-2:]
    return np.abs(s0 - (s1 - s0) * h0 / (h1 - h0))
