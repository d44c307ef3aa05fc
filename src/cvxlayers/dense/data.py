"""The data of a batch: dense, equilibrated, in the order of the cones."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from cvxlayers.arrays import largest
from cvxlayers.dense.cones import Product
from cvxlayers.dense.equilibration import cost_scale, equilibrate, unit_of_data
from cvxlayers.dense.products import product

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)

__all__ = ["Data", "Defined", "prepare", "take"]

# A bound of this size is none. Clarabel leaves such rows out, and so is who gets the instance.
INFINITE = 1e20


@dataclass
class Defined:
    """What defines the variables y that were replaced, y = T x + τ t, where the program's own other
    variables are x + τ x₀ (`substitution`).

    Attributes
    ----------
    T : Tensor
        Shape (B or 1, r, n).
    x0 : Tensor
        Shape (B, n).
    t, a, p, cost : Tensor
        Shape (B or 1, r): p without the factor c.
    d, e : Tensor
        Shape (B or 1, r): the equilibration of y and of the rows.
    constant : Tensor
        Shape (B,): of the objective.
    P : Tensor or None
        What P was, shape (B or 1, n, n), unless it had no other entry.
    """

    T: Tensor
    x0: Tensor
    t: Tensor
    a: Tensor
    p: Tensor
    cost: Tensor
    d: Tensor
    e: Tensor
    constant: Tensor
    P: Tensor | None

    def y(self, x: Tensor, tau: Tensor) -> Tensor:
        """y of the point x/τ, times τ; shapes (B, n) and (B,)."""
        return product(self.T, x) + tau[:, None] * self.t

    def multipliers(self, y: Tensor, tau: Tensor, c: Tensor) -> Tensor:
        """Those of the rows that define y, likewise."""
        return -(tau[:, None] * self.cost + c[:, None] * self.p * y) / self.a


@dataclass
class Data:
    """What an iteration reads.

    Attributes
    ----------
    P, A : Tensor
        Shapes (B or 1, n, n) and (B or 1, m, n). P is without the factor c.
    q, b : Tensor
        Shapes (B, n) and (B, m), in units of `unit`.
    d, e : Tensor
        Shapes (B or 1, n) and (B or 1, m): the equilibration.
    c, unit, norm_q, norm_b : Tensor
        Shape (B,): the factor of the cost, the unit of q and b, and the largest entries of q and b
        in it.
    defined : Defined or None
        The variables that were replaced, if there are any; all else is without them then, but c,
        `unit` and the norms.
    """

    P: Tensor
    q: Tensor
    A: Tensor
    b: Tensor
    d: Tensor
    e: Tensor
    c: Tensor
    unit: Tensor
    norm_q: Tensor
    norm_b: Tensor
    defined: Defined | None = None


def prepare(
    P: Tensor, q: Tensor, A: Tensor, b: Tensor, cones: Product, batch: int
) -> tuple[Data, Tensor]:
    """The data of a batch, and which instances are ones to begin with: their data are finite, and
    their bounds bound. The others' numbers are replaced by zeros.

    Parameters
    ----------
    P, q, A, b : Tensor
        Shapes (B or 1, n, n), (B or 1, n), (B or 1, m, n), (B or 1, m), rows in the program's
        order.
    cones : Product
    batch : int
        B.
    """
    A, b = A[:, cones.order], b[:, cones.order]
    usable = largest(b) < INFINITE
    for values in (P, q, A, b):
        usable = usable & torch.isfinite(values.flatten(1)).all(1)
    usable = usable.expand(batch)
    # Looked at on the host: copies of all matrices are not made for nothing.
    if not bool(usable.all()):
        P, q, A, b = (_masked(values, usable) for values in (P, q, A, b))
    P, A, d, e = equilibrate(P, A, cones)
    q, b = q.expand(batch, -1), b.expand(batch, -1)
    unit = unit_of_data(q, b)
    over = 1.0 / unit
    norm_q, norm_b = largest(q) * over, largest(b) * over
    q, b = q * d * over[:, None], b * e * over[:, None]
    c = cost_scale(P, q)
    return Data(P, c[:, None] * q, A, b, d, e, c, unit, norm_q, norm_b), usable


def take(of: T, rows: Tensor) -> T:
    """The instances `rows` alone of a dataclass of tensors, and of such; what the batch shares
    stays shared."""
    values = {field.name: getattr(of, field.name) for field in fields(of)}
    return type(of)(**{name: _taken(value, rows) for name, value in values.items()})


def _taken(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value if len(value) == 1 else value[rows]
    return value if value is None else take(value, rows)


def _masked(values: Tensor, usable: Tensor) -> Tensor:
    if len(values) == 1:
        return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    return torch.where(usable.reshape(-1, *[1] * (values.ndim - 1)), values, 0.0)
