"""The five operations as custom functions of MLX.

An operation is made of two nodes. The first computes the results. Where all operands have values
there is no such node, the results are constants; where some are placeholders of a `vmap`, it has a
rule for that alone. The second hands the results on and has the rules of differentiation. v is one
of its inputs, because MLX does not give a node's outputs to its jvp rule. The rules call the
operations again, so that every transform of every transform ends in one of the five, on arrays
with values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from cvxlayers.call import Call
from cvxlayers.errors import ParameterTypeError
from cvxlayers.mlx.tracing import Unreadable, in_map, in_transformation, placeholders, read
from cvxlayers.operations import RESULT

__all__ = ["Task", "apply"]

Operand = mx.array | NDArray[np.float64] | None
Row = Sequence[Operand]


@dataclass(frozen=True, eq=False)
class Task:
    """One operation of one call, and the dtype of its outputs.

    An operand is an array of MLX, or one of NumPy, which is a constant and has no mapped axes, or
    None: zero.
    """

    call: Call
    name: str
    dtype: mx.Dtype
    mapped: int = 0
    asked: set[str] = field(default_factory=set)  # the derivatives, of all tasks of the call

    def run(self, operands: Row) -> list[mx.array]:
        """The results as constants. `Unreadable` if an operand is a placeholder."""
        values = iter(read(_present(operands)))
        arrays = [next(values) if isinstance(o, mx.array) else self._aligned(o) for o in operands]
        return self._rounded(self.call.run(self.name, arrays, self.mapped), operands)

    def placeholders(self, operands: Row) -> list[mx.array]:
        """What looks like the results."""
        aligned = [o if isinstance(o, mx.array) else self._aligned(o) for o in operands]
        shapes = [None if o is None else tuple(o.shape) for o in aligned]
        results = self.call.shapes(self.name, shapes, self.mapped)
        return placeholders(results, self._dtypes(operands, len(results)))

    def _rounded(self, results: Sequence[Any], operands: Row) -> list[mx.array]:
        dtypes = self._dtypes(operands, len(results))
        return [mx.array(r, dtype=d) for r, d in zip(results, dtypes, strict=True)]

    def _dtypes(self, operands: Row, count: int) -> list[mx.Dtype]:
        if RESULT[self.name] == "parameters":
            return [o.dtype if isinstance(o, mx.array) else self.dtype for o in operands[:count]]
        if self.name == "solve" and self.call.differentiable:
            return [self.dtype] * (count - 1) + [mx.float64]  # v is exact
        return [self.dtype] * count

    def _aligned(self, constant: Any) -> Any:
        return None if constant is None else constant[(None,) * self.mapped]


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    # A GPU has no float64, and the values are needed here anyway.
    @wraps(function)
    def run(*args: Any) -> Any:
        with mx.stream(mx.cpu):
            return function(*args)

    return run


@_on_cpu
def apply(task: Task, operands: Row) -> list[mx.array]:
    """The results of an operation, those of "solve" without v, ready for any transform."""
    results = _compute(task, operands)
    if task.name == "solve":
        if not task.call.differentiable:
            return results
        operands = [*operands, results.pop()]
    return _attach(task, operands, results)


def _compute(task: Task, operands: Row) -> list[mx.array]:
    """The results as constants, or as a node that knows how to be mapped."""
    call = task.call
    if task.name == "solve" and task.mapped:  # the derivatives of inner levels have been asked for
        call.differentiable = bool(task.asked) or in_transformation()
    try:
        return task.run(operands)
    except Unreadable as error:
        if not in_map():
            raise _without_values(call) from error
    if task.name == "solve":
        call.differentiable = True  # v has its place
    results = task.placeholders(operands)

    @mx.custom_function
    def node(inputs: list[mx.array]) -> list[mx.array]:
        return results

    @_on_cpu
    def rule(inputs: list[mx.array], axes: list[int | None]) -> Any:
        inner = replace(task, mapped=task.mapped + 1)
        moved = _compute(inner, _fill(operands, _front(inputs, axes)))
        if len(moved) < len(results):  # no derivative was asked for, and v is not there
            moved.append(mx.array([np.nan]))
        return moved, [0] * len(moved)

    node.vmap(rule)
    made: Any = node([mx.stop_gradient(o) for o in _present(operands)])
    return made


def _attach(task: Task, operands: Row, results: list[mx.array]) -> list[mx.array]:
    """The results with the rules of differentiation."""
    call, inputs = task.call, _present(operands)

    @mx.custom_function
    def node(arrays: list[mx.array]) -> list[mx.array]:
        return arrays[len(inputs) :]

    @_on_cpu
    def vjp(arrays: list[mx.array], gradients: list[mx.array], _: Any) -> list[mx.array]:
        row = _fill(operands, arrays)
        wanted = [isinstance(o, mx.array) for o in row]
        pulled: list[mx.array | None] = [None] * len(row)
        for place, name, others in call.reverse(task.name, row, gradients, wanted):
            task.asked.add(name)
            pulled[place] = apply(replace(task, name=name), others)
        found = [p for p, w in zip(pulled, wanted, strict=True) if w] + [None] * len(results)
        return [_summed_to(a, p) for a, p in zip(arrays, found, strict=True)]

    @_on_cpu
    def jvp(arrays: list[mx.array], tangents: list[mx.array | None]) -> list[mx.array]:
        given = iter(tangents)
        own = [next(given) if isinstance(o, mx.array) else None for o in operands]
        total = None
        for name, others in call.forward(task.name, _fill(operands, arrays), own):
            task.asked.add(name)
            term = apply(replace(task, name=name), others)
            total = term if total is None else [a + b for a, b in zip(total, term, strict=True)]
        return total or [mx.zeros_like(r) for r in results]

    @_on_cpu
    def vmap(arrays: list[mx.array], axes: list[int | None]) -> Any:
        front = _front(arrays, axes)
        moved = front[len(inputs) :]
        if task.name != "solve" or call.differentiable:
            inner = replace(task, mapped=task.mapped + 1)
            moved = _attach(inner, _fill(operands, front[: len(inputs)]), moved)
        return moved, [0] * len(moved)

    node.vjp(vjp)
    node.jvp(jvp)
    node.vmap(vmap)
    handed_on: Any = node([*inputs, *results])
    return handed_on


def _present(operands: Row) -> list[mx.array]:
    """The operands that are inputs of a node."""
    return [o for o in operands if isinstance(o, mx.array)]


def _fill(operands: Row, arrays: Sequence[mx.array]) -> list[Operand]:
    """The operands with these arrays in the places of their own."""
    rest = iter(arrays)
    return [next(rest) if isinstance(o, mx.array) else o for o in operands]


def _front(arrays: Sequence[mx.array], axes: Sequence[int | None]) -> list[mx.array]:
    """Arrays with the mapped axis before all others."""
    return [
        mx.expand_dims(a, 0) if k is None else mx.moveaxis(a, k, 0)
        for a, k in zip(arrays, axes, strict=True)
    ]


def _summed_to(array: mx.array, gradient: mx.array | None) -> mx.array:
    """The gradient for an array, which may have mapped axes of length one. None: zero."""
    if gradient is None:
        return mx.zeros_like(array)
    axes = [k for k, n in enumerate(array.shape) if n == 1 != gradient.shape[k]]
    return gradient.sum(axes, keepdims=True) if axes else gradient


def _without_values(call: Call) -> ParameterTypeError:
    return ParameterTypeError(
        f"CvxpyLayer{call.operations!r}: expected arrays with values, got placeholders, on which "
        "mx.compile, mx.export_function and mx.vmap run a function. Call the layer outside of what "
        "is compiled or exported, for example between two compiled functions. In place of mx.vmap "
        "use cvxlayers.mlx.vmap, or hand the layer a batch axis."
    )
