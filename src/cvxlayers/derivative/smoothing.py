"""The derivative of the central path, in place of that of the solution.

For a barrier parameter μ > 0 and the logarithmic barriers φ of the cones (see `cones.barrier`) the
point of the central path is the only one with

    P x + q + Aᵀz = 0,   A x + s = b,   z = −μ ∇φ(s)      (zero cone: s = 0, z free),

which is the solution of the problem with μ φ(s) added to its objective. With Π_μ for Π it is the
solution of the equation of `polish`,

    F_μ(x, w) = [ P x + q + Aᵀ(Π_μ(w) − w) ;  A x + Π_μ(w) − b ] = 0,   s = Π_μ(w),  z = s − w,

so the KKT system, the Newton step and the derivative are those of the exact solution with another
spectrum. All eigenvalues of DΠ_μ are between 0 and 1: the derivative exists wherever the path does,
and tends to that of the solution for μ → 0 where the latter exists.

The path exists if the problem and its dual have strictly feasible points.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from cvxlayers.arrays import Array, copied, fetched, largest, namespace, put, sent, take
from cvxlayers.cones import AxisRotation, ProductCone, Spectrum
from cvxlayers.derivative.assembly import SparseAssembly
from cvxlayers.derivative.balance import row_scales, scale_rows
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.derivative.implicit import ImplicitDerivative
from cvxlayers.derivative.polish import residual
from cvxlayers.derivative.system import factor
from cvxlayers.program import ConeProgram, ProgramTangent, Wanted

__all__ = ["CentralPoint", "SmoothedDerivative", "central_point"]

# A point with this residual is on the path, if the last step was not longer than this: with a tiny
# μ rounding may leave the residual small everywhere on a face of optimal points.
ACCURATE = 1e-9
NEAR = 1e-4
# After a step of this size the error is at rounding level, …
CLOSE = 1e-8
# … and so is a residual below this one, or one that a step does not lower.
SMALL = 1e-13
# A handful is usual, 20 where μ is large beside the data; more where the path hardly exists.
MAX_STEPS = 200
HALVINGS = 12
# Step length t must lower the residual by this much of t.
SUFFICIENT = 1e-3


@dataclass(eq=False)
class CentralPoint:
    """Points of the central paths of a batch.

    Attributes
    ----------
    x, z, s : array
        Shapes (B, n), (B, m), (B, m).
    residual : ndarray
        Shape (B,), of NumPy: as that of `Polished`.
    converged : ndarray of bool
        Shape (B,): where the points are on the path. Elsewhere they are the best that were found;
        there may be no path.
    """

    x: Array
    z: Array
    s: Array
    residual: NDArray[np.float64]
    converged: NDArray[np.bool_]


def central_point(
    geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array, mu: Array | float
) -> CentralPoint:
    """The point of the central path at μ, by Newton's method on F_μ.

    Parameters
    ----------
    geometry : Geometry
    program : ConeProgram
    x, z, s : array
        Shapes (B, n), (B, m), (B, m): where to start, such as the exact solution; all finite.
    mu : ndarray or float
        Positive: a number, or shape (B,).
    """
    level, tau = _levels(mu, x), row_scales(geometry, z, s)
    point = _scaled(geometry, program, x, z, s, level, tau)
    # Blocks that were on an edge of their cone have a size now.
    anew = row_scales(geometry, point.z, point.s)
    if anew is not None:
        changed = namespace(x).any(anew != (1.0 if tau is None else tau), axis=1)
        rows = np.flatnonzero(fetched(changed))
        part = program if len(rows) == len(x) else program.take(rows)
        start = (take(v, rows) for v in (point.x, point.z, point.s, level, anew))
        again = _scaled(geometry, part, *start)
        better = again.converged | ~point.converged[rows]
        for name, value in vars(point).items():
            put(value, rows[better], take(getattr(again, name), better))
    return point


def _scaled(
    geometry: Geometry,
    program: ConeProgram,
    x: Array,
    z: Array,
    s: Array,
    mu: Array,
    tau: Array | None,
) -> CentralPoint:
    """`central_point` with rows divided by τ (see `balance`), which leaves the path as it is."""
    if tau is not None:
        program, z, s = scale_rows(geometry, program, tau), z * tau, s / tau
    state, error, distance = _newton(geometry, program, x, s - z, mu)
    x, z, s = state.x, state.s - state.w, state.s
    if tau is not None:
        z, s = z / tau, s * tau
    converged = np.asarray((error <= ACCURATE) & (distance <= NEAR))
    return CentralPoint(x, z, s, error, converged)


class SmoothedDerivative(ImplicitDerivative):
    """The derivative of (P, q, A, b) ↦ (x, z) on the central path, μ fixed.

    Parameters
    ----------
    geometry : Geometry
    program : ConeProgram
    x, z, s : ndarray
        Shapes (B, n), (B, m), (B, m): points of the central path at μ, see `central_point`.
    mu : ndarray or float
        Positive: a number, or shape (B,).
    """

    def __init__(
        self,
        geometry: Geometry,
        program: ConeProgram,
        x: Array,
        z: Array,
        s: Array,
        mu: Array | float,
    ):
        smoothed = _SmoothedGeometry(geometry, _levels(mu, x))
        super().__init__(smoothed, program, x, z, s)

    def hvp(self, gx: Array, gz: Array | None, tangent: ProgramTangent, wanted: Wanted) -> NoReturn:
        """Raise NotImplementedError."""
        raise NotImplementedError(NO_SECOND)

    def jvp2(self, tangent: ProgramTangent, other: ProgramTangent, wanted: Wanted) -> NoReturn:
        """Raise NotImplementedError."""
        raise NotImplementedError(NO_SECOND)


NO_SECOND = (
    "the smoothed derivative has no derivative of its own: use the exact one for second derivatives"
)


class _SmoothedCone(ProductCone):
    """A product of cones with Π_μ for Π, μ of shape (B, 1)."""

    def __init__(self, cone: ProductCone, mu: Array):
        vars(self).update(vars(cone))
        self._mu = mu
        self.elementwise = False

    def project(self, w: Array, near: Array | None = None) -> Array:
        return self.smooth(w, self._mu, near)

    def spectrum(self, w: Array, near: Array | None = None) -> Spectrum:
        return self.smooth_spectrum(w, self._mu, near)


class _SmoothedGeometry(Geometry):
    """A geometry with smoothed cones, and the assembly of sparse systems that belongs to them."""

    def __init__(self, geometry: Geometry, mu: Array):
        vars(self).update(vars(geometry))
        self.cone = _SmoothedCone(geometry.cone, mu)
        self._exact, self.mu = geometry, mu

    def engine_for(self, values: Array) -> None:
        """Lanes know the exact cones alone."""
        return None

    def take(self, rows: NDArray[np.intp]) -> _SmoothedGeometry:
        """That of the instances `rows` alone."""
        return _SmoothedGeometry(self._exact, take(self.mu, rows))

    @property
    def sparse_assembly(self) -> SparseAssembly:
        """Made when it is first needed, once for every geometry."""
        made = _assemblies.get(self._exact)
        if made is None:
            spectrum = self._exact.cone.smooth_spectrum(np.zeros((1, self.structure.m)), 1.0)
            # A copy, or the entry would keep its key alive.
            own = copy.copy(self._exact)
            own.sparse_assembly = None
            made = _assemblies[self._exact] = _SmoothedAssembly(own, spectrum)
        return made


_assemblies: WeakKeyDictionary[Geometry, SparseAssembly] = WeakKeyDictionary()


class _SmoothedAssembly(SparseAssembly):
    """KKT matrices in which a long second-order cone has any eigenvalues λ₋ <= λ <= λ₊.

    With M for λ/(1−λ), its rows are

        A u − M v + (M − M₋) e₋ σ − e₊ τ = r₂,   σ = e₋ᵀv,   τ = (M₊ − M) e₊ᵀv.
    """

    def _arrows(
        self, spectrum: Spectrum, lam: Array, keep: NDArray[np.bool_], i: int
    ) -> tuple[Array, Array, Array]:
        edges, rays, extra = [np.zeros(0)], [np.zeros(0)], np.zeros((self.extra // 2, 2))
        kept = keep[self.n + self.m :].reshape(-1, 2)
        block = 0
        for k in self.long:
            group, U = spectrum.blocks[k]
            assert isinstance(U, AxisRotation)
            for c, rows in enumerate(group.rows):
                # Not quite one: M multiplies whole rows here, and must leave room for A in them.
                tangent = min(lam[rows[2]], 1.0 - 1e-8)
                normal, ray = min(lam[rows[0]], tangent), max(lam[rows[1]], tangent)
                lam[rows] = tangent
                edge = (tangent - normal) / ((1.0 - tangent) * (1.0 - normal))
                kept[block] = edge > 0.0, ray > tangent
                edges.append(edge * U.normal[i, c])
                rays.append(-U.ray[i, c])
                inverse = (1.0 - ray) * (1.0 - tangent) / (ray - tangent) if ray > tangent else 0.0
                extra[block] = -edge, inverse
                block += 1
        return np.concatenate(edges), np.concatenate(rays), extra.ravel()


@dataclass(eq=False)
class _State:
    x: Array
    w: Array
    s: Array
    F1: Array
    F2: Array
    height: Array

    def take(self, rows: NDArray[Any]) -> _State:
        return _State(**{name: take(value, rows) for name, value in vars(self).items()})

    def put(self, rows: NDArray[Any], part: _State) -> None:
        for name, value in vars(part).items():
            put(getattr(self, name), rows, value)


def _newton(
    geometry: Geometry, program: ConeProgram, x: Array, w: Array, mu: Array
) -> tuple[_State, NDArray[np.float64], NDArray[np.float64]]:
    """Newton's method from (x, w): where it ends, the residuals there, and the last δ."""
    weights = _weights(geometry, program, x, w)
    every = _SmoothedGeometry(geometry, mu)
    state = _evaluate(every, program, weights, copied(x), copied(w), None)
    distance = np.full(len(x), np.inf)
    rows = np.arange(len(x))
    for _ in range(MAX_STEPS):
        whole = len(rows) == len(x)
        part = program if whole else program.take(rows)
        smoothed, here = every.take(rows), state.take(rows)
        own = take(weights, rows)
        dx, dw, δ = _step(smoothed, part, own, here)
        after = _search(smoothed, part, own, here, dx, dw)
        height, before = fetched(after.height), fetched(here.height)
        improved = height < before
        state.put(rows[improved], after.take(improved))
        distance[rows] = δ
        done = (δ <= CLOSE) & ((height <= SMALL) | (height > 0.5 * before))
        rows = rows[improved & ~done]
        if not len(rows):
            break
    error = residual(geometry, program, state.x, state.s - state.w, state.s)[2]
    return state, fetched(error), distance


def _step(
    geometry: _SmoothedGeometry, program: ConeProgram, weights: Array, at: _State
) -> tuple[Array, Array, Array]:
    """(dx, dw) of Newton's method, and its size δ: infinite where there is no such step.

    δ² = dsᵀ ∇²φ(s) ds = dwᵀ D (I − D) dw/μ for ds = D dw: relative to the distances from the
    boundaries of the cones, in whatever units.
    """
    system = factor(geometry, program, at.w, at.s)
    dx, dz = system.newton(-at.F1, -at.F2)
    ds = -at.F2 - geometry.apply_A(program.A, dx)
    dw = ds - dz
    xp = namespace(dx)
    finite = xp.all(xp.isfinite(dx), axis=1) & xp.all(xp.isfinite(dw), axis=1)
    dx, dw, ds, dz = (xp.where(finite[:, None], v, 0.0) for v in (dx, dw, ds, dz))

    # Of a singular system it is the least-squares solution, short though the point may be far.
    missing = at.F1 + geometry.apply_P(program.P, dx) + geometry.apply_At(program.A, dz)
    left = _height(missing, ds - system.spectrum.apply(dw), weights)
    solved = finite & ((left <= 0.1 * at.height) | (at.height <= SMALL))
    lam = system.spectrum.lam
    squares = lam * (1.0 - lam) * system.spectrum.rotate(dw) ** 2
    δ = xp.sqrt(xp.sum(squares, axis=1) / geometry.mu[:, 0])
    return dx, dw, fetched(xp.where(solved, δ, xp.inf))


def _search(
    geometry: _SmoothedGeometry,
    program: ConeProgram,
    weights: Array,
    at: _State,
    dx: Array,
    dw: Array,
) -> _State:
    """The first of the points at + t (dx, dw), t = 1, ½, ¼, …, that is better by enough."""
    best, rows, t = at.take(np.arange(len(dx))), np.arange(len(dx)), 1.0
    for _ in range(HALVINGS):
        part = program if len(rows) == len(dx) else program.take(rows)
        here = at.take(rows)
        x, w = here.x + t * take(dx, rows), here.w + t * take(dw, rows)
        new = _evaluate(geometry.take(rows), part, take(weights, rows), x, w, here.s)
        enough = fetched(new.height <= (1.0 - SUFFICIENT * t) * here.height)
        best.put(rows[enough], new.take(enough))
        rows, t = rows[~enough], 0.5 * t
        if not len(rows):
            break
    return best


def _evaluate(
    geometry: Geometry, program: ConeProgram, weights: Array, x: Array, w: Array, near: Array | None
) -> _State:
    s = geometry.cone.project(w, near)
    F1, F2, _ = residual(geometry, program, x, s - w, s)
    return _State(x, w, s, F1, F2, _height(F1, F2, weights))


def _height(F1: Array, F2: Array, weights: Array) -> Array:
    return largest(namespace(F1).concat([F1, F2], axis=1) * weights)


def _weights(geometry: Geometry, program: ConeProgram, x: Array, w: Array) -> Array:
    """What makes F₁ and F₂ relative, shape (B, n + m), the same for all points on the way."""
    xp = namespace(x)
    dual = 1.0 + xp.maximum(largest(program.q), largest(geometry.apply_P(program.P, x)))
    primal = 1.0 + xp.abs(xp.broadcast_to(program.b, w.shape))
    return 1.0 / xp.concat([xp.broadcast_to(dual[:, None], x.shape), primal], axis=1)


def _levels(mu: Array | float, like: Array) -> Array:
    """μ of every instance, shape (B, 1)."""
    level = fetched(mu) if hasattr(mu, "shape") else np.asarray(mu, dtype=np.float64)
    if not (level > 0.0).all():
        raise ValueError(f"the barrier parameter must be positive, got {mu!r}")
    return sent(np.broadcast_to(level.reshape(-1), (len(like),)), like)[:, None]
