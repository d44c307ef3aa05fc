"""DENSE: the library's own interior-point method on dense matrices, in PyTorch.

See `cvxlayers.dense`. It is made for accelerators, where it takes the data as they lie and leaves
the answers there; on a CPU it is of use where the data are dense.
Infeasible is what a certificate proves; whatever else does not end solved is for Clarabel
(`retries`).
"""

from __future__ import annotations

import math
import time
from importlib.util import find_spec

import numpy as np

from cvxlayers.arrays import fetched, is_host, sent
from cvxlayers.program import ConeProgram, ConeSolution, ProblemStructure
from cvxlayers.solvers.interior_point import STATUS_OF, InteriorPoint

__all__ = ["Dense"]

# Beyond, the matrices of a single instance take half a gigabyte.
MOST_UNKNOWNS = 4000
# Of the matrices under way at once on a CPU, in bytes. Who sends the data of a device sees to the
# memory there.
MEMORY = 2.0**28


class Dense(InteriorPoint):
    """The method of Goulart & Chen, arXiv 2405.12762, on dense matrices of many instances."""

    name = "DENSE"
    is_for_devices = takes_tensors = True

    @classmethod
    def refusal(cls, structure: ProblemStructure) -> str | None:
        if find_spec("torch") is None:
            return "DENSE needs PyTorch, which is not installed; pip install torch"
        size = structure.n + structure.m
        if size > MOST_UNKNOWNS:
            return (
                f"DENSE takes up to {MOST_UNKNOWNS:,} variables and rows, because its matrices are "
                f"dense, not {size:,}"
            )
        return None

    @property
    def memory_per_instance(self) -> float:
        from cvxlayers.dense import Engine

        return Engine(self.structure).bytes_per_instance

    def _run(
        self,
        program: ConeProgram,
        tolerances: tuple[float, float, float],
        iterations: int,
        deadline: float | None,
    ) -> ConeSolution:
        import torch

        from cvxlayers.dense import Engine

        begin, on_host = time.perf_counter(), is_host(program.q)
        if program.batch == 0:
            return ConeSolution.empty(0, self.structure, program.q)
        P, q, A, b = program.P, program.q, program.A, program.b
        if on_host:
            P, q, A, b = (sent(v, torch.empty(0, device="cpu")) for v in (P, q, A, b))
        engine = Engine(self.structure, MEMORY if on_host else math.inf)
        answer = engine.solve(P, q, A, b, program.batch, tolerances, iterations, deadline)
        x, z, s = (fetched(v) if on_host else v for v in (answer.x, answer.z, answer.s))
        outcome, taken = fetched(answer.outcome), fetched(answer.iterations)
        # Instances take their steps together: each has its part by how many it took.
        part = (taken + 1) / (taken + 1).sum()
        return ConeSolution(
            x,
            z,
            s,
            STATUS_OF[outcome],
            taken,
            part * (time.perf_counter() - begin),
            np.zeros(program.batch, dtype=np.int64),
        )
