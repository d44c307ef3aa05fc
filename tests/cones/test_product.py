"""The product: the right cone on the right rows, and U as one orthogonal matrix."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from cvxlayers.cones import (
    PSD,
    Exponential,
    NonNegative,
    ProductCone,
    SecondOrder,
    ThreeDimPower,
    Zero,
)

DIMS = {
    "zero": 2,
    "nonneg": 3,
    "soc": (3, 5, 3, 1, 2),
    "psd": (2, 3, 1, 2),
    "exp": 2,
    "pow": (0.3, 0.7, 0.5),
}
# The same, block after block: (cone, rows).
BLOCKS = [
    (Zero(), 2),
    (NonNegative(), 3),
    *((SecondOrder(q), q) for q in DIMS["soc"]),
    *((PSD(k), k * (k + 1) // 2) for k in DIMS["psd"]),
    *((Exponential(), 3) for _ in range(2)),
    *((ThreeDimPower([a]), 3) for a in DIMS["pow"]),
]
M = sum(q for _, q in BLOCKS)


@pytest.fixture
def cone():
    return ProductCone(**DIMS)


@pytest.fixture
def w():
    return np.random.default_rng(0).standard_normal((4, M)) * 3.0


def block_slices():
    end = 0
    for cone, q in BLOCKS:
        yield cone, slice(end, end + q)
        end += q


def dense(spectrum):
    """D, shape (B, m, m), from U applied to the identity."""
    UT = spectrum.rotate_rows(np.eye(spectrum.lam.shape[-1])[None])
    return np.swapaxes(UT, -1, -2) @ (spectrum.lam[..., None] * UT)


def test_every_row_is_in_one_group(cone):
    assert cone.m == M
    rows = np.concatenate([group.rows.ravel() for group in cone.groups])
    assert sorted(rows) == list(range(M))
    sizes = [group.rows.shape[1] for group in cone.groups]
    assert len(sizes) == 9  # zero, nonneg, soc 3, 5 and 2, psd 2 and 3, exp, pow
    assert not cone.elementwise


def test_blocks_are_projected_each_onto_its_cone(cone, w):
    s = cone.project(w)
    for block, rows in block_slices():
        expected = block.project(w[:, None, rows])[:, 0]
        np.testing.assert_allclose(s[:, rows], expected, atol=1e-14)


def test_derivative_is_block_diagonal(cone, w):
    spectrum = cone.spectrum(w)
    D = dense(spectrum)
    expected = np.zeros_like(D)
    for block, rows in block_slices():
        lam, U = block.spectrum(w[:, None, rows])
        lam, U = lam[:, 0], np.eye(lam.shape[-1]) if U is None else U[:, 0]
        expected[:, rows, rows] = (U * lam[:, None, :]) @ np.swapaxes(U, -1, -2)
    np.testing.assert_allclose(D, expected, atol=1e-13)
    v = np.random.default_rng(1).standard_normal(w.shape)
    np.testing.assert_allclose(spectrum.apply(v), np.squeeze(D @ v[..., None], -1), atol=1e-13)
    np.testing.assert_allclose(spectrum.apply(w), cone.project(w), atol=1e-13)


def test_second_derivative_block_by_block(cone, w):
    h, k = np.random.default_rng(5).standard_normal((2, *w.shape))
    second = cone.second(w, h, k)
    expected = np.zeros_like(w)
    for block, rows in block_slices():
        expected[:, rows] = block.second(*(v[:, None, rows] for v in (w, h, k)))[:, 0]
    np.testing.assert_allclose(second, expected, atol=1e-13)
    assert np.count_nonzero(np.any(second != 0.0, axis=0)) > M / 2
    np.testing.assert_allclose(cone.second(w[:1], h, k[:1])[2], cone.second(w[0], h[2], k[0]))
    assert cone.second(w, h[:1], k[:, None]).shape == (4, 4, M)
    from_torch = cone.second(*(torch.from_numpy(v) for v in (w, h, k)))
    np.testing.assert_allclose(from_torch.numpy(), second, atol=1e-12)


def test_rotate_and_unrotate_are_inverse(cone, w):
    spectrum = cone.spectrum(w)
    v = np.random.default_rng(2).standard_normal(w.shape)
    np.testing.assert_allclose(spectrum.unrotate(spectrum.rotate(v)), v, atol=1e-14)
    np.testing.assert_allclose(spectrum.rotate(spectrum.unrotate(v)), v, atol=1e-14)
    np.testing.assert_allclose(
        np.linalg.norm(spectrum.rotate(v), axis=-1), np.linalg.norm(v, axis=-1), rtol=1e-14
    )
    assert not np.allclose(spectrum.rotate(v), spectrum.unrotate(v))


@pytest.mark.parametrize("batch", [1, 4])
def test_rotate_rows_is_rotate_of_every_column(cone, w, batch):
    spectrum = cone.spectrum(w)
    A = np.random.default_rng(3).standard_normal((batch, M, 6))
    before = A.copy()
    turned = spectrum.rotate_rows(A)
    assert turned.shape == (4, M, 6)
    for j in range(6):
        np.testing.assert_allclose(turned[..., j], spectrum.rotate(A[..., j]), atol=1e-14)
    np.testing.assert_array_equal(A, before)


def test_torch_equals_numpy(cone, w):
    spectrum, from_torch = cone.spectrum(w), cone.spectrum(torch.from_numpy(w))
    v = np.random.default_rng(4).standard_normal(w.shape)
    np.testing.assert_allclose(
        cone.project(torch.from_numpy(w)).numpy(), cone.project(w), atol=1e-13
    )
    applied = from_torch.apply(torch.from_numpy(v))
    np.testing.assert_allclose(applied.numpy(), spectrum.apply(v), atol=1e-12)


def test_a_guess_never_changes_the_result(cone, w):
    s = cone.project(w)
    for near in (s, -s, w):
        np.testing.assert_allclose(cone.project(w, near=near), s, atol=1e-14)
        D = dense(cone.spectrum(w, near=near))
        np.testing.assert_allclose(D, dense(cone.spectrum(w)), atol=1e-12)


@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
def test_elementwise(to):
    cone = ProductCone(zero=2, nonneg=3, soc=(1, 1), psd=(1,))
    assert cone.elementwise
    w = to(np.array([[1.0, -1.0, 2.0, -2.0, 0.0, 3.0, -3.0, 4.0]]))
    np.testing.assert_array_equal(np.asarray(cone.project(w)), [[0, 0, 2, 0, 0, 3, 0, 4]])
    spectrum = cone.spectrum(w)
    assert spectrum.is_identity
    assert spectrum.blocks == ()
    np.testing.assert_array_equal(np.asarray(spectrum.lam), [[0, 0, 1, 0, 0, 1, 0, 1]])
    assert spectrum.rotate(w) is w
    assert spectrum.unrotate(w) is w
    np.testing.assert_array_equal(np.asarray(w)[0, 0], 1.0)
    second = cone.second(w, w, w[0])
    assert type(second) is type(w)
    np.testing.assert_array_equal(np.asarray(second), np.zeros((1, 8)))


@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
def test_no_rows(to):
    cone = ProductCone()
    assert (cone.m, cone.groups, cone.elementwise) == (0, (), True)
    assert cone.project(to(np.zeros((3, 0)))).shape == (3, 0)
    assert cone.spectrum(to(np.zeros((3, 0)))).lam.shape == (3, 0)
    assert cone.second(*[to(np.zeros((3, 0)))] * 3).shape == (3, 0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_work(cone, w, copied):
    spectrum = cone.spectrum(w)
    np.testing.assert_array_equal(copied(cone).project(w), cone.project(w))
    np.testing.assert_array_equal(copied(spectrum).apply(w), spectrum.apply(w))


def test_negative_sizes_raise():
    with pytest.raises(ValueError, match="nonneg = -1"):
        ProductCone(nonneg=-1)
