"""Explicit inverses of a batch of quasi-definite matrices.

NumPy has LAPACK's. PyTorch's batched LU factorisation on a CPU chooses wrong pivots when several
threads are at work (pytorch/pytorch#141358, #142815), so that there everything is Cholesky's
factorisation: with H = H₀ + EᵀN E, N = (M + I)⁻¹, Q = H⁻¹EᵀN and C = I − N + N E Q,

    [ H₀   Eᵀ ]⁻¹   [ H⁻¹ − Q C⁻¹ Qᵀ   Q C⁻¹   ]
    [ E   −M  ]   = [ C⁻¹ Qᵀ           I − C⁻¹ ],

which is the Schur complement of the matrix with −(M + I) in place of −M, and the formula of
Sherman, Morrison & Woodbury for the difference. The condition number of H may be the square of the
whole matrix's; where that is too much, the matrix is taken apart into eigenvectors.

A variable y and the row a y + L x that defines it (`cvxlayers.definitions`) are alone with each
other but for L. With their diagonal entries p and −δ, and Δ = a² + pδ,

    [ p   a ]⁻¹   [ α   β ]
    [ a  −δ ]   = [ β  −γ ],      α = δ/Δ,  β = a/Δ,  γ = p/Δ,

what is inverted is S, all else with LᵀγL added; with its inverse T, G = L T and Q = G Lᵀ the
inverse of the whole has the blocks T, −β G and γ G, α + β Q β, β − β Q γ and γ Q γ − γ.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvxlayers.arrays import Array, held, is_host, largest, namespace

__all__ = ["VANISHING", "Pairs", "inverse", "least_squares"]

Index = NDArray[np.intp]


class Pairs(NamedTuple):
    """Where in K the variables are that a row defines, those rows, and all else in order."""

    variables: Index
    rows: Index
    others: Index


# A larger error of K K⁻¹ v = v is more than refinement takes away. So many v of ±1 are tried: where
# an entry of K K⁻¹ − I is larger, each of them shows it at least every other time.
ACCURATE, PROBES = 1e-4, 8
# Eigenvalues that count as zero, relative to the largest.
VANISHING = 1e-11


def inverse(K: Array, n: int, pairs: Pairs | None = None) -> Array:
    """Inverses of matrices [H₀ Eᵀ; E −M].

    Parameters
    ----------
    K : array
        Shape (B, n + k, n + k), symmetric, its entries at most about one; H₀ and M of shapes (n, n)
        and (k, k) are positive definite, and M is diagonal.
    n : int
    pairs : Pairs, optional
        Of variables and the rows that define them; without them the result is the same.

    Returns
    -------
    array
        Of the same shape; large, or not finite, where K is as good as singular.
    """
    if is_host(K):
        return np.asarray(np.linalg.inv(K), dtype=np.float64)
    xp = namespace(K)
    found = _by_cholesky(K, n) if pairs is None else _by_pairs(K, n, pairs)
    probes = held(_probes(K.shape[-1]), K)
    accurate = largest(largest(K @ (found @ probes) - probes)) <= ACCURATE
    rest = ~accurate & xp.isfinite(K).all(-1).all(-1)
    if bool(rest.any()):
        rows = xp.nonzero(rest)[0]
        values, vectors = xp.linalg.eigh(K[rows])
        found[rows] = (vectors / values[:, None, :]) @ vectors.mT
    return found


@cache
def _probes(size: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).choice([-1.0, 1.0], (size, PROBES))


def _by_cholesky(K: Array, n: int) -> Array:
    """As `inverse`; NaN where a factorisation fails."""
    xp = namespace(K)
    E, diagonal = K[:, n:, :n], K.diagonal(dim1=1, dim2=2)
    N = 1.0 / (1.0 - diagonal[:, n:])
    weighted = N[:, :, None] * E
    L, failed = xp.linalg.cholesky_ex(K[:, :n, :n] + E.mT @ weighted)
    one = xp.eye(n, dtype=K.dtype, device=K.device).expand(len(K), -1, -1)
    half = xp.linalg.solve_triangular(L, xp.concat([one, weighted.mT], axis=2), upper=False)
    roots, turned = half[:, :, :n], half[:, :, n:]
    C = turned.mT @ turned + xp.diag_embed(1.0 - N)
    Lc, also = xp.linalg.cholesky_ex(C)
    unit = xp.eye(C.shape[-1], dtype=K.dtype, device=K.device).expand(len(K), -1, -1)
    of_C = xp.linalg.solve_triangular(Lc, unit, upper=False)
    # Q C^(-½)ᵀ, and with it the blocks.
    S = (roots.mT @ turned) @ of_C.mT
    first, across = roots.mT @ roots - S @ S.mT, S @ of_C
    last = unit - of_C.mT @ of_C
    whole = xp.concat(
        [xp.concat([first, across], axis=2), xp.concat([across.mT, last], axis=2)], axis=1
    )
    failed = (failed != 0) | (also != 0)
    return xp.where(failed[:, None, None], xp.nan, whole)


def _by_pairs(K: Array, n: int, pairs: Pairs) -> Array:
    """As `inverse`, with all pairs of a variable and a row that defines it taken out first."""
    xp, left = namespace(K), n - len(pairs.variables)
    y, v, others = (held(places, K) for places in pairs)
    diagonal = K.diagonal(dim1=1, dim2=2)
    p, d, L = diagonal[:, y], -diagonal[:, v], K[:, v][:, :, others[:left]]
    a = xp.take_along_axis(K[:, v], y[None, :, None].expand(len(K), -1, -1), axis=2)[:, :, 0]
    size = a * a + p * d
    alpha, beta, gamma = d / size, a / size, p / size
    S = K[:, others][:, :, others]
    S[:, :left, :left] += L.mT @ (gamma[:, :, None] * L)
    T = _by_cholesky(S, left)
    G = L @ T[:, :left]
    Q = G[:, :, :left] @ L.mT
    whole = xp.empty_like(K)
    whole[:, others[:, None], others] = T
    for at, factor in ((y, -beta), (v, gamma)):
        across = factor[:, :, None] * G
        whole[:, at[:, None], others] = across
        whole[:, others[:, None], at] = across.mT
    beta_Q = beta[:, :, None] * Q
    across = xp.diag_embed(beta) - beta_Q * gamma[:, None, :]
    whole[:, y[:, None], y] = xp.diag_embed(alpha) + beta_Q * beta[:, None, :]
    whole[:, y[:, None], v] = across
    whole[:, v[:, None], y] = across.mT
    gamma_Q = gamma[:, :, None] * Q
    whole[:, v[:, None], v] = gamma_Q * gamma[:, None, :] - xp.diag_embed(gamma)
    return whole


def least_squares(K: Array, right: Array) -> Array:
    """Minimum-norm least-squares solutions of symmetric systems, shapes (B, n, n) and (B, n), in
    PyTorch; NaN where K is not finite."""
    xp = namespace(K)
    finite = xp.isfinite(K).all(-1).all(-1)
    values, vectors = xp.linalg.eigh(xp.where(finite[:, None, None], K, 0.0))
    kept = values.abs() > VANISHING * largest(values)[:, None]
    inverse = xp.where(kept, 1.0 / xp.where(kept, values, 1.0), 0.0)
    y = vectors @ (inverse[:, :, None] * (vectors.mT @ right[:, :, None]))
    return xp.where(finite[:, None], y[:, :, 0], xp.nan)
