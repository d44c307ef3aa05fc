"""Spectra against finite differences, and what every derivative of a projection satisfies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cvxlayers.cones import PSD, Exponential, NonNegative, SecondOrder, ThreeDimPower, svec

from .cases import ALL_CASES, CASES, adversarial, scattered

norm = np.linalg.norm


def dense(lam, U):
    """U diag(lam) Uᵀ, shape (..., q, q)."""
    U = np.broadcast_to(np.eye(lam.shape[-1]), (*lam.shape, lam.shape[-1])) if U is None else U
    return (U * lam[..., None, :]) @ np.swapaxes(U, -1, -2)


def finite_differences(cone, w, step=1e-5):
    """Column by column, fourth order."""
    columns = []
    for direction in step * np.eye(w.shape[-1]):
        near = cone.project(w + direction) - cone.project(w - direction)
        far = cone.project(w + 2 * direction) - cone.project(w - 2 * direction)
        columns.append((8.0 * near - far) / (12.0 * step))
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("name", CASES)
def test_finite_differences(name):
    case = CASES[name]
    s, p = case.pairs(np.random.default_rng(1), 400, 0.0)
    cone = case.make(len(s))
    for w in (s + p, s + 0.3 * case.interior, p - 0.3 * case.interior):
        D = dense(*cone.spectrum(w))
        np.testing.assert_allclose(D, finite_differences(cone, w), atol=1e-8)


def test_finite_differences_on_the_faces_and_in_the_plane():
    cone, w = Exponential(), np.array([[-1.0, -2.0, 3.0], [-1.0, -2.0, -3.0]])
    np.testing.assert_allclose(dense(*cone.spectrum(w)), finite_differences(cone, w), atol=1e-8)
    # w_z = 0: the surface is flat, parabolic or sharp there; the sharp one is not C² beside it.
    w = np.array([[2.0, -1.0, 0.0], [-1.0, 2.0, 0.0], [2.0, -1.0, 0.0]])
    cone = ThreeDimPower([0.5, 0.5, 0.9])
    np.testing.assert_allclose(dense(*cone.spectrum(w)), finite_differences(cone, w), atol=1e-8)
    np.testing.assert_allclose(cone.spectrum(w)[0][:, 2], [0.5, 0.5, 1.0])
    np.testing.assert_array_equal(ThreeDimPower([0.2]).spectrum(w[:1])[0], [[1.0, 0.0, 0.0]])


@pytest.mark.parametrize("kind", ["scattered", "adversarial"])
@pytest.mark.parametrize("name", ALL_CASES)
def test_spectrum_is_orthonormal_within_bounds_and_homogeneous(name, kind):
    case = ALL_CASES[name]
    w = scattered(case, 4000, seed=2) if kind == "scattered" else adversarial(case.q)
    cone = case.make(len(w))
    lam, U = cone.spectrum(w)
    assert np.all((lam >= 0.0) & (lam <= 1.0))
    if U is not None:
        gram = np.swapaxes(U, -1, -2) @ U
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(case.q), gram.shape), atol=1e-12)
    # Π is positively homogeneous: D w = Π(w).
    product = np.squeeze(dense(lam, U) @ w[..., None], -1)
    error = np.abs(product - cone.project(w))
    assert np.all(error <= 1e-13 * np.max(np.abs(w), axis=-1, keepdims=True))


@pytest.mark.parametrize("name", CASES)
def test_exact_ones_inside_and_zeros_in_the_polar_cone(name):
    case = CASES[name]
    s, p = case.pairs(np.random.default_rng(3), 300, 0.0)
    cone = case.make(len(s))
    np.testing.assert_array_equal(cone.spectrum(s + 0.3 * case.interior)[0], 1.0)
    np.testing.assert_array_equal(cone.spectrum(p - 0.3 * case.interior)[0], 0.0)
    np.testing.assert_array_equal(cone.spectrum(np.zeros_like(s))[0], 0.0)


@pytest.mark.parametrize("name", ["soc3", "soc8", "exp", "pow"])
def test_exact_zero_along_the_normal_and_one_along_the_ray(name):
    case = CASES[name]
    s, p = case.pairs(np.random.default_rng(4), 300, 0.0)
    lam, U = case.make(len(s)).spectrum(s + p)
    np.testing.assert_array_equal(lam[:, :2], np.broadcast_to([0.0, 1.0], (300, 2)))
    cosine = np.sum(U[..., 0] * p, axis=-1) / norm(p, axis=-1)
    np.testing.assert_allclose(np.abs(cosine), 1.0, rtol=1e-13)
    cosine = np.sum(U[..., 1] * s, axis=-1) / norm(s, axis=-1)
    np.testing.assert_allclose(np.abs(cosine), 1.0, rtol=1e-13)


def test_kinks_take_the_smaller_element():
    np.testing.assert_array_equal(NonNegative().spectrum(np.array([[0.0]]))[0], 0.0)
    boundary = np.array([[5.0, 3.0, 4.0], [-5.0, 3.0, 4.0]])
    np.testing.assert_array_equal(SecondOrder(3).spectrum(boundary)[0], [[0, 1, 1], [0, 0, 0]])
    lam, _ = PSD(3).spectrum(svec(np.diag([2.0, 0.0, -1.0])))
    np.testing.assert_allclose(np.sort(lam), [0, 0, 0, 2 / 3, 1, 1], atol=1e-15)
    lam, _ = ThreeDimPower([0.5]).spectrum(np.array([[1.0, 1.0, 1.0], [-0.5, -0.5, 1.0]]))
    np.testing.assert_array_equal(lam, [[0, 1, 1], [0, 0, 0]])
    lam, _ = Exponential().spectrum(np.array([[0.0, 1.0, 1.0], [1.0, 1.0, -1.0]]))
    np.testing.assert_allclose(lam, [[0, 1, 1], [0, 0, 0]], atol=1e-15)


def test_repeated_eigenvalues():
    w = svec(np.stack([np.eye(3), -np.eye(3), np.zeros((3, 3)), np.diag([1.0, 1.0, -1.0])]))
    lam, U = PSD(3).spectrum(w)
    np.testing.assert_array_equal(lam[:3].min(axis=-1), [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(lam[:3].max(axis=-1), [1.0, 0.0, 0.0])
    cone = PSD(3)
    np.testing.assert_allclose(dense(lam, U)[3], finite_differences(cone, w[3:])[0], atol=1e-8)


@pytest.mark.parametrize("name", ALL_CASES)
def test_torch_equals_numpy(name):
    case = ALL_CASES[name]
    s, p = case.pairs(np.random.default_rng(5), 200, 0.0)
    w = np.vstack([s + p, s + case.interior, p - case.interior])
    cone = case.make(len(w)) if name != "pow" else ThreeDimPower(np.tile(case.make(200).alpha, 3))
    lam, U = cone.spectrum(torch.from_numpy(w))
    U = None if U is None else U.numpy()
    np.testing.assert_allclose(dense(lam.numpy(), U), dense(*cone.spectrum(w)), atol=1e-12)


@pytest.mark.parametrize("name", ["exp", "pow"])
def test_a_guess_never_changes_the_result(name):
    case = CASES[name]
    s, p = case.pairs(np.random.default_rng(6), 400, 1.0)
    cone = case.make(len(s))
    expected = dense(*cone.spectrum(s + p))
    for near in (s, s * (1.0 + 1e-6), p, np.zeros_like(s), 1e6 * s):
        np.testing.assert_allclose(dense(*cone.spectrum(s + p, near=near)), expected, atol=1e-12)
