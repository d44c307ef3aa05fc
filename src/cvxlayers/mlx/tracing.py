"""What MLX does not say about its own transformations, found out: whether one is running, and
whether an array has a value.

MLX runs a function that it transforms. Under `grad`, `vjp` and `jvp` the arrays in it have values.
Under `vmap`, `compile` and `export_function` they are placeholders, which look the same from
Python in all three. `vmap` then replaces operation by operation, for which an operation can have
a rule, while a compiled program runs without Python. So a function says by our `vmap` that its
placeholders are those of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

__all__ = ["Unreadable", "in_map", "in_transformation", "placeholders", "read", "vmap"]

# Whether the function of our `vmap` is running: not any more when it is replaced.
_mapping: ContextVar[bool] = ContextVar("mapping", default=False)


class Unreadable(Exception):
    """An array is a placeholder."""


def vmap(fun: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
    """`mlx.core.vmap` for functions that call a `CvxpyLayer`.

    It maps as `mlx.core.vmap` does, over the layer alone or over all that is done with it, the
    gradient too. All instances are solved together. It can be nested, and be differentiated.

    Parameters
    ----------
    fun : callable
    in_axes, out_axes : int, None, or trees of these
        As in `mlx.core.vmap`: the axis of every argument, and of every result.

    Notes
    -----
    A layer takes batch axes as it is. What this adds is the map over functions written for a
    single instance, and gradients for every instance alone.

    Examples
    --------
    >>> import cvxpy as cp, mlx.core as mx
    >>> from cvxlayers.mlx import CvxpyLayer, vmap
    >>> x, b = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
    >>> layer = CvxpyLayer(problem, parameters=[b], variables=[x])
    >>> gradient = vmap(mx.grad(lambda b: layer(b)[0].square().sum()))
    >>> gradient(mx.array([[1.0, -2.0], [3.0, 4.0]])).round(6)
    array([[2, 0],
           [6, 8]], dtype=float32)
    """

    @wraps(fun)
    def marked(*args: Any) -> Any:
        token = _mapping.set(True)
        try:
            return fun(*args)
        finally:
            _mapping.reset(token)

    mapped: Callable[..., Any] = mx.vmap(marked, in_axes, out_axes)
    return wraps(fun)(lambda *args: mapped(*args))


def in_map() -> bool:
    """Whether a placeholder may be one of our `vmap`."""
    return _mapping.get()


def in_transformation() -> bool:
    """Whether MLX transforms a function at the moment, on this thread.

    Whether a given array is being differentiated cannot be told: MLX marks what depends on the
    arguments, but an inner `grad` removes the marks, also those of an outer one.
    """
    canary = _canary()
    return canary is None or _is_marked(canary)


def _is_marked(placeholder: mx.array) -> bool:
    # It is an error in any case, but outside of a transformation it is another one.
    try:
        mx.eval(placeholder)
    except ValueError:  # "Attempting to eval an array during function transformations"
        return True
    except RuntimeError:  # "Attempting to eval an array without a primitive"
        return False
    return True


@cache
def _canary() -> mx.array | None:
    """A placeholder that is marked whenever there is a transformation. None: cannot be told."""
    (canary,) = placeholders([()], [mx.float32])
    found: list[bool] = []

    def function(x: mx.array) -> mx.array:
        found.append(_is_marked(canary))
        return x

    zero = mx.array(0.0)
    mx.vjp(function, [zero], [zero])
    return canary if found == [True] else None


def read(arrays: Sequence[mx.array]) -> list[NDArray[np.float64]]:
    """The values of arrays, whose graph remains as it is.

    Raises
    ------
    Unreadable
        If one is a placeholder.
    """
    try:
        return _retaining(arrays) if in_transformation() else _values(arrays)
    except (ValueError, RuntimeError) as error:
        if "[eval] Attempting to eval an array" in str(error):
            raise Unreadable from error
        raise


def _values(arrays: Sequence[mx.array]) -> list[NDArray[np.float64]]:
    mx.eval(*arrays)
    return [
        np.array(a.astype(mx.float32, stream=mx.cpu) if a.dtype == mx.bfloat16 else a, np.float64)
        for a in arrays
    ]


def _retaining(arrays: Sequence[mx.array]) -> list[NDArray[np.float64]]:
    # An evaluated array without a mark forgets what it depends on. Under nested transformations
    # arrays lack the mark that an outer one will differentiate; its gradient would be zero. Inside
    # the vjp rule of a primitive, and only there, MLX keeps all graphs.
    values: list[NDArray[np.float64]] = []

    @mx.custom_function
    def carrier(x: mx.array) -> mx.array:
        return x

    def rule(x: mx.array, gradient: mx.array, result: mx.array) -> mx.array:
        values.extend(_values(arrays))
        return gradient

    carrier.vjp(rule)
    zero = mx.array(0.0)
    mx.vjp(carrier, [zero], [zero])
    return values


def placeholders(shapes: Sequence[tuple[int, ...]], dtypes: Sequence[mx.Dtype]) -> list[mx.array]:
    """Arrays without values. To evaluate one is an error."""
    kept: list[mx.array] = []

    def function(*arrays: mx.array) -> None:
        kept.extend(arrays)
        raise InterruptedError  # a map that comes to nothing leaves the mark on them

    with mx.stream(mx.cpu), suppress(InterruptedError):
        mx.vmap(function)(*(mx.zeros((1, *s), d) for s, d in zip(shapes, dtypes, strict=True)))
    return kept
