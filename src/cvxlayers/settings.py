"""The settings of a layer, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["Derivative", "FailurePolicy", "Settings", "check_failure_policy"]

FailurePolicy = Literal["raise", "nan", "warn"]
Derivative = Literal["exact", "smoothed", "lpgd"]

_SMOOTHING = {
    "smoothed": "a positive number, the product of slack and dual that every constraint is given",
    "lpgd": "a positive number, the length of the step along the gradient",
}


@dataclass(frozen=True)
class Settings:
    """What a layer was told besides its problem; see `cvxlayers.CvxpyLayer`.

    Raises
    ------
    ValueError
        Naming the setting, what was expected, what came and what to do.
    """

    solver: str | None = None
    solver_args: Mapping[str, Any] | None = None
    verbose: bool = False
    on_failure: FailurePolicy = "raise"
    derivative: Derivative = "exact"
    smoothing: float | None = None
    max_batch_memory: float | None = None

    def __post_init__(self) -> None:
        check_failure_policy(self.on_failure)
        if self.derivative not in get_args(Derivative):
            raise ValueError(
                f"derivative: expected {_listed(Derivative)}, got {self.derivative!r}."
            )
        if self.derivative == "exact":
            if self.smoothing is not None:
                raise ValueError(
                    f"smoothing={self.smoothing!r} belongs to derivative='smoothed' and "
                    "derivative='lpgd'; the exact derivative has no such parameter."
                )
        elif not _is_positive(self.smoothing):
            raise ValueError(
                f"smoothing: derivative={self.derivative!r} needs {_SMOOTHING[self.derivative]}, "
                f"got {self.smoothing!r}. Try 0.01 for data of size one; less is nearer to the "
                "exact derivative."
            )
        if self.max_batch_memory is not None and not _is_positive(self.max_batch_memory):
            raise ValueError(
                "max_batch_memory: expected a positive number of bytes, such as 2e9, or None, got "
                f"{self.max_batch_memory!r}."
            )


def check_failure_policy(policy: Any) -> FailurePolicy:
    """The policy itself, or a ValueError that lists what exists."""
    if policy not in get_args(FailurePolicy):
        raise ValueError(f"on_failure: expected {_listed(FailurePolicy)}, got {policy!r}.")
    return policy


def _listed(choices: Any) -> str:
    return " or ".join(repr(choice) for choice in get_args(choices))


def _is_positive(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and value > 0.0
        and math.isfinite(value)
    )
