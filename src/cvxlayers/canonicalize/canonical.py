"""The result of canonicalization: arrays, names and shapes. No CVXPY object is left in it, so it
can be copied, pickled and sent to another process.

    θ (parameters)  --param maps-->  (P, q, A, b)  --solver-->  (x, z)  --recovery maps-->  outputs

A geometric program takes an elementwise log before the first map and an exp after the last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvxlayers.affine import AffineMap
from cvxlayers.arrays import Array, held, namespace, repeated, zeros
from cvxlayers.program import ConeProgram, ProblemStructure, ProgramTangent, Wanted

__all__ = ["CanonicalProblem", "OutputSpec", "ParameterSpec"]


@dataclass(frozen=True)
class ParameterSpec:
    """Name, shape and promised properties of one parameter.

    The value of a ``sparsity`` parameter comes as a whole, or as its stored entries alone.

    Attributes
    ----------
    position : int
        Its place among the layer's arguments.
    attributes : frozenset of str
        CVXPY's attributes that a value must have: nonneg, nonpos, pos, neg, integer, boolean,
        symmetric, PSD, NSD, diag, sparsity, bounds.
    stored : ndarray of int, optional
        Flat (C order) positions of the entries of a ``diag`` or ``sparsity`` parameter; the others
        are zero. Everything inside works on these entries alone, in this order.
    bounds : pair of ndarray, optional
        Lower and upper bound, broadcastable to the shape; those of a ``sparsity`` parameter, to
        the shape of its stored entries.
    """

    name: str
    shape: tuple[int, ...]
    position: int = 0
    attributes: frozenset[str] = frozenset()
    stored: NDArray[np.intp] | None = None
    bounds: tuple[Array, Array] | None = None

    @property
    def size(self) -> int:
        """Number of entries that there is anything to compute with."""
        return math.prod(self.shape) if self.stored is None else len(self.stored)

    @property
    def forms(self) -> tuple[tuple[int, ...], ...]:
        """The shapes that one value may have. Where several fit, the first counts.

        The diagonal alone is no form of a ``diag`` parameter: it would never be told apart from
        the matrix where the batch is as long as the diagonal.
        """
        if self.stored is None or "sparsity" not in self.attributes:
            return (self.shape,)
        return self.shape, (len(self.stored),)

    @property
    def label(self) -> str:
        """What error messages call it: parameters without a name have one of CVXPY's making."""
        return f"{self.name!r} (argument {self.position})"


def diagonal(n: int) -> NDArray[np.intp]:
    """Flat positions of the diagonal of an n × n matrix."""
    return np.arange(n) * (n + 1)


@dataclass(frozen=True, eq=False)
class OutputSpec:
    """One output: a variable, or the dual variable of a constraint.

    Attributes
    ----------
    name : str
    shape : tuple of int
    recovery : AffineMap
        From the parts (x, z) to the output's entries in C order.
    exponentiate : bool
        Whether the output is the exponential of that (variables of a geometric program).
    """

    name: str
    shape: tuple[int, ...]
    recovery: AffineMap
    exponentiate: bool = False


@dataclass(frozen=True, eq=False)
class CanonicalProblem:
    """The two affine maps and the structure between them.

    Attributes
    ----------
    structure : ProblemStructure
    parameters : tuple of ParameterSpec
    outputs : tuple of OutputSpec
    parts : tuple of (int, bool)
        What the maps P, q, A, b act on: for each part the position of its parameter, and whether
        its logarithm is taken first. Entries of a part are in C order, or those that are stored.
    P, q, A, b : AffineMap
        From the parts to the values on the structure's patterns.
    """

    structure: ProblemStructure
    parameters: tuple[ParameterSpec, ...]
    outputs: tuple[OutputSpec, ...]
    parts: tuple[tuple[int, bool], ...]
    P: AffineMap
    q: AffineMap
    A: AffineMap
    b: AffineMap

    @property
    def is_geometric(self) -> bool:
        """Whether logarithms of parameters or exponentials of variables are taken."""
        return any(is_log for _, is_log in self.parts) or any(
            output.exponentiate for output in self.outputs
        )

    def program(self, theta: Sequence[Array], batch: int) -> ConeProgram:
        """The conic programs at parameter values of shape (batch or 1, size)."""
        parts = self._parts(theta)
        return ConeProgram(
            self.structure,
            P=self.P.apply(parts),
            q=self.q.apply(parts),
            A=self.A.apply(parts),
            b=self.b.apply(parts),
            batch=batch,
        )

    def wanted(self, theta: Sequence[Array]) -> Wanted:
        """Which values of the program depend on parameters, and which are shared."""
        maps = {"P": self.P, "q": self.q, "A": self.A, "b": self.b}
        sizes = [len(theta[i]) for i, _ in self.parts]
        shared = frozenset(
            name for name, f in maps.items() if all(sizes[part] == 1 for part in f.depends_on)
        )
        return Wanted(self.P.rows, self.q.rows, self.A.rows, self.b.rows, shared)

    def program_adjoint(self, gradient: ProgramTangent, theta: Sequence[Array]) -> list[Array]:
        """Gradients for the parameters from the gradient for the wanted values; `program`'s
        adjoint at `theta`. Each has its parameter's shape (batch or 1, size)."""
        gradients = [zeros(t.shape, t) for t in theta]
        for (position, is_log), value in self._parts_adjoint(gradient, theta):
            if is_log:
                # d log θ = dθ / θ; a failed row has a zero gradient whatever its θ.
                value = value / namespace(value).where(value == 0.0, 1.0, theta[position])
            gradients[position] += value
        return gradients

    def program_tangent(self, theta: Sequence[Array], tangent: Sequence[Array]) -> ProgramTangent:
        """Change of the wanted values along a change of the parameters."""
        return self._linear(
            [tangent[i] / theta[i] if is_log else tangent[i] for i, is_log in self.parts]
        )

    def program_adjoint_change(
        self, gradient: ProgramTangent, theta: Sequence[Array], along: Sequence[Array]
    ) -> list[Array]:
        """Change of `program_adjoint` along a change of the parameters: d (1/θ) = −dθ/θ²."""
        gradients = [zeros(t.shape, t) for t in theta]
        for (position, is_log), value in self._parts_adjoint(gradient, theta):
            if is_log:
                divisor = namespace(value).where(value == 0.0, 1.0, theta[position])
                gradients[position] -= value * along[position] / divisor**2
        return gradients

    def program_tangent_change(
        self, theta: Sequence[Array], tangent: Sequence[Array], along: Sequence[Array]
    ) -> ProgramTangent:
        """Change of `program_tangent` along a change of the parameters."""
        return self._linear(
            [
                -tangent[i] * along[i] / theta[i] ** 2
                if is_log
                else zeros(tangent[i].shape, tangent[i])
                for i, is_log in self.parts
            ]
        )

    def recover(self, x: Array, z: Array) -> list[Array]:
        """Outputs at primal-dual points: shapes (B, *shape)."""
        values = []
        for output in self.outputs:
            value = output.recovery.apply((x, z))
            if not output.recovery.depends_on:  # canonicalization eliminated the variable
                value = repeated(value, len(x))
            if output.exponentiate:
                value = namespace(value).exp(value)
            values.append(value.reshape(len(x), *output.shape))
        return values

    def recover_adjoint(
        self, gradients: Sequence[Array | None], outputs: Sequence[Array], x: Array, z: Array
    ) -> tuple[Array, Array | None]:
        """Gradients for x and z from those for the outputs (None: zero); `recover`'s adjoint.

        The second is None where no output with a gradient depends on z.
        """
        gx = zeros(x.shape, x)
        gz: Array | None = None
        for spec, gradient, value in zip(self.outputs, gradients, outputs, strict=True):
            if gradient is None:
                continue
            flat = gradient.reshape(len(x), spec.recovery.size)
            if spec.exponentiate:
                flat = flat * value.reshape(flat.shape)
            if not spec.recovery.covers_all:
                flat = flat[:, held(spec.recovery.rows, flat)]
            for source, pulled in spec.recovery.adjoint(flat, (x, z)).items():
                if source == 0:
                    gx += pulled
                else:
                    gz = pulled if gz is None else gz + pulled
        return gx, gz

    def recover_tangent(self, dx: Array, dz: Array, outputs: Sequence[Array]) -> list[Array]:
        """Change of the outputs along a change of the point."""
        tangents = []
        for spec, value in zip(self.outputs, outputs, strict=True):
            tangent = zeros((len(dx), spec.recovery.size), dx)
            tangent[:, held(spec.recovery.rows, dx)] = spec.recovery.linear((dx, dz))
            shaped = tangent.reshape(value.shape)
            tangents.append(shaped * value if spec.exponentiate else shaped)
        return tangents

    def _parts(self, theta: Sequence[Array]) -> list[Array]:
        return [
            namespace(theta[i]).log(theta[i]) if is_log else theta[i] for i, is_log in self.parts
        ]

    def _linear(self, parts: Sequence[Array]) -> ProgramTangent:
        return ProgramTangent(*(f.linear(parts) for f in (self.P, self.q, self.A, self.b)))

    def _parts_adjoint(
        self, gradient: ProgramTangent, theta: Sequence[Array]
    ) -> Iterator[tuple[tuple[int, bool], Array]]:
        """Every part that matters with the gradients for it, one from each of the four maps."""
        shapes = [theta[i] for i, _ in self.parts]
        for f, upstream in (
            (self.P, gradient.P),
            (self.q, gradient.q),
            (self.A, gradient.A),
            (self.b, gradient.b),
        ):
            for part, value in f.adjoint(upstream, shapes).items():
                yield self.parts[part], value
