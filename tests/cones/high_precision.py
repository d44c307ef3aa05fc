"""Projections and their differences in so many digits that nothing but the difference is lost.

A projection is computed from its definition: s + p = w for s on the boundary of K and p normal to
K there, by Newton's method with difference quotients, or from the eigenvalues of w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mpmath
import numpy as np
from mpmath import mpf

Vector = list[mpf]
# q ↦ (s, p)
Pairs = Callable[[Sequence[mpf]], tuple[Vector, Vector]]


def second(project: Callable, w: np.ndarray, h: np.ndarray, k: np.ndarray, step: mpf) -> np.ndarray:
    """D²Π(w)[h, k], to twice the relative size of the step."""
    w, h, k = ([mpf(float(a)) for a in v] for v in (w, h, k))

    def at(a: int, b: int) -> Vector:
        return project([x + step * (a * y + b * z) for x, y, z in zip(w, h, k, strict=True)])

    corners = zip(at(1, 1), at(-1, -1), at(1, -1), at(-1, 1), strict=True)
    return np.array([float((a + b - c - d) / (4 * step * step)) for a, b, c, d in corners])


def second_of_pairs(
    pairs: Pairs, start: Sequence, w: np.ndarray, h: np.ndarray, k: np.ndarray, digits: int
) -> np.ndarray:
    """The same for s and p a function of three numbers, whose values at w are about `start`.

    `digits` are those between the largest and the smallest numbers that matter.
    """
    with mpmath.workdps(8 * digits + 100):
        start = [mpf(a) for a in start]
        start = _solve(pairs, [mpf(float(a)) for a in w], start, digits)

        def project(w: Vector) -> Vector:
            return pairs(_solve(pairs, w, start, digits))[0]

        return second(project, w, h, k, mpf(10) ** (-2 * digits - 20))


def projection_of_pairs(
    pairs: Pairs, start: Sequence, w: np.ndarray, digits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Π(w) and DΠ(w) from the same."""
    with mpmath.workdps(8 * digits + 100):
        q = _solve(pairs, [mpf(float(a)) for a in w], [mpf(a) for a in start], digits)
        ds, dp = _jacobians(pairs, q, digits)
        D = ds * mpmath.inverse(ds + dp)
        n = len(w)
        s = np.array([float(a) for a in pairs(q)[0]])
        return s, np.array([[float(D[i, j]) for j in range(n)] for i in range(n)])


def _jacobians(pairs: Pairs, q: Vector, digits: int) -> tuple[mpmath.matrix, mpmath.matrix]:
    """Of s and p."""
    step = mpf(10) ** (-4 * digits - 50)
    moved = [pairs([a + step * (i == j) for i, a in enumerate(q)]) for j in range(len(q))]

    def jacobian(part: int, here: Vector) -> mpmath.matrix:
        columns = [[(b - a) / step for a, b in zip(here, m[part], strict=True)] for m in moved]
        return mpmath.matrix(columns).T

    s, p = pairs(q)
    return jacobian(0, s), jacobian(1, p)


def _solve(pairs: Pairs, w: Vector, q: Vector, digits: int) -> Vector:
    for _ in range(100):
        ds, dp = _jacobians(pairs, q, digits)
        missing = mpmath.matrix([a - b - c for a, b, c in zip(w, *pairs(q), strict=True)])
        change = mpmath.lu_solve(ds + dp, missing)
        q = [a + b for a, b in zip(q, change, strict=True)]
        if max(abs(a) for a in change) < mpf(10) ** (-6 * digits - 60):
            return q
    raise RuntimeError("Newton's method did not converge")


def exponential_pairs(q: Sequence[mpf]) -> tuple[Vector, Vector]:
    """From (s_x/s_y, log s_y, log p_x)."""
    slope, y, mu = q[0], mpmath.exp(q[1]), mpmath.exp(q[2])
    growth = mpmath.exp(slope)
    return [y * slope, y, y * growth], [mu, mu * (1 - slope), -mu / growth]


def power_pairs(alpha: float, sign: float) -> Pairs:
    """From (log s_x, log s_y, log |p_z|)."""
    a = mpf(float(alpha))

    def pairs(q: Sequence[mpf]) -> tuple[Vector, Vector]:
        x, y, nu = (mpmath.exp(b) for b in q)
        r = mpmath.exp(a * q[0] + (1 - a) * q[1])
        return [x, y, int(sign) * r], [-nu * a * r / x, -nu * (1 - a) * r / y, int(sign) * nu]

    return pairs


def project_second_order(w: Vector) -> Vector:
    length = mpmath.sqrt(sum(a * a for a in w[1:]))
    half = (w[0] + length) / 2
    return [half, *(half * a / length for a in w[1:])]


def project_psd(w: Vector) -> Vector:
    k = int(np.sqrt(2 * len(w)))
    places = [(i, j) for j in range(k) for i in range(j + 1)]
    X = mpmath.matrix(k)
    for (i, j), a in zip(places, w, strict=True):
        X[i, j] = X[j, i] = a if i == j else a / mpmath.sqrt(2)
    values, V = mpmath.eigsy(X)
    S = V * mpmath.diag([max(a, mpf(0)) for a in values]) * V.T
    return [S[i, j] * (1 if i == j else mpmath.sqrt(2)) for i, j in places]
