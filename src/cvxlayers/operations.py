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
then the linear arguments, of which any array may be None, that is, zero. It needs no more than (see
`cvxlayers.call`)

    Call.run       an operation on NumPy arrays
    Call.shapes    the shapes of its results
    Call.forward   the operations whose sum is its tangent
    Call.reverse   the operations that give its gradients
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import cvxpy as cp

from cvxlayers.calling import Layout
from cvxlayers.canonicalize import CanonicalProblem, canonicalize, read, write
from cvxlayers.errors import StorageError
from cvxlayers.settings import Settings
from cvxlayers.solution_map import SolutionMap

if TYPE_CHECKING:
    from cvxlayers.call import Call

__all__ = ["ALONG", "ARGUMENTS", "RESULT", "REVERSE", "Operations"]

Shape = tuple[int, ...]

# Whether an operation gives arrays shaped like the outputs, like the parameters, or the numbers of
# `info.FIELDS` for every instance.
RESULT = {
    "solve": "outputs",
    "vjp": "parameters",
    "jvp": "outputs",
    "hvp": "parameters",
    "jvp2": "outputs",
    "inspect": "facts",
}

# What its linear arguments are shaped like.
ARGUMENTS = {
    "solve": (),
    "vjp": ("outputs",),
    "jvp": ("parameters",),
    "hvp": ("outputs", "parameters"),
    "jvp2": ("parameters", "parameters"),
    "inspect": (),
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

# Settings that may be None; a file has zero for it.
_NUMBERS = ("smoothing", "max_batch_memory")


class Operations:
    """One canonicalized problem with its solver: what a layer of any framework holds.

    Parameters
    ----------
    problem, parameters, variables, gp, canon_backend
        As in `cvxlayers.CvxpyLayer`.
    settings : Settings
    """

    def __init__(
        self,
        problem: cp.Problem,
        parameters: Sequence[cp.Parameter],
        variables: Sequence[cp.Variable],
        gp: bool = False,
        canon_backend: str | None = None,
        settings: Settings | None = None,
    ):
        canonical = canonicalize(problem, parameters, variables, gp, canon_backend)
        self._hold(canonical, settings)

    def _hold(self, canonical: CanonicalProblem, settings: Settings | None) -> None:
        self.canonical = canonical
        self.solution_map = SolutionMap(canonical, settings)
        self._layouts: dict[Any, Layout] = {}
        self._places: dict[tuple[str, bool], list[slice]] = {}
        # Calls that a compiled program refers to by name.
        self.calls: dict[str, Call] = {}

    @property
    def settings(self) -> Settings:
        """What the layer was told besides its problem."""
        return self.solution_map.settings

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """What `save` wrote, without CVXPY's canonicalization."""
        canonical, stored = read(path)
        stored |= {name: stored[name] or None for name in (*_NUMBERS, "solver")}
        operations = cls.__new__(cls)
        try:
            operations._hold(canonical, Settings(**stored))
        except (ValueError, TypeError) as error:
            raise StorageError(f"{path}: the settings in the file do not fit: {error}") from error
        return operations

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to a file, as arrays and JSON."""
        settings = dict(vars(self.settings))
        settings |= {name: float(settings[name] or 0.0) for name in _NUMBERS}
        settings["solver"] = self.settings.solver or ""
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
