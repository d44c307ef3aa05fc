"""One call of a layer: the operations on arrays of NumPy, or of PyTorch on their device, and their
rules."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from cvxlayers.arrays import Array, copied, fetched, full, is_host, namespace, sent
from cvxlayers.calling import Layout, broadcast
from cvxlayers.info import FIELDS, Info
from cvxlayers.operations import ALONG, ARGUMENTS, RESULT, REVERSE, Operations
from cvxlayers.parallel import quiet
from cvxlayers.parameter_values import check_values
from cvxlayers.program import ConeSolution
from cvxlayers.sensitivity import Point, Sensitivity
from cvxlayers.settings import FailurePolicy, check_failure_policy

__all__ = ["Call"]

Shape = tuple[int, ...]

# What v holds behind x, z and s.
FACTS = ("status", "iterations", "attempt")

# A point that a compiled program may ask for again is kept up to this size of its factor, in
# numbers.
KEPT = 50_000_000


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
            operations.settings.on_failure
            if on_failure is None
            else check_failure_policy(on_failure)
        )
        self.differentiable, self.polished, self.repeats = differentiable, polished, repeats
        self.inspected = inspected
        self.info: Info | None = None
        self._last: tuple[Array, bytes | list[Array], Point] | None = None

    @property
    def point_size(self) -> int:
        """Length of v: x, z, s and `FACTS` after each other."""
        structure = self.operations.canonical.structure
        return structure.n + 2 * structure.m + len(FACTS)

    def run(self, name: str, operands: Sequence[Array | None], mapped: int = 0) -> list[Array]:
        """One of the five operations.

        Parameters
        ----------
        name : {"solve", "vjp", "jvp", "hvp", "jvp2", "inspect"}
        operands : sequence of float64 array or None
            See `operations`; all of NumPy, or all of PyTorch on one device. Shapes
            (*mapped, *batch, *own shape); mapped axes are aligned, batch axes broadcast.
        mapped : int
            Number of mapped axes (see `calling`).

        Returns
        -------
        list of array
            Of the operands' kind, and on their device. Of "solve": the outputs, then v if the call
            is differentiable. Else arrays shaped like the outputs, or like θ: gradients are summed
            over the batch axes (not the mapped ones) that the value was broadcast over. Of
            "inspect", which takes no linear argument and has no derivative: one array of the
            numbers in `cvxlayers.info.FIELDS`, shape (*mapped, *batch, number of fields).

        Raises
        ------
        ParameterValueError
            If a value is not what its parameter promised.
        SolverError
            If an instance is not solved and the policy is to raise.
        """
        with quiet():
            return self._run(name, operands, mapped)

    def _run(self, name: str, operands: Sequence[Array | None], mapped: int) -> list[Array]:
        theta: Any
        theta, v, *arguments = self._split(name, operands)
        layout = self.operations.layout([tuple(t.shape) for t in theta], mapped)
        if name == "solve":
            return self._solve(theta, layout)
        flat = layout.flatten(theta)
        canonical = self.operations.canonical
        point = self._point(theta, flat, v[0], layout)
        if name == "inspect":
            found = self.operations.solution_map.inspect(point, flat)
            facts = np.stack([found[field] for field in FIELDS], axis=-1, dtype=np.float64)
            return [sent(facts.reshape(*layout.batch_shape, len(FIELDS)), v[0])]
        sensitivity = Sensitivity(canonical, point, layout.expand(flat))
        operation = getattr(sensitivity, name)
        mapped_shape, pieces = layout.slices(arguments)
        results = []
        if mapped_shape != layout.mapped_shape:
            shapes = [None if a is None else a.shape for a in operands]
            results = [full(shape, 0.0, v[0]) for shape in self.shapes(name, shapes, mapped)]
        started = time.perf_counter()
        for place, piece in pieces:
            flattened = [
                layout.flatten_outputs(values, canonical.outputs)
                if kind == "outputs"
                else layout.flatten_tangents(values, v[0])
                for kind, values in zip(ARGUMENTS[name], piece, strict=True)
            ]
            part = operation(*flattened)
            if RESULT[name] == "parameters":
                part = layout.unflatten(part)
            else:
                part = [p.reshape(layout.batch_shape + p.shape[1:]) for p in part]
            if mapped_shape == layout.mapped_shape:
                results = part
                break
            for result, p in zip(results, part, strict=True):
                result[place] = p
        if self.info is not None:
            self._report(self.info, point, layout, time.perf_counter() - started)
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
            pairs = zip(layout.leading, layout.forms, strict=True)
            return [full + lead + form for lead, form in pairs]
        lead = full + layout.inner_shape
        if RESULT[name] == "facts":
            return [(*lead, len(FIELDS))]
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
        self._check_order(name)
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
        places = self.operations.places(name, with_point=True)
        # JAX has the gradient of "solve" as the transpose of its tangent.
        if name != "jvp" or any(wanted[places[0]]):
            self._check_order(name)
        theta, v, *arguments = self._split(name, operands, with_point=True)
        terms = []
        for k, place in enumerate([places[0], *places[2:]]):
            if any(wanted[place]):
                if (name, k) not in REVERSE:
                    raise _third_derivative()
                other, *groups = REVERSE[name, k](gradients, *arguments)
                terms.append((place, other, [*theta, *v, *chain(*groups)]))
        return terms

    def _check_order(self, name: str) -> None:
        # Its operations are not linear in their arguments, so that the tables do not hold.
        if name != "solve" and self.operations.settings.derivative == "lpgd":
            raise NotImplementedError(
                "derivative='lpgd' has no derivative of its own: use derivative='exact' for second "
                "derivatives, or detach what is not to be differentiated again."
            )

    def _split(self, name: str, row: Sequence[Any], with_point: bool = False) -> list[list[Any]]:
        return [list(row[place]) for place in self.operations.places(name, with_point)]

    def _solve(self, theta: Sequence[Array], layout: Layout) -> list[Array]:
        operations = self.operations
        check_values(theta, layout.specs, layout.forms, allow_nan=self.on_failure != "raise")
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
            arrays = {name: a.reshape(layout.batch_shape) for name, a in found.items()}
            self.info = Info(**arrays, times=point.times)
        if not self.differentiable:
            return outputs
        if operations.canonical.is_geometric:
            # The caller may change its outputs in place; the derivative of exp looks at them.
            outputs = [copied(y) for y in outputs]
        facts = np.stack([getattr(point, name) for name in FACTS], axis=1, dtype=np.float64)
        parts = [point.x, point.z, point.s, sent(facts, point.x)]
        v = namespace(point.x).concat(parts, axis=1)
        self._remember(theta, v, point)
        return [*outputs, v.reshape(*layout.batch_shape, self.point_size)]

    def _report(self, info: Info, point: Point, layout: Layout, seconds: float) -> None:
        """Say in the info of the call what came of a derivative."""
        info.times["derivative"] = info.times.get("derivative", 0.0) + seconds
        if info.status.shape == layout.batch_shape:
            for name, values in self.operations.solution_map.quality(point).items():
                getattr(info, name)[...] = values.reshape(layout.batch_shape)

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
        v = v.reshape(-1, self.point_size)
        last = self._last
        if last is not None and _same(last[0], v) and _agree(last[1], self._digest(theta)):
            return last[2]
        structure = self.operations.canonical.structure
        n, m = structure.n, structure.m
        solution = ConeSolution.empty(len(v), structure, v)
        solution.x, solution.z, solution.s = v[:, :n], v[:, n : n + m], v[:, n + m : n + 2 * m]
        facts = fetched(v[:, n + 2 * m :])
        for k, name in enumerate(FACTS):
            getattr(solution, name)[:] = facts[:, k]
        point = self.operations.solution_map.at(flat, solution, self.solver_args)
        self._remember(theta, copied(v), point)
        return point

    def _digest(self, theta: Sequence[Array]) -> bytes | list[Array]:
        # Where `solve` runs once, v alone tells the point. Two values of a parameter without
        # influence on the point may give the same v, and still different derivatives.
        if not self.repeats:
            return b""
        if theta and not is_host(theta[0]):
            # The shapes say nothing: a map adds axes of length one.
            return [copied(value).reshape(-1) for value in theta]
        digest = hashlib.blake2b(digest_size=16)
        for value in theta:
            digest.update(np.ascontiguousarray(value).data)
        return digest.digest()


def _same(a: Array, b: Array) -> bool:
    """Whether two arrays hold the same numbers; at once where they are the same memory."""
    if a.shape != b.shape or is_host(a) != is_host(b):
        return False
    if is_host(a):
        return a.ctypes.data == b.ctypes.data or np.array_equal(a, b, equal_nan=True)
    if a.device != b.device:
        return False
    return a.data_ptr() == b.data_ptr() or bool(((a == b) | ((a != a) & (b != b))).all())


def _agree(a: bytes | list[Array], b: bytes | list[Array]) -> bool:
    """Whether two digests are of the same parameter values."""
    if isinstance(a, bytes) or isinstance(b, bytes):
        return a == b
    return len(a) == len(b) and all(map(_same, a, b))


def _third_derivative() -> NotImplementedError:
    return NotImplementedError(
        "CvxpyLayer has first and second derivatives; a third one was asked for. Detach what is "
        "not to be differentiated again."
    )
