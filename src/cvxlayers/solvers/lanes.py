"""LANES: the library's own interior-point method, many instances at once. The default on a CPU.

See `cvxlayers.lanes`. Infeasible is what a certificate proves; whatever else does not end solved is
for Clarabel (`retries`).
"""

from __future__ import annotations

import numpy as np

from cvxlayers.lanes import engine_for, why_not
from cvxlayers.program import ConeProgram, ConeSolution, ProblemStructure
from cvxlayers.solvers.base import seconds_left
from cvxlayers.solvers.interior_point import STATUS_OF, InteriorPoint

__all__ = ["Lanes"]


class Lanes(InteriorPoint):
    """The method of Goulart & Chen, arXiv 2405.12762, on many instances of one pattern at once."""

    name = "LANES"

    @classmethod
    def refusal(cls, structure: ProblemStructure) -> str | None:
        reason = why_not(structure)
        return None if reason is None else f"LANES {reason}"

    def _run(
        self,
        program: ConeProgram,
        tolerances: tuple[float, float, float],
        iterations: int,
        deadline: float | None,
    ) -> ConeSolution:
        # Not kept: a solver is copied and stored with its layer.
        engine = engine_for(self.structure)
        if engine is None:
            raise RuntimeError(f"{self.refusal(self.structure)}.")
        answer = engine.solve(program, tolerances, iterations, seconds_left(deadline))
        return ConeSolution(
            answer.x,
            answer.z,
            answer.s,
            STATUS_OF[answer.outcome],
            answer.iterations,
            answer.seconds,
            np.zeros(program.batch, dtype=np.int64),
        )
