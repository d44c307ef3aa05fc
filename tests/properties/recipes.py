"""A random problem as plain data: what hypothesis draws, prints and shrinks.

A recipe holds choices only. The numbers come from ``seed``, so that a failing recipe, pasted as it
is printed, builds the same problem and the same values again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import cvxpy as cp
import numpy as np

Array = np.ndarray
Shape = tuple[int, ...]

MOST_PARAMETERS = 3
BATCHES = {
    "none": [()],
    "one": [(1,)],
    "three": [(3,)],
    "grid": [(2, 3)],
    "mixed": [(3,), ()],
    "axes": [(2, 1), (3,), ()],
    "empty": [(0,)],
}


@dataclass(frozen=True)
class Recipe:
    """The choices that make a problem, its parameters' values and the call.

    Parameters
    ----------
    variables
        Shape and attribute of each variable.
    objective, constraints
        Names from the menus, each with the number of the variable that it is about.
    strict
        Whether a strictly convex term and a box on every variable are added.
    maximize
        Whether the objective is written as a concave one to be maximized.
    parametric
        For each constant of the problem in turn, repeated: 0 for a constant, 1 for a parameter,
        2 for an earlier parameter that fits, if there is one.
    regimes
        How the values of each parameter are spoilt; see ``values``.
    batch
        A key of ``BATCHES``.
    single
        Whether values are float32.
    frontend
        "torch" or "numpy".
    dual
        Whether the dual variables of the first constraint are outputs, too.
    seed
        Of all numbers.
    """

    variables: tuple[tuple[Shape, str], ...]
    objective: tuple[tuple[str, int], ...]
    constraints: tuple[tuple[str, int], ...]
    strict: bool = False
    maximize: bool = False
    parametric: tuple[int, ...] = (1,)
    regimes: tuple[str, ...] = ("normal",)
    batch: str = "none"
    single: bool = False
    frontend: str = "torch"
    dual: bool = False
    seed: int = 0

    @property
    def well_scaled(self) -> bool:
        return all(regime == "normal" for regime in self.regimes)


class Pool:
    """Gives out the constants of a problem, some of them as parameters.

    Attributes
    ----------
    parameters, bases, kinds : list
        The parameters, their values in the problem as it was designed, and what a value must be.
    """

    def __init__(self, recipe: Recipe):
        self.rng = np.random.default_rng(recipe.seed)
        self.parameters: list[cp.Parameter] = []
        self.bases: list[Array] = []
        self.kinds: list[str] = []
        self._choices: Iterator[int] = cycle(recipe.parametric or (0,))

    def leaf(self, value: Array | float, kind: str = "") -> cp.Expression:
        """A constant or a parameter of this value."""
        value = np.asarray(value, dtype=float)
        choice = next(self._choices)
        if choice == 2:
            # One parameter in two places, with the value of the first.
            for p, k in zip(self.parameters, self.kinds, strict=True):
                if p.shape == value.shape and k == kind:
                    return p
        if choice and len(self.parameters) < MOST_PARAMETERS:
            return self.parameter(value, kind)
        return cp.Constant(value)

    def parameter(self, value: Array, kind: str = "") -> cp.Parameter:
        attributes = {kind: True} if kind else {}
        p = cp.Parameter(value.shape, name=f"p{len(self.parameters)}", **attributes)
        self.parameters.append(p)
        self.bases.append(value)
        self.kinds.append(kind)
        return p

    def normal(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape)


def values(recipe: Recipe, pool: Pool) -> list[Array]:
    """The parameters' values, batch axes first, in float64 or float32.

    The first instance has the values of the design, unless its regime spoils them; in a batch the
    others are near it, and a regime spoils about half of the instances.
    """
    rng = np.random.default_rng([recipe.seed, 1])
    leading = cycle(BATCHES[recipe.batch])
    regimes = cycle(recipe.regimes or ("normal",))
    result = []
    for base, kind in zip(pool.bases, pool.kinds, strict=True):
        lead, regime = next(leading), next(regimes)
        stacked = np.zeros((*lead, *base.shape))
        for number, index in enumerate(np.ndindex(lead)):
            value = base if number == 0 else _near(base, kind, rng)
            if number == 0 or rng.random() < 0.5:
                value = _spoilt(value, kind, regime, rng)
            stacked[index] = value
        if recipe.single:
            with np.errstate(over="ignore"):
                stacked = stacked.astype(np.float32)
        result.append(stacked)
    return result


def _near(base: Array, kind: str, rng: np.random.Generator) -> Array:
    moved = base * (1 + 0.1 * rng.standard_normal(base.shape))
    return project(moved + 0.1 * rng.standard_normal(base.shape), kind)


def project(value: Array, kind: str) -> Array:
    """A value with the attribute, near one without."""
    if kind == "nonneg":
        return np.abs(value)
    if kind == "diag":
        return np.diag(np.diag(value))
    if kind in ("symmetric", "PSD"):
        value = (value + value.T) / 2
    if kind == "PSD":
        values_, vectors = np.linalg.eigh(value)
        value = (vectors * np.abs(values_)) @ vectors.T
        value = (value + value.T) / 2
    return value


def _spoilt(value: Array, kind: str, regime: str, rng: np.random.Generator) -> Array:
    if regime == "zero":
        return np.zeros_like(value)
    if regime == "huge":
        return value * 10 ** rng.uniform(6, 12)
    if regime == "tiny":
        return value * 10 ** rng.uniform(-12, -6)
    if regime == "large":
        return value * 10 ** rng.uniform(2, 5)
    if regime == "small":
        return value * 10 ** rng.uniform(-5, -2)
    if regime == "rows":
        if value.ndim == 0:
            return value
        scales = 10 ** rng.uniform(-6, 6, len(value))
        if kind in ("symmetric", "PSD"):
            return (value * np.sqrt(scales)) * np.sqrt(scales)[:, None]
        return value * scales.reshape(-1, *[1] * (value.ndim - 1))
    if regime == "repeated":
        return project(np.full_like(value, value.flat[0]), kind) if value.size else value
    if regime in ("nan", "inf") and value.size:
        spoilt = value.copy()
        bad = np.nan if regime == "nan" else np.inf
        # An attribute must not be broken: of a matrix with one only the diagonal is free.
        place = 0 if kind else rng.integers(value.size)
        spoilt.flat[place] = bad
        return spoilt
    return value
