"""What is known while a graph is made. Imported by then only: it takes the compiler along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._C import _functorch
from torch.autograd import forward_ad

from cvxlayers.torch.function import Operation

__all__ = ["options_of", "uncompiled"]


# Where the compiler gives up on a derivative of torch.func it must not look into its rules instead.
for _name in ("forward", "setup_context", "backward", "jvp", "vmap"):
    setattr(Operation, _name, staticmethod(torch._dynamo.disable(getattr(Operation, _name))))


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


uncompiled = torch._dynamo.disable(
    _run,
    reason="CvxpyLayer cannot be compiled inside a derivative of torch.func or in forward mode. "
    "Without fullgraph=True it runs uncompiled there.",
)


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
    # What vmap maps does not show whether it wants a gradient.
    differentiable = differentiable or (bool(stack) and torch.is_grad_enabled())
    if any(level.key() != _functorch.TransformType.Vmap for level in stack):
        return None
    if forward_ad._current_level >= 0:
        return None
    name = str(dtype).removeprefix("torch.")
    return repr((dict(solver_args or {}), warm_start, on_failure, differentiable, name))
