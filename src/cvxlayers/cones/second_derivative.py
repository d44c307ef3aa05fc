"""The second derivative of a projection, as a trilinear form.

Π is the gradient of ½‖w‖² - ½ dist(w, K)², so T(h, k, l) = ⟨D²Π(w)[h, k], l⟩ is symmetric in all
three arguments. Π is homogeneous of degree one, so T is of degree -1, and T(w, ·, ·) = 0.

Three rows, or a circular cone
------------------------------
Where w = |s| r + |p| n is neither in K nor in its polar cone, with s = Π(w) and p = w - s, and the
surface of K is smooth at s, DΠ = r rᵀ + λ t tᵀ in the orthonormal frame n, r, t. Along h = t,
s changes by λ t and p by (1 - λ) t, so r turns by λ t/|s| and n by (1 - λ) t/|p|: of

    D(r rᵀ + λ t tᵀ) = ṙ rᵀ + r ṙᵀ + λ̇ t tᵀ + λ (ṫ tᵀ + t ṫᵀ),  ṫ = -(ṙ·t) r - (ṅ·t) n,

the coefficients are

    T(r, t, t) = λ (1 - λ)/|s|,   T(n, t, t) = -λ (1 - λ)/|p|,   T(t, t, t) = ∂λ/∂t,

which fulfils T(w, t, t) = 0. All others vanish: along h = r and h = n the frame stays, because s
and p stay on their rays, and λ changes by T(r, t, t) and T(n, t, t). With

    v = T(r, t, t) r + T(n, t, t) n + ⅓ T(t, t, t) t,   h⊥ = (t·h) t,
    D²Π[h, k] = (h⊥·k⊥) v + (v·h) k⊥ + (v·k) h⊥.

A second-order cone of q rows has this form too, with q - 2 directions t of one λ and h⊥ the
projection onto their span; there λ does not change along them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cvxlayers.cones.base import Array, rescale, within

__all__ = ["broadcast_zeros", "in_frame", "on_units", "symmetric_product"]

# Powers of two that neither overflow nor vanish.
LARGEST_EXPONENT = 1020.0


def on_units(
    xp: Any, second: Callable[[Array, Array, Array], Array], w: Array, h: Array, k: Array
) -> Array:
    """D²Π(w)[h, k] from that of blocks whose largest entries are in [1, 2).

    Parameters
    ----------
    xp : namespace
        Array namespace of the arrays.
    second : callable
        (w, h, k) ↦ D²Π(w)[h, k] for such blocks, without overflow.
    w, h, k : array
        Shapes (..., c, q) that broadcast.
    """
    scales, units = zip(*(rescale(xp, a) for a in (w, h, k)), strict=True)
    of_w, of_h, of_k = (xp.round(xp.log2(scale)) for scale in scales)
    exponent = of_h + of_k - of_w
    # In three steps: 2^exponent may overflow where the result does not.
    third = within(xp, xp.floor(exponent / 3.0), -LARGEST_EXPONENT, LARGEST_EXPONENT)
    rest = within(xp, exponent - 2.0 * third, -LARGEST_EXPONENT, LARGEST_EXPONENT)
    return second(*units) * 2.0**third * 2.0**third * 2.0**rest


def symmetric_product(
    xp: Any, v: Array, h: Array, k: Array, h_across: Array, k_across: Array
) -> Array:
    """(h⊥·k⊥) v + (v·h) k⊥ + (v·k) h⊥."""
    product = xp.sum(h_across * k_across, axis=-1, keepdims=True) * v
    product = product + xp.sum(v * h, axis=-1, keepdims=True) * k_across
    return product + xp.sum(v * k, axis=-1, keepdims=True) * h_across


def in_frame(
    xp: Any, U: Array, coefficients: tuple[Array, Array, Array], h: Array, k: Array
) -> Array:
    """The `symmetric_product` from the columns (n, r, t) and T(n, t, t), T(r, t, t), T(t, t, t)."""
    n_tt, r_tt, t_tt = coefficients
    t = U[..., 2]
    v = xp.sum(U * xp.stack([n_tt, r_tt, t_tt / 3.0], axis=-1)[..., None, :], axis=-1)
    h_across, k_across = (xp.sum(t * a, axis=-1, keepdims=True) * t for a in (h, k))
    return symmetric_product(xp, v, h, k, h_across, k_across)


def broadcast_zeros(xp: Any, w: Array, h: Array, k: Array) -> Array:
    """Zeros of the shape to which the three broadcast."""
    shape = np.broadcast_shapes(tuple(w.shape), tuple(h.shape), tuple(k.shape))
    return xp.zeros_like(xp.broadcast_to(w, shape))
