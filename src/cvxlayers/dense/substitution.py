"""Variables that one equality defines are replaced by what defines them.

With rows a y + L x = b₁ (`cvxlayers.definitions`), y = t + T x, T = −L/a, t = b₁/a, and with the
diagonal p and the costs r that y has in the objective,

    P' = P + Tᵀ p T,   q' = q + Tᵀ (r + p t),   and the constant tᵀ(r + ½ p t)

are those of a program in x with the other rows alone, whose matrices are smaller. What it leaves
out holds exactly: the rows, and the equations of y with the multipliers v = −(r + p y)/a. They hold
at the start of the whole program, too, if all cones are symmetric, so that the iterates are the
same: for that it is the equilibrated data of the whole program in which y is replaced. (Scaled on
its own, what is left of a least-squares problem took 12 iterations and not 7.)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvxlayers.arrays import held
from cvxlayers.definitions import definitions
from cvxlayers.dense.answer import Answer
from cvxlayers.dense.data import Data, Defined
from cvxlayers.dense.judgement import outcome
from cvxlayers.dense.scaled_system import columns, times
from cvxlayers.program import ProblemStructure

__all__ = ["Substitution", "multipliers", "replaced"]


class Substitution:
    """The variables and rows of a structure that are replaced, if there are any.

    Attributes
    ----------
    dims : ConeDims
        Of the rows that stay.
    n, m : int
        How many variables and rows stay.
    """

    def __init__(self, structure: ProblemStructure):
        # A program has a variable.
        entries = definitions(structure)[: structure.n - 1]
        self._rows = structure.A.rows[entries].astype(np.intp)
        self._cols = structure.A.cols[entries].astype(np.intp)
        self._other_rows = np.setdiff1d(np.arange(structure.m), self._rows)
        self._others = np.setdiff1d(np.arange(structure.n), self._cols)
        self._without_P = not np.isin(structure.P.cols, self._others).any()
        self.dims = replace(structure.dims, zero=structure.dims.zero - len(entries))
        self.n, self.m = len(self._others), len(self._other_rows)

    def applied(self, data: Data) -> Data:
        """Data without them; the cones' order of rows is the program's in the zero cone."""
        if not len(self._rows):
            return data
        rows, cols = held(self._rows, data.q), held(self._cols, data.q)
        other_rows, others = held(self._other_rows, data.q), held(self._others, data.q)
        above = data.A[:, rows]
        a = above.gather(2, cols.expand(len(above), -1)[:, :, None])[:, :, 0]
        T, t = above[:, :, others] / -a[:, :, None], data.b[:, rows] / a
        p, cost = data.P.diagonal(dim1=1, dim2=2)[:, cols], data.q[:, cols]
        of_t = data.c[:, None] * p * t
        P = data.P[:, others][:, :, others]
        defined = Defined(
            T,
            t,
            a,
            p,
            cost,
            data.d[:, cols],
            data.e[:, rows],
            (t * (cost + 0.5 * of_t)).sum(1),
            None if self._without_P else P,
        )
        slope = columns(cost + of_t)
        return replace(
            data,
            P=P + T.mT @ (p[:, :, None] * T),
            q=data.q[:, others] + times(T.mT, slope)[..., 0],
            A=data.A[:, other_rows][:, :, others],
            b=data.b[:, other_rows],
            d=data.d[:, others],
            e=data.e[:, other_rows],
            defined=defined,
        )

    def whole(self, answer: Answer, data: Data) -> Answer:
        """An answer for data without them, with them."""
        of_y = data.defined
        if of_y is None:
            return answer
        certificate = answer.outcome == outcome("primal infeasible")
        certificate |= answer.outcome == outcome("dual infeasible")
        unit, tau = data.unit[:, None], (~certificate).to(data.c)
        y = replaced(of_y, answer.x / (data.d * unit), tau)
        v = multipliers(of_y, y, tau, data.c)
        v = torch.where(certificate[:, None], 0.0, v * of_y.e * (unit / data.c[:, None]))
        x = _joined(answer.x, y * of_y.d * unit, self._others, self._cols)
        z = _joined(answer.z, v, self._other_rows, self._rows)
        nothing = torch.where(v.isnan(), v, 0.0)
        s = _joined(answer.s, nothing, self._other_rows, self._rows)
        return replace(answer, x=x, z=z, s=s)


def replaced(defined: Defined, x: Tensor, tau: Tensor) -> Tensor:
    """y of the point x/τ, times τ; shapes (B, n) and (B,)."""
    return times(defined.T, columns(x))[..., 0] + tau[:, None] * defined.t


def multipliers(defined: Defined, y: Tensor, tau: Tensor, c: Tensor) -> Tensor:
    """Those of the rows that define y, likewise."""
    return -(tau[:, None] * defined.cost + c[:, None] * defined.p * y) / defined.a


def _joined(
    v: Tensor, left_out: Tensor, places: NDArray[np.intp], others: NDArray[np.intp]
) -> Tensor:
    whole = v.new_empty((len(v), len(places) + len(others)))
    whole[:, held(places, v)] = v
    whole[:, held(others, v)] = left_out
    return whole
