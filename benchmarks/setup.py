"""A problem ready to be timed: its layer, and parameter values for a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Stopwatch
from benchmarks.problems import Benchmark
from cvxlayers.program import ConeProgram
from cvxlayers.torch import CvxpyLayer

__all__ = ["Setup", "timed"]


class Setup:
    """A benchmark's layer with parameter values for B instances.

    Parameters
    ----------
    make
        One of the functions in `problems`.
    sizes
        Its arguments, where they are not the defaults.
    """

    def __init__(
        self, make: Callable[..., Benchmark], batch: int, sizes: Mapping[str, Any] | None = None
    ):
        self.make, self.sizes, self.batch = make, dict(sizes or {}), batch
        self.benchmark = make(**self.sizes)
        problem, parameters, variables, draw = self.benchmark
        self.layer = CvxpyLayer(problem, parameters, variables)
        values = draw(np.random.default_rng(1), batch)
        self.inputs = [torch.tensor(value, requires_grad=True) for value in values]

    def program(self, most: int | None = None) -> ConeProgram:
        """What the layer's solver is given, for so many instances at most."""
        batch = self.batch if most is None else min(most, self.batch)
        canonical = self.layer.operations.solution_map.canonical
        theta = [
            value.detach().numpy().reshape(-1, spec.size)[:batch]
            for value, spec in zip(self.inputs, canonical.parameters, strict=True)
        ]
        return canonical.program(theta, batch)

    def solver(self) -> Callable[[], Any]:
        """The layer's solver alone, on that program."""
        solver, program = self.layer.operations.solution_map.solver, self.program()
        return lambda: solver.solve(program, {})

    def solve(self) -> Sequence[torch.Tensor]:
        """The layer's forward pass without gradient."""
        with torch.no_grad():
            return self.layer(*self.inputs)

    def gradient(self) -> None:
        """Forward and backward, once."""
        outputs = self.layer(*self.inputs)
        torch.autograd.grad(outputs, self.inputs, [torch.ones_like(value) for value in outputs])


def timed(phase: str, body: Callable[[], Any]) -> Callable[[Stopwatch], None]:
    """A competitor of one phase."""

    def competitor(watch: Stopwatch) -> None:
        with watch(phase):
            body()

    return competitor
