"""The derivative of a batch by diffcp's operators: gradients in, gradients out.

The mathematics of one instance is in `diffcp_operators`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cvxlayers.errors import SolverError
from cvxlayers.parallel import for_each
from cvxlayers.program import ConeProgram, ConeSolution, ProgramTangent, Wanted
from cvxlayers.solvers.diffcp_operators import Implicit, Perturbed, PerturbedSolveError
from cvxlayers.solvers.diffcp_program import DiffcpProgram
from cvxlayers.solvers.diffcp_settings import DiffcpSettings
from cvxlayers.solvers.scs_form import ScsForm

__all__ = ["DiffcpDerivative"]

Array = NDArray[np.float64]

_NO_SECOND = (
    "The derivative that DIFFCP brings has no derivative of its own. Leave solver=None for second "
    "derivatives."
)


class DiffcpDerivative:
    """The derivative of diffcp at the solutions of a batch: a `Linearization`.

    Instances without a solution contribute zero.
    """

    def __init__(
        self,
        form: ScsForm,
        program: ConeProgram,
        solution: ConeSolution,
        settings: DiffcpSettings,
        instance: Callable[[int], DiffcpProgram | None],
    ):
        self._form = form
        self._program = program
        self._solution = solution
        self._settings = settings
        self._instance = instance

    def vjp(self, gx: Array, gz: Array | None, wanted: Wanted) -> ProgramTangent:
        pattern_P, pattern_A = self._form.structure.P, self._form.structure.A
        i, j = pattern_P.rows[wanted.P], pattern_P.cols[wanted.P]
        twice = np.where(i == j, 0.0, 1.0)  # a stored entry off the diagonal stands for two
        rows, cols = pattern_A.rows[wanted.A], pattern_A.cols[wanted.A]
        batch = self._program.batch
        P, q = np.zeros((batch, len(wanted.P))), np.zeros((batch, len(wanted.q)))
        A, b = np.zeros((batch, len(wanted.A))), np.zeros((batch, len(wanted.b)))

        def one(k: int, point: Implicit | Perturbed) -> None:
            gz_k = np.zeros(self._form.structure.m) if gz is None else gz[k]
            if not (gx[k].any() or gz_k.any()):
                return
            gradient = point.adjoint(gx[k], self._to_rows(gz_k))
            q[k] = gradient.q[wanted.q]
            b[k] = self._from_rows(gradient.b)[wanted.b]
            for left, right in gradient.A:
                A[k] += self._from_rows(left)[rows] * right[cols]
            for left, right in gradient.P:
                P[k] += left[i] * right[j] + twice * left[j] * right[i]

        self._for_each_solved(one)

        def total(name: str, values: Array) -> Array:
            return values.sum(axis=0, keepdims=True) if name in wanted.shared else values

        return ProgramTangent(total("P", P), total("q", q), total("A", A), total("b", b))

    def jvp(self, tangent: ProgramTangent, wanted: Wanted) -> tuple[Array, Array]:
        structure = self._form.structure
        i, j = structure.P.rows[wanted.P], structure.P.cols[wanted.P]
        rows, cols = structure.A.rows[wanted.A], structure.A.cols[wanted.A]
        upper = i != j
        dx = np.zeros((self._program.batch, structure.n))
        dz = np.zeros((self._program.batch, structure.m))

        def one(k: int, point: Implicit | Perturbed) -> None:
            dP, dq, dA, db = (
                a[k if len(a) > 1 else 0] for a in (tangent.P, tangent.q, tangent.A, tangent.b)
            )
            x = self._solution.x[k]
            c, b = np.zeros(structure.n), np.zeros(structure.m)
            c[wanted.q], b[wanted.b] = dq, db
            np.add.at(c, i, dP * x[j])
            np.add.at(c, j[upper], (dP * x[i])[upper])
            shape = (max(structure.m, 1), structure.n)
            A = sp.csc_matrix((dA, (self._form.position[rows], cols)), shape=shape)
            dx[k], dy = point.forward(A, self._to_rows(b), c)
            dz[k] = self._from_rows(dy)

        self._for_each_solved(one)
        return dx, dz

    def hvp(
        self, gx: Array, gz: Array | None, tangent: ProgramTangent, wanted: Wanted
    ) -> ProgramTangent:
        raise NotImplementedError(_NO_SECOND)

    def jvp2(
        self, tangent: ProgramTangent, other: ProgramTangent, wanted: Wanted
    ) -> tuple[Array, Array]:
        raise NotImplementedError(_NO_SECOND)

    def _for_each_solved(self, one: Callable[[int, Implicit | Perturbed], None]) -> None:
        kind = Perturbed if self._settings.is_lpgd else Implicit

        def body(k: int) -> None:
            if not np.isfinite(self._solution.x[k]).all():
                return
            data = self._instance(k)
            if data is None:
                return
            try:
                one(k, kind(data, self._point(k), self._settings))
            except PerturbedSolveError as error:
                message = (
                    f"DIFFCP: a perturbed program of mode {self._settings.mode!r} was not solved "
                    f"at batch index {k} ({error.status.sentence}); decrease tau, raise rho, or "
                    "choose another mode"
                )
                raise SolverError(message, {(k,): error.status}) from None

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Solved/Inaccurate")
            for_each(self._program.batch, lambda: body)

    def _point(self, k: int) -> tuple[Array, Array, Array]:
        solution = self._solution
        s = solution.s[k].copy()
        s[self._form.unbounded_rows(self._program, k)] = 1.0
        y, s = self._to_rows(solution.z[k]), self._to_rows(s, without_rows=1.0)
        return solution.x[k], y, s

    def _to_rows(self, ours: Array, without_rows: float = 0.0) -> Array:
        """Rows in SCS's order, or the single row that a program without constraints gets."""
        return ours[self._form.order] if len(ours) else np.array([without_rows])

    def _from_rows(self, rows: Array) -> Array:
        return rows[self._form.position]
