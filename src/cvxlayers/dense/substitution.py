"""Variables that one equality defines are replaced by what defines them.

With rows a y + L x = b₁ (`cvxlayers.definitions`), y = t + T x, T = −L/a, t = b₁/a, and with the
diagonal p and the costs r that y has in the objective,

    P' = P + Tᵀ p T,   q' = q + Tᵀ (r + p t),   and the constant tᵀ(r + ½ p t)

are those of a program in x with the other rows alone, whose matrices are smaller. What it leaves
out holds by itself: the rows, and the equations of y with the multipliers v = −(r + p y)/a. They
hold at the start of the whole program, too, if all cones are symmetric, so that the iterates are
the same but for rounding: for that it is the equilibrated data of the whole program in which y is
replaced. (Scaled on its own, what is left of a least-squares problem took 12 iterations and not 7.)

Where y is small beside t, as in a fit, T x and t cancel, and q'ᵀx and the constant. So x is counted
from an x₀ where the form yᵀp y is about as small as it gets: t + T x₀ takes the place of t,
b − A x₀ that of b, and P x₀ + q that of q. It is regularised, because a point that is far away
costs more than it brings.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvxlayers.arrays import held, largest
from cvxlayers.definitions import definitions
from cvxlayers.dense.answer import Answer
from cvxlayers.dense.data import Data, Defined
from cvxlayers.dense.judgement import outcome
from cvxlayers.dense.products import columns, product
from cvxlayers.program import ProblemStructure

__all__ = ["Substitution"]

# Of a fit: relative to the largest entry of the matrix, so that x₀ grows to 10³ times what it would
# be if all directions were alike; how often what is left is fitted; and for a form that is zero.
REGULARISATION, FITS, TINY = 1e-6, 3, 1e-150
# A x₀ may be so many times as large as the rows are, or b.
FAR = 1e6


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
        P, q = data.P[:, others][:, :, others], data.q[:, others]
        A, b = data.A[:, other_rows][:, :, others], data.b[:, other_rows]

        square = T.mT @ (p[:, :, None] * T)
        x0 = _fit(square, T, p, t)
        Ax = product(A, x0)
        # What is lost of b is seen in s.
        far = ~(largest(Ax) <= FAR * (1.0 + largest(b)))[:, None]
        x0, Ax = x0.masked_fill(far, 0.0), Ax.masked_fill(far, 0.0)
        t = t + product(T, x0)
        Px, c = product(P, x0), data.c[:, None]
        slope = cost + c * p * t
        constant = (0.5 * t * (cost + slope)).sum(1) + (x0 * (q + 0.5 * c * Px)).sum(1)
        of_y = Defined(
            T,
            x0,
            t,
            a,
            p,
            cost,
            data.d[:, cols],
            data.e[:, rows],
            constant,
            None if self._without_P else P,
        )
        return replace(
            data,
            P=P + square,
            q=q + c * Px + product(T.mT, slope),
            A=A,
            b=b - Ax,
            d=data.d[:, others],
            e=data.e[:, other_rows],
            defined=of_y,
        )

    def whole(self, answer: Answer, data: Data) -> Answer:
        """An answer for data without them, with them."""
        of_y = data.defined
        if of_y is None:
            return answer
        certificate = answer.outcome == outcome("primal infeasible")
        certificate |= answer.outcome == outcome("dual infeasible")
        unit, tau = data.unit[:, None], (~certificate).to(data.c)
        x = answer.x / (data.d * unit)
        y = of_y.y(x, tau)
        v = of_y.multipliers(y, tau, data.c)
        v = torch.where(certificate[:, None], 0.0, v * of_y.e * (unit / data.c[:, None]))
        x = (x + tau[:, None] * of_y.x0) * data.d * unit
        x = _joined(x, y * of_y.d * unit, self._others, self._cols)
        z = _joined(answer.z, v, self._other_rows, self._rows)
        nothing = torch.where(v.isnan(), v, 0.0)
        s = _joined(answer.s, nothing, self._other_rows, self._rows)
        return replace(answer, x=x, z=z, s=s)


def _fit(square: Tensor, T: Tensor, p: Tensor, t: Tensor) -> Tensor:
    """An x with a small yᵀp y, y = t + T x; shape (B, n)."""
    height = square.diagonal(dim1=1, dim2=2).amax(1)
    one = torch.eye(T.shape[2], dtype=t.dtype, device=t.device)
    regularised = square + (REGULARISATION * height + TINY)[:, None, None] * one
    L, info = torch.linalg.cholesky_ex(regularised)
    L = L.expand(len(t), -1, -1)
    x, y = torch.zeros_like(t[:, :1]).expand(-1, T.shape[2]), t
    for _ in range(FITS):
        half = torch.linalg.solve_triangular(L, columns(product(T.mT, -p * y)), upper=False)
        x = x + torch.linalg.solve_triangular(L.mT, half, upper=True)[..., 0]
        y = t + product(T, x)
    return torch.where(((info == 0)[:, None] & torch.isfinite(x)), x, 0.0)


def _joined(
    v: Tensor, left_out: Tensor, places: NDArray[np.intp], others: NDArray[np.intp]
) -> Tensor:
    whole = v.new_empty((len(v), len(places) + len(others)))
    whole[:, held(places, v)] = v
    whole[:, held(others, v)] = left_out
    return whole
