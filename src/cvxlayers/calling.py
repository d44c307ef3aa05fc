"""From a caller's arguments to flat arrays with one batch axis, and back.

Leading axes are batch axes and broadcast against each other as in NumPy. A parameter that has
none, or only axes of length one, is shared by the batch and never expanded.

The value of a parameter with a sparsity pattern has one of two forms: all entries, or those of the
pattern. Flat arrays hold the latter; gradients come back in the form of the value.

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
import scipy.sparse as sp
from numpy.typing import NDArray

from cvxlayers.arrays import Array, held, namespace, zeros
from cvxlayers.canonicalize import OutputSpec, ParameterSpec
from cvxlayers.errors import ParameterTypeError, ParameterValueError

__all__ = ["Layout", "arrange", "broadcast", "constant"]

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
    """A value that belongs to no framework (a number, a list, a NumPy array, a sparse matrix of
    SciPy) as an array: the entries on the pattern, where a sparse matrix meets one.

    Raises
    ------
    ParameterTypeError
        If it is anything else.
    ParameterValueError
        If a sparse matrix has another shape than its parameter, or entries off the pattern.
    """
    array: Any = None
    if sp.issparse(value):
        array = _from_sparse(value, spec)
    elif isinstance(value, np.ndarray | np.generic | bool | int | float | list | tuple):
        with contextlib.suppress(ValueError):  # a ragged list
            array = np.asarray(value)
    if array is None or array.dtype.kind not in "fiub":
        kind = type(value).__name__ if array is None else f"{type(value).__name__} of {array.dtype}"
        raise ParameterTypeError(
            f"Parameter {spec.label}: expected an array of the layer's framework, a NumPy array, "
            f"a list or a number, all of real numbers, got {kind}."
        )
    return array.astype(np.float64)


def _from_sparse(matrix: Any, spec: ParameterSpec) -> NDArray[Any]:
    if matrix.shape != spec.shape:
        raise ParameterValueError(
            f"Invalid parameter shape: parameter {spec.label} has shape {spec.shape}; expected a "
            f"sparse array of that shape, without batch axes, got {matrix.shape}."
        )
    if len(spec.forms) == 1:
        dense: NDArray[Any] = matrix.toarray()
        return dense
    assert spec.stored is not None
    coo = sp.coo_array(matrix, copy=True)
    coo.sum_duplicates()
    given = np.ravel_multi_index(coo.coords, spec.shape)
    order = np.argsort(spec.stored)
    place = np.searchsorted(spec.stored[order], given)
    on_pattern = np.append(spec.stored[order], -1)[place] == given
    broken = np.flatnonzero(~on_pattern & (coo.data != 0))
    if broken.size:
        index = tuple(int(axis[broken[0]]) for axis in coo.coords)
        raise ParameterValueError(
            f"Parameter {spec.label} was declared sparsity, but entry {index} of the value is "
            f"{coo.data[broken[0]]:.6g}. Mask the value, or add the entry to the pattern."
        )
    entries = np.zeros(spec.size, dtype=coo.dtype)
    entries[order[place[on_pattern]]] = coo.data[on_pattern]
    return entries


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
        Of the parameter values, (*mapped, *batch, *one of the parameter's forms).
    specs : sequence of ParameterSpec
    mapped : int
        Number of mapped axes; every array has them, of length one where it does not vary.

    Attributes
    ----------
    forms : sequence of tuple of int
        For every value the shape without mapped and batch axes: the parameter's, or (stored
        entries,).
    leading : sequence of tuple of int
        For every value the batch axes.
    batch_shape : tuple of int
        The leading axes of the outputs, mapped ones included; B is their product.

    Raises
    ------
    ParameterValueError
        If a shape does not fit its parameter, or the batch axes do not broadcast.
    """

    def __init__(self, shapes: Sequence[Shape], specs: Sequence[ParameterSpec], mapped: int = 0):
        self.specs, self.mapped = specs, mapped
        given = [shape[mapped:] for shape in shapes]
        self.forms: Sequence[Shape] = [_form(s, spec) for s, spec in zip(given, specs, strict=True)]
        leading = [s[: len(s) - len(form)] for s, form in zip(given, self.forms, strict=True)]
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
        return [self._flat(value, k) for k, value in enumerate(values)]

    def flatten_tangents(self, tangents: Sequence[Array | None], like: Array) -> list[Array]:
        """Tangents, shaped like the values (None: zero, beside `like`), as (B, size) or
        (1, size)."""
        return [
            zeros((1, self.specs[k].size), like) if t is None else self._flat(t, k)
            for k, t in enumerate(tangents)
        ]

    def flatten_outputs(
        self, gradients: Sequence[Array | None], specs: Sequence[OutputSpec]
    ) -> list[Array | None]:
        """Gradients for the outputs, (*mapped, *batch, *shape) (None: zero), as (B, size)."""
        return [
            None
            if g is None
            else namespace(g)
            .broadcast_to(g, self.batch_shape + spec.shape)
            .reshape(self.batch, spec.recovery.size)
            for g, spec in zip(gradients, specs, strict=True)
        ]

    def expand(self, flat: Sequence[Array]) -> list[Array]:
        """What `flatten` gave, such that gradients of the same shape are not summed over mapped
        axes: (B, size) throughout if there are such."""
        if not self.is_mapped:
            return list(flat)
        return [namespace(f).broadcast_to(f, (self.batch, f.shape[1])) for f in flat]

    def unflatten(self, gradients: Sequence[Array]) -> list[Array]:
        """Gradients of the shapes of `expand`, summed over broadcast axes to
        (*mapped, *batch, *form)."""
        return [self._whole(self._sum_to(g, k), k) for k, g in enumerate(gradients)]

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
        if not mapped:
            return own, iter([((), [list(group) for group in arrays])])
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

    def _flat(self, value: Array, k: int) -> Array:
        m, lead, size = self.mapped, self.leading[k], self.specs[k].size
        axes = value.shape[: m + len(lead)]
        entries = value.reshape((*axes, math.prod(self.forms[k])))
        stored = self._stored(k)
        if stored is not None:
            entries = entries[..., held(stored, entries)]
        if axes == self.batch_shape:
            return entries.reshape(self.batch, size)
        if all(length == 1 for length in axes):
            return entries.reshape(1, size)
        padding = (1,) * (len(self.inner_shape) - len(lead))
        padded = entries.reshape((*axes[:m], *padding, *lead, size))
        full = namespace(padded).broadcast_to(padded, (*self.batch_shape, size))
        return full.reshape(self.batch, size)

    def _sum_to(self, gradient: Array, k: int) -> Array:
        """Summed over broadcast axes: (*mapped, *batch, size)."""
        lead, size = self.leading[k], self.specs[k].size
        target = (*self.mapped_shape, *lead, size)
        if lead == self.inner_shape or len(gradient) == 1:
            return gradient.reshape(target)
        m, missing = self.mapped, len(self.inner_shape) - len(lead)
        padded = (1,) * missing + lead
        axes = tuple(m + j for j, n in enumerate(padded) if n == 1 != self.inner_shape[j])
        whole = gradient.reshape((*self.batch_shape, size))
        return namespace(whole).sum(whole, axis=axes).reshape(target)

    def _whole(self, entries: Array, k: int) -> Array:
        """Entries in the form of the value."""
        axes, stored = entries.shape[:-1], self._stored(k)
        if stored is not None:
            scattered = zeros((*axes, math.prod(self.forms[k])), entries)
            scattered[..., held(stored, entries)] = entries
            entries = scattered
        return entries.reshape(axes + self.forms[k])

    def _stored(self, k: int) -> NDArray[np.intp] | None:
        """Where the entries that count stand in the value; None where it has these alone."""
        return self.specs[k].stored if self.forms[k] == self.specs[k].shape else None


def _form(given: Shape, spec: ParameterSpec) -> Shape:
    """The form of a value of this shape: what remains of it without the batch axes."""
    for form in spec.forms:
        axes = len(given) - len(form)
        # From the end: a batch length may be a symbol of a compiler, and is better not looked at.
        if axes >= 0 and all(given[axes + j] == form[j] for j in reversed(range(len(form)))):
            return form
    shape, *others = spec.forms
    wrong = "dimensionality" if len(given) < min(map(len, spec.forms)) else "shape"
    entries = "".join(
        f" or ({form[0]},) or {_batched(form)} for the entries of its sparsity pattern,"
        for form in others
    )
    raise ParameterValueError(
        f"Invalid parameter {wrong}: parameter {spec.label} has shape {shape}; expected that or "
        f"{_batched(shape)},{entries} got {given}."
    )


def _batched(shape: Shape) -> str:
    return f"({', '.join(['*batch', *map(str, shape)])})"


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
