"""Smoothed projections: what replaces Π_K on the central path of a conic program.

With φ the logarithmic barrier of K and a parameter μ > 0,

    Π_μ(w) = argmin ½‖s − w‖² + μ φ(s),   so that   s = Π_μ(w),  z = s − w = −μ ∇φ(s),

strictly inside K and K*. φ is logarithmically homogeneous, so Π_μ(w) = √μ Π₁(w/√μ), and μ → 0
gives Π. DΠ_μ(w) = (I + μ ∇²φ(s))⁻¹ is symmetric with eigenvalues strictly between 0 and 1.

The barriers, each with the parameter that is the number of its logarithms:

    half-line       −log s
    second-order    −log(s₀² − ‖s₁‖²)
    semidefinite    −log det S
    exponential     −log(y log(z/y) − x) − log y − log z
    power           −log(x^2α y^2β − z²) − β log x − α log y,   β = 1 − α
"""

from __future__ import annotations

from typing import Any

from array_api_compat import device

from cvxlayers.cones.base import EPS, Array, at_most

__all__ = ["barrier_level", "below_one", "smooth_positive", "spectrum_of_hessian"]


def barrier_level(xp: Any, w: Array, mu: Array | float) -> Array:
    """μ as an array like w."""
    return xp.asarray(mu, dtype=w.dtype, device=device(w))


def smooth_positive(xp: Any, w: Array, mu: Array) -> tuple[Array, Array]:
    """s = ½ (w + √(w² + 4μ)), without cancellation, and the root: s is increasing in w with the
    slope s/root, and (s₁ − s₂)/(w₁ − w₂) = (s₁ + s₂)/(root₁ + root₂)."""
    width = xp.sqrt(mu)
    root = xp.hypot(w, 2.0 * width + xp.zeros_like(w))
    far = 0.5 * (xp.abs(w) + root)
    return xp.where(w > 0.0, far, width * (width / far)), root


def below_one(xp: Any, lam: Array) -> Array:
    """Eigenvalues less than one that may have been rounded to it."""
    return at_most(xp, lam, 1.0 - 0.5 * EPS)


def spectrum_of_hessian(
    xp: Any, diagonal: Array, a: Array, b: Array, cross: Array
) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of D = (I + H)⁻¹ for H = diag + a aᵀ + b bᵀ in three rows.

    With E = I + diag and n = a x b, scaled to â, b̂, n̂ for E^(-½) a and E^(-½) b,

        E^½ D E^½ = ((1 + ‖â‖² + ‖b̂‖²) I − â âᵀ − b̂ b̂ᵀ + n̂ n̂ᵀ)/(1 + ‖â‖² + ‖b̂‖² + ‖n̂‖²),

    which cancels nothing, however large or parallel a and b are, if n is known. λ = 1/(1 + uᵀH u)
    for the eigenvectors u of D is then correct to rounding, too.

    Parameters
    ----------
    xp : namespace
        Array namespace of the arrays.
    diagonal, a, b, cross : array
        Shape (..., 3); `diagonal` is not negative, and `cross` is a x b.

    Returns
    -------
    lam : array
        Shape (..., 3), positive and less than 1.
    U : array
        Shape (..., 3, 3), orthonormal columns.
    """
    e = 1.0 / xp.sqrt(1.0 + diagonal)
    e0, e1, e2 = e[..., 0], e[..., 1], e[..., 2]
    n = cross * xp.stack([e1 * e2, e0 * e2, e0 * e1], axis=-1)
    a0, a1, a2 = (e[..., i] * a[..., i] for i in range(3))
    b0, b1, b2 = (e[..., i] * b[..., i] for i in range(3))
    n0, n1, n2 = n[..., 0], n[..., 1], n[..., 2]
    squares = [a0**2 + b0**2, a1**2 + b1**2, a2**2 + b2**2]
    total = 1.0 + squares[0] + squares[1] + squares[2] + n0**2 + n1**2 + n2**2
    D00 = e0**2 * ((1.0 + squares[1] + squares[2] + n0**2) / total)
    D11 = e1**2 * ((1.0 + squares[0] + squares[2] + n1**2) / total)
    D22 = e2**2 * ((1.0 + squares[0] + squares[1] + n2**2) / total)
    D01 = e0 * e1 * ((n0 * n1 - a0 * a1 - b0 * b1) / total)
    D02 = e0 * e2 * ((n0 * n2 - a0 * a2 - b0 * b2) / total)
    D12 = e1 * e2 * ((n1 * n2 - a1 * a2 - b1 * b2) / total)
    rows = [[D00, D01, D02], [D01, D11, D12], [D02, D12, D22]]
    D = xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)
    U = xp.linalg.eigh(D)[1]
    curvature = xp.sum(diagonal[..., None] * U**2, axis=-2)
    for v in (a, b):
        curvature = curvature + xp.sum(v[..., None] * U, axis=-2) ** 2
    return below_one(xp, 1.0 / (1.0 + curvature)), U
