"""How much a derivative can be trusted, instance by instance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Quality", "quality"]


@dataclass(frozen=True, eq=False)
class Quality:
    """How much the derivatives of a batch can be trusted.

    Attributes
    ----------
    degenerate : ndarray of bool
        Shape (B,): where the derivative is one of several.
    residual : ndarray
        Shape (B,): by how much the last linear system that was solved for a derivative is missed,
        relative to its right-hand side; NaN where none was.
    """

    degenerate: NDArray[np.bool_]
    residual: NDArray[np.float64]


def quality(derivative: Any, batch: int) -> Quality:
    """That of a `Linearization` for B instances, nothing known where it does not say."""
    if hasattr(derivative, "quality"):
        found: Quality = derivative.quality()
        return found
    return Quality(np.zeros(batch, dtype=bool), np.full(batch, np.nan))
