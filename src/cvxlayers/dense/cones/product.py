"""The product of all cones of a program, blocks of equal size side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cvxlayers.dense.cones.base import Cone, Scaling, SymmetricCone, SymmetricScaling
from cvxlayers.dense.cones.exponential import Exponential
from cvxlayers.dense.cones.nonneg import Nonneg, NonnegScaling
from cvxlayers.dense.cones.nonsymmetric import NonsymmetricCone
from cvxlayers.dense.cones.power import Power
from cvxlayers.dense.cones.psd import PSD
from cvxlayers.dense.cones.second_order import SecondOrder
from cvxlayers.program import ConeDims

__all__ = ["Product", "ProductScaling"]

# Steps for cones that do not tell how far their boundary is: the first of 1, 0.82, 0.82², … that
# stays inside.
LONGEST = 1.0 - 1.4901161193847656e-08
COARSE, TRIES = 0.25, 7


class Product:
    """K, with rows in an order in which blocks of equal size are neighbours.

    Parameters
    ----------
    dims : ConeDims
    device : torch.device
        Where its tensors are.

    Attributes
    ----------
    zero : int
        How many rows the zero cone has; they come first.
    degree : int
        Of the barrier of all other cones.
    symmetric : bool
        Whether all of them are.
    is_flat : bool
        Whether the others are the nonnegative one, or there are none.
    never_asks : bool
        Whether nothing here waits for the device: eigenvalues are checked on the host.
    order, back : Tensor of int
        Shape (m,): the program's row at every place, and the place of every row.
    """

    def __init__(self, dims: ConeDims, device: torch.device):
        self.zero, self.parts = dims.zero, list[tuple[slice, Cone]]()
        order, end = list(range(dims.zero)), dims.zero

        def add(cone: Cone, starts: Sequence[int]) -> None:
            rows = slice(len(order), len(order) + cone.count * cone.size)
            order.extend(start + k for start in starts for k in range(cone.size))
            self.parts.append((rows, cone))

        def blocks(sizes: Sequence[int]) -> list[int]:
            nonlocal end
            starts = []
            for size in sizes:
                starts.append(end)
                end += size
            return starts

        starts = blocks([1] * dims.nonneg)
        if starts:
            add(Nonneg(dims.nonneg, device), starts)
        starts = blocks(dims.soc)
        for size, chosen in _equal(dims.soc, starts):
            add(SecondOrder(len(chosen), size, device), chosen)
        starts = blocks([k * (k + 1) // 2 for k in dims.psd])
        for k, chosen in _equal(dims.psd, starts):
            add(PSD(len(chosen), k, device), chosen)
        starts = blocks([3] * dims.exp)
        if starts:
            add(Exponential(dims.exp, device), starts)
        starts = blocks([3] * len(dims.pow))
        if starts:
            add(Power(dims.pow, device), starts)

        self.degree = sum(cone.degree for _, cone in self.parts)
        self.symmetric = all(cone.symmetric for _, cone in self.parts)
        self.is_flat = all(isinstance(cone, Nonneg) for _, cone in self.parts)
        self.never_asks = not any(isinstance(cone, PSD) for _, cone in self.parts)
        self.order = torch.tensor(order, dtype=torch.long, device="cpu").to(device)
        self.back = torch.argsort(self.order)
        self._unit = torch.zeros(len(order), dtype=torch.float64, device=device)
        for rows, cone in self.parts:
            self._unit[rows] = cone.unit().reshape(-1)

    def unit(self) -> Tensor:
        """Shape (m,): a point in the middle of the cones, zero in the rows of the zero cone."""
        return self._unit

    def blocks(self, v: Tensor) -> Iterator[Tensor]:
        """The parts of v, whose last axis is of length m, as (…, count, size)."""
        for rows, cone in self.parts:
            yield v[..., rows].unflatten(-1, (cone.count, cone.size))

    def mean_over_blocks(self, v: Tensor) -> Tensor:
        """v, shape (B, m), with the mean of every curved block in all of its rows."""
        parts = [v[:, : self.zero]]
        parts += [
            block.mean(-1, keepdim=True).expand_as(block).flatten(1) for block in self.blocks(v)
        ]
        return torch.cat(parts, dim=1)

    def move_inside(self, v: Tensor) -> Tensor:
        """v + t e with t such that its least eigenvalue is at least a tenth of the mean of the
        positive ones, and one. For symmetric cones."""
        values = [
            cone.eigenvalues(block)
            for (_, cone), block in zip(self.parts, self.blocks(v), strict=True)
            if isinstance(cone, SymmetricCone)
        ]
        if not values:
            return v
        every = torch.cat(values, dim=1)
        target = (0.1 / self.degree * every.clamp_min(0.0).sum(1)).clamp_min(1.0)
        t = (target - every.amin(1)).clamp_min(0.0)
        return v + t[:, None] * self._unit

    def scale(self, s: Tensor, z: Tensor, mu: Tensor, dual: Tensor) -> ProductScaling:
        """The scaling at (s, z), shapes (B, m); mu and dual as in `Cone.scale`."""
        return ProductScaling(self, s, z, mu, dual)

    def stays_inside(self, s: Tensor, z: Tensor) -> Tensor:
        """Whether the blocks without symmetry are strictly inside, shape (…) of s without rows."""
        inside = torch.ones(s.shape[:-1], dtype=torch.bool, device=s.device)
        for (_, cone), s_block, z_block in zip(
            self.parts, self.blocks(s), self.blocks(z), strict=True
        ):
            if isinstance(cone, NonsymmetricCone):
                inside &= cone.is_inside(s_block, z_block).all(-1)
        return inside


class ProductScaling:
    """The scalings of all cones at (s, z), for vectors of m rows.

    In the rows of the zero cone W is one.
    """

    def __init__(self, product: Product, s: Tensor, z: Tensor, mu: Tensor, dual: Tensor):
        self.product, self.s, self.z = product, s, z
        self._scalings = [
            cone.scale(s_block, z_block, mu, dual)
            for (_, cone), s_block, z_block in zip(
                product.parts, product.blocks(s), product.blocks(z), strict=True
            )
        ]

    def inverse_transposed(self, M: Tensor) -> Tensor:
        """W⁻ᵀ M, shape (B or 1, m, k) to (B, m, k)."""
        batch, zero = len(self.s), self.product.zero
        parts = [M[:, :zero].expand(batch, -1, -1)]
        for (rows, cone), scaling in zip(self.product.parts, self._scalings, strict=True):
            block = M[:, rows].unflatten(1, (cone.count, cone.size))
            parts.append(scaling.inverse_transposed(block).flatten(1, 2))
        return torch.cat(parts, dim=1)

    def inverse(self, v: Tensor) -> Tensor:
        """W⁻¹ v, shape (B, m)."""
        return self._each(v, lambda scaling, block: scaling.inverse(block))

    def affine_shift(self) -> Tensor:
        """W⁻ᵀ s."""
        return self._each(torch.zeros_like(self.s), lambda scaling, block: scaling.affine_shift())

    def combined_shift(self, ds: Tensor, dz: Tensor, sigma_mu: Tensor, second: Tensor) -> Tensor:
        """W⁻ᵀ shift; see `Scaling.combined_shift`."""
        parts = [torch.zeros_like(ds[:, : self.product.zero])]
        for scaling, ds_block, dz_block in zip(
            self._scalings, self.product.blocks(ds), self.product.blocks(dz), strict=True
        ):
            shift = scaling.combined_shift(ds_block, dz_block, sigma_mu, second)
            parts.append(shift.flatten(1))
        return torch.cat(parts, dim=1)

    def slack_step(self, scaled: Tensor, primal: Callable[[], Tensor]) -> Tensor:
        """ds from the primal equation in the rows of curved cones, where WᵀW dz loses what is small
        beside the rest of its block; −Wᵀ v from v = W dz + W⁻ᵀ shift, `scaled`, in the others."""
        ds = scaled if self.product.is_flat else primal()
        parts = [torch.zeros_like(scaled[:, : self.product.zero])]
        for (rows, _), scaling, block in zip(
            self.product.parts, self._scalings, self.product.blocks(scaled), strict=True
        ):
            if isinstance(scaling, NonnegScaling):
                parts.append(-scaling.transposed(block).flatten(1))
            else:
                parts.append(ds[:, rows])
        return torch.cat(parts, dim=1)

    def longest_step(self, ds: Tensor, dz: Tensor, longest: Tensor) -> Tensor:
        """Shape (B,): how far along (ds, dz) one may go, up to `longest`; 0 if hardly at all.

        Parameters
        ----------
        ds, dz : Tensor
            Shape (B, m).
        longest : Tensor
            Shape (B,).
        """
        for scaling, ds_block, dz_block in zip(
            self._scalings, self.product.blocks(ds), self.product.blocks(dz), strict=True
        ):
            if isinstance(scaling, SymmetricScaling):
                longest = torch.minimum(longest, scaling.longest_step(ds_block, dz_block))
        if self.product.symmetric:
            return longest
        # Those inside are an interval: every seventh is tried, and then those between.
        longest = longest.clamp_max(LONGEST)
        coarse = self._first_inside(ds, dz, longest, COARSE)
        start = torch.where(coarse < longest, coarse / COARSE, longest)
        return self._first_inside(ds, dz, start, COARSE ** (1.0 / TRIES))

    def _first_inside(self, ds: Tensor, dz: Tensor, longest: Tensor, ratio: float) -> Tensor:
        """The first of longest, ratio longest, ratio² longest, … that stays inside, else 0."""
        powers = ratio ** torch.arange(TRIES + 1, dtype=ds.dtype, device=ds.device)
        steps = longest * powers[:, None]
        alpha = steps[..., None]
        inside = self.product.stays_inside(self.s + alpha * ds, self.z + alpha * dz)
        return torch.where(inside, steps, 0.0).amax(0)

    def _each(self, v: Tensor, operation: Callable[[Scaling, Tensor], Tensor]) -> Tensor:
        parts = [v[:, : self.product.zero]]
        for scaling, block in zip(self._scalings, self.product.blocks(v), strict=True):
            parts.append(operation(scaling, block).flatten(1))
        return torch.cat(parts, dim=1)


def _equal(sizes: Sequence[int], starts: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """The starts of the blocks of each size."""
    for size in sorted(set(sizes)):
        yield size, [start for s, start in zip(sizes, starts, strict=True) if s == size]
