"""diffcp's derivatives, at a solution that is at hand.

diffcp hands out a derivative only together with a solve of its own. Here its operators are put
together at the point that the layer has, in its own way (diffcp 1.1.9, cone_program.py), so that
nothing is solved twice. In SCS's convention, with u = x, v = y - s, w = 1 and the residual map

    N(u, v, w) = (Q - I) Π(u, v, w) + (u, v, w),     Q = [0 Aᵀ c; -A 0 b; -cᵀ -bᵀ 0]

the implicit modes solve with M = DN or Mᵀ, by LSQR, LSMR or densely. The LPGD modes difference
solutions (x_k, y_k) of perturbed programs, with weights ω_k, in the Lagrangian's gradient:

    ∂c = Σ ω_k x_k     ∂b = -Σ ω_k y_k     ∂A = Σ ω_k y_k x_kᵀ     ∂P = ½ Σ ω_k x_k x_kᵀ

The implicit modes have no derivative of P, and need none. P enters the optimality conditions in
P x + q only: a change dP acts as dq = dP x, so that ∂P = ½ (∂q xᵀ + x ∂qᵀ). That holds whatever
cone the quadratic was lifted into. (The ∂P of diffcp 1.1.9's LPGD modes is wrong: it
pairs the columns of A's entries with themselves.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cvxlayers.solvers.diffcp_program import DiffcpProgram
from cvxlayers.solvers.diffcp_settings import DiffcpSettings
from cvxlayers.status import Status

__all__ = ["Gradient", "Implicit", "Perturbed", "PerturbedSolveError"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gradient:
    """∂q and ∂b, and ∂A = Σ left rightᵀ, ∂P = sym Σ left rightᵀ as pairs (left, right)."""

    q: Array
    b: Array
    A: list[tuple[Array, Array]]
    P: list[tuple[Array, Array]]


class Implicit:
    """Solves with diffcp's own operator M at one instance."""

    def __init__(
        self,
        data: DiffcpProgram,
        point: tuple[Array, Array, Array],
        settings: DiffcpSettings,
    ):
        import diffcp.cones
        from diffcp import _diffcp
        from diffcp.cone_program import pi

        self.data, self.mode, self._diffcp = data, settings.mode, _diffcp
        self.x, self.y, s = data.point(*point)
        v = self.y - s
        cones = diffcp.cones.parse_cone_dict(data.cones)
        parsed = diffcp.cones.parse_cone_dict_cpp(cones)
        b, c = data.b[:, None], data.c[:, None]
        Q = sp.csc_matrix(sp.bmat([[None, data.A.T, c], [-data.A, None, b], [-c.T, -b.T, None]]))
        self.D = _diffcp.dprojection(v, parsed, True)
        if self.mode == "dense":
            self.M = _diffcp.M_dense(Q.toarray(), parsed, self.x, v, 1.0)
            self.MT = self.M.T
        else:
            self.M = _diffcp.M_operator(Q, parsed, self.x, v, 1.0)
            self.MT = self.M.transpose()
        self.pi = pi((self.x, v, np.array([1.0])), cones)

    def adjoint(self, gx: Array, gy: Array) -> Gradient:
        """diffcp's `adjoint_derivative`, with the gradient of s zero."""
        data, (n, m) = self.data, (len(self.x), len(self.y))
        gx, gy = np.append(gx, np.zeros(n - data.n)), data.insert(gy)
        dz = np.concatenate([gx, self.D.rmatvec(gy), [-(self.x @ gx + self.y @ gy)]])
        r = self._solve_adjoint(dz)
        x, y, r_x, r_y = self.pi[:n], self.pi[n : n + m], r[:n], r[n : n + m]
        x, r_x, y, r_y = x[: data.n], r_x[: data.n], data.drop(y), data.drop(r_y)
        q = x * r[-1] - r_x
        return Gradient(q, y * r[-1] - r_y, [(r_y, x), (-y, r_x)], [(q, x)])

    def forward(self, dA: sp.csc_matrix, db: Array, dc: Array) -> tuple[Array, Array]:
        """diffcp's `derivative`."""
        data, (n, m) = self.data, (len(self.x), len(self.y))
        x, y = self.pi[: data.n], data.drop(self.pi[n : n + m])
        top = np.append(dA.T @ y + dc, np.zeros(n - data.n))
        rhs = np.concatenate([top, data.insert(db - dA @ x), [-(dc @ x) - db @ y]])
        dz = self._solve(rhs)
        dx = dz[:n] - self.x * dz[-1]
        dy = self.D.matvec(dz[n : n + m]) - self.y * dz[-1]
        return -dx[: data.n], -data.drop(dy)

    # diffcp takes a right-hand side below 1e-8 for zero. Only zero is zero here: the derivative
    # of a small loss is small.

    def _solve(self, rhs: Array) -> Array:
        if not rhs.any():
            return rhs
        if self.mode == "dense":
            return self._diffcp._solve_derivative_dense(self.M, self.MT, rhs)
        if self.mode == "lsqr":
            return self._diffcp.lsqr(self.M, rhs).solution
        return _lsmr(self.M, rhs, 1e-12)

    def _solve_adjoint(self, rhs: Array) -> Array:
        if not rhs.any():
            return rhs
        if self.mode == "dense":
            return self._diffcp._solve_adjoint_derivative_dense(self.M, self.MT, rhs)
        if self.mode == "lsqr":
            return self._diffcp.lsqr(self.MT, rhs).solution
        return _lsmr(self.MT, rhs, 1e-10)


def _lsmr(operator: Any, rhs: Array, tolerance: float) -> Array:
    size = len(rhs)
    wrapped = sp.linalg.LinearOperator((size, size), operator.matvec, operator.rmatvec)
    return sp.linalg.lsmr(wrapped, rhs, maxiter=10 * size, atol=tolerance, btol=tolerance)[0]


class PerturbedSolveError(Exception):
    """A perturbed program was not solved."""

    def __init__(self, status: Status):
        self.status = status


class Perturbed:
    """Differences solutions of diffcp's perturbed programs at one instance."""

    def __init__(
        self,
        data: DiffcpProgram,
        point: tuple[Array, Array, Array],
        settings: DiffcpSettings,
    ):
        self.data, self.settings = data, settings
        self.x, self.y, self.s = data.point(*point)

    def adjoint(self, gx: Array, gy: Array) -> Gradient:
        from diffcp.utils import compute_adjoint_perturbed_solution

        data = self.data
        gx = np.append(gx, np.zeros(len(self.x) - data.n))
        direction = (gx, data.insert(gy), np.zeros(len(self.y)))
        points = self._differences(compute_adjoint_perturbed_solution, direction)
        zero_q, zero_b = np.zeros(data.n), np.zeros(len(data.drop(self.y)))
        return Gradient(
            q=sum((w * x for w, x, _ in points), zero_q),
            b=-sum((w * y for w, _, y in points), zero_b),
            A=[(w * y, x) for w, x, y in points],
            P=[(w * x / 2, x) for w, x, _ in points],
        )

    def forward(self, dA: sp.csc_matrix, db: Array, dc: Array) -> tuple[Array, Array]:
        from diffcp.utils import compute_perturbed_solution

        data = self.data
        if data.F is not None:
            entries = dA.tocoo()
            rows = entries.row + np.where(entries.row >= data.start, data.size, 0)
            dA = sp.csc_matrix((entries.data, (rows, entries.col)), shape=data.A.shape)
            dc = np.append(dc, 0.0)
        points = self._differences(compute_perturbed_solution, (dA, data.insert(db), dc, None))
        dx = sum((w * x for w, x, _ in points), np.zeros(data.n))
        return dx, sum((w * y for w, _, y in points), np.zeros(len(data.drop(self.y))))

    def _differences(
        self, perturbed: Callable[..., Any], direction: tuple[Any, ...]
    ) -> list[tuple[float, Array, Array]]:
        """Weights and points (ω_k, x_k, y_k) of the difference quotient, without lifted parts."""
        data, settings, tau = self.data, self.settings, self.settings.tau

        def at(step: float) -> tuple[Array, Array]:
            x, y, _ = perturbed(
                *direction, step, settings.rho, data.A, data.b, data.c, data.P, data.cones,
                self.x, self.y, self.s, {}, settings.solve_method, self._solve,
            )  # fmt: skip
            return x, y

        here = (self.x, self.y)
        if settings.mode == "lpgd":
            weighted = [(1 / (2 * tau), at(tau)), (-1 / (2 * tau), at(-tau))]
        elif settings.mode == "lpgd_right":
            weighted = [(1 / tau, at(tau)), (-1 / tau, here)]
        else:
            weighted = [(1 / tau, here), (-1 / tau, at(-tau))]
        return [(w, x[: data.n], data.drop(y)) for w, (x, y) in weighted]

    def _solve(self, **arguments: Any) -> dict[str, Any]:
        """What diffcp calls to solve a perturbed program."""
        status, result = self.settings.call(**arguments)
        if status not in (Status.SOLVED, Status.ALMOST_SOLVED):
            raise PerturbedSolveError(status)
        return result
