"""Batches in pieces that fit into memory.

A derivative that is not taken in lanes keeps a factor for every instance. Where the batch is too
large for that, the solution alone is kept, and the derivative of one piece after the other is made
again when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from cvxlayers.arrays import Array, namespace
from cvxlayers.derivative import Quality, quality
from cvxlayers.program import Linearization, ProgramTangent, Wanted

__all__ = ["Chunks", "slices"]

Result = TypeVar("Result")
Operation = Callable[[Linearization, slice], Result]


def slices(batch: int, per_instance: float, limit: float) -> list[slice]:
    """The batch in pieces of equal size, at least one instance in each."""
    size = max(1, int(limit // max(1.0, per_instance)))
    if batch <= size:
        return [slice(0, batch)]
    size = -(-batch // -(-batch // size))
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


class Chunks:
    """The derivative of a batch, made piece by piece: a `Linearization`.

    Parameters
    ----------
    counts : sequence of int
        How many instances each piece is for; zero is possible.
    make : callable
        The derivative of a piece, by its number.
    """

    def __init__(self, counts: Sequence[int], make: Callable[[int], Linearization]):
        self.counts, self.make = counts, make
        self._qualities: list[Quality] = []

    def vjp(self, gx: Array, gz: Array | None, wanted: Wanted) -> ProgramTangent:
        """See `cvxlayers.program.Linearization`."""
        return self._gradient(
            lambda piece, rows: piece.vjp(gx[rows], _some(gz, rows), wanted), wanted
        )

    def jvp(self, tangent: ProgramTangent, wanted: Wanted) -> tuple[Array, Array]:
        """See `cvxlayers.program.Linearization`."""
        return self._point(lambda piece, rows: piece.jvp(_part(tangent, rows), wanted))

    def hvp(
        self, gx: Array, gz: Array | None, tangent: ProgramTangent, wanted: Wanted
    ) -> ProgramTangent:
        """See `cvxlayers.program.Linearization`."""
        return self._gradient(
            lambda piece, rows: piece.hvp(gx[rows], _some(gz, rows), _part(tangent, rows), wanted),
            wanted,
        )

    def jvp2(
        self, tangent: ProgramTangent, other: ProgramTangent, wanted: Wanted
    ) -> tuple[Array, Array]:
        """See `cvxlayers.program.Linearization`."""
        return self._point(
            lambda piece, rows: piece.jvp2(_part(tangent, rows), _part(other, rows), wanted)
        )

    def quality(self) -> Quality:
        """That of the last operation, or of the factors if there was none."""
        if not self._qualities:
            self._each(lambda piece, rows: None)
        parts = zip(*(vars(q).values() for q in self._qualities), strict=True)
        return Quality(*(np.concatenate(part) for part in parts))

    def _gradient(self, operation: Operation[ProgramTangent], wanted: Wanted) -> ProgramTangent:
        parts = self._each(operation)
        joined: dict[str, Array] = {}
        for name in vars(parts[0]):
            values = [getattr(part, name) for part in parts]
            joined[name] = sum(values[1:], values[0]) if name in wanted.shared else _stack(values)
        return ProgramTangent(**joined)

    def _point(self, operation: Operation[tuple[Array, Array]]) -> tuple[Array, Array]:
        dx, dz = zip(*self._each(operation), strict=True)
        return _stack(dx), _stack(dz)

    def _each(self, operation: Operation[Result]) -> list[Result]:
        """The operation for one piece after the other, of which one at a time is in memory."""
        results, qualities, start = [], [], 0
        for number, count in enumerate(self.counts):
            piece, rows = self.make(number), slice(start, start + count)
            results.append(operation(piece, rows))
            qualities.append(quality(piece, count))
            start += count
            del piece
        self._qualities = qualities
        return results


def _stack(parts: Sequence[Array]) -> Array:
    return namespace(parts[0]).concat(list(parts))


def _some(values: Array | None, rows: slice) -> Array | None:
    return None if values is None else values[rows]


def _part(tangent: ProgramTangent, rows: slice) -> ProgramTangent:
    return ProgramTangent(**{k: v if len(v) == 1 else v[rows] for k, v in vars(tangent).items()})
