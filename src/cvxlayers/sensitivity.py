"""The derivatives of θ ↦ v(θ) at a point, over float64 arrays with one batch axis.

    vjp(g) → dθ          jvp(t) → dv
    hvp(g, u) → dθ, the change of vjp(g) along u
    jvp2(t, u) → dv, the change of jvp(t) along u

Each is a chain: the outputs' maps, the derivative of the conic program's solution, the parameters'
maps. The maps are affine but for the exp and log of a geometric program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.arrays import Array, fetched, full, namespace, put, sent, take
from cvxlayers.canonicalize import CanonicalProblem
from cvxlayers.program import ConeSolution, Linearization, ProgramTangent, Wanted

__all__ = ["Point", "Sensitivity"]


@dataclass(eq=False)
class Point(ConeSolution):
    """v(θ) for a batch, with what the derivatives at it need. Rows that were not solved are NaN.

    Attributes
    ----------
    outputs : list of ndarray
        What the user asked for, shapes (B, *shape).
    derivative : Linearization or None
        The derivative at these points, for the instances `rows` alone (None: for all).
    times : dict
        Seconds that the parts of the call took.
    """

    outputs: list[Array] = field(default_factory=list, repr=False)
    rows: NDArray[np.bool_] | None = field(default=None, repr=False)
    derivative: Linearization | None = field(default=None, repr=False)
    times: dict[str, float] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, solution: ConeSolution, **more: Any) -> Point:
        """A solution with the rest."""
        return cls(**vars(solution), **more)


class Sensitivity:
    """The derivatives of the outputs at a point with respect to the parameters.

    Parameters
    ----------
    canonical : CanonicalProblem
    point : Point
        With a derivative.
    theta : sequence of ndarray
        The parameter values that it belongs to, shapes (B or 1, size). Gradients have these
        shapes: those for a parameter that the batch shares are summed over it.
    """

    def __init__(self, canonical: CanonicalProblem, point: Point, theta: Sequence[Array]):
        self.canonical, self.point, self.theta = canonical, point, theta

    def vjp(self, gradients: Sequence[Array | None]) -> list[Array]:
        """Gradients for the parameters, shapes of `theta`, from those for the outputs (None:
        zero).

        Instances that were not solved contribute exactly zero.
        """
        canonical, theta = self.canonical, self.theta
        linear = _Linear(self.point, canonical.wanted(theta))
        gx, gz = linear.gradient(*self._recover_adjoint(gradients))
        pulled = linear.finish_gradient(linear.derivative.vjp(gx, gz, linear.wanted))
        return canonical.program_adjoint(pulled, theta)

    def jvp(self, tangents: Sequence[Array]) -> list[Array]:
        """Change of the outputs along a change of the parameters (shapes of `theta`).

        Instances that were not solved give NaN.
        """
        canonical, theta = self.canonical, self.theta
        linear = _Linear(self.point, canonical.wanted(theta))
        tangent = linear.tangent(canonical.program_tangent(theta, tangents))
        dx, dz = linear.finish_point(*linear.derivative.jvp(tangent, linear.wanted))
        return canonical.recover_tangent(dx, dz, self.point.outputs)

    def hvp(
        self,
        gradients: Sequence[Array | None],
        along: Sequence[Array],
    ) -> list[Array]:
        """Change of `vjp` along a change of the parameters, the gradients for the outputs fixed.

        Instances that were not solved contribute exactly zero.
        """
        canonical, theta, point = self.canonical, self.theta, self.point
        linear = _Linear(point, canonical.wanted(theta))
        derivative, wanted = linear.derivative, linear.wanted
        gx, gz = linear.gradient(*self._recover_adjoint(gradients))
        tangent = linear.tangent(canonical.program_tangent(theta, along))
        pulled = linear.finish_gradient(derivative.hvp(gx, gz, tangent, wanted))
        total = canonical.program_adjoint(pulled, theta)
        if not canonical.is_geometric:
            return total
        # The change of exp at the outputs, and of log at the parameters.
        dx, dz = linear.finish_point(*derivative.jvp(tangent, wanted))
        change = canonical.recover_tangent(dx, dz, point.outputs)
        curved = [
            g if output.exponentiate else None
            for g, output in zip(gradients, canonical.outputs, strict=True)
        ]
        hx, hz = linear.gradient(*self._recover_adjoint(curved, change))
        more = linear.finish_gradient(derivative.vjp(hx, hz, wanted))
        first = linear.finish_gradient(derivative.vjp(gx, gz, wanted))
        for change in (
            canonical.program_adjoint(more, theta),
            canonical.program_adjoint_change(first, theta, along),
        ):
            total = [a + b for a, b in zip(total, change, strict=True)]
        return total

    def jvp2(
        self,
        tangents: Sequence[Array],
        along: Sequence[Array],
    ) -> list[Array]:
        """Change of `jvp` along a change of the parameters, the tangents fixed.

        Instances that were not solved give NaN.
        """
        canonical, theta, point = self.canonical, self.theta, self.point
        linear = _Linear(point, canonical.wanted(theta))
        derivative, wanted = linear.derivative, linear.wanted
        one, two = (linear.tangent(canonical.program_tangent(theta, t)) for t in (tangents, along))
        dx, dz = derivative.jvp2(one, two, wanted)
        if not canonical.is_geometric:
            return canonical.recover_tangent(*linear.finish_point(dx, dz), point.outputs)
        both = linear.tangent(canonical.program_tangent_change(theta, tangents, along))
        more_x, more_z = derivative.jvp(both, wanted)
        changes = canonical.recover_tangent(
            *linear.finish_point(dx + more_x, dz + more_z), point.outputs
        )
        firsts, seconds = (
            canonical.recover_tangent(
                *linear.finish_point(*derivative.jvp(t, wanted)), point.outputs
            )
            for t in (one, two)
        )
        return [
            change + first * second / value if output.exponentiate else change
            for change, first, second, value, output in zip(
                changes, firsts, seconds, point.outputs, canonical.outputs, strict=True
            )
        ]

    def _recover_adjoint(
        self,
        gradients: Sequence[Array | None],
        outputs: Sequence[Array] | None = None,
    ) -> tuple[Array, Array | None]:
        point = self.point
        outputs = point.outputs if outputs is None else outputs
        return self.canonical.recover_adjoint(gradients, outputs, point.x, point.z)


class _Linear:
    """A linear operation at a point: on the instances that were solved, and whose arguments are
    finite, alone.

    Instances that were not solved have a zero gradient and a NaN tangent. An argument that is not
    finite spoils what depends on its instance, and no more.
    """

    def __init__(self, point: Point, wanted: Wanted):
        if point.derivative is None:
            raise ValueError("The point was computed with differentiable=False.")
        self.derivative, self.wanted = point.derivative, wanted
        self._rows, self._failed = point.rows, ~point.solved
        self._spoilt = np.zeros(len(point.x), dtype=bool)

    def gradient(self, gx: Array, gz: Array | None) -> tuple[Array, Array | None]:
        """Gradients (owned here) of the instances that were solved."""
        parts = [gx] if gz is None else [gx, gz]
        if self._failed.any():
            for part in parts:
                put(part, self._failed, 0.0)  # also what was NaN because the outputs were
        spoilt = ~_is_finite(gx)
        if gz is not None:
            spoilt |= ~_is_finite(gz)
        if spoilt.any():
            self._spoilt |= spoilt
            for part in parts:
                put(part, spoilt, 0.0)
        return self._some(gx), None if gz is None else self._some(gz)

    def tangent(self, tangent: ProgramTangent) -> ProgramTangent:
        """A direction for the instances that were solved."""
        parts = vars(tangent)
        finite = {name: _is_finite(part) for name, part in parts.items()}
        if not all(f.all() for f in finite.values()):
            for name, f in finite.items():
                self._spoilt |= ~f
                parts = {**parts, name: _masked(f, parts[name], 0.0)}
        # A direction that all instances share stays one.
        return ProgramTangent(**{k: v if len(v) == 1 else self._some(v) for k, v in parts.items()})

    def finish_gradient(self, gradient: ProgramTangent) -> ProgramTangent:
        """The gradient for all instances."""
        parts = dict(vars(gradient))
        spoilt = self._spoilt & ~self._failed
        for name, value in parts.items():
            if name not in self.wanted.shared:
                value = self._all(value, 0.0)
                if spoilt.any():
                    value = _masked(~spoilt, value, np.nan)
            elif spoilt.any():
                value = full(value.shape, np.nan, value)
            parts[name] = value
        return ProgramTangent(**parts)

    def finish_point(self, dx: Array, dz: Array) -> tuple[Array, Array]:
        """The change of the point for all instances."""
        dx, dz = self._all(dx, np.nan), self._all(dz, np.nan)
        bad = self._spoilt | self._failed
        if bad.any():
            dx, dz = (_masked(~bad, v, np.nan) for v in (dx, dz))
        return dx, dz

    def _some(self, values: Array) -> Array:
        return values if self._rows is None else take(values, self._rows)

    def _all(self, values: Array, filler: float) -> Array:
        if self._rows is None:
            return values
        whole = full((len(self._rows), values.shape[1]), filler, values)
        put(whole, self._rows, values)
        return whole


def _is_finite(values: Array) -> NDArray[np.bool_]:
    """Shape (B,): which rows have neither NaN nor infinity."""
    xp = namespace(values)
    return np.asarray(fetched(xp.all(xp.isfinite(values), axis=1)))


def _masked(rows: NDArray[np.bool_], values: Array, filler: float) -> Array:
    """The values of these rows, and a filler in the others."""
    return namespace(values).where(sent(rows, values)[:, None], values, filler)
