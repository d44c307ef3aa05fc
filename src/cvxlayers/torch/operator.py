"""The five operations as one `torch.library.custom_op`, for `torch.compile` and `torch.export`.

A compiled graph holds tensors, numbers and strings, but no Python objects. So the operator gets
the layer's key and the call's options in writing, and looks the layer up among those that exist.
Its fake, autograd and vmap rules serve the compiler. It has no rule for forward mode, which PyTorch
would take for a zero tangent: there it raises.
"""

from __future__ import annotations

import ast
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from cvxlayers.call import Call
from cvxlayers.operations import Operations
from cvxlayers.torch.function import Task

__all__ = ["announce", "operation"]

# Copies of a layer have the same key and do the same; any that is alive will do.
_layers: dict[str, weakref.WeakSet[Operations]] = {}


def announce(key: str, operations: Operations) -> None:
    """Let graphs find the layer."""
    _layers.setdefault(key, weakref.WeakSet()).add(operations)


@torch.library.custom_op("cvxlayers::operation", mutates_args=())
def operation(
    layer: str, options: str, name: str, mapped: int, operands: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """An operation of `cvxlayers.operations`; every operand is given."""
    if forward_ad._current_level >= 0:
        # PyTorch takes a custom operator for a constant here.
        raise NotImplementedError(
            "A compiled or exported graph with a CvxpyLayer has no forward-mode derivative. Use "
            "the model that it was made of."
        )
    return list(_task(layer, options, name, mapped).run(operands))


@operation.register_fake
def _(
    layer: str, options: str, name: str, mapped: int, operands: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    task = _task(layer, options, name, mapped)
    shapes = task.call.shapes(name, [t.shape for t in operands], mapped)
    return [
        torch.empty(shape, dtype=dtype, device=device)
        for shape, (device, dtype) in zip(shapes, task.like(operands, len(shapes)), strict=True)
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    *ctx.what, operands = inputs
    name = ctx.what[2]
    ctx.save_for_backward(*operands, *(output[-1:] if name == "solve" else []))
    ctx.count = len(operands)


def _backward(ctx: Any, gradients: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    layer, options, name, mapped = ctx.what
    task = _task(layer, options, name, mapped)
    if not task.call.differentiable:
        raise RuntimeError(
            "This graph was made of a CvxpyLayer whose inputs wanted no gradient. Compile or "
            "export it again with inputs that have requires_grad=True."
        )
    pulled: list[Any] = [None] * ctx.count
    gradients = gradients[:-1] if name == "solve" else gradients
    wanted = [t.requires_grad for t in ctx.saved_tensors[: ctx.count]]
    for place, other, operands in task.call.reverse(name, ctx.saved_tensors, gradients, wanted):
        pulled[place] = operation(layer, options, other, mapped, operands)
    return None, None, None, None, pulled


def _vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    layer: str,
    options: str,
    name: str,
    mapped: int,
    operands: Sequence[torch.Tensor],
) -> tuple[list[torch.Tensor], list[int]]:
    front = [
        t.unsqueeze(0) if axis is None else t.movedim(axis, 0)
        for t, axis in zip(operands, in_dims[4], strict=True)
    ]
    results = operation(layer, options, name, mapped + 1, front)
    return results, [0] * len(results)


operation.register_autograd(_backward, setup_context=_setup_context)
operation.register_vmap(_vmap)


def _task(layer: str, options: str, name: str, mapped: int) -> Task:
    operations = next(iter(_layers.get(layer, ())), None)
    if operations is None:
        raise RuntimeError(
            "The CvxpyLayer of this graph no longer exists, or is not in this process. Keep the "
            "layer as long as the graph; for an exported program in another process, load the "
            "layer with torch.load, too."
        )
    solver_args, warm_start, on_failure, differentiable, dtype = ast.literal_eval(options)
    call = operations.calls.get(options)
    if call is None:
        call = operations.calls[options] = Call(
            operations, solver_args, warm_start, on_failure, differentiable, repeats=True
        )
    return Task(call, name, getattr(torch, dtype), mapped)
