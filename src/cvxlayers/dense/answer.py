"""What the engine hands back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Answer"]


@dataclass
class Answer:
    """What `Engine.solve` found, for B instances; tensors on the device of the data.

    Attributes
    ----------
    x, z, s : Tensor
        Shapes (B, n), (B, m), (B, m). Of an infeasible instance, the certificate; NaN of one that
        was not begun with.
    outcome : Tensor of int8
        Shape (B,): positions in `OUTCOMES`.
    iterations : Tensor of int
        Shape (B,).
    """

    x: Tensor
    z: Tensor
    s: Tensor
    outcome: Tensor
    iterations: Tensor
