"""The product of all cones of a problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from cvxlayers.cones.barrier import barrier_level
from cvxlayers.cones.base import Array, Cone
from cvxlayers.cones.exponential import Exponential
from cvxlayers.cones.nonneg import NonNegative
from cvxlayers.cones.power import ThreeDimPower
from cvxlayers.cones.psd import PSD
from cvxlayers.cones.second_derivative import broadcast_zeros
from cvxlayers.cones.second_order import SecondOrder
from cvxlayers.cones.spectrum import Group, Spectrum
from cvxlayers.cones.zero import Zero

__all__ = ["ProductCone"]


class ProductCone:
    """K = {0} x R₊ x second-order x PSD x exponential x power, rows in this order.

    Blocks of one size are evaluated together, whatever their number. One-row second-order and
    PSD blocks are half-lines and join the nonnegative rows.

    Parameters
    ----------
    zero, nonneg : int
        Numbers of rows.
    soc : sequence of int
        Rows q of every second-order cone.
    psd : sequence of int
        Order k of every PSD cone, k(k+1)/2 rows of svec.
    exp : int
        Number of exponential cones, three rows each.
    pow : sequence of float
        Exponent of every 3D power cone, three rows each.

    Attributes
    ----------
    m : int
        Rows of all cones together.
    groups : tuple of Group
        Every row is in exactly one group.
    elementwise : bool
        Whether all rows are zero or nonneg, so that DΠ is diagonal, 0 or 1.

    Raises
    ------
    ValueError
        If a size is negative, or an exponent not strictly between 0 and 1.

    Examples
    --------
    >>> import numpy as np
    >>> cone = ProductCone(zero=1, nonneg=1, soc=(3,))
    >>> w = np.array([[7.0, 1.0, 0.0, 3.0, 4.0]])
    >>> cone.project(w)
    array([[0. , 1. , 2.5, 1.5, 2. ]])
    >>> cone.spectrum(w).lam
    array([[0. , 1. , 0. , 1. , 0.5]])
    >>> cone.spectrum(w).apply(w).round(12)
    array([[0. , 1. , 2.5, 1.5, 2. ]])
    """

    def __init__(
        self,
        zero: int = 0,
        nonneg: int = 0,
        soc: Sequence[int] = (),
        psd: Sequence[int] = (),
        exp: int = 0,
        pow: Sequence[float] = (),
    ) -> None:
        if min(zero, nonneg, exp) < 0:
            raise ValueError(
                f"numbers of rows and cones must not be negative, got zero = {zero}, "
                f"nonneg = {nonneg}, exp = {exp}"
            )
        sizes = [
            *(("soc", q, q) for q in soc),
            *(("psd", k, k * (k + 1) // 2) for k in psd),
            *(("exp", 3, 3) for _ in range(exp)),
            *(("pow", 3, 3) for _ in pow),
        ]
        rows: dict[tuple[str, int], list[range]] = {("nonneg", 1): []}
        for row in range(zero, zero + nonneg):
            rows["nonneg", 1].append(range(row, row + 1))
        end = zero + nonneg
        for kind, order, q in sizes:
            key = ("nonneg", 1) if q == 1 else (kind, order)
            rows.setdefault(key, []).append(range(end, end + q))
            end += q

        makers: dict[str, Callable[[int], Cone]] = {
            "nonneg": lambda _: NonNegative(),
            "soc": SecondOrder,
            "psd": PSD,
            "exp": lambda _: Exponential(),
            "pow": lambda _: ThreeDimPower(pow),
        }
        self.m = end
        self._zero = zero
        self.groups: tuple[Group, ...] = (
            *_groups(Zero(), [range(row, row + 1) for row in range(zero)]),
            *(
                group
                for (kind, order), blocks in rows.items()
                for group in _groups(makers[kind](order), blocks)
            ),
        )
        self.elementwise = all(isinstance(g.cone, Zero | NonNegative) for g in self.groups)

    def project(self, w: Array, near: Array | None = None) -> Array:
        """Euclidean projection Π_K(w).

        Parameters
        ----------
        w : array
            Shape (B, m), finite.
        near : array, optional
            Guess of the projection, shape (B, m); it only saves iterations.

        Returns
        -------
        array
            Shape (B, m).
        """
        # Small QPs call this with a few dozen numbers: every call into NumPy counts.
        if self.elementwise and isinstance(w, np.ndarray):
            s = np.maximum(w, 0.0)
            if self._zero:
                s[..., : self._zero] = 0.0
            return s
        xp = array_namespace(w)
        s = xp.empty_like(w)
        for group in self.groups:
            part = group.cone.project(group.blocks_of(xp, w), _part(xp, group, near))
            s[..., group.index_for(w)] = xp.reshape(part, (*w.shape[:-1], group.rows.size))
        return s

    def spectrum(self, w: Array, near: Array | None = None) -> Spectrum:
        """Eigen-decomposition of the derivative DΠ_K(w).

        Parameters
        ----------
        w : array
            Shape (B, m), finite.
        near : array, optional
            Guess of the projection, shape (B, m); it only saves iterations.

        Returns
        -------
        Spectrum
            Eigenvalues (B, m) and the blocks of eigenvectors.
        """
        if self.elementwise and isinstance(w, np.ndarray):
            lam = (w > 0.0).astype(w.dtype)
            if self._zero:
                lam[..., : self._zero] = 0.0
            return Spectrum(lam)
        xp = array_namespace(w)
        lam = xp.empty_like(w)
        blocks = []
        for group in self.groups:
            part, U = group.cone.spectrum(group.blocks_of(xp, w), _part(xp, group, near))
            lam[..., group.index_for(w)] = xp.reshape(part, (*w.shape[:-1], group.rows.size))
            if U is not None:
                blocks.append((group, U))
        return Spectrum(lam, tuple(blocks))

    def second(self, w: Array, h: Array, k: Array) -> Array:
        """Second derivative D²Π_K(w)[h, k].

        Parameters
        ----------
        w : array
            Shape (B, m), finite.
        h, k : array
            Directions, of shapes that broadcast with that of w.

        Returns
        -------
        array
            Shape (B, m), or that to which the three broadcast.
        """
        xp = array_namespace(w, h, k)
        second = broadcast_zeros(xp, w, h, k)
        if self.elementwise:
            return second
        for group in self.groups:
            if not isinstance(group.cone, Zero | NonNegative):
                part = group.cone.second(*(group.blocks_of(xp, v) for v in (w, h, k)))
                index = group.index_for(w)
                second[..., index] = xp.reshape(part, (*second.shape[:-1], group.rows.size))
        return second

    def smooth(self, w: Array, mu: Array | float, near: Array | None = None) -> Array:
        """Smoothed projection Π_μ(w) = argmin_s ½‖s − w‖² + μ φ(s), φ the logarithmic barrier.

        The rows of s = Π_μ(w) and z = s − w = −μ ∇φ(s) are strictly inside K and K*; on those of
        the zero cone s = 0 and z is free.

        Parameters
        ----------
        w : array
            Shape (B, m), finite.
        mu : array or float
            Positive: a number, or shape (B, 1).
        near : array, optional
            Guess of Π_μ(w), shape (B, m); it only saves iterations.

        Returns
        -------
        array
            Shape (B, m).

        Examples
        --------
        >>> import numpy as np
        >>> ProductCone(nonneg=2).smooth(np.array([[1.5, -1.5]]), 1.0)
        array([[2. , 0.5]])
        """
        xp = array_namespace(w)
        s = xp.empty_like(w)
        for group in self.groups:
            level = _level(xp, w, mu)
            part = group.cone.smooth(group.blocks_of(xp, w), level, _part(xp, group, near))
            s[..., group.index_for(w)] = xp.reshape(part, (*w.shape[:-1], group.rows.size))
        return s

    def smooth_spectrum(self, w: Array, mu: Array | float, near: Array | None = None) -> Spectrum:
        """Eigen-decomposition of the derivative DΠ_μ(w).

        Parameters
        ----------
        w : array
            Shape (B, m), finite.
        mu : array or float
            Positive: a number, or shape (B, 1).
        near : array, optional
            Guess of Π_μ(w), shape (B, m); it only saves iterations.

        Returns
        -------
        Spectrum
            Eigenvalues (B, m), in (0, 1) but for the rows of the zero cone, and eigenvectors:
            those of nonnegative rows are blocks, too, each of them [[1]].
        """
        xp = array_namespace(w)
        lam = xp.empty_like(w)
        blocks = []
        for group in self.groups:
            of_w, level = group.blocks_of(xp, w), _level(xp, w, mu)
            part, U = group.cone.smooth_spectrum(of_w, level, _part(xp, group, near))
            lam[..., group.index_for(w)] = xp.reshape(part, (*w.shape[:-1], group.rows.size))
            if U is None and not isinstance(group.cone, Zero):
                # Whoever treats curved rows in a way of their own looks for them among the blocks.
                U = xp.ones_like(of_w)[..., None]
            if U is not None:
                blocks.append((group, U))
        return Spectrum(lam, tuple(blocks))


def _groups(cone: Cone, blocks: Iterable[Iterable[int]]) -> tuple[Group, ...]:
    """One group of these blocks, or none of no blocks."""
    rows = np.array([list(block) for block in blocks], dtype=np.intp)
    return (Group(cone, rows),) if rows.size else ()


def _part(xp: Any, group: Group, near: Array | None) -> Array | None:
    return None if near is None else group.blocks_of(xp, near)


def _level(xp: Any, w: Array, mu: Array | float) -> Array:
    """μ for blocks of shape (..., c, q)."""
    level = barrier_level(xp, w, mu)
    return level if level.ndim == 0 else level[..., None]
