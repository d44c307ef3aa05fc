"""The five operations as one primitive of JAX.

Its rules bind the primitive itself again, so that every transform of every transform ends in one
of the five, on plain arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cvxlayers.jax import gpu
from cvxlayers.jax.task import Task

__all__ = ["bind"]

primitive = Primitive("cvxpy_layer")
primitive.multiple_results = True


def bind(task: Task, row: Sequence[Any]) -> list[Any]:
    """The results of an operation on a row of operands, of which any may be None."""
    task = replace(task, present=tuple(operand is not None for operand in row))
    return primitive.bind(*(operand for operand in row if operand is not None), task=task)


def _evaluate(*operands: Any, task: Task) -> list[jax.Array]:
    """Outside of compiled programs: without compiling one."""
    arrays = gpu.run(task, operands) if gpu.takes(task, operands) else _on_host(operands, task)
    if task.name != "solve":
        task.origin.remember_with(operands[task.parameters])
    elif task.differentiable:
        task.origin.remember_with(arrays[-1])
    return arrays


def _on_host(operands: Sequence[Any], task: Task) -> list[jax.Array]:
    results = task.run([np.asarray(operand) for operand in operands])
    # On the device that an operand was put on; results for several go with all of them.
    put = (x.devices() for x in operands if isinstance(x, jax.Array) and x.committed)
    devices = next(put, set())
    if len(devices) == 1:
        return jax.device_put(results, *devices)
    return [jnp.asarray(result) for result in results]


def _abstract(*operands: Any, task: Task) -> list[jax.core.ShapedArray]:
    results = task.results([(operand.shape, operand.dtype) for operand in operands])
    return [jax.core.ShapedArray(shape, dtype) for shape, dtype in results]


def _lower(context: Any, *operands: Any, task: Task) -> Any:
    # jax.pure_callback would put the arrays on a device, from within a computation on that device,
    # and wait for them. With one CPU that never ends if they are large.
    # Nor is `gpu.run` for this: a program on a GPU hands a callback copies on the host, and what
    # the callback did with the GPU's memory would not be ordered by the program's stream.
    def callback(*arrays: Any) -> tuple[Any, ...]:
        return tuple(task.run([np.asarray(array) for array in arrays]))

    results, _, _ = mlir.emit_python_callback(
        context,
        callback,
        None,
        list(operands),
        context.avals_in,
        context.avals_out,
        has_side_effect=False,
    )
    return results


def _jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, task: Task
) -> tuple[list[Any], list[Any]]:
    row = task.row(primals)
    changes = task.row(None if isinstance(t, ad.Zero) else t for t in tangents)
    own = replace(task, differentiable=True)
    results = bind(own, row)
    total = [_zero(result) for result in results]
    if task.name == "solve":
        row.append(results[-1])
        changes.append(None)
    for name, operands in own.call.forward(task.name, row, changes):
        term = bind(replace(own, name=name), operands)
        total[: len(term)] = [
            ad.add_tangents(a, jnp.broadcast_to(b, result.shape))
            for a, b, result in zip(total, term, results, strict=False)
        ]
    if not task.differentiable:
        return results[:-1], total[:-1]
    return results, total


def _zero(result: Any) -> ad.Zero:
    is_float = jnp.issubdtype(result.dtype, jnp.floating)
    dtype = result.dtype if is_float else jax.dtypes.float0
    return ad.Zero(jax.core.ShapedArray(result.shape, dtype))


def _transpose(gradients: Sequence[Any], *operands: Any, task: Task) -> list[Any]:
    row = task.row(operands)
    wanted = [ad.is_undefined_primal(operand) for operand in row]
    known = [None if w else operand for operand, w in zip(row, wanted, strict=True)]
    given = task.result_row((None if isinstance(g, ad.Zero) else g for g in gradients), known)
    pulled: list[Any] = [None] * len(row)
    if any(g is not None for g in given):
        for place, name, arguments in task.call.reverse(task.name, known, given, wanted):
            other = replace(task, name=name)
            pulled[place] = other.result_row(bind(other, arguments), known)
    return [
        _sum_to(gradient, operand.aval.shape) if w and gradient is not None else None
        for gradient, operand, w, present in zip(pulled, row, wanted, task.present, strict=True)
        if present
    ]


def _sum_to(array: Any, shape: tuple[int, ...]) -> Any:
    """The sum over the mapped axes that an operand was broadcast over."""
    axes = tuple(k for k, n in enumerate(shape) if n == 1 != array.shape[k])
    return array.sum(axis=axes, keepdims=True) if axes else array


def _map(
    operands: Sequence[Any], axes: Sequence[int | None], *, task: Task
) -> tuple[list[Any], list[int]]:
    row = task.row(
        jnp.expand_dims(operand, 0) if axis is None else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    )
    if task.name != "solve":
        _map_first(row, task.parameters)
    results = bind(replace(task, mapped=task.mapped + 1), row)
    return results, [0] * len(results)


def _map_first(row: list[Any], point: int) -> None:
    # A mapped jax.lax.cond selects from what both of its branches hand on: so v may come mapped
    # along an axis that no parameter is.
    size = row[point].shape[0]
    if size != 1 and all(operand.shape[0] == 1 for operand in row[:point]):
        row[0] = jnp.broadcast_to(row[0], (size, *row[0].shape[1:]))


primitive.def_impl(_evaluate)
primitive.def_abstract_eval(_abstract)
mlir.register_lowering(primitive, _lower)
ad.primitive_jvps[primitive] = _jvp
ad.primitive_transposes[primitive] = _transpose
batching.primitive_batchers[primitive] = _map
