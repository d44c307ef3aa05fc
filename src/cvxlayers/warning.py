"""Warnings that point at the line of the user's that led to them."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn"]

# Frames of these packages stand between the user and what warns.
_BETWEEN = frozenset({"cvxlayers", "torch", "jax", "jaxlib", "mlx"})


def warn(message: str, category: type[Warning]) -> None:
    """Warn on behalf of the first caller outside of this library and of the frameworks."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
