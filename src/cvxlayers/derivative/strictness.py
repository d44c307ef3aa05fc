"""Strict complementarity: whether the solution map is smooth at a point.

Where a constraint holds with equality and its dual is zero, as in the projection of 0 onto x >= 0,
the projection onto the cone has a kink at w = s − z, and the derivative that is taken there is one
of several.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cvxlayers.arrays import Array, fetched, held, is_host, largest, namespace
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.program import ConeDims, ConeProgram

__all__ = ["is_strict"]

# Slack and dual count as zero below this, relative to the largest ones of the instance.
VANISHING = 1e-8
ROUNDING = 1e-14
# For the exponential cone the point of its central ray, s = −∇φ(s): inside it and its dual.
# Domahidi, Chu & Boyd, *ECOS*, 2013; Serrano, *Algorithms for unsymmetric cone optimization*, 2015.
EXPONENTIAL = (-1.051383945322714, 0.556409619469370, 1.258967884768947)


def is_strict(
    geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array
) -> NDArray[np.bool_]:
    """Shape (B,): where s + z is inside the cones, apart from rounding.

    The trace of DΠ jumps by one or more between w − εe and w + εe if there is a kink between them,
    for any direction e inside the cone and its dual.

    Duals that are rounding, all of them, because the objective is at its own optimum, may pass for
    duals: a bound such as that of `cp.norm`, which nothing forces, would be flagged otherwise.
    """
    # Where the data are zero, so is the solution, and what is left of it is rounding.
    xp = namespace(s)
    none = (largest(program.q) == 0.0) & (largest(program.b) == 0.0)
    size_s, size_z = (
        xp.where(none[:, None], 1.0, _size(*pair)) for pair in ((s, program.b), (z, program.q))
    )
    # Duals may be zero, all of them: then they are the rounding of the terms of P x.
    terms = largest(program.P) * largest(x)
    size_z = xp.maximum(size_z, ROUNDING / VANISHING * terms[:, None])
    # As `balance` does, but for all rows alike: s and z of one size.
    sigma, size = xp.sqrt(size_s / size_z), xp.sqrt(size_s * size_z)
    w = s / sigma - z * sigma
    step = VANISHING * size * held(_inside(geometry.structure.dims), s)
    above, below = (geometry.cone.spectrum(v).lam for v in (w + step, w - step))
    jump = _sums(geometry, above - below) if s.shape[1] else above
    return np.asarray(fetched(xp.all(xp.abs(jump) < 0.5, axis=1)))


def _size(values: Array, data: Array) -> Array:
    """The largest entry of an instance, one if there is none; shape (B, 1)."""
    xp = namespace(values)
    size = xp.maximum(*(largest(xp.where(xp.abs(v) < 1e20, v, 0.0)) for v in (values, data)))
    return xp.where(size > 0.0, size, 1.0)[:, None]


def _sums(geometry: Geometry, values: Array) -> Array:
    """The sum over every block, shape (B, number of blocks)."""
    starts, blocks = _blocks(geometry.structure.dims)
    if is_host(values):
        return np.add.reduceat(values, starts, axis=1)
    sums = values.new_zeros((len(values), len(starts)))
    return sums.index_add_(1, held(blocks, values), values)


@lru_cache(maxsize=64)
def _blocks(dims: ConeDims) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first row of every block, and the number of the block of every row."""
    sizes = [1] * (dims.zero + dims.nonneg) + list(dims.soc)
    sizes += [k * (k + 1) // 2 for k in dims.psd] + [3] * (dims.exp + len(dims.pow))
    starts = np.concatenate([[0], np.cumsum(sizes)])[:-1].astype(np.intp)
    return starts, np.repeat(np.arange(len(sizes)), sizes)


@lru_cache(maxsize=64)
def _inside(dims: ConeDims) -> NDArray[np.float64]:
    """A point inside every cone and its dual; zero for the zero cone."""
    parts: list[NDArray[np.float64]] = [np.zeros(dims.zero), np.ones(dims.nonneg)]
    parts += [np.eye(1, size)[0] for size in dims.soc]
    for k in dims.psd:
        j, i = np.tril_indices(k)
        parts.append((i == j).astype(np.float64))
    parts += [np.array(EXPONENTIAL)] * dims.exp
    parts += [np.array([math.sqrt(1 + a), math.sqrt(2 - a), 0.0]) for a in dims.pow]
    return np.concatenate(parts)
