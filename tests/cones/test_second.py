"""Second derivatives against differences in high precision, and what all of them satisfy."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

from cvxlayers.cones import PSD, Exponential, NonNegative, SecondOrder, ThreeDimPower, Zero, svec

from . import high_precision
from .cases import ALL_CASES, CASES, adversarial, exponents, scattered
from .test_derivative import dense

norm = np.linalg.norm


def directions(shape, seed, n=2):
    return np.random.default_rng(seed).standard_normal((n, *shape))


def error(found, true):
    """Relative to the largest entry of each row."""
    return norm(found - true, axis=-1) / norm(true, axis=-1)


def differences(cone, w, h, k, step=1e-4):
    """Of the first derivative, fourth order."""

    def first(a):
        lam, U = cone.spectrum(w + a * step * h)
        U = U.matrix() if hasattr(U, "matrix") else U
        return np.squeeze(dense(lam, U) @ k[..., None], -1)

    return (8.0 * (first(1) - first(-1)) - (first(2) - first(-2))) / (12.0 * step)


@pytest.mark.parametrize("name", ALL_CASES)
def test_differences_of_the_first_derivative(name):
    case = ALL_CASES[name]
    s, p = case.pairs(np.random.default_rng(1), 300, 0.0)
    cone = case.make(len(s))
    h, k = directions(s.shape, 2)
    for w in (s + p, s + 0.3 * case.interior, p - 0.3 * case.interior):
        np.testing.assert_allclose(cone.second(w, h, k), differences(cone, w, h, k), atol=1e-8)


def test_differences_of_the_first_derivative_of_a_long_cone():
    cone, (w, h, k) = SecondOrder(130), directions((5, 130), 3, n=3)
    w[:, 0] *= 5.0
    np.testing.assert_allclose(cone.second(w, h, k), differences(cone, w, h, k), atol=1e-10)
    rows = 200_000
    w, h = np.ones((1, rows)), np.arange(rows)[None] / rows
    assert SecondOrder(rows).second(w, h, h).shape == (1, rows)


@pytest.mark.parametrize("name", ["soc3", "soc8", "psd2", "psd4"])
def test_closed_forms_in_high_precision(name):
    case = CASES[name]
    s, p = case.pairs(np.random.default_rng(4), 12, 1.0)
    w, (h, k) = s + p, directions(s.shape, 5)
    project = getattr(high_precision, f"project_{'psd' if 'psd' in name else 'second_order'}")
    found = case.make(len(w)).second(w, h, k)
    with mpmath.workdps(80):
        rows, step = zip(w, h, k, strict=True), mpf(10) ** -20
        true = np.array([high_precision.second(project, *row, step) for row in rows])
    smooth = norm(true, axis=-1) > 1e-20  # some matrices are definite
    assert np.count_nonzero(smooth) >= 4
    assert np.all(error(found[smooth], true[smooth]) <= 1e-12)


def error_in_high_precision(cone, pairs, start, rng, digits):
    """At w = s + p from the numbers `start` (see `high_precision`)."""
    with mpmath.workdps(2 * digits + 50):
        w = np.sum(np.array(pairs([mpf(a) for a in start])), axis=0).astype(np.float64)
    h, k = rng.standard_normal((2, 3))
    true = high_precision.second_of_pairs(pairs, start, w, h, k, digits)
    return error(cone.second(w[None], h[None], k[None])[0], true)


@pytest.mark.parametrize(
    ("slope", "spread", "tolerance"), [(3, 0, 1e-14), (30, 3, 1e-12), (300, 1, 1e-12)]
)
def test_exponential_cone_in_high_precision(slope, spread, tolerance):
    """Points with |s_x/s_y| <= slope, where ‖s‖ and ‖p‖ are between 10^-spread and 10^spread."""
    rng = np.random.default_rng(6)
    pairs, digits = high_precision.exponential_pairs, int(0.44 * slope) + 2 * spread + 5
    for _ in range(20 if slope < 100 else 4):
        ratio, sizes = rng.uniform(-slope, slope), 10.0 ** rng.uniform(-spread, spread, 2)
        units = (mpmath.norm(v) for v in pairs([mpf(ratio), mpf(0), mpf(0)]))
        start = [ratio, *(mpmath.log(a / b) for a, b in zip(sizes, units, strict=True))]
        assert error_in_high_precision(Exponential(), pairs, start, rng, digits) <= tolerance


@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.3, 0.8])
@pytest.mark.parametrize(("spread", "tolerance"), [(0.3, 1e-13), (5.0, 1e-10)])
def test_power_cone_in_high_precision(alpha, spread, tolerance):
    """Points where s_x, s_y and |p_z| are between 10^-spread and 10^spread."""
    rng, digits = np.random.default_rng(7), int(6 * spread) + 5
    for sign in (1.0, -1.0) * 6:
        start = np.log(10.0) * rng.uniform(-spread, spread, 3)
        pairs = high_precision.power_pairs(alpha, sign)
        assert (
            error_in_high_precision(ThreeDimPower([alpha]), pairs, start, rng, digits) <= tolerance
        )


@pytest.mark.parametrize("name", ALL_CASES)
def test_symmetric_in_all_three_directions_and_homogeneous(name):
    case = ALL_CASES[name]
    w = scattered(case, 4000, seed=8)
    cone = case.make(len(w))
    a, b, c = directions(w.shape, 9, n=3)
    values = [
        np.sum(cone.second(w, h, k) * l_, axis=-1)
        for h, k, l_ in ((a, b, c), (b, a, c), (b, c, a), (c, a, b))
    ]
    # How large D²Π is, from directions of about one length.
    among = ((a, b), (b, c), (c, a), (a + b, a + b), (b - c, b - c), (c + a, c - b))
    size = np.max([np.abs(cone.second(w, h, k)) for h, k in among], axis=(0, -1))
    for value in values[1:]:
        assert np.all(np.abs(value - values[0]) <= 1e-11 * size)
    # Π is positively homogeneous: D²Π[h, w] = 0.
    along = np.max(np.abs(cone.second(w, a, w)), axis=-1)
    assert np.all(along <= 1e-12 * size * norm(w, axis=-1))


@pytest.mark.parametrize("name", ALL_CASES)
def test_powers_of_two_change_the_exponent_alone(name):
    case = ALL_CASES[name]
    s, p = case.pairs(np.random.default_rng(10), 100, 0.5)
    w, (h, k) = s + p, directions(s.shape, 11)
    cone = case.make(len(w))
    true = cone.second(w, h, k)
    scales = [(0, 0, 0), (900, 950, -100), (-900, -950, 100), (900, 500, 500), (-300, -900, 500)]
    for of_w, of_h, of_k in scales:
        found = cone.second(w * 2.0**of_w, h * 2.0**of_h, k * 2.0**of_k)
        np.testing.assert_array_equal(found, true * 2.0 ** (of_h + of_k - of_w))


@pytest.mark.parametrize("name", ALL_CASES)
def test_bilinear(name):
    case = ALL_CASES[name]
    s, p = case.pairs(np.random.default_rng(12), 100, 0.0)
    w, (a, b, c) = s + p, directions(s.shape, 13, n=3)
    cone = case.make(len(w))
    total = cone.second(w, a, b) + 3.0 * cone.second(w, a, c)
    np.testing.assert_allclose(cone.second(w, a, b + 3.0 * c), total, atol=1e-12)


@pytest.mark.parametrize("name", ALL_CASES)
def test_exactly_zero_where_the_projection_is_linear(name):
    case = ALL_CASES[name]
    s, p = case.pairs(np.random.default_rng(14), 300, 0.0)
    cone = case.make(len(s))
    h, k = directions(s.shape, 15)
    for w in (s + 0.3 * case.interior, p - 0.3 * case.interior, np.zeros_like(s)):
        np.testing.assert_array_equal(cone.second(w, h, k), 0.0)


def test_exactly_zero_on_faces_and_of_polyhedral_cones():
    w = np.array([[-1.0, -2.0, 3.0], [-1.0, -2.0, -3.0], [-1.0, 0.0, 2.0], [0.0, -1.0, 0.0]])
    h, k = directions(w.shape, 16)
    np.testing.assert_array_equal(Exponential().second(w, h, k), 0.0)
    np.testing.assert_array_equal(SecondOrder(2).second(w[:, :2], h[:, :2], k[:, :2]), 0.0)
    for cone in (Zero(), NonNegative()):
        np.testing.assert_array_equal(cone.second(w, h, k), np.zeros_like(w))
    w = np.array([[2.0, -1.0, 0.0], [-1.0, 2.0, 0.0]])
    np.testing.assert_array_equal(ThreeDimPower([0.9, 0.2]).second(w, h[:2], k[:2]), 0.0)


def test_simple_points():
    """With w = (0, 3, 4): Π₀ = ½ (w₀ + ‖w₁‖) bends across w₁ alone, with curvature ½/5."""
    w, across = np.array([[0.0, 3.0, 4.0]]), np.array([[0.0, -0.8, 0.6]])
    found = SecondOrder(3).second(w, across, across)
    np.testing.assert_allclose(found, [[0.1, 0.0, 0.0]], atol=1e-16)
    # The off-diagonal direction of diag(a, -c) splits the eigenvalues by t²/(a + c).
    w, turn = svec(np.diag([3.0, -1.0]))[None], svec(np.array([[0.0, 1.0], [1.0, 0.0]]))[None]
    # λ₁ = 3 + t²/4, and the eigenvector turns by t/4: Π = diag(λ₁ - 3 t²/16, 3 t²/16).
    expected = svec(2.0 * np.diag([1.0 / 4.0 - 3.0 / 16.0, 3.0 / 16.0]))[None]
    np.testing.assert_allclose(PSD(2).second(w, turn, turn), expected, atol=1e-15)


def test_power_cone_in_the_plane_is_the_limit_where_the_surface_is_a_parabola():
    cone = ThreeDimPower([0.5] * 3)
    w = np.array([[2.0, -1.0, 0.0], [-1.0, 3.0, 0.0], [2.0, -5.0, 0.0]])
    h, k = directions(w.shape, 17)
    found = cone.second(w, h, k)
    np.testing.assert_allclose(found, differences(cone, w, h, k), atol=1e-9)
    np.testing.assert_allclose(found, cone.second(w + 1e-9 * np.eye(3)[2], h, k), atol=1e-8)


def test_power_cone_this_close_to_the_plane_is_in_it():
    """On the edges w_x = 0, where |s_z| or |w_z - s_z| is below 1e-500 and not resolved."""
    w = np.array([[0.0, -1.0, 1e-90], [0.0, 1.0, 1e-90], [0.0, 1.0, -1e-60]])
    h, k = directions(w.shape, 18)
    np.testing.assert_array_equal(ThreeDimPower([0.1, 0.1, 0.2]).second(w, h, k), 0.0)


@pytest.mark.parametrize("name", ["soc3", "soc8", "psd2", "exp", "pow"])
def test_on_the_boundary_the_limit_from_outside(name):
    """A weakly active constraint counts as active."""
    case = CASES[name]
    s, p = case.pairs(np.random.default_rng(18), 200, 0.0)
    if name == "psd2":  # keep those of rank one, which have one zero eigenvalue
        s, p = (v[(norm(s, axis=-1) > 0.0) & (norm(p, axis=-1) > 0.0)] for v in (s, p))
    h, k = directions(s.shape, 19)
    cone = case.make(len(s))
    outside = cone.second(s + 1e-7 * p, h, k)
    assert np.all(norm(outside, axis=-1) > 0.0)
    # s itself is rounded to either side of the boundary.
    boundary = cone.second(s + 1e-14 * p, h, k)
    np.testing.assert_allclose(boundary, outside, rtol=1e-4, atol=1e-4)


def test_exactly_on_the_boundary_the_limit_from_outside():
    points = {
        SecondOrder(3): ([5.0, 3.0, 4.0], [-1.0, 0.6, 0.8]),
        PSD(2): ([2.0, 0.0, 0.0], [0.0, 0.0, -1.0]),
        Exponential(): ([0.0, 1.0, 1.0], [1.0, 1.0, -1.0]),
        ThreeDimPower([0.5]): ([1.0, 1.0, 1.0], [-0.5, -0.5, 1.0]),
    }
    h, k = directions((1, 3), 20)
    for cone, (s, p) in points.items():
        s, p = np.array([s]), np.array([p])
        np.testing.assert_allclose(cone.second(s, h, k), cone.second(s + 1e-8 * p, h, k), atol=1e-6)
        assert np.all(norm(cone.second(s, h, k)) > 0.01)
        # The closed polar cone counts as inactive.
        np.testing.assert_array_equal(cone.second(p, h, k), 0.0)


def test_eigenvalues_within_rounding_of_zero_count_as_zero():
    rng = np.random.default_rng(21)
    V = np.linalg.qr(rng.standard_normal((200, 5, 5)))[0]
    values = np.where(np.arange(5) < 3, rng.uniform(-2.0, 2.0, (200, 5)), 0.0)
    w = svec((V * values[:, None, :]) @ np.swapaxes(V, -1, -2))
    h, k = directions(w.shape, 22)
    gap = np.min(np.abs(values[:, :3]), axis=-1)
    found = norm(PSD(5).second(w, h, k), axis=-1)
    assert np.all(found <= 4.0 * norm(h, axis=-1) * norm(k, axis=-1) / gap)


@pytest.mark.parametrize("name", ALL_CASES)
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_finite_at_adversarial_points(name, scale):
    case = ALL_CASES[name]
    w = adversarial(case.q)
    w = w[np.max(np.abs(w), axis=-1) > 1e-20]  # D²Π overflows at an apex
    h, k = directions(w.shape, 23)
    h[::3, 0] = 0.0
    assert np.all(np.isfinite(case.make(len(w)).second(w, scale * h, k / scale)))


@pytest.mark.parametrize("name", ["exp", "pow"])
@pytest.mark.parametrize("decades", [30, 100])
def test_finite_at_entries_of_any_size(name, decades):
    rng = np.random.default_rng(24)
    w = rng.standard_normal((5000, 3)) * 10.0 ** rng.uniform(-decades, decades, (5000, 3))
    w[::5, 0] = 0.0
    h, k = directions(w.shape, 25)
    unit = w / np.max(np.abs(w), axis=-1, keepdims=True)
    assert np.all(np.isfinite(CASES[name].make(len(w)).second(unit, h, k)))


@pytest.mark.parametrize("name", ALL_CASES)
def test_directions_broadcast(name):
    case = ALL_CASES[name]
    s, p = case.pairs(np.random.default_rng(26), 12, 0.0)
    w = np.reshape(s + p, (2, 6, case.q))
    cone = case.make(6)
    h, k = directions((4, 1, 6, case.q), 27)[0], directions((2, 6, case.q), 28)[0]
    found = cone.second(w, h, k)
    assert found.shape == (4, 2, 6, case.q)
    for i in range(4):
        for j in range(2):
            expected = cone.second(w[j], h[i, 0], k[j])
            np.testing.assert_allclose(found[i, j], expected, atol=1e-14)
    np.testing.assert_array_equal(cone.second(w[0], h, k)[:, 0], cone.second(w[:1], h, k)[:, 0])


@pytest.mark.parametrize("name", ALL_CASES)
def test_torch_equals_numpy(name):
    case = ALL_CASES[name]
    s, p = case.pairs(np.random.default_rng(29), 200, 0.0)
    w = np.vstack([s + p, s + case.interior, p - case.interior])
    h, k = directions(w.shape, 30)
    cone = case.make(len(w)) if name != "pow" else ThreeDimPower(np.tile(exponents(200), 3))
    found = cone.second(*(torch.from_numpy(v) for v in (w, h, k)))
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), cone.second(w, h, k), atol=1e-12)
