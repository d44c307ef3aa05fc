"""From a caller's arguments to flat arrays with one batch axis, and back.

Leading axes are batch axes and broadcast against each other as in NumPy. A parameter that has
none, or only axes of length one, is shared by the batch and never expanded.

A framework that maps a function over an axis (`vmap`) puts that axis before all others. Such
*mapped* axes are batch axes like the others but for one thing: gradients are not summed over them.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.canonicalize import OutputSpec, ParameterSpec
from cvxlayers.errors import ParameterTypeError, ParameterValueError

__all__ = ["Layout", "arrange", "broadcast", "constant"]

Array = NDArray[np.float64]
Shape = tuple[int, ...]


# Keywords of a call that are no parameters.
OPTIONS = ("solver_args", "warm_start", "on_failure")


def arrange(
    positional: Sequence[Any], named: Mapping[str, Any], specs: Sequence[ParameterSpec]
) -> list[Any]:
    """The values of a call in the order of the parameters.

    Parameters
    ----------
    positional : sequence
        Values of the first parameters.
    named : mapping
        Values of the others by the names of their `cvxpy.Parameter`.
    specs : sequence of ParameterSpec

    Raises
    ------
    ParameterValueError
        If a value is missing, or given twice, or has a name that no parameter has, or that
        several have.
    """
    if len(positional) == len(specs) and not named:
        return list(positional)
    names = [spec.name for spec in specs]
    rest = set(names[len(positional) :])
    if rest == named.keys() and len(positional) + len(rest) == len(set(names)) == len(names):
        return [*positional, *(named[name] for name in names[len(positional) :])]
    listed = ", ".join(names) if names else "none"
    values = dict(enumerate(positional))
    if len(positional) > len(specs):
        raise ParameterValueError(
            f"Expected {len(specs)} parameter values ({listed}), got {len(positional)}. Pass one "
            "for every entry of `parameters`, in that order; options such as solver_args go by "
            "keyword."
        )
    for name, value in named.items():
        places = [spec.position for spec in specs if spec.name == name]
        if not places:
            known = {known.lower(): known for known in (*names, *OPTIONS)}
            close = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f" Did you mean {known[close[0]]!r}?" if close else ""
            raise ParameterValueError(
                f"There is no parameter or option {name!r}.{hint} The parameters are: {listed}."
            )
        if len(places) > 1:
            raise ParameterValueError(
                f"{len(places)} parameters have the name {name!r}. Pass them by position, or give "
                "each cp.Parameter a name of its own."
            )
        if places[0] in values:
            raise ParameterValueError(
                f"Parameter {specs[places[0]].label} was given twice, by position and by name. "
                "Leave one out."
            )
        values[places[0]] = value
    missing = [spec for spec in specs if spec.position not in values]
    if missing:
        raise ParameterValueError(
            "A tensor must be provided for each CVXPY parameter, or another value for it. "
            f"Expected {len(specs)} ({listed}), got {len(values)}: "
            f"{', '.join(spec.label for spec in missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Pass them by position or by name."
        )
    return [values[k] for k in range(len(specs))]


def constant(value: Any, spec: ParameterSpec) -> Array:
    """A value that belongs to no framework (a number, a list, a NumPy array) as an array.

    Raises
    ------
    ParameterTypeError
        If it is anything else.
    """
    array: Any = None
    if isinstance(value, np.ndarray | np.generic | bool | int | float | list | tuple):
        with contextlib.suppress(ValueError):  # a ragged list
            array = np.asarray(value)
    if array is None or array.dtype.kind not in "fiub":
        kind = type(value).__name__ if array is None else f"{type(value).__name__} of {array.dtype}"
        raise ParameterTypeError(
            f"Parameter {spec.label}: expected an array of the layer's framework, a NumPy array, "
            f"a list or a number, all of real numbers, got {kind}."
        )
    return array.astype(np.float64)


def broadcast(*shapes: Shape) -> Shape:
    """`numpy.broadcast_shapes`, for lengths that may be symbols of a compiler, too."""
    result: list[int] = []
    for shape in shapes:
        result = [1] * (len(shape) - len(result)) + result
        for k, length in enumerate(shape, len(result) - len(shape)):
            if result[k] == 1:
                result[k] = length
            elif length != 1 and length != result[k]:
                raise ValueError(f"{shapes} do not broadcast")
    return tuple(result)


class Layout:
    """How the values of one call lie: shapes in, flat arrays, shapes out.

    Parameters
    ----------
    shapes : sequence of tuple of int
        Of the parameter values, (*mapped, *batch, *parameter shape).
    specs : sequence of ParameterSpec
    mapped : int
        Number of mapped axes; every array has them, of length one where it does not vary.

    Attributes
    ----------
    batch_shape : tuple of int
        The leading axes of the outputs, mapped ones included; B is their product.

    Raises
    ------
    ParameterValueError
        If a shape does not fit its parameter, or the batch axes do not broadcast.
    """

    def __init__(self, shapes: Sequence[Shape], specs: Sequence[ParameterSpec], mapped: int = 0):
        self.specs, self.mapped = specs, mapped
        leading = []
        for full, spec in zip(shapes, specs, strict=True):
            given, shape = full[mapped:], spec.shape
            axes = len(given) - len(shape)
            if axes < 0 or given[axes:] != shape:
                wrong = "shape" if axes >= 0 else "dimensionality"
                raise ParameterValueError(
                    f"Invalid parameter {wrong}: parameter {spec.label} has shape {shape}; "
                    f"expected that or ({', '.join(['*batch', *map(str, shape)])}), got {given}."
                )
            leading.append(given[:axes])
        self.leading: Sequence[Shape] = leading
        self.mapped_shape = _broadcast([s[:mapped] for s in shapes], specs)
        self.inner_shape = _broadcast(leading, specs)
        self.batch_shape = self.mapped_shape + self.inner_shape

    @cached_property
    def batch(self) -> int:
        """B."""
        return math.prod(self.batch_shape)

    @cached_property
    def is_mapped(self) -> bool:
        """Whether mapped axes have more than one place."""
        return math.prod(self.mapped_shape) != 1

    def flatten(self, values: Sequence[Array]) -> list[Array]:
        """Parameter values as (B, size), or (1, size) where shared."""
        return [self._flat(v, lead) for v, lead in zip(values, self.leading, strict=True)]

    def flatten_tangents(self, tangents: Sequence[Array | None]) -> list[Array]:
        """Tangents, shaped like the values (None: zero), as (B, size) or (1, size)."""
        return [
            np.zeros((1, spec.size)) if t is None else self._flat(t, lead)
            for t, lead, spec in zip(tangents, self.leading, self.specs, strict=True)
        ]

    def flatten_outputs(
        self, gradients: Sequence[Array | None], specs: Sequence[OutputSpec]
    ) -> list[Array | None]:
        """Gradients for the outputs, (*mapped, *batch, *shape) (None: zero), as (B, size)."""
        return [
            None
            if g is None
            else np.broadcast_to(g, self.batch_shape + spec.shape).reshape(
                self.batch, spec.recovery.size
            )
            for g, spec in zip(gradients, specs, strict=True)
        ]

    def expand(self, flat: Sequence[Array]) -> list[Array]:
        """What `flatten` gave, such that gradients of the same shape are not summed over mapped
        axes: (B, size) throughout if there are such."""
        if not self.is_mapped:
            return list(flat)
        return [np.broadcast_to(f, (self.batch, f.shape[1])) for f in flat]

    def unflatten(self, gradients: Sequence[Array]) -> list[Array]:
        """Gradients of the shapes of `expand`, summed over broadcast axes to
        (*mapped, *batch, *parameter shape)."""
        return [
            self._sum_to(g, lead, spec.shape)
            for g, lead, spec in zip(gradients, self.leading, self.specs, strict=True)
        ]

    def slices(
        self, arrays: Sequence[Sequence[Array | None]]
    ) -> tuple[Shape, Iterator[tuple[tuple[slice, ...], list[list[Array | None]]]]]:
        """Arrays that vary along mapped axes where the parameter values do not, piece by piece.

        Returns
        -------
        shape : tuple of int
            Of the mapped axes of all together.
        pieces : iterator
            Where a piece belongs, and the piece of every array.
        """
        mapped, own = self.mapped, self.mapped_shape
        present = [a for group in arrays for a in group if a is not None]
        full = broadcast(own, *(a.shape[:mapped] for a in present))
        extra = [k for k in range(mapped) if full[k] != own[k]]

        def pieces() -> Iterator[tuple[tuple[slice, ...], list[list[Array | None]]]]:
            for index in np.ndindex(*(full[k] for k in extra)):
                place = [slice(None)] * mapped
                for k, i in zip(extra, index, strict=True):
                    place[k] = slice(i, i + 1)
                yield (
                    tuple(place),
                    [[None if a is None else _piece(a, place, extra) for a in g] for g in arrays],
                )

        return full, pieces()

    def _flat(self, value: Array, lead: Shape) -> Array:
        m = self.mapped
        shape = value.shape[m + len(lead) :]
        size = math.prod(shape)
        axes = value.shape[: m + len(lead)]
        if axes == self.batch_shape:
            return value.reshape(self.batch, size)
        if all(length == 1 for length in axes):
            return value.reshape(1, size)
        padding = (1,) * (len(self.inner_shape) - len(lead))
        padded = value.reshape(value.shape[:m] + padding + lead + shape)
        return np.broadcast_to(padded, self.batch_shape + shape).reshape(self.batch, size)

    def _sum_to(self, gradient: Array, lead: Shape, shape: Shape) -> Array:
        target = self.mapped_shape + lead + shape
        if lead == self.inner_shape or len(gradient) == 1:
            return gradient.reshape(target)
        m, missing = self.mapped, len(self.inner_shape) - len(lead)
        padded = (1,) * missing + lead
        axes = tuple(m + k for k, n in enumerate(padded) if n == 1 != self.inner_shape[k])
        return gradient.reshape(self.batch_shape + shape).sum(axis=axes).reshape(target)


def _piece(array: Array, place: Sequence[slice], extra: Sequence[int]) -> Array:
    index = list(place)
    for k in extra:
        if array.shape[k] == 1:
            index[k] = slice(None)
    return array[tuple(index)]


def _broadcast(leading: Sequence[Shape], specs: Sequence[ParameterSpec]) -> Shape:
    first = leading[0] if leading else ()
    if all(lead == first or not lead for lead in leading):
        return first or next((lead for lead in leading if lead), ())
    try:
        return broadcast(*leading)
    except ValueError:
        sizes = ", ".join(
            f"{spec.label} has {lead}" for spec, lead in zip(specs, leading, strict=True)
        )
        raise ParameterValueError(
            f"Inconsistent batch sizes: {sizes}, which do not broadcast against each other. "
            "Give each the same leading axes, axes of length one, or none."
        ) from None
