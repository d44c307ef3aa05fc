"""Which solver takes a call, and with which options: those of the layer, of the call, and where the
call's arrays live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from cvxlayers.errors import UnsupportedProblemError
from cvxlayers.program import ProblemStructure
from cvxlayers.settings import Settings
from cvxlayers.solvers import DEFAULTS, Solver, get_solver
from cvxlayers.solvers.options import COMMON_OPTIONS, Options, knows_options, resolve_options

__all__ = ["Choice"]

# The solver of arrays that live on a device, where none was named.
ON_DEVICES = "DENSE"


class Choice:
    """The solvers of one layer.

    Parameters
    ----------
    structure : ProblemStructure
    settings : Settings

    Attributes
    ----------
    default : Options
        Of calls without options of their own, for arrays of the host.
    solver_args : dict
        The layer's options without those that do not belong to its solver.

    Raises
    ------
    UnsupportedProblemError
        If the solver that was named does not take the problem.
    """

    def __init__(self, structure: ProblemStructure, settings: Settings):
        self._structure, self._named, self._verbose = structure, settings.solver, settings.verbose
        named = DEFAULTS if settings.solver is None else (settings.solver,)
        refusals = {kind: kind.refusal(structure) for kind in map(get_solver, named)}
        self._solvers = {
            kind: kind(structure) for kind, refusal in refusals.items() if refusal is None
        }
        if not self._solvers:
            reasons = "; ".join(str(refusal) for refusal in refusals.values())
            raise UnsupportedProblemError(
                f"{reasons}. Leave solver=None for a solver that takes every problem."
            )
        self.default = self._resolved(False, settings.solver_args)
        self._with_polish = {p: replace(self.default, polish=p) for p in (False, True)}
        # What does not belong to this solver has been warned of once, and is left out from now on.
        own = self.default.kind.options | set(COMMON_OPTIONS)
        self.solver_args = {k: v for k, v in (settings.solver_args or {}).items() if k in own}

    @property
    def solver(self) -> Solver:
        """The solver of calls without options of their own, for arrays of the host."""
        return self._solvers[self.default.kind]

    @cached_property
    def stays_on_devices(self) -> bool:
        """Whether arrays of a device are to stay there; with other solvers they are the host's."""
        return get_solver(self._named or ON_DEVICES).is_for_devices

    @cached_property
    def on_devices(self) -> Solver:
        """The solver for arrays of a device.

        Raises
        ------
        UnsupportedProblemError
            If there is none for this problem.
        """
        if self._named is not None:
            return self.solver
        kind = get_solver(ON_DEVICES)
        refusal = kind.refusal(self._structure)
        if refusal is not None:
            raise UnsupportedProblemError(
                f"{refusal}. It is what solves tensors on their device. Name a solver of the CPU, "
                "such as solver='CLARABEL', to have the data copied there and the answers back."
            )
        return kind(self._structure)

    def options(
        self, solver_args: Mapping[str, Any] | None, polish: bool, on_device: bool
    ) -> Options:
        """The options of a call.

        Parameters
        ----------
        solver_args : mapping, optional
            Those of this call alone, on top of the layer's.
        polish : bool
            Whether the solution is polished where they do not say.
        on_device : bool
            Whether its arrays live on a device.
        """
        if solver_args is None and not on_device:
            return self.default if self.default.polish is not None else self._with_polish[polish]
        options = self._resolved(on_device, self.solver_args, solver_args)
        return options if options.polish is not None else replace(options, polish=polish)

    def solver_for(self, options: Options) -> Solver:
        """The solver that options are for."""
        solver = self._solvers.get(options.kind)
        return self.on_devices if solver is None else solver

    def _resolved(self, on_device: bool, *layers: Mapping[str, Any] | None) -> Options:
        """The options of layers of them, for the first solver that has them all, or the first.
        Progress is printed by Clarabel if no solver was named."""
        if on_device:
            return resolve_options(type(self.on_devices), *layers)
        verbose: bool | None = self._verbose
        for layer in layers:
            if isinstance(layer, Mapping) and layer.get("verbose") is not None:
                verbose = layer["verbose"]
        kinds = list(self._solvers)
        if verbose:
            kinds = kinds[-1:]
        kind = next((kind for kind in kinds if knows_options(kind, *layers)), kinds[0])
        return resolve_options(kind, *layers)
