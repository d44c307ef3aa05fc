"""The Python face of the compiled engine for one structure.

The compiled classes take arrays as they are in `ConeProgram`, and write into arrays made here.
"""

from __future__ import annotations

import math
import os
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from cvxlayers.lanes.elimination import find_elimination
from cvxlayers.lanes.variants import load
from cvxlayers.parallel import quiet, workers
from cvxlayers.program import OUTCOMES, ConeProgram, ProblemStructure

__all__ = ["Answer", "Engine", "Outer", "engine_for", "why_not"]

Array = NDArray[np.float64]

# What it takes: beyond, a solver for single instances is as fast, or its factor does not fit into
# the caches that the lanes' speed comes from.
MOST_UNKNOWNS = 20_000
MOST_ENTRIES = 1_000_000
MOST_STORED = 500_000
LARGEST_PSD = 16

_STOPPED = OUTCOMES.index("stopped")
_NONE = np.zeros((1, 0))
_engines: WeakKeyDictionary[ProblemStructure, Engine | str] = WeakKeyDictionary()
_lock = Lock()


def _renew_lock() -> None:
    # Another thread may have held it when the process was forked.
    global _lock
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def engine_for(structure: ProblemStructure) -> Engine | None:
    """The engine for a structure, made on first use; None where `why_not` says why."""
    found = _engine_or_reason(structure)
    return None if isinstance(found, str) else found


def why_not(structure: ProblemStructure) -> str | None:
    """Why there is no engine for a structure, as the end of a sentence; None where there is one."""
    found = _engine_or_reason(structure)
    return found if isinstance(found, str) else None


def _engine_or_reason(structure: ProblemStructure) -> Engine | str:
    found = _engines.get(structure)
    if found is None:
        # Making one may take seconds. Nobody waits for it who has one.
        with _lock:
            found = _engines.get(structure)
            if found is None:
                found = _engines[structure] = _make(structure)
    return found


def _make(structure: ProblemStructure) -> Engine | str:
    module = load()
    if module is None:
        return (
            "was not compiled when cvxlayers was installed, or is switched off; install a C++ "
            "compiler, such as g++, and then cvxlayers again"
        )
    dims, entries = structure.dims, structure.P.nnz + structure.A.nnz
    if structure.n + structure.m > MOST_UNKNOWNS:
        return (
            f"takes up to {MOST_UNKNOWNS:,} variables and rows, not {structure.n + structure.m:,}"
        )
    if entries > MOST_ENTRIES:
        return f"takes up to {MOST_ENTRIES:,} stored entries of P and A, not {entries:,}"
    largest = max(dims.psd, default=0)
    if largest > LARGEST_PSD:
        return f"takes semidefinite matrices of up to {LARGEST_PSD} rows, not of {largest}"
    try:
        return Engine(module, structure)
    except OverflowError:
        return f"takes factors of up to {MOST_STORED:,} entries"


class Answer:
    """What `Engine.solve` found, for B instances.

    Attributes
    ----------
    x, z, s : ndarray
        Shapes (B, n), (B, m), (B, m). Of an infeasible instance, the certificate; NaN of one that
        was not begun with.
    outcome : ndarray of int
        Shape (B,): positions in `OUTCOMES`.
    iterations : ndarray of int
        Shape (B,).
    seconds : ndarray
        Shape (B,): the part of the time for which lanes were at work that is the instance's own.
    """

    def __init__(self, batch: int, structure: ProblemStructure):
        self.x = np.empty((batch, structure.n))
        self.z, self.s = np.empty((batch, structure.m)), np.empty((batch, structure.m))
        for point in (self.x, self.z, self.s):
            point.fill(np.nan)
        self.outcome = np.empty(batch, dtype=np.int8)
        self.outcome.fill(_STOPPED)
        self.iterations = np.zeros(batch, dtype=np.int64)
        self.seconds = np.zeros(batch)


class Engine:
    """Solves, polishes and differentiates batches of one structure.

    Parameters
    ----------
    module : module
        A compiled variant.
    structure : ProblemStructure

    Raises
    ------
    OverflowError
        If the factor of an instance would have more than `MOST_STORED` entries.
    """

    def __init__(self, module: Any, structure: ProblemStructure):
        dims, A = structure.dims, structure.A
        self._module = module
        self._elimination = find_elimination(structure)
        self._products: WeakKeyDictionary[ConeProgram, Array] = WeakKeyDictionary()
        pivots: list[list[int]] = [[], [], [], []]
        sums: list[list[int]] = [[], []]
        terms: list[list[int]] = [[], [], [], []]
        if self._elimination is not None:
            e = self._elimination
            parts = (A.rows[e.a_entries], A.cols[e.a_entries], e.a_entries, e.p_entries)
            pivots = [part.tolist() for part in parts]
            sums, terms = [e.i.tolist(), e.j.tolist()], [term.tolist() for term in e.terms]
        self._core = module.Engine(
            structure.n,
            structure.m,
            dims.zero,
            dims.nonneg,
            list(dims.soc),
            list(dims.psd),
            dims.exp,
            [float(np.asarray(alpha)) for alpha in dims.pow],
            structure.P.indptr.tolist(),
            structure.P.indices.tolist(),
            structure.A.indptr.tolist(),
            structure.A.indices.tolist(),
            pivots,
            sums,
            terms,
            MOST_STORED,
        )

    @property
    def store(self) -> int:
        """Numbers in the factor of one instance."""
        return int(self._core.store)

    def solve(
        self,
        program: ConeProgram,
        tolerances: tuple[float, float, float],
        iterations: int,
        seconds: float | None = None,
    ) -> Answer:
        """Solve the instances.

        Those that have data which are not finite, or a bound of 1e20, end as a numerical error.

        Parameters
        ----------
        program : ConeProgram
        tolerances : tuple of float
            Of the gap, absolute and relative, and of both residuals.
        iterations : int
            At most so many.
        seconds : float, optional
            After which to stop.
        """
        answer = Answer(program.batch, program.structure)
        self._core.solve(
            *self._values(program),
            answer.x,
            answer.z,
            answer.s,
            answer.seconds,
            answer.outcome,
            answer.iterations,
            list(tolerances),
            iterations,
            -1.0 if seconds is None else max(seconds, 0.0),
            _threads(program.batch),
        )
        return answer

    def polish(self, program: ConeProgram, x: Array, z: Array, s: Array) -> Array:
        """Newton steps on the optimality conditions from (x, z, s), in place.

        Returns
        -------
        ndarray
            Shape (B,): the residual, as `cvxlayers.derivative.polish` defines it. Infinite where it
            did not become rounding; the point is then left as it was.
        """
        residual = np.full(program.batch, math.inf)
        self._core.polish(*self._values(program), x, z, s, residual, _threads(program.batch))
        return residual

    def newton(
        self, program: ConeProgram, x: Array, z: Array, s: Array, r1: Array, r2: Array | None
    ) -> tuple[Array, Array, Array]:
        """Solve P u + Aᵀv = r₁, (I − D)(A u − r₂) = D v, D = DΠ(s − z).

        Parameters
        ----------
        program : ConeProgram
        x, z, s : ndarray
            Shapes (B, n), (B, m), (B, m), contiguous.
        r1, r2 : ndarray
            Shapes (B, n), (B, m); None for zero.

        Returns
        -------
        u, v, residual : ndarray
            Shapes (B, n), (B, m) and (B,): by how much the equations are missed, relative to their
            right-hand sides; infinite where the system may be singular.
        """
        B, structure = len(x), program.structure
        u, v, residual = np.empty((B, structure.n)), np.empty((B, structure.m)), np.empty(B)
        residual.fill(math.inf)
        P, _, A, _, M = self._values(program)
        r1, r2 = np.ascontiguousarray(r1), None if r2 is None else np.ascontiguousarray(r2)
        self._core.newton(P, A, M, x, z, s, r1, r2, u, v, residual, _threads(len(x)))
        return u, v, residual

    def outer(self, i: NDArray[Any], j: NDArray[Any], weight: Array | float) -> Outer:
        """w (a bᵀ + c dᵀ) at fixed entries (i, j), as a function of a, b, c and d."""
        weights = np.broadcast_to(np.asarray(weight, dtype=np.float64), (len(i),))
        return Outer(self._module.Outer(i.tolist(), j.tolist(), weights.tolist()), len(i))

    def _values(self, program: ConeProgram) -> list[Array]:
        """P, q, A, b, and what the eliminated rows add to P."""
        values = (program.P, program.q, program.A, program.b)
        return [*(np.ascontiguousarray(v) for v in values), self._M(program)]

    def _M(self, program: ConeProgram) -> Array:
        if self._elimination is None or not self._elimination.by_blas:
            return _NONE
        M = self._products.get(program)
        if M is None:
            with quiet():
                M = self._products[program] = self._elimination.products(program)
        return M


class Outer:
    """w (a bᵀ + c dᵀ) at fixed entries (i, j); made by `Engine.outer`."""

    def __init__(self, core: Any, size: int):
        self._core, self._size = core, size

    def __call__(self, a: Array, b: Array, c: Array, d: Array, total: bool) -> Array:
        """The entries for every instance, or their sum over the batch.

        Parameters
        ----------
        a, b, c, d : ndarray
            Shapes (B, rows), (B, columns), (B, rows), (B, columns).
        total : bool
            Whether to sum.

        Returns
        -------
        ndarray
            Shape (B, entries), or (1, entries).
        """
        out = np.empty((1 if total else len(a), self._size))
        a, b, c, d = (np.ascontiguousarray(v) for v in (a, b, c, d))
        self._core(a, b, c, d, out, _threads(len(a)))
        return out


def _threads(count: int) -> int:
    # Asking how many there may be takes as long as a small solve.
    return workers() if count > 1 else 1
