"""Solves to the last digits: an interior-point solution, then Newton on the optimality conditions.

Clarabel with the tightest tolerances leaves errors in x of 1e-7 on second-order and semidefinite
problems (its scaling degenerates at the boundary), too much for finite differences. Therefore its
solution is polished on

    P x + q + A'z = 0,    C(s, z) = 0 cone by cone,    s = b - A x,

where C is the complementarity in a form that is smooth at a strictly complementary solution:

    zero            s
    nonneg          s_i z_i
    soc, psd        the Jordan product of s and z (Alizadeh, Haeberly & Overton 1998)
    exp, pow        z if s is interior, s if z is interior, otherwise g(s) = 0 and z = l grad g(s)
                    with the boundary function g and l eliminated

No projection onto a cone occurs, so nothing is shared with a derivative by projections. The
Jacobian is regular exactly when the solution is unique, strictly complementary and nondegenerate,
that is, where the solution map is differentiable: ``TightSolver.regularity`` measures it.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.utilities import scopes

from .problems import Case

Array = np.ndarray

# Regularisation below what the defaults use: with it exponential and power cones converge to 1e-12
# and not only 1e-6. Clarabel stops at what it can reach; the polish and its residual decide.
_SETTINGS = {
    "use_quad_obj": True,
    "tol_gap_abs": 1e-12,
    "tol_gap_rel": 1e-12,
    "tol_feas": 1e-12,
    "reduced_tol_gap_abs": 1e-6,
    "reduced_tol_gap_rel": 1e-6,
    "reduced_tol_feas": 1e-6,
    "max_iter": 100,
    "static_regularization_constant": 1e-13,
    "dynamic_regularization_delta": 1e-13,
    "iterative_refinement_reltol": 1e-16,
    "iterative_refinement_abstol": 1e-16,
    "accept_unknown": True,
    "presolve_enable": False,  # it would drop rows with infinite b
}
_NEWTON_STEPS = 6


class TightSolver:
    """Solves one case repeatedly, for varying parameter values.

    Parameters
    ----------
    case
        The row of the table.

    Attributes
    ----------
    residual
        Largest entry of the optimality conditions after the last solve, relative to the data.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.problem, self.parameters, self.variables = case.build()
        self.residual = np.inf
        self._last: tuple[_OptimalityConditions, Array, Array] | None = None

    def solve(self, values: list[Array]) -> list[Array]:
        """Return the values of the case's variables at the given parameter values."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.value = value
        with warnings.catch_warnings(), scopes.quad_form_dpp_scope():
            # "Solution may be inaccurate": expected at these tolerances.
            warnings.simplefilter("ignore")
            data, chain, inverse = self.problem.get_problem_data(
                cp.CLARABEL, gp=self.case.gp, solver_opts=dict(_SETTINGS)
            )
            raw = chain.solve_via_data(self.problem, data, solver_opts=dict(_SETTINGS))
            system = _OptimalityConditions(data, singular=not self.case.regular)
            x, z, self.residual = system.polish(np.array(raw.x), np.array(raw.z))
            polished = SimpleNamespace(
                x=x, z=z, status=raw.status, obj_val=raw.obj_val, solve_time=0.0, iterations=0
            )
            self.problem.unpack_results(polished, chain, inverse)
        if self.problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
            raise RuntimeError(f"{self.case.name}: tight solve ended as {self.problem.status}")
        self._last = (system, x, z)
        return [_dense(v.value).reshape(v.shape) for v in self.variables]

    def regularity(self) -> float:
        """Return the reciprocal condition number of the equilibrated Jacobian at the solution."""
        if self._last is None:
            raise RuntimeError("regularity() describes the last solution: call solve() first")
        system, x, z = self._last
        jacobian = system.jacobian(x, z)
        for axis in (1, 0):
            # A column of rounding errors alone is a zero column: it must not be scaled up.
            norms = np.linalg.norm(jacobian, axis=axis, keepdims=True)
            jacobian = jacobian / np.maximum(norms, 1e-6)
        return float(1 / np.linalg.cond(jacobian))


def _dense(value: Array | sp.spmatrix) -> Array:
    # Variables with diag=True have sparse values; duals of scalar cones the shape (1,).
    return value.toarray() if sp.issparse(value) else np.asarray(value)


class _OptimalityConditions:
    """The optimality conditions F(x, z) = 0 of one instance in Clarabel's form."""

    def __init__(self, data: dict, singular: bool) -> None:
        self.singular = singular
        self.q = data["c"]
        n = self.q.size
        P = data["P"].toarray() if "P" in data else np.zeros((n, n))
        self.P = np.triu(P) + np.triu(P, 1).T  # holds for a full symmetric P and for its triangle
        self.A = _dense(data["A"]) if "A" in data else np.zeros((0, n))
        self.b = data["b"] if "b" in data else np.zeros(0)
        dims = data["dims"]
        sizes = [(_Zero(), dims.zero), (_Nonneg(), dims.nonneg)]
        sizes += [(_SecondOrder(), k) for k in dims.soc]
        sizes += [(_Semidefinite(k), k * (k + 1) // 2) for k in dims.psd]
        sizes += [(_Exponential(), 3)] * dims.exp
        sizes += [(_Power(alpha), 3) for alpha in dims.p3d]
        ends = np.cumsum([0] + [size for _, size in sizes])
        self.cones = [
            (cone, slice(start, start + size))
            for (cone, size), start in zip(sizes, ends, strict=False)
            if size
        ]

    def residual(self, x: Array, z: Array) -> Array:
        s = self.b - self.A @ x
        parts = [cone.complementarity(s[rows], z[rows])[0] for cone, rows in self.cones]
        return np.concatenate([self.P @ x + self.q + self.A.T @ z, *parts])

    def jacobian(self, x: Array, z: Array) -> Array:
        n, s = x.size, self.b - self.A @ x
        J = np.zeros((n + z.size, n + z.size))
        J[:n, :n], J[:n, n:] = self.P, self.A.T
        for cone, rows in self.cones:
            _, by_s, by_z = cone.complementarity(s[rows], z[rows])
            block = slice(n + rows.start, n + rows.stop)
            J[block, :n], J[block, block] = -by_s @ self.A[rows], by_z
        return J

    def polish(self, x: Array, z: Array) -> tuple[Array, Array, float]:
        """Take Newton steps while they lower the residual; return x, z and the residual."""
        F = self.residual(x, z)
        scale = max(1.0, np.abs(self.q).max(), np.abs(self.b).max(initial=0.0))
        for _ in range(_NEWTON_STEPS):
            step = self._newton_step(x, z, F)
            x_new, z_new = x - step[: x.size], z - step[x.size :]
            F_new = self.residual(x_new, z_new)
            if not np.abs(F_new).max() < np.abs(F).max():
                break
            x, z, F = x_new, z_new, F_new
        return x, z, float(np.abs(F).max() / scale)

    def _newton_step(self, x: Array, z: Array, F: Array) -> Array:
        if self.singular:
            return np.linalg.lstsq(self.jacobian(x, z), F, rcond=1e-10)[0]
        return np.linalg.solve(self.jacobian(x, z), F)


# Each cone returns C(s, z), dC/ds and dC/dz.


class _Zero:
    def complementarity(self, s: Array, z: Array) -> tuple[Array, Array, Array]:
        return s, np.eye(s.size), np.zeros((s.size, s.size))


class _Nonneg:
    def complementarity(self, s: Array, z: Array) -> tuple[Array, Array, Array]:
        return s * z, np.diag(z), np.diag(s)


class _SecondOrder:
    def complementarity(self, s: Array, z: Array) -> tuple[Array, Array, Array]:
        def arrow(v: Array) -> Array:
            matrix = v[0] * np.eye(v.size)
            matrix[0, 1:] = matrix[1:, 0] = v[1:]
            return matrix

        return arrow(s) @ z, arrow(z), arrow(s)


class _Semidefinite:
    def __init__(self, order: int) -> None:
        # The orthonormal basis whose coordinates are Clarabel's svec.
        pairs = [(i, j) for j in range(order) for i in range(j + 1)]
        self.basis = np.zeros((len(pairs), order, order))
        for k, (i, j) in enumerate(pairs):
            self.basis[k, i, j] = self.basis[k, j, i] = 1.0 if i == j else np.sqrt(0.5)

    def complementarity(self, s: Array, z: Array) -> tuple[Array, Array, Array]:
        def jordan(v: Array) -> Array:
            products = self.basis @ np.tensordot(v, self.basis, axes=1)
            # Against symmetric basis matrices the product need not be symmetrised.
            return products.reshape(v.size, -1) @ self.basis.reshape(v.size, -1).T

        return jordan(s) @ z, jordan(z), jordan(s)


class _SmoothBoundary:
    """A three-dimensional cone {g >= 0}; ``pivot`` is a coordinate with constant dg/ds."""

    pivot: int

    def boundary(self, s: Array) -> tuple[float, Array, Array]:
        """Return g, its gradient and its Hessian at s."""
        raise NotImplementedError

    def complementarity(self, s: Array, z: Array) -> tuple[Array, Array, Array]:
        identity, zeros = np.eye(3), np.zeros((3, 3))
        size_s, size_z = np.linalg.norm(s), np.linalg.norm(z)
        # Strict complementarity puts a wide gap between the three states.
        if size_z < 1e-5 * size_s:
            return z, zeros, identity
        if size_s < 1e-5 * size_z:
            return s, identity, zeros
        g, gradient, hessian = self.boundary(s)
        others = [i for i in range(3) if i != self.pivot]
        multiplier = z[self.pivot] / gradient[self.pivot]
        C = np.concatenate([[g], z[others] - multiplier * gradient[others]])
        by_s = np.vstack([gradient, -multiplier * hessian[others]])
        by_z = np.vstack([np.zeros(3), identity[others]])
        by_z[1:, self.pivot] = -gradient[others] / gradient[self.pivot]
        return C, by_s, by_z


class _Exponential(_SmoothBoundary):
    """g(s) = s_1 log(s_2 / s_1) - s_0."""

    pivot = 0

    def boundary(self, s: Array) -> tuple[float, Array, Array]:
        _, y, z = s
        log = np.log(z / y)
        hessian = np.zeros((3, 3))
        hessian[1:, 1:] = [[-1 / y, 1 / z], [1 / z, -y / z**2]]
        return y * log - s[0], np.array([-1, log - 1, y / z]), hessian


class _Power(_SmoothBoundary):
    """g(s) = s_0^a s_1^(1 - a) - |s_2|."""

    pivot = 2

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def boundary(self, s: Array) -> tuple[float, Array, Array]:
        a, (x, y, z) = self.alpha, s
        mean = x**a * y ** (1 - a)
        curvature = a * (1 - a) * mean
        hessian = np.zeros((3, 3))
        mixed = curvature / (x * y)
        hessian[:2, :2] = [[-curvature / x**2, mixed], [mixed, -curvature / y**2]]
        gradient = np.array([a * mean / x, (1 - a) * mean / y, -np.sign(z)])
        return mean - abs(z), gradient, hessian
