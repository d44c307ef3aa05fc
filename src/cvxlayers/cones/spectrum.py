"""The spectrum of DΠ_K over the rows of a product of cones, and the groups of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from cvxlayers.arrays import held
from cvxlayers.cones.base import Array, Cone
from cvxlayers.cones.second_order import AxisRotation

__all__ = ["Group", "Spectrum"]


@dataclass(frozen=True, eq=False)
class Group:
    """Equal-sized blocks of one cone.

    Attributes
    ----------
    cone : Cone
        What evaluates them.
    rows : ndarray of int
        Shape (c, q): the rows of every block.
    """

    cone: Cone
    rows: NDArray[np.intp]

    @cached_property
    def flat(self) -> NDArray[np.intp]:
        """The rows of all blocks in order."""
        return self.rows.ravel()

    @cached_property
    def index(self) -> slice | NDArray[np.intp]:
        """The same; a slice where they are contiguous (a view, no copy)."""
        flat = self.flat
        if np.array_equal(flat, np.arange(flat[0], flat[0] + len(flat))):
            return slice(int(flat[0]), int(flat[0]) + len(flat))
        return flat

    def index_for(self, v: Array) -> Any:
        """`index`, on the device of v."""
        return self.index if isinstance(self.index, slice) else held(self.index, v)

    def blocks_of(self, xp: Any, v: Array) -> Array:
        """The rows of v, shape (..., m), as blocks, shape (..., c, q)."""
        return xp.reshape(self.pick(xp, v, axis=-1), (*v.shape[:-1], *self.rows.shape))

    def pick(self, xp: Any, v: Array, axis: int) -> Array:
        """The rows of all blocks along an axis, the last or the one before it."""
        index = self.index_for(v)
        if isinstance(index, slice):
            return v[..., index] if axis == -1 else v[..., index, :]
        # Not by v[..., index]: the layout of that, and so the order of sums over it, depends on
        # the size of the batch.
        return xp.take(v, index, axis=axis)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """DΠ_K(w) = U diag(lam) Uᵀ with U orthogonal and block-diagonal.

    Attributes
    ----------
    lam : array
        Shape (B, m), in [0, 1].
    blocks : tuple of (Group, array or AxisRotation)
        The blocks of U that are not the identity: group and its U, shape (B, c, q, q).
    """

    lam: Array
    blocks: tuple[tuple[Group, Array | AxisRotation], ...] = ()

    @property
    def is_identity(self) -> bool:
        """Whether U = I, that is, DΠ is diagonal."""
        return not self.blocks

    def rotate(self, v: Array) -> Array:
        """Uᵀ v.

        Parameters
        ----------
        v : array
            Shape (B or 1, m).

        Returns
        -------
        array
            Shape (B, m); v itself where U is the identity.
        """
        return v if self.is_identity else self._multiply(v[..., None], transpose=True)[..., 0]

    def unrotate(self, v: Array) -> Array:
        """U v, the inverse of `rotate`.

        Parameters
        ----------
        v : array
            Shape (B or 1, m).

        Returns
        -------
        array
            Shape (B, m); v itself where U is the identity.
        """
        return v if self.is_identity else self._multiply(v[..., None], transpose=False)[..., 0]

    def rotate_rows(self, A: Array) -> Array:
        """Uᵀ A.

        Parameters
        ----------
        A : array
            Shape (B or 1, m, n).

        Returns
        -------
        array
            Shape (B, m, n); A itself where U is the identity.
        """
        return A if self.is_identity else self._multiply(A, transpose=True)

    def apply(self, v: Array) -> Array:
        """DΠ v = U diag(lam) Uᵀ v.

        Parameters
        ----------
        v : array
            Shape (B or 1, m).

        Returns
        -------
        array
            Shape (B, m).
        """
        return self.unrotate(self.lam * self.rotate(v))

    def _multiply(self, A: Array, transpose: bool) -> Array:
        xp = array_namespace(self.lam, A)
        batch = np.broadcast_shapes(self.lam.shape[:-1], tuple(A.shape[:-2]))
        n = A.shape[-1]
        product = xp.asarray(xp.broadcast_to(A, (*batch, *A.shape[-2:])), copy=True)
        for group, U in self.blocks:
            index = group.index_for(A)
            picked = group.pick(xp, A, axis=-2)
            block = xp.reshape(picked, (*A.shape[:-2], *group.rows.shape, n))
            if isinstance(U, AxisRotation):
                turned = U.multiply(block, transpose)
            else:
                turned = xp.matmul(xp.matrix_transpose(U) if transpose else U, block)
            product[..., index, :] = xp.reshape(turned, (*batch, group.rows.size, n))
        return product
