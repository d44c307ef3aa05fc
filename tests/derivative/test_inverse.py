"""Inverses of quasi-definite matrices by Cholesky's factors, against LAPACK's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cvxlayers.derivative import inverse as module
from cvxlayers.derivative.inverse import Pairs, _by_pairs, inverse, least_squares


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


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-3])
@pytest.mark.parametrize("is_linear", [True, False], ids=["linear", "quadratic"])
def test_with_variables_that_a_row_defines(is_linear: bool, smallest: float) -> None:
    """They stand anywhere; a goes down to `smallest`, δ to a regularisation, p may be zero."""
    n, k, r = 9, 7, 4
    variables, rows = np.array([1, 4, 5, 8]), n + np.array([0, 2, 3, 6])
    pairs = Pairs(variables, rows, np.setdiff1d(np.arange(n + k), [*variables, *rows]))
    K, rng = quasi_definite(n, k, n, 1e-3), np.random.default_rng(1)
    K[:, variables] = K[:, :, variables] = 0.0
    K[:, variables, variables] = 0.0 if is_linear else rng.uniform(0.1, 1.0, (5, r))
    a = np.geomspace(1.0, smallest, r) * rng.choice([-1.0, 1.0], (5, r))
    K[:, variables, rows] = K[:, rows, variables] = a
    K[:, rows, rows] = -np.geomspace(1e-2, 1e-11, r)
    K[:, variables, variables] += 1e-11
    expected = np.linalg.inv(K)
    found = inverse(torch.from_numpy(K), n, pairs).numpy()
    size = np.abs(expected).max(axis=(1, 2))
    error = np.abs(found - expected).max(axis=(1, 2))
    # A pivot of a makes entries of S up to 1/a² as large as the others.
    assert (error <= 1e-15 * (np.linalg.cond(K) / smallest) ** 2 * size).all()
    assert (error <= 1e-6 * size).all()
    plain = _by_pairs(torch.from_numpy(K), n, pairs).numpy()
    assert (np.abs(plain - expected).max(axis=(1, 2)) <= 1e-4 * size).all()


def test_what_is_not_accurate_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry of one inverse is wrong; eigenvectors take its place."""
    K = quasi_definite(6, 4, 6, 1e-3)
    spoilt = np.linalg.inv(K)
    spoilt[3, 2, 7] += 1e-3 * np.abs(spoilt[3]).max()
    monkeypatch.setattr(module, "_by_cholesky", lambda K, n: torch.from_numpy(spoilt))
    found = inverse(torch.from_numpy(K), 6).numpy()
    assert (found[[0, 1, 2, 4]] == spoilt[[0, 1, 2, 4]]).all()
    np.testing.assert_allclose(found[3], np.linalg.inv(K)[3], rtol=1e-9, atol=1e-9)


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
