"""The five operations that every frontend registers with its framework, and their rules.

    solve(θ) → y, v
    vjp(θ, v, g) → dθ          hvp(θ, v, g, u) → dθ
    jvp(θ, v, t) → dy          jvp2(θ, v, t, u) → dy

over float64 NumPy arrays with any leading axes. θ are the parameters' values, y the outputs, v the
whole primal-dual point, from which, with θ, every derivative can be computed again. g is shaped
like y; t and u are shaped like θ.

    hvp(θ, v, g, u)  = d/dε vjp(θ + ε u, v(θ + ε u), g),
    jvp2(θ, v, t, u) = d/dε jvp(θ + ε u, v(θ + ε u), t)  at ε = 0.

All are linear in every argument after v, so the derivative rules of all five are a table over
the five: `ALONG` for forward mode, `REVERSE` for reverse mode. What is missing in a table has no
derivative here (it would be a third one) and raises.

A frontend hands over the *operands* of an operation in one row: θ, then v (except to "solve"),
then the linear arguments, of which any array may be None, that is, zero. It needs no more than

    Call.run       an operation on NumPy arrays
    Call.shapes    the shapes of its results
    Call.forward   the operations whose sum is its tangent
    Call.reverse   the operations that give its gradients
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain
from os import PathLike
from typing import Any, Self

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

from cvxlayers.calling import Layout, broadcast
from cvxlayers.canonicalize import CanonicalProblem, canonicalize, read, write
from cvxlayers.errors import StorageError
from cvxlayers.info import Info
from cvxlayers.parameter_values import check_values
from cvxlayers.sensitivity import Point, Sensitivity
from cvxlayers.solution_map import FailurePolicy, SolutionMap, check_failure_policy

__all__ = ["RESULT", "Call", "Operations"]

Array = NDArray[np.float64]
Shape = tuple[int, ...]

# Whether an operation gives arrays shaped like the outputs or like the parameters.
RESULT = {
    "solve": "outputs",
    "vjp": "parameters",
    "jvp": "outputs",
    "hvp": "parameters",
    "jvp2": "outputs",
}

# What its linear arguments are shaped like.
ARGUMENTS = {
    "solve": (),
    "vjp": ("outputs",),
    "jvp": ("parameters",),
    "hvp": ("outputs", "parameters"),
    "jvp2": ("parameters", "parameters"),
}

# d op(θ, args) along u in θ is ALONG[op](θ, *args, u). Along an argument it is op itself, with the
# argument's tangent in its place.
ALONG = {"solve": "jvp", "vjp": "hvp", "jvp": "jvp2"}

# (op, k): the gradient for argument k of op(θ, *args), where 0 is θ, from the gradient c for its
# result: which operation on which arguments. ⟨hvp(g, u), t⟩ = ⟨g, jvp2(t, u)⟩, and both are
# symmetric in t and u.
REVERSE: dict[tuple[str, int], Callable[..., tuple[Any, ...]]] = {
    ("solve", 0): lambda c: ("vjp", c),
    ("vjp", 0): lambda c, g: ("hvp", g, c),
    ("vjp", 1): lambda c, g: ("jvp", c),
    ("jvp", 0): lambda c, t: ("hvp", c, t),
    ("jvp", 1): lambda c, t: ("vjp", c),
    ("hvp", 1): lambda c, g, u: ("jvp2", c, u),
    ("hvp", 2): lambda c, g, u: ("hvp", g, c),
    ("jvp2", 1): lambda c, t, u: ("hvp", c, u),
    ("jvp2", 2): lambda c, t, u: ("hvp", c, t),
}

# A point that a compiled program may ask for again is kept up to this size of its factor, in
# numbers.
KEPT = 50_000_000


class Operations:
    """One canonicalized problem with its solver: what a layer of any framework holds.

    Parameters
    ----------
    problem, parameters, variables, solver, gp, verbose, canon_backend, solver_args
        As in `cvxlayers.CvxpyLayer`.
    on_failure, derivative, smoothing
        As in `cvxlayers.CvxpyLayer`.
    """

    def __init__(
        self,
        problem: cp.Problem,
        parameters: Sequence[cp.Parameter],
        variables: Sequence[cp.Variable],
        solver: str | None = None,
        gp: bool = False,
        verbose: bool = False,
        canon_backend: str | None = None,
        solver_args: Mapping[str, Any] | None = None,
        on_failure: FailurePolicy = "raise",
        derivative: str = "exact",
        smoothing: float | None = None,
    ):
        check_failure_policy(on_failure)
        smoothing = _check_derivative(derivative, smoothing)
        canonical = canonicalize(problem, parameters, variables, gp, canon_backend)
        self._hold(canonical, solver, verbose, solver_args, on_failure, smoothing)

    def _hold(
        self,
        canonical: CanonicalProblem,
        solver: str | None,
        verbose: bool,
        solver_args: Mapping[str, Any] | None,
        on_failure: FailurePolicy,
        smoothing: float | None,
    ) -> None:
        self.on_failure: FailurePolicy = check_failure_policy(on_failure)
        self.canonical = canonical
        self.solution_map = SolutionMap(canonical, solver, solver_args, verbose, smoothing)
        self._layouts: dict[Any, Layout] = {}
        self._places: dict[tuple[str, bool], list[slice]] = {}
        # Calls that a compiled program refers to by name.
        self.calls: dict[str, Call] = {}

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """What `save` wrote, without CVXPY's canonicalization."""
        canonical, settings = read(path)
        settings["smoothing"] = settings["smoothing"] or None
        operations = cls.__new__(cls)
        try:
            operations._hold(canonical, **settings)
        except (ValueError, TypeError) as error:
            raise StorageError(f"{path}: the settings in the file do not fit: {error}") from error
        return operations

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to a file, as arrays and JSON."""
        settings = {
            "solver": self.solution_map.solver.name,
            "solver_args": self.solution_map.solver_args,
            "on_failure": self.on_failure,
            "verbose": self.solution_map.verbose,
            "smoothing": self.solution_map.smoothing or 0.0,
        }
        write(path, self.canonical, settings)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{p.name}{list(p.shape)}" for p in self.canonical.parameters)
        outputs = ", ".join(f"{v.name}{list(v.shape)}" for v in self.canonical.outputs)
        return f"({inputs}) -> ({outputs}), solver={self.solution_map.solver.name}"

    def places(self, name: str, with_point: bool = False) -> list[slice]:
        """Where θ, v (if not "solve", or `with_point`) and each of the arguments stand in a row of
        operands."""
        key = (name, with_point)
        if key not in self._places:
            p, r = len(self.canonical.parameters), len(self.canonical.outputs)
            sizes = [p, int(with_point or name != "solve")]
            sizes += [r if kind == "outputs" else p for kind in ARGUMENTS[name]]
            stops = accumulate(sizes)
            self._places[key] = [
                slice(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)
            ]
        return self._places[key]

    def layout(self, shapes: Sequence[Shape], mapped: int = 0) -> Layout:
        """The layout of parameter values of these shapes."""
        key = (mapped, *shapes)
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= 64:
                self._layouts.clear()
            layout = self._layouts[key] = Layout(shapes, self.canonical.parameters, mapped)
        return layout

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_layouts": {}, "calls": {}}


class Call:
    """One call of a layer: its settings, and the point that it led to.

    Parameters
    ----------
    operations : Operations
    solver_args : mapping, optional
        Options for this call alone.
    warm_start : bool
        Must be False.
    on_failure : {"raise", "nan", "warn"}, optional
        Overrides the layer's.
    differentiable : bool
        Whether derivatives will be asked for.
    polished : bool, optional
        Whether the solution is polished where the options do not say; by default, where
        derivatives will be asked for.
    repeats : bool
        Whether `solve` may run more than once for this call, as in a compiled program.
    inspected : bool
        Whether "solve" leaves an `Info` in the attribute `info`.
    """

    def __init__(
        self,
        operations: Operations,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: bool = False,
        on_failure: FailurePolicy | None = None,
        differentiable: bool = True,
        polished: bool | None = None,
        repeats: bool = False,
        inspected: bool = False,
    ):
        if warm_start:
            raise ValueError(
                f"warm_start=True: {operations.solution_map.solver.name} starts every solve "
                "afresh, so that an answer never depends on earlier calls. Leave warm_start=False."
            )
        self.operations, self.solver_args = operations, solver_args
        self.on_failure = (
            operations.on_failure if on_failure is None else check_failure_policy(on_failure)
        )
        self.differentiable, self.polished, self.repeats = differentiable, polished, repeats
        self.inspected = inspected
        self.info: Info | None = None
        self._last: tuple[Array, bytes, Point] | None = None

    @property
    def point_size(self) -> int:
        """Length of v: x, z and s after each other."""
        structure = self.operations.canonical.structure
        return structure.n + 2 * structure.m

    def run(self, name: str, operands: Sequence[Array | None], mapped: int = 0) -> list[Array]:
        """One of the five operations.

        Parameters
        ----------
        name : {"solve", "vjp", "jvp", "hvp", "jvp2"}
        operands : sequence of float64 ndarray or None
            See above. Shapes (*mapped, *batch, *own shape); mapped axes are aligned, batch axes
            broadcast.
        mapped : int
            Number of mapped axes (see `calling`).

        Returns
        -------
        list of ndarray
            Of "solve": the outputs, then v if the call is differentiable. Else arrays shaped like
            the outputs, or like θ: gradients are summed over the batch axes (not the mapped ones)
            that the value was broadcast over.

        Raises
        ------
        ParameterValueError
            If a value is not what its parameter promised.
        SolverError
            If an instance is not solved and the policy is to raise.
        """
        theta: Any
        theta, v, *arguments = self._split(name, operands)
        layout = self.operations.layout([t.shape for t in theta], mapped)
        if name == "solve":
            return self._solve(theta, layout)
        flat = layout.flatten(theta)
        canonical = self.operations.canonical
        point = self._point(theta, flat, v[0], layout)
        operation = getattr(Sensitivity(canonical, point, layout.expand(flat)), name)
        full, pieces = layout.slices(arguments)
        results = []
        if full != layout.mapped_shape:
            shapes = [None if a is None else a.shape for a in operands]
            results = [np.empty(shape) for shape in self.shapes(name, shapes, mapped)]
        for place, piece in pieces:
            flattened = [
                layout.flatten_outputs(values, canonical.outputs)
                if kind == "outputs"
                else layout.flatten_tangents(values)
                for kind, values in zip(ARGUMENTS[name], piece, strict=True)
            ]
            part = operation(*flattened)
            if RESULT[name] == "parameters":
                part = layout.unflatten(part)
            else:
                part = [p.reshape(layout.batch_shape + p.shape[1:]) for p in part]
            if full == layout.mapped_shape:
                return part
            for result, p in zip(results, part, strict=True):
                result[place] = p
        return results

    def shapes(self, name: str, operands: Sequence[Shape | None], mapped: int = 0) -> list[Shape]:
        """Shapes of the results of `run` for operands of these shapes."""
        theta: Any
        theta, _, *arguments = self._split(name, operands)
        # Lengths may be symbols of a compiler, which cannot be looked up.
        layout = Layout(theta, self.operations.canonical.parameters, mapped)
        present = [shape[:mapped] for group in arguments for shape in group if shape is not None]
        full = broadcast(layout.mapped_shape, *present)
        if RESULT[name] == "parameters":
            pairs = zip(layout.leading, layout.specs, strict=True)
            return [full + lead + spec.shape for lead, spec in pairs]
        lead = full + layout.inner_shape
        shapes = [lead + spec.shape for spec in self.operations.canonical.outputs]
        solving = name == "solve" and self.differentiable
        return [*shapes, (*lead, self.point_size)] if solving else shapes

    def forward(
        self, name: str, operands: Sequence[Any], tangents: Sequence[Any]
    ) -> list[tuple[str, list[Any]]]:
        """Operations, by name and operands, whose results sum up to the tangent of a result.

        Parameters
        ----------
        name : str
        operands : sequence
            Of "solve": with v at the end.
        tangents : sequence
            One for each operand, None for zero; those of v are not looked at.
        """
        theta, v, *arguments = self._split(name, operands, with_point=True)
        along, _, *changes = self._split(name, tangents, with_point=True)
        terms = []
        if any(t is not None for t in along):
            if name not in ALONG:
                raise _third_derivative()
            terms.append((ALONG[name], [*theta, *v, *chain(*arguments), *along]))
        for k, change in enumerate(changes):
            if any(t is not None for t in change):
                moved = [change if j == k else arguments[j] for j in range(len(arguments))]
                terms.append((name, [*theta, *v, *chain(*moved)]))
        return terms

    def reverse(
        self,
        name: str,
        operands: Sequence[Any],
        gradients: Sequence[Any],
        wanted: Sequence[bool],
    ) -> list[tuple[slice, str, list[Any]]]:
        """Operations, by name and operands, that give the gradients for operands.

        Parameters
        ----------
        name : str
        operands : sequence
            Of "solve": with v at the end.
        gradients : sequence
            One for each result but v, None for zero.
        wanted : sequence of bool
            The operands that want a gradient; v never does.

        Returns
        -------
        list of (slice, str, list)
            The operands that the operation's results are the gradients for, and the operation.
        """
        theta, v, *arguments = self._split(name, operands, with_point=True)
        places = self.operations.places(name, with_point=True)
        terms = []
        for k, place in enumerate([places[0], *places[2:]]):
            if any(wanted[place]):
                if (name, k) not in REVERSE:
                    raise _third_derivative()
                other, *groups = REVERSE[name, k](gradients, *arguments)
                terms.append((place, other, [*theta, *v, *chain(*groups)]))
        return terms

    def _split(self, name: str, row: Sequence[Any], with_point: bool = False) -> list[list[Any]]:
        return [list(row[place]) for place in self.operations.places(name, with_point)]

    def _solve(self, theta: Sequence[Array], layout: Layout) -> list[Array]:
        operations = self.operations
        check_values(theta, operations.canonical.parameters, allow_nan=self.on_failure != "raise")
        flat = layout.flatten(theta)
        point = operations.solution_map.solve(
            flat,
            layout.batch_shape,
            solver_args=self.solver_args,
            differentiable=self.differentiable,
            polished=self.polished,
            on_failure=self.on_failure,
        )
        outputs = [y.reshape(layout.batch_shape + y.shape[1:]) for y in point.outputs]
        if self.inspected:
            found = operations.solution_map.inspect(point, flat)
            self.info = Info(**{name: a.reshape(layout.batch_shape) for name, a in found.items()})
        if not self.differentiable:
            return outputs
        if operations.canonical.is_geometric:
            # The caller may change its outputs in place; the derivative of exp looks at them.
            outputs = [y.copy() for y in outputs]
        v = np.concatenate([point.x, point.z, point.s], axis=1)
        self._remember(theta, v, point)
        return [*outputs, v.reshape(*layout.batch_shape, self.point_size)]

    def _remember(self, theta: Sequence[Array], v: Array, point: Point) -> None:
        if self.repeats:
            structure = self.operations.canonical.structure
            if len(v) * (structure.n + structure.m) ** 2 > KEPT:
                return
        self._last = (v, self._digest(theta), point)

    def _point(
        self, theta: Sequence[Array], flat: Sequence[Array], v: Array, layout: Layout
    ) -> Point:
        """The point v: the one in memory if it is that one, or made again."""
        v = np.ascontiguousarray(v).reshape(-1, self.point_size)
        last = self._last
        if (
            last is not None
            and np.array_equal(last[0], v, equal_nan=True)
            and last[1] == self._digest(theta)
        ):
            return last[2]
        structure = self.operations.canonical.structure
        n, m = structure.n, structure.m
        x, z, s = v[:, :n], v[:, n : n + m], v[:, n + m :]
        point = self.operations.solution_map.at(flat, x, z, s, self.solver_args)
        self._remember(theta, v.copy(), point)
        return point

    def _digest(self, theta: Sequence[Array]) -> bytes:
        # Where `solve` runs once, v alone tells the point. Two values of a parameter without
        # influence on the point may give the same v, and still different derivatives.
        if not self.repeats:
            return b""
        digest = hashlib.blake2b(digest_size=16)
        for value in theta:
            digest.update(np.ascontiguousarray(value).data)
        return digest.digest()


def _check_derivative(derivative: str, smoothing: float | None) -> float | None:
    """The barrier parameter of the smoothed derivative, None for the exact one."""
    if derivative == "exact":
        if smoothing is not None:
            raise ValueError(
                f"smoothing={smoothing!r} belongs to derivative='smoothed'; the exact derivative "
                "has no such parameter."
            )
        return None
    if derivative != "smoothed":
        raise ValueError(f"derivative: expected 'exact' or 'smoothed', got {derivative!r}.")
    if not isinstance(smoothing, int | float) or not 0.0 < smoothing < float("inf"):
        raise ValueError(
            "smoothing: derivative='smoothed' needs a positive number, the product of slack and "
            f"dual that every constraint is given, got {smoothing!r}. Try 0.01 for data of size "
            "one; less is nearer to the exact derivative."
        )
    return float(smoothing)


def _third_derivative() -> NotImplementedError:
    return NotImplementedError(
        "CvxpyLayer has first and second derivatives; a third one was asked for. Detach what is "
        "not to be differentiated again."
    )
