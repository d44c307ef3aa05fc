"""The five operations as one `autograd.Function`.

Tensors of a GPU stay there if the layer's solver takes them; all others become arrays of NumPy,
without a copy where they are float64 in the CPU's memory.

Its backward, jvp and vmap call the Function itself again, so that every transform of every
transform ends in one of the five, on plain tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch._C import _functorch
from torch.autograd import forward_ad

from cvxlayers.call import Call
from cvxlayers.operations import RESULT

__all__ = ["Operation", "Task"]

Maybe = torch.Tensor | None


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """One operation of one call, and the dtype of its outputs."""

    call: Call
    name: str
    dtype: torch.dtype
    mapped: int = 0

    def run(self, operands: Sequence[Maybe]) -> tuple[torch.Tensor, ...]:
        """The results, of which those for parameters have the parameters' dtype and device."""
        if any(t is not None and _functorch.is_legacy_batchedtensor(t) for t in operands):
            return self._run_legacy(operands)
        if self._is_on_device(operands):
            return self._run_on_device(operands)
        arrays = [
            None if t is None else t.to(dtype=torch.float64).numpy(force=True) for t in operands
        ]
        results = self.call.run(self.name, arrays, self.mapped)
        return tuple(
            torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device, dtype)
            for array, (device, dtype) in zip(
                results, self.like(operands, len(results)), strict=True
            )
        )

    def _run_on_device(self, operands: Sequence[Maybe]) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            doubles = [None if t is None else t.detach().to(torch.float64) for t in operands]
            results = self.call.run(self.name, doubles, self.mapped)
            like = self.like(operands, len(results))
            outputs = len(results) - (self.name == "solve" and self.call.differentiable)
            return tuple(
                # What is a view here could not be changed in place outside; nobody changes v, which
                # is known by its memory.
                (result.clone() if k < outputs and result._is_view() else result).to(dtype)
                for k, (result, (_, dtype)) in enumerate(zip(results, like, strict=True))
            )

    def _is_on_device(self, operands: Sequence[Maybe]) -> bool:
        """Whether the operation is done where the tensors are."""
        here = any(t is not None and is_on_device(t) for t in operands)
        return here and self.call.operations.solution_map.choice.stays_on_devices

    def like(self, operands: Sequence[Maybe], count: int) -> list[tuple[torch.device, torch.dtype]]:
        """Device and dtype of each of `count` results: of the outputs, those of the call; of
        gradients, those of the parameters; v is float64, where the operation is done."""
        if RESULT[self.name] == "parameters":
            return [(t.device, t.dtype) for t in operands[:count] if t is not None]
        device = next((t.device for t in operands if t is not None), torch.device("cpu"))
        like = [(device, self.dtype)] * count
        if self.name == "solve" and self.call.differentiable:
            here = device if self._is_on_device(operands) else torch.device("cpu")
            like[-1] = here, torch.float64
        return like

    def _run_legacy(self, operands: Sequence[Maybe]) -> tuple[torch.Tensor, ...]:
        # `is_grads_batched=True` and `jacobian(..., vectorize=True)` of torch.autograd map with
        # the predecessor of torch.vmap, which knows no rules: its axis is taken off and put on.
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        front = [t if t is None else torch._remove_batch_dim(t, level, 1, 0) for t in operands]
        results = replace(self, mapped=self.mapped + 1).run(front)
        return tuple(torch._add_batch_dim(result, 0, level) for result in results)


def is_on_device(tensor: torch.Tensor) -> bool:
    """Whether a tensor lives on a device that solves problems: one of CUDA, or of ROCm, which
    PyTorch calls so, too. Others have no float64."""
    return tensor.is_cuda


class Operation(torch.autograd.Function):
    """``Operation.apply(task, *operands)``; see `cvxlayers.operations` for the operands."""

    @staticmethod
    def forward(task: Task, *operands: Maybe) -> tuple[torch.Tensor, ...]:
        return task.run(operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.task, *operands = inputs
        if ctx.task.name == "solve" and ctx.task.call.differentiable:
            operands.append(output[-1])
            ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands)
        ctx.save_for_forward(*operands)

    @staticmethod
    def backward(ctx: Any, *gradients: Maybe) -> tuple[Maybe, ...]:
        task, wanted = ctx.task, ctx.needs_input_grad[1:]
        if not task.call.differentiable:
            raise RuntimeError(
                "A gradient is asked for through a CvxpyLayer whose inputs wanted none when it was "
                "called. Please report how it was called."
            )
        if task.name == "solve":
            gradients = gradients[:-1]
        pulled: list[Maybe] = [None] * len(wanted)
        if any(g is not None for g in gradients):
            terms = task.call.reverse(task.name, ctx.saved_tensors, gradients, wanted)
            for place, name, operands in terms:
                part = Task(task.call, name, task.dtype, task.mapped)
                pulled[place] = _recorded(part, operands)
        return None, *(g if w else None for g, w in zip(pulled, wanted, strict=True))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Maybe, ...]:
        task, own = ctx.task, list(tangents[1:])
        if task.name == "solve":
            own.append(None)
        terms = task.call.forward(task.name, ctx.saved_tensors, own)
        pushed = [Operation.apply(replace(task, name=n), *operands) for n, operands in terms]
        total = tuple(sum(parts[1:], parts[0]) for parts in zip(*pushed, strict=True))
        return (*total, None) if task.name == "solve" else total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], task: Task, *operands: Maybe) -> tuple[Any, Any]:
        front = [
            None if t is None else t.unsqueeze(0) if axis is None else t.movedim(axis, 0)
            for t, axis in zip(operands, in_dims[1:], strict=True)
        ]
        results = Operation.apply(replace(task, mapped=task.mapped + 1), *front)
        return results, (0,) * len(results)


def _recorded(task: Task, operands: Sequence[Maybe]) -> tuple[torch.Tensor, ...]:
    """The results, with what is needed to differentiate them if anybody may ask for that."""
    if (
        torch.is_grad_enabled()
        or _functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    ):
        return Operation.apply(task, *operands)
    return task.run(operands)


# `torch.autograd.Function.apply` asks for it in every call, and takes longer than a small solve.
Operation.forward.__signature__ = inspect.signature(Operation.forward)  # type: ignore[attr-defined]
