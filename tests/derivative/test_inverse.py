"""Inverses of quasi-definite matrices by Cholesky's factors, against LAPACK's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cvxlayers.derivative.inverse import inverse, least_squares


def quasi_definite(n: int, k: int, rank: int, smallest: float) -> np.ndarray:
    """A batch with H₀ of a rank, and M over all sizes down to `smallest`."""
    rng = np.random.default_rng(n + k)
    R = rng.normal(size=(5, n, rank))
    E = rng.normal(size=(5, k, n))
    M = np.geomspace(1.0, smallest, k) * np.eye(k) if k else np.zeros((0, 0))
    upper = np.concatenate([R @ R.mT + 1e-9 * np.eye(n), E.mT], axis=2)
    lower = np.concatenate([E, np.broadcast_to(-M, (5, k, k))], axis=2)
    K = np.concatenate([upper, lower], axis=1)
    return K / np.abs(K).max(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize("smallest", [1.0, 1e-7, 1e-14])
@pytest.mark.parametrize(
    ("n", "k", "rank"), [(6, 0, 6), (6, 4, 6), (6, 6, 3), (20, 15, 10), (1, 1, 1)]
)
def test_against_lapack(n: int, k: int, rank: int, smallest: float) -> None:
    K = quasi_definite(n, k, rank, smallest)
    expected = np.linalg.inv(K)
    error = np.abs(inverse(torch.from_numpy(K), n).numpy() - expected).max(axis=(1, 2))
    size = np.abs(expected).max(axis=(1, 2))
    assert (error <= 1e-15 * np.linalg.cond(K) ** 2 * size).all()
    assert (error <= 1e-6 * size).all()


def test_singular_and_broken_matrices_leave_the_others_alone() -> None:
    K = quasi_definite(6, 4, 6, 1e-3)
    expected = np.linalg.inv(K)
    K[1], K[3] = 0.0, np.nan
    found = inverse(torch.from_numpy(K), 6).numpy()
    for i in (0, 2, 4):
        np.testing.assert_allclose(found[i], expected[i], rtol=1e-9, atol=1e-9)
    assert not np.isfinite(found[[1, 3]]).all(axis=(1, 2)).any()


def test_least_squares_is_the_pseudo_inverse() -> None:
    rng = np.random.default_rng(0)
    R = rng.normal(size=(4, 7, 3))
    K, right = R @ R.mT, rng.normal(size=(4, 7))
    found = least_squares(torch.from_numpy(K), torch.from_numpy(right)).numpy()
    expected = np.linalg.pinv(K, rcond=1e-11) @ right[:, :, None]
    np.testing.assert_allclose(found, expected[:, :, 0], rtol=1e-9, atol=1e-9)
