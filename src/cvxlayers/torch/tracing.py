"""What is known while a graph is made. Imported by then only: it takes the compiler along."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch._C import _functorch
from torch.autograd import forward_ad

from cvxlayers.torch.function import Operation

__all__ = ["options_of", "uncompiled", "uncompiled_solve"]


# Where the compiler gives up on a derivative of torch.func it must not look into its rules instead.
for _name in ("forward", "setup_context", "backward", "jvp", "vmap"):
    setattr(Operation, _name, staticmethod(torch._dynamo.disable(getattr(Operation, _name))))


def _run(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return function(*arguments, **named)


uncompiled = torch._dynamo.disable(
    _run,
    reason="CvxpyLayer cannot be compiled inside a derivative of torch.func or in forward mode. "
    "Without fullgraph=True it runs uncompiled there.",
)

uncompiled_solve = torch._dynamo.disable(
    _run,
    reason="CvxpyLayer.solve gives an object that no graph can hold. Without fullgraph=True it "
    "runs uncompiled; a call of the layer itself is compiled.",
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
    args = {key: _plain(key, value) for key, value in dict(solver_args or {}).items()}
    return repr((args, warm_start, on_failure, differentiable, name))


def _plain(name: str, value: Any) -> Any:
    """The value of an option as a graph can keep it."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim):
        value = value.item()
    try:
        literal_eval(repr(value))
    except (ValueError, SyntaxError):
        raise ValueError(
            f"solver_args[{name!r}]: a compiled graph keeps options as text, so that it takes "
            f"numbers, strings, and lists and dicts of them; got {value!r}. Give it to the layer's "
            "constructor."
        ) from None
    return value
