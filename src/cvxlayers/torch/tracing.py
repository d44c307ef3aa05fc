"""What is known while a graph is made. Imported by then only: it takes the compiler along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._C import _functorch
from torch.autograd import forward_ad

__all__ = ["options_of"]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def options_of(
    solver_args: Mapping[str, Any] | None,
    warm_start: bool,
    on_failure: str | None,
    differentiable: bool,
    dtype: torch.dtype,
) -> str | None:
    """The options of a call in writing, while a graph is made; None if it would have to be
    differentiated by a transform of torch.func, or in forward mode."""
    stack = _functorch.get_interpreter_stack() or ()
    if any(level.key() != _functorch.TransformType.Vmap for level in stack):
        return None
    if forward_ad._current_level >= 0:
        return None
    name = str(dtype).removeprefix("torch.")
    return repr((dict(solver_args or {}), warm_start, on_failure, differentiable, name))
