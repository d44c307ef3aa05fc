"""Where Π(w) is 1e-4 to 1e-14 of w, against high precision.

The equations for it have almost levelled off where they cross zero there.
"""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

from cvxlayers.cones import Exponential, ThreeDimPower

from . import high_precision
from .test_derivative import dense

norm = np.linalg.norm

ALPHAS = [0.01, 0.1, 0.3, 0.5, 0.9, 0.99]
GAPS = [10.0**-k for k in range(4, 15)]
DIGITS = 25


def beside_the_polar_cone(pairs, ray, gap):
    """w = s + p, rounded, with ‖p‖ = 1 and ‖s‖ = gap, and where the pairs are there.

    `ray(size, length)` is where, for points of one ray of the surface and of its normal.
    """
    with mpmath.workdps(2 * DIGITS + 50):
        size, length = (mpmath.norm(v) for v in pairs(ray(mpf(1), mpf(1))))
        q = ray(mpf(gap) / size, 1 / length)
        return np.sum(np.array(pairs(q)), axis=0).astype(np.float64), q


def power_points(alpha, gap, n=6):
    """(pairs, w, q)"""
    rng = np.random.default_rng(1)
    for i in range(n):
        x, y = rng.uniform(-1.0, 1.0, 2)

        def ray(size, length, x=x, y=y):
            return [x + mpmath.log(size), y + mpmath.log(size), mpmath.log(length)]

        pairs = high_precision.power_pairs(alpha, (-1.0) ** i)
        yield pairs, *beside_the_polar_cone(pairs, ray, gap)


def exponential_points(gap, n=6):
    pairs = high_precision.exponential_pairs
    for slope in np.random.default_rng(2).uniform(-2.0, 2.0, n):

        def ray(size, length, slope=slope):
            return [slope, mpmath.log(size), mpmath.log(length)]

        yield pairs, *beside_the_polar_cone(pairs, ray, gap)


def check(cone, points, tolerance):
    """Without a guess, and with good and bad ones, in both namespaces."""
    for pairs, w, q in points:
        s, D = high_precision.projection_of_pairs(pairs, q, w, DIGITS)
        w, s = w[None], s[None]
        for near in (None, s, 2.0 * s, 1e-3 * s, w):
            assert norm(cone.project(w, near=near) - s) <= 1e-15
            assert norm(dense(*cone.spectrum(w, near=near))[0] - D) <= tolerance
        assert norm(cone.project(torch.from_numpy(w)).numpy() - s) <= 1e-15


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("gap", GAPS)
def test_power_cone(alpha, gap):
    # How fast the surface bends, and D turns, grows with 1/α.
    tolerance = 2e-15 / min(alpha, 1.0 - alpha)
    check(ThreeDimPower([alpha]), power_points(alpha, gap), tolerance)


@pytest.mark.parametrize("gap", GAPS)
def test_exponential_cone(gap):
    check(Exponential(), exponential_points(gap), 1e-14)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("gap", [1e-8, 1e-11, 1e-14])
def test_second_derivative_of_the_power_cone(alpha, gap):
    rng = np.random.default_rng(3)
    for pairs, w, q in power_points(alpha, gap, n=2):
        h, k = rng.standard_normal((2, 3))
        true = high_precision.second_of_pairs(pairs, q, w, h, k, DIGITS)
        found = ThreeDimPower([alpha]).second(w[None], h[None], k[None])[0]
        assert norm(found - true) <= 2e-14 / min(alpha, 1.0 - alpha) * norm(true)
