"""The row of the table, and the helpers that keep its problems differentiable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import numpy as np

Array = np.ndarray
Built = tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]


@dataclass(frozen=True)
class Case:
    """A parametrized problem whose solution is differentiable at the chosen values.

    Parameters
    ----------
    name
        Unique, usable as a pytest id.
    build
        Returns a fresh ``(problem, parameters, variables)`` on every call. A "variable" is an
        output of the layer: a ``cp.Variable`` or a constraint's ``dual_variables[i]``.
    draw
        Draws the parameters' values, in the order of ``parameters``. Callers use ``values``.
    cones
        The cones that CVXPY emits for Clarabel with ``use_quad_obj=True``: names among ``zero``,
        ``nonneg``, ``soc``, ``psd``, ``exp``, ``pow``. Empty when there is no constraint at all.
    gp
        Whether the problem is a geometric program.
    regular
        Whether the canonical form has a unique, nondegenerate primal-dual solution too. False for
        formulations whose outputs are differentiable all the same, but whose epigraph variables or
        multipliers are not unique.
    seed
        Seed of ``values``. Chosen so that the solution is far from a change of active set.
    """

    name: str
    build: Callable[[], Built]
    draw: Callable[[np.random.Generator], list[Array]]
    cones: frozenset[str]
    gp: bool = False
    regular: bool = True
    seed: int = 0

    def values(self) -> list[Array]:
        """Return the parameters' values: fresh float64 arrays, the same on every call."""
        drawn = self.draw(np.random.default_rng(self.seed))
        return [np.array(value, dtype=np.float64) for value in drawn]

    def __str__(self) -> str:
        return self.name


def cones(names: str = "") -> frozenset[str]:
    """Return the set of cones named in a space-separated string."""
    return frozenset(names.split())


def positive_definite(rng: np.random.Generator, n: int, shift: float = 0.5) -> Array:
    """Return an exactly symmetric matrix with eigenvalues in about [shift, shift + 4]."""
    factor = rng.standard_normal((n, n)) / np.sqrt(n)
    matrix = factor @ factor.T + shift * np.eye(n)
    # A product of floats need not be symmetric in the last bit, and CVXPY checks.
    return (matrix + matrix.T) / 2


def symmetric(rng: np.random.Generator, n: int) -> Array:
    """Return an exactly symmetric random matrix."""
    matrix = rng.standard_normal((n, n))
    return (matrix + matrix.T) / 2


def planted_qp(
    rng: np.random.Generator, n: int, p: int, m: int, active: int
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Draw a strictly convex QP with a known, strictly complementary solution.

    The problem is ``min 1/2 |L x|^2 + q.x  s.t.  A x = b, G x <= h``. The solution and the
    multipliers are drawn first and q, b, h follow from the optimality conditions: the first
    ``active`` inequalities are tight with multipliers of at least 0.5, the others have a slack of
    at least 0.5. With ``p + active <= n`` the active rows are independent.

    Returns
    -------
    L, q, A, b, G, h
    """
    L = rng.standard_normal((n, n)) / np.sqrt(n) + np.eye(n)
    A, G = rng.standard_normal((p, n)), rng.standard_normal((m, n))
    x, y = rng.standard_normal(n), rng.standard_normal(p)
    margin = rng.uniform(0.5, 1.5, m)
    tight = np.arange(m) < active
    q = -(L.T @ L @ x + A.T @ y + G.T @ np.where(tight, margin, 0.0))
    h = G @ x + np.where(tight, 0.0, margin)
    return L, q, A, A @ x, G, h
