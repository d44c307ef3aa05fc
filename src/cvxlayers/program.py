"""The conic program that everything below the frontends speaks about.

    minimize ½ xᵀP x + qᵀx   subject to  A x + s = b,  s ∈ K

K is a product of zero, nonneg, second-order, PSD, exponential and 3D power cones, in that
order of rows. PSD blocks are svec: the upper triangle, column-major, √2 off the diagonal.
The pattern of P (upper triangle) and A (both compressed sparse column) is fixed once
(`ProblemStructure`); a batch is values on that pattern (`ConeProgram`), batch axis first. An
array that is the same for the whole batch keeps a batch axis of size 1. Values are float64 arrays
of NumPy or PyTorch, all of one kind and on one device; what is said of them is NumPy's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cvxlayers.arrays import Array, all_finite, fetched, full, held, namespace, take, zeros
from cvxlayers.status import Status

__all__ = [
    "CONES",
    "OUTCOMES",
    "ConeDims",
    "ConeProgram",
    "ConeSolution",
    "Linearization",
    "Pattern",
    "ProblemStructure",
    "ProgramTangent",
    "Wanted",
]

# Looked up once: access to an enum's members is slow enough to show in a small solve.
_SOLVED, _INTERRUPTED = int(Status.SOLVED), int(Status.INTERRUPTED)
# What arrays are like that belong to nobody.
_NUMPY = np.empty(0)


#: What becomes of an instance in an engine of this library, by the number that it gives it.
OUTCOMES = (
    "solved",
    "almost solved",
    "primal infeasible",
    "dual infeasible",
    "iteration limit",
    "insufficient progress",
    "numerical error",
    "stopped",
)
#: The kinds of cones.
CONES = frozenset({"zero", "nonneg", "soc", "psd", "exp", "pow"})


@dataclass(frozen=True)
class ConeDims:
    """Sizes of the cones, in the order of the rows.

    Attributes
    ----------
    zero, nonneg : int
        Numbers of rows.
    soc : tuple of int
        Length of every second-order cone, its first entry being the bound.
    psd : tuple of int
        Order k of every PSD cone; it takes k(k+1)/2 rows.
    exp : int
        Number of exponential cones (three rows each): closure{y > 0, y exp(x/y) <= z}.
    pow : tuple of float
        Exponent α of every power cone (three rows each): x^α y^(1-α) >= |z|.
    """

    zero: int = 0
    nonneg: int = 0
    soc: tuple[int, ...] = ()
    psd: tuple[int, ...] = ()
    exp: int = 0
    pow: tuple[float, ...] = ()

    @property
    def m(self) -> int:
        """Number of rows of all cones together."""
        return (
            self.zero
            + self.nonneg
            + sum(self.soc)
            + sum(k * (k + 1) // 2 for k in self.psd)
            + 3 * self.exp
            + 3 * len(self.pow)
        )

    @property
    def kinds(self) -> frozenset[str]:
        """Names of the cones that occur."""
        present = {
            "zero": self.zero,
            "nonneg": self.nonneg,
            "soc": self.soc,
            "psd": self.psd,
            "exp": self.exp,
            "pow": self.pow,
        }
        return frozenset(name for name, size in present.items() if size)


@dataclass(frozen=True, eq=False)
class Pattern:
    """Sparsity pattern of a matrix, compressed sparse column, rows sorted in each column."""

    shape: tuple[int, int]
    indices: NDArray[np.int32]
    indptr: NDArray[np.int32]

    @property
    def nnz(self) -> int:
        return len(self.indices)

    @cached_property
    def rows(self) -> NDArray[np.int32]:
        """Row of every stored entry."""
        return self.indices

    @cached_property
    def cols(self) -> NDArray[np.int32]:
        """Column of every stored entry."""
        return np.repeat(np.arange(self.shape[1], dtype=np.int32), np.diff(self.indptr))

    @cached_property
    def _places(self) -> NDArray[np.intp]:
        # Of every stored entry in the matrix, row by row …
        return self.rows * np.intp(self.shape[1]) + self.cols

    @cached_property
    def _mirrored(self) -> NDArray[np.intp]:
        # … and in its transpose.
        return self.cols * np.intp(self.shape[0]) + self.rows

    def dense(self, values: Array, symmetric: bool = False) -> Array:
        """The matrices, shape (B, rows, columns), that have these values, shape (B, nnz); of a
        triangle's pattern, the symmetric ones on request."""
        matrix = zeros((len(values), self.shape[0] * self.shape[1]), values)
        matrix[:, held(self._places, values)] = values
        if symmetric:
            matrix[:, held(self._mirrored, values)] = values
        return matrix.reshape(len(values), *self.shape)

    def matrix(self, values: Array) -> sp.csc_array:
        """The sparse matrix that has these values, shape (nnz,), on this pattern."""
        # SciPy's constructor checks the indices each time, for longer than a small solve takes.
        matrix = sp.csc_array.__new__(sp.csc_array)
        vars(matrix).update(vars(self._template))
        matrix.data = values
        return matrix

    @cached_property
    def _template(self) -> sp.csc_array:
        values = np.zeros(self.nnz)
        matrix = sp.csc_array((values, self.indices, self.indptr), shape=self.shape)
        matrix.has_canonical_format  # noqa: B018 (looked at by Clarabel; computed on first use)
        return matrix


@dataclass(frozen=True, eq=False)
class ProblemStructure:
    """What all instances share.

    Attributes
    ----------
    dims : ConeDims
    P : Pattern
        Of the upper triangle.
    A : Pattern
    fixed_A : ndarray, optional
        The values of the entries of A that no parameter changes, NaN for the others. None if
        nothing is known.
    """

    dims: ConeDims
    P: Pattern
    A: Pattern
    fixed_A: Array | None = None

    @property
    def n(self) -> int:
        """Number of variables."""
        return self.A.shape[1]

    @property
    def m(self) -> int:
        """Number of constraint rows."""
        return self.A.shape[0]


@dataclass(frozen=True, eq=False)
class ConeProgram:
    """A batch of values on a structure.

    Attributes
    ----------
    structure : ProblemStructure
    P, q, A, b : ndarray
        Shapes (B or 1, nnz of P), (B or 1, n), (B or 1, nnz of A), (B or 1, m).
    batch : int
        B, the number of instances.
    """

    structure: ProblemStructure
    P: Array
    q: Array
    A: Array
    b: Array
    batch: int

    def is_finite(self) -> NDArray[np.bool_]:
        """Shape (B,): which instances have finite data. Parameter values are finite, but what is
        computed from them may overflow."""
        parts, xp = (self.P, self.q, self.A, self.b), namespace(self.q)
        finite = np.ones(self.batch, dtype=bool)
        if not all_finite(parts):
            for values in parts:
                finite &= fetched(xp.all(xp.isfinite(values), axis=1))
        return finite

    def on_host(self) -> ConeProgram:
        """The same in NumPy's arrays."""
        P, q, A, b = (fetched(a) for a in (self.P, self.q, self.A, self.b))
        return ConeProgram(self.structure, P, q, A, b, self.batch)

    def take(self, rows: NDArray[np.intp] | slice) -> ConeProgram:
        """The instances `rows` alone."""
        count = len(range(*rows.indices(self.batch))) if isinstance(rows, slice) else len(rows)
        values = (self.P, self.q, self.A, self.b)
        P, q, A, b = (a if len(a) == 1 else take(a, rows) for a in values)
        return ConeProgram(self.structure, P, q, A, b, count)


@dataclass(eq=False)
class ConeSolution:
    """A batch of primal-dual points and what became of each.

    Attributes
    ----------
    x, z, s : ndarray
        Shapes (B, n), (B, m), (B, m): primal, dual, slack. NaN where no point was found; an
        almost solved instance keeps its point, for polishing.
    status : ndarray of int
        Shape (B,), values of `Status`.
    iterations : ndarray of int
        Shape (B,).
    seconds : ndarray
        Shape (B,): how long the solver was at work on the instance.
    attempt : ndarray of int
        Shape (B,): which entry of the chain of second tries (`solvers.retries`) gave the answer,
        from one; 0 is the solver itself.
    """

    x: Array
    z: Array
    s: Array
    status: NDArray[np.int64]
    iterations: NDArray[np.int64] = field(repr=False)
    seconds: Array = field(repr=False)
    attempt: NDArray[np.int64] = field(repr=False)

    @classmethod
    def empty(cls, batch: int, structure: ProblemStructure, like: Array = _NUMPY) -> ConeSolution:
        """A batch in which nothing is solved yet, with points beside another array."""
        x, z, s = (full((batch, k), np.nan, like) for k in (structure.n, structure.m, structure.m))
        status = np.empty(batch, dtype=np.int64)
        status.fill(_INTERRUPTED)
        iterations, attempt = np.zeros(batch, dtype=np.int64), np.zeros(batch, dtype=np.int64)
        return cls(x, z, s, status, iterations, np.zeros(batch), attempt)

    def take(self, rows: NDArray[np.intp] | slice) -> ConeSolution:
        """That of the instances `rows` alone."""
        names = (f.name for f in fields(ConeSolution))
        return ConeSolution(**{name: take(getattr(self, name), rows) for name in names})

    @property
    def solved(self) -> NDArray[np.bool_]:
        """Shape (B,): which instances are solved."""
        return self.status == _SOLVED


@dataclass(frozen=True, eq=False)
class Wanted:
    """Which entries of P, q, A and b depend on parameters, and which of the four are shared.

    Attributes
    ----------
    P, q, A, b : ndarray of int
        Positions among the stored values.
    shared : frozenset of str
        The names among them whose values are the same for the whole batch, so that only the sum
        of their gradient over the batch is of interest.
    """

    P: NDArray[np.intp]
    q: NDArray[np.intp]
    A: NDArray[np.intp]
    b: NDArray[np.intp]
    shared: frozenset[str]


@dataclass(frozen=True, eq=False)
class ProgramTangent:
    """A direction, or a gradient, in the space of P, q, A and b.

    Each has shape (B, number of wanted entries), or (1, …) where it is shared by the batch.
    """

    P: Array
    q: Array
    A: Array
    b: Array


class Linearization(Protocol):
    """The derivative of (P, q, A, b) ↦ (x, z) at the solutions of a batch."""

    def vjp(self, gx: Array, gz: Array | None, wanted: Wanted) -> ProgramTangent:
        """Gradient of Σ gx·x + gz·z, for gx of shape (B, n) and gz of shape (B, m).

        `gz` is None where nothing depends on the dual.
        """
        ...

    def jvp(self, tangent: ProgramTangent, wanted: Wanted) -> tuple[Array, Array]:
        """Change (dx, dz) of the solution along a change of the wanted entries."""
        ...

    def hvp(
        self, gx: Array, gz: Array | None, tangent: ProgramTangent, wanted: Wanted
    ) -> ProgramTangent:
        """Change of what `vjp` returns along a change of the wanted entries, gx and gz fixed.

        Raises
        ------
        NotImplementedError
            If this derivative has no derivative of its own.
        """
        ...

    def jvp2(
        self, tangent: ProgramTangent, other: ProgramTangent, wanted: Wanted
    ) -> tuple[Array, Array]:
        """Change of what `jvp` returns for `tangent` along `other`.

        Raises
        ------
        NotImplementedError
            If this derivative has no derivative of its own.
        """
        ...
