"""The table of cones, with what is known about each without the code under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cvxlayers.cones import PSD, Cone, Exponential, NonNegative, SecondOrder, ThreeDimPower, Zero

Array = np.ndarray


def exponents(c: int) -> Array:
    alpha = np.random.default_rng(7).uniform(0.05, 0.95, c)
    alpha[::4] = 0.5
    return alpha


# Membership of K and K*, for w of shape (c, q).


def in_zero(w: Array) -> Array:
    return np.all(w == 0.0, axis=-1)


def anywhere(w: Array) -> Array:
    return np.all(np.isfinite(w), axis=-1)


def in_orthant(w: Array) -> Array:
    return np.all(w >= 0.0, axis=-1)


def in_second_order(w: Array) -> Array:
    return np.sqrt(np.sum(w[:, 1:] ** 2, axis=-1)) <= w[:, 0]


def matrix(w: Array) -> Array:
    """The matrix of svec coordinates, entry by entry."""
    k = int(np.sqrt(2 * w.shape[-1]))
    X = np.zeros((*w.shape[:-1], k, k))
    entries = iter(np.moveaxis(w, -1, 0))
    for j in range(k):
        for i in range(j + 1):
            X[..., i, j] = X[..., j, i] = next(entries) / (1.0 if i == j else np.sqrt(2.0))
    return X


def in_psd(w: Array) -> Array:
    return np.linalg.eigvalsh(matrix(w))[:, 0] >= 0.0


def in_exponential(w: Array) -> Array:
    x, y, z = w.T
    with np.errstate(all="ignore"):
        return ((y > 0) & (y * np.exp(x / y) <= z)) | ((y == 0) & (x <= 0) & (z >= 0))


def in_dual_exponential(w: Array) -> Array:
    u, v, w_ = w.T
    with np.errstate(all="ignore"):
        return ((u < 0) & (-u * np.exp(v / u) <= np.e * w_)) | ((u == 0) & (v >= 0) & (w_ >= 0))


def in_power(w: Array) -> Array:
    x, y, z = w.T
    a = exponents(len(w))
    with np.errstate(all="ignore"):
        return (x >= 0) & (y >= 0) & (x**a * y ** (1 - a) >= np.abs(z))


def in_dual_power(w: Array) -> Array:
    x, y, z = w.T
    a = exponents(len(w))
    with np.errstate(all="ignore"):
        return (x >= 0) & (y >= 0) & ((x / a) ** a * (y / (1 - a)) ** (1 - a) >= np.abs(z))


# Pairs (s, p) of a boundary point of K and a point of its normal cone there: Π(s + p) = s and, if
# both are nonzero, s + p is a point where Π is smooth. `spread` = 0 keeps away from the kinks.


def orthant_pairs(rng: np.random.Generator, n: int, spread: float) -> tuple[Array, Array]:
    size = rng.uniform(0.5, 2.0, (n, 1)) * 10.0 ** rng.uniform(-spread, spread, (n, 1))
    positive = rng.random((n, 1)) < 0.5
    return np.where(positive, size, 0.0), np.where(positive, 0.0, -size)


def second_order_pairs(q: int) -> Callable:
    def pairs(rng: np.random.Generator, n: int, spread: float) -> tuple[Array, Array]:
        u = rng.standard_normal((n, q - 1))
        u /= np.sqrt(np.sum(u**2, axis=-1, keepdims=True))
        t, d = rng.uniform(0.5, 2.0, (2, n, 1)) * 10.0 ** rng.uniform(-spread, spread, (2, n, 1))
        return t * np.hstack([np.ones((n, 1)), u]), d * np.hstack([-np.ones((n, 1)), u])

    return pairs


def psd_pairs(k: int) -> Callable:
    def pairs(rng: np.random.Generator, n: int, spread: float) -> tuple[Array, Array]:
        V = np.linalg.qr(rng.standard_normal((n, k, k)))[0]
        values = rng.uniform(0.5, 2.0, (n, k)) * 10.0 ** rng.uniform(-spread, spread, (n, k))
        values *= np.where(np.arange(k) < rng.integers(0, k + 1, (n, 1)), -1.0, 1.0)
        return tuple(
            np.stack(
                [
                    np.sqrt(1.0 + (i != j)) * np.sum(V[:, i] * part * V[:, j], axis=-1)
                    for j in range(k)
                    for i in range(j + 1)
                ],
                axis=-1,
            )
            for part in (np.maximum(values, 0.0), np.minimum(values, 0.0))
        )

    return pairs


def exponential_pairs(rng: np.random.Generator, n: int, spread: float) -> tuple[Array, Array]:
    slope = rng.uniform(-2.0, 2.0, (n, 1)) * (1.0 + 10.0 * spread)
    y, mu = rng.uniform(0.5, 2.0, (2, n, 1)) * 10.0 ** rng.uniform(-spread, spread, (2, n, 1))
    s = y * np.hstack([slope, np.ones((n, 1)), np.exp(slope)])
    return s, mu * np.hstack([np.ones((n, 1)), 1.0 - slope, -np.exp(-slope)])


def power_pairs(rng: np.random.Generator, n: int, spread: float) -> tuple[Array, Array]:
    a = exponents(n)[:, None]
    x, y, nu = rng.uniform(0.5, 2.0, (3, n, 1)) * 10.0 ** rng.uniform(-spread, spread, (3, n, 1))
    r, sign = x**a * y ** (1.0 - a), rng.choice([-1.0, 1.0], (n, 1))
    return np.hstack([x, y, sign * r]), nu * np.hstack([-a * r / x, -(1.0 - a) * r / y, sign])


@dataclass(frozen=True)
class Case:
    """A cone: `make(c)` for c blocks of q rows; e in the interior of both K and K*."""

    make: Callable[[int], Cone]
    q: int
    contains: Callable[[Array], Array]
    dual_contains: Callable[[Array], Array]
    interior: Array
    pairs: Callable[[np.random.Generator, int, float], tuple[Array, Array]]


def _second_order(q: int) -> Case:
    first = np.eye(q)[0]
    pairs = orthant_pairs if q == 1 else second_order_pairs(q)
    return Case(lambda c: SecondOrder(q), q, in_second_order, in_second_order, first, pairs)


def _psd(k: int) -> Case:
    q = k * (k + 1) // 2
    identity = np.array([float(i == j) for j in range(k) for i in range(j + 1)])
    return Case(lambda c: PSD(k), q, in_psd, in_psd, identity, psd_pairs(k))


CASES = {
    "nonneg": Case(lambda c: NonNegative(), 1, in_orthant, in_orthant, np.ones(1), orthant_pairs),
    "soc1": _second_order(1),
    "soc2": _second_order(2),
    "soc3": _second_order(3),
    "soc8": _second_order(8),
    "psd1": _psd(1),
    "psd2": _psd(2),
    "psd4": _psd(4),
    "exp": Case(
        lambda c: Exponential(),
        3,
        in_exponential,
        in_dual_exponential,
        np.array([-1.0, 1.0, 1.0]),
        exponential_pairs,
    ),
    "pow": Case(
        lambda c: ThreeDimPower(exponents(c)),
        3,
        in_power,
        in_dual_power,
        np.array([1.0, 1.0, 0.0]),
        power_pairs,
    ),
}
ALL_CASES = {
    "zero": Case(lambda c: Zero(), 1, in_zero, anywhere, np.zeros(1), orthant_pairs),
    **CASES,
}


def adversarial(q: int) -> Array:
    """Ties, zeros, extreme ratios: every entry from a short list, or as many as 4000 of them."""
    values = np.array([0.0, -0.0, 1.0, -1.0, 1e-12, -1e-12, 1e12, -1e12, 1e-300, -1e-300, 0.5])
    if q <= 3:
        return np.stack(np.meshgrid(*[values] * q), axis=-1).reshape(-1, q)
    return np.random.default_rng(3).choice(values, (4000, q))


def scattered(case: Case, n: int, seed: int) -> Array:
    """Points of every region: anywhere, of any size; in and on K and its polar; both parts."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((n, case.q))
    uneven = normal * 10.0 ** rng.uniform(-6.0, 6.0, (n, case.q)) * (rng.random((n, case.q)) > 0.1)
    s, p = case.pairs(rng, n, 0.0)
    e = case.interior * rng.random((n, 1))
    kinds = np.stack([normal, uneven, s + p, s, p, s + e, p - e, np.zeros_like(s)])
    chosen = kinds[np.arange(n) % len(kinds), np.arange(n)]
    return chosen * 10.0 ** rng.uniform(-6.0, 6.0, (n, 1))
