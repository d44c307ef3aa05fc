"""One of the five operations as a function of the arrays that JAX hands over.

JAX knows no None: the operands of its primitive are those of a row (see `cvxlayers.operations`)
that are not None.

JAX may know no float64 either. So the point v, and the values of the parameters that are no arrays
of JAX, travel as the bits of their numbers, (*shape, 2) in uint32: the solver and the derivatives
see them exactly, whatever ``jax_enable_x64`` is. Being integers, they are not differentiable.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.call import Call
from cvxlayers.operations import RESULT, Operations
from cvxlayers.settings import FailurePolicy

__all__ = ["BITS", "Origin", "Task", "to_bits", "to_numbers"]

Array = NDArray[Any]
Typed = tuple[tuple[int, ...], np.dtype[Any]]

BITS = np.dtype(np.uint32)


def to_bits(array: NDArray[np.float64]) -> NDArray[np.uint32]:
    """The bits of an array of numbers, shape (*shape, 2)."""
    return np.asarray(array, order="C")[..., None].view(BITS)


def to_numbers(array: Array) -> NDArray[np.float64]:
    """The numbers of an array, which may hold their bits."""
    if array.dtype == BITS:
        return np.asarray(array, order="C").view(np.float64)[..., 0]
    return array.astype(np.float64, copy=False)


def _typed(array: Array, dtype: np.dtype[Any]) -> Array:
    return to_bits(array) if dtype == BITS else array.astype(dtype, copy=False)


@dataclass(eq=False)
class Origin:
    """One call of a layer: its settings, the dtype of its outputs, and the point in memory.

    JAX keeps what it has traced in caches. So this holds no array for longer than a derivative may
    be asked for: the point is in memory as long as there is an array v that tells it.
    """

    operations: Operations
    solver_args: Mapping[str, Any] | None
    warm_start: bool
    on_failure: FailurePolicy | None
    dtype: np.dtype[Any]

    def __post_init__(self) -> None:
        self.plain = self._call(differentiable=False)
        self._holders: dict[int, weakref.ref[Any]] = {}

    @cached_property
    def differentiable(self) -> Call:
        """The call that derivatives are asked of."""
        return self._call(differentiable=True)

    def remember_with(self, point: Any) -> None:
        """Drop the point in memory once this array, and all others passed here, are gone."""
        key = id(point)

        def release(_: Any) -> None:
            self._holders.pop(key, None)
            if not self._holders:
                vars(self).pop("differentiable", None)

        if key not in self._holders:
            self._holders[key] = weakref.ref(point, release)

    def _call(self, differentiable: bool) -> Call:
        return Call(
            self.operations,
            self.solver_args,
            self.warm_start,
            self.on_failure,
            differentiable,
            polished=True,
            repeats=True,
        )


@dataclass(frozen=True)
class Task:
    """One operation of one call.

    Attributes
    ----------
    origin : Origin
    name : str
    present : tuple of bool
        Which operands of the row are not None.
    differentiable : bool
        Of "solve": whether it gives v.
    mapped : int
        Number of mapped axes (see `cvxlayers.calling`).
    """

    origin: Origin = field(repr=False)
    name: str
    present: tuple[bool, ...] = field(default=(), repr=False)
    differentiable: bool = True
    mapped: int = 0

    @property
    def call(self) -> Call:
        """The call with the right settings."""
        return self.origin.differentiable if self.differentiable else self.origin.plain

    @property
    def parameters(self) -> int:
        """Length of θ."""
        return len(self.origin.operations.canonical.parameters)

    def row(self, operands: Iterable[Any]) -> list[Any]:
        """The operands in their places, None in the others."""
        given = iter(operands)
        return [next(given) if present else None for present in self.present]

    def result_row(self, results: Iterable[Any], row: Sequence[Any]) -> list[Any]:
        """The results but v in their places, None for constants, which have no gradient."""
        given = iter(results)
        if RESULT[self.name] == "parameters":
            return [None if c else next(given) for c in self._constants(_dtypes(row))]
        return [next(given) for _ in self.origin.operations.canonical.outputs]

    def run(
        self,
        operands: Sequence[Any],
        read: Callable[[Any], Any] = to_numbers,
        write: Callable[[Any, np.dtype[Any]], Any] = _typed,
    ) -> list[Any]:
        """The results, of the types that `results` gives.

        Parameters
        ----------
        operands : sequence of array
        read : callable
            Makes float64 arrays, for `Call.run`, of the operands.
        write : callable
            Makes arrays of a dtype of the results.
        """
        row = self.row(operands)
        numbers = [None if a is None else read(a) for a in row]
        found = self.call.run(self.name, numbers, self.mapped)
        dtypes = self._result_dtypes(_dtypes(row))
        return [
            write(a, dtype) for a, dtype in zip(found, dtypes, strict=True) if dtype is not None
        ]

    def results(self, operands: Sequence[Typed]) -> list[Typed]:
        """Shapes and dtypes of the results for operands of these shapes and dtypes."""
        row = self.row(operands)
        shapes = [None if a is None else a[0][:-1] if a[1] == BITS else a[0] for a in row]
        found = self.call.shapes(self.name, shapes, self.mapped)
        dtypes = self._result_dtypes([None if a is None else a[1] for a in row])
        return [
            ((*shape, 2) if dtype == BITS else shape, dtype)
            for shape, dtype in zip(found, dtypes, strict=True)
            if dtype is not None
        ]

    def _constants(self, dtypes: Sequence[Any]) -> list[bool]:
        return [dtype == BITS for dtype in dtypes[: self.parameters]]

    def _result_dtypes(self, dtypes: Sequence[Any]) -> list[Any]:
        """Of all results of `Call.run`: None for constants'."""
        if RESULT[self.name] == "parameters":
            constants = self._constants(dtypes)
            return [None if c else d for c, d in zip(constants, dtypes, strict=False)]
        if RESULT[self.name] == "facts":
            return [np.dtype(np.float32)]
        outputs = [self.origin.dtype] * len(self.origin.operations.canonical.outputs)
        return [*outputs, BITS] if self.name == "solve" and self.differentiable else outputs


def _dtypes(row: Sequence[Any]) -> list[Any]:
    return [None if a is None else a.dtype for a in row]
