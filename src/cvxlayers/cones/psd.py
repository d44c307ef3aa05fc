"""The cone of positive semidefinite matrices, in svec coordinates."""

from __future__ import annotations

from functools import lru_cache
from math import isqrt
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from cvxlayers.arrays import held
from cvxlayers.cones.barrier import barrier_level, below_one, smooth_positive
from cvxlayers.cones.base import EPS, Array, at_least
from cvxlayers.cones.second_derivative import on_units

__all__ = ["PSD", "smat", "svec", "triangle"]


@lru_cache(maxsize=64)
def triangle(k: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows i and columns j of the entries of svec: i <= j, column by column.

    This is the order of Clarabel's PSDTriangleCone.

    Examples
    --------
    >>> [index.tolist() for index in triangle(3)]
    [[0, 0, 1, 0, 1, 2], [0, 1, 1, 2, 2, 2]]
    """
    cols, rows = np.tril_indices(k)
    return rows, cols


@lru_cache(maxsize=64)
def _unpacking(k: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Position in svec of every matrix entry, row-major, and what to multiply it by."""
    rows, cols = triangle(k)
    position = np.zeros((k, k), dtype=np.intp)
    position[rows, cols] = position[cols, rows] = np.arange(len(rows))
    return position.ravel(), np.where(np.eye(k, dtype=bool), 1.0, 0.5**0.5).ravel()


@lru_cache(maxsize=64)
def _packing(k: int) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Place in the matrix, row-major, of every svec entry, what to multiply it by, and the factors
    of the entries of an eigenvector (see `PSD.spectrum`)."""
    rows, cols = triangle(k)
    weight = np.where(rows == cols, 0.5**0.5, 1.0)
    return rows * k + cols, np.where(rows == cols, 1.0, 2.0**0.5), weight[:, None] * weight


def svec(matrix: Array) -> Array:
    """Stack the upper triangle of symmetric matrices, √2 off the diagonal.

    ⟨svec(X), svec(Y)⟩ = tr(XY).

    Parameters
    ----------
    matrix : array
        Shape (..., k, k), symmetric; only the upper triangle is read.

    Returns
    -------
    array
        Shape (..., k(k+1)/2).

    Examples
    --------
    >>> import numpy as np
    >>> svec(np.array([[1.0, 2.0], [2.0, 3.0]])).round(4)
    array([1.    , 2.8284, 3.    ])
    """
    xp = array_namespace(matrix)
    k = matrix.shape[-1]
    places, factor, _ = _packing(k)
    flat = xp.reshape(matrix, (*matrix.shape[:-2], k * k))
    return xp.take(flat, held(places, matrix), axis=-1) * held(factor, matrix)


def smat(vector: Array) -> Array:
    """Inverse of `svec`.

    Parameters
    ----------
    vector : array
        Shape (..., k(k+1)/2).

    Returns
    -------
    array
        Shape (..., k, k), symmetric.

    Raises
    ------
    ValueError
        If the last axis is not a triangular number long.

    Examples
    --------
    >>> import numpy as np
    >>> smat(np.array([1.0, np.sqrt(8.0), 3.0]))
    array([[1., 2.],
           [2., 3.]])
    """
    xp = array_namespace(vector)
    q = vector.shape[-1]
    k = (isqrt(8 * q + 1) - 1) // 2
    if k * (k + 1) // 2 != q:
        raise ValueError(f"the last axis must hold a triangle, k(k+1)/2 entries, got {q}")
    position, factor = _unpacking(k)
    flat = xp.take(vector, held(position, vector), axis=-1) * held(factor, vector)
    return xp.reshape(flat, (*vector.shape[:-1], k, k))


class PSD:
    """K = {svec(X) : X ⪰ 0}, X of order k; self-dual.

    Parameters
    ----------
    k : int
        Order of the matrix; a block has q = k(k+1)/2 rows.

    Raises
    ------
    ValueError
        If k < 1.

    Examples
    --------
    >>> import numpy as np
    >>> PSD(2).project(svec(np.diag([2.0, -1.0]))[None])
    array([[2., 0., 0.]])
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"a PSD cone has order at least 1, got k = {k}")
        self.k = k
        self.q = k * (k + 1) // 2

    def project(self, w: Array, near: Array | None = None) -> Array:
        """Π(V diag(l) Vᵀ) = V diag(max(l, 0)) Vᵀ.

        References
        ----------
        N. J. Higham, Linear Algebra Appl. 103 (1988), Theorem 2.1.
        """
        xp = array_namespace(w)
        values, V = xp.linalg.eigh(smat(w))
        scaled = V * at_least(xp, values, 0.0)[..., None, :]
        return svec(xp.matmul(scaled, xp.matrix_transpose(V)))

    def spectrum(self, w: Array, near: Array | None = None) -> tuple[Array, Array]:
        """Eigenvalues from divided differences of max(·, 0), eigenvectors svec(sym(vᵢvⱼᵀ)).

        With w = svec(V diag(l) Vᵀ), the pair i <= j has the eigenvalue
        λᵢⱼ = (lᵢ⁺ + lⱼ⁺)/(|lᵢ| + |lⱼ|), exactly 1 for two positive lᵢ, lⱼ and exactly 0 for two
        that are not, and the eigenvector svec(vᵢvⱼᵀ + vⱼvᵢᵀ)/√2, or svec(vᵢvᵢᵀ) where i = j.

        References
        ----------
        J. Malick, H. S. Sendov, Set-Valued Anal. 14 (2006) 273-293.
        """
        xp = array_namespace(w)
        rows, cols = triangle(self.k)
        i, j = held(rows, w), held(cols, w)
        values, V = xp.linalg.eigh(smat(w))

        positive = at_least(xp, values, 0.0)
        magnitude = xp.abs(values)
        total = xp.take(magnitude, i, axis=-1) + xp.take(magnitude, j, axis=-1)
        numerator = xp.take(positive, i, axis=-1) + xp.take(positive, j, axis=-1)
        lam = numerator / xp.where(total > 0.0, total, 1.0)

        return lam, self._eigenvectors(xp, V)

    def smooth(self, w: Array, mu: Array | float, near: Array | None = None) -> Array:
        """Π_μ(V diag(l) Vᵀ) = V diag(½ (l + √(l² + 4μ))) Vᵀ."""
        xp = array_namespace(w)
        values, V = xp.linalg.eigh(smat(w))
        smoothed, _ = smooth_positive(xp, values, barrier_level(xp, w, mu))
        return svec(xp.matmul(V * smoothed[..., None, :], xp.matrix_transpose(V)))

    def smooth_spectrum(
        self, w: Array, mu: Array | float, near: Array | None = None
    ) -> tuple[Array, Array]:
        """Eigenvalues (sᵢ + sⱼ)/(√(lᵢ² + 4μ) + √(lⱼ² + 4μ)), sᵢ those of Π_μ(w).

        These are the divided differences of the function that smooths max(·, 0); the eigenvectors
        are those of `spectrum`.
        """
        xp = array_namespace(w)
        rows, cols = triangle(self.k)
        i, j = held(rows, w), held(cols, w)
        values, V = xp.linalg.eigh(smat(w))
        s, root = smooth_positive(xp, values, barrier_level(xp, w, mu))
        numerator, total = (xp.take(a, i, axis=-1) + xp.take(a, j, axis=-1) for a in (s, root))
        return below_one(xp, numerator / total), self._eigenvectors(xp, V)

    def second(self, w: Array, h: Array, k: Array) -> Array:
        """D²Π(w)[h, k] from second divided differences of f = max(·, 0).

        Around a matrix without the eigenvalue 0, f(X) is the Cauchy integral of f(z) (z - X)^-1,
        whose second derivative is R H R K R + R K R H R for R = (z - X)^-1. With
        w = svec(V diag(l) Vᵀ) and H = Vᵀ smat(h) V, K = Vᵀ smat(k) V, therefore

            (Vᵀ smat(D²Π[h, k]) V)ᵢⱼ = Σ_g f[lᵢ, l_g, lⱼ] (H_ig K_gj + K_ig H_gj).

        f[a, b, c] is 0 if all three are positive or none is. If one, say c, is alone on its side,
        it is |c|/((|a| + |c|)(|b| + |c|)). With Wᵢⱼ = 1/(|lᵢ| + |lⱼ|) for two on different sides
        and 0 otherwise, Ĥ = W ∘ H, M = diag(|l|), and H₌ the entries of H with two on one side,
        the sum is

            Ĥ M K̂ + K̂ M Ĥ + W ∘ (Q + Qᵀ),   Q = (H₌ K̂ + K₌ Ĥ) M.

        Eigenvalues of w within rounding of zero count as zero, and these as not positive; two such
        on different sides would differ by their rounding errors alone.

        References
        ----------
        N. J. Higham, Functions of Matrices (2008), Sections 1.2.3 and 3.2.
        """
        xp = array_namespace(w, h, k)
        return on_units(xp, lambda w, h, k: _second(xp, w, h, k), w, h, k)

    def _eigenvectors(self, xp: Any, V: Array) -> Array:
        """svec(vᵢvⱼᵀ + vⱼvᵢᵀ)/√2, or svec(vᵢvᵢᵀ) where i = j, as columns."""
        rows, cols = triangle(self.k)
        i, j = held(rows, V), held(cols, V)
        # Column (i, j), entry (a, b): weight · (V_ai V_bj + V_aj V_bi), each side of it √2 or 1.
        upper, lower = xp.take(V, i, axis=-2), xp.take(V, j, axis=-2)
        products = xp.take(upper, i, axis=-1) * xp.take(lower, j, axis=-1)
        products = products + xp.take(upper, j, axis=-1) * xp.take(lower, i, axis=-1)
        return products * held(_packing(self.k)[2], V)


def _second(xp: Any, w: Array, h: Array, k: Array) -> Array:
    values, V = xp.linalg.eigh(smat(w))
    magnitude = xp.abs(values)
    rounding = values.shape[-1] * EPS * xp.max(magnitude, axis=-1, keepdims=True)
    magnitude = xp.where(magnitude <= rounding, 0.0, magnitude)
    positive = values > rounding
    apart = positive[..., :, None] != positive[..., None, :]
    total = magnitude[..., :, None] + magnitude[..., None, :]
    W = xp.where(apart, 1.0 / xp.where(apart, total, 1.0), 0.0)

    VT = xp.matrix_transpose(V)
    H, K = (xp.matmul(VT, xp.matmul(smat(a), V)) for a in (h, k))
    H_across, K_across = W * H, W * K
    H_same, K_same = (xp.where(apart, 0.0, a) for a in (H, K))
    M = magnitude[..., None, :]
    half = xp.matmul(H_across * M, K_across)
    Q = xp.matmul(H_same, K_across) + xp.matmul(K_same, H_across)
    half = half + W * Q * M
    total = half + xp.matrix_transpose(half)
    return svec(xp.matmul(V, xp.matmul(total, VT)))
