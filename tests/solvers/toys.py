"""Small programs whose outcome is known."""

from __future__ import annotations

import numpy as np

from cvxlayers.lanes import load
from cvxlayers.program import ConeDims, ConeProgram, Pattern, ProblemStructure
from cvxlayers.status import Status

#: The solver of small problems where none was named: another one where LANES was not compiled.
DEFAULT = "CLARABEL" if load() is None else "LANES"


def scalar_batch() -> tuple[ConeProgram, list[Status]]:
    """minimize q x subject to a x <= b₁, -x <= b₂: solved, infeasible, unbounded, solved."""
    program = program_of([[1.0], [-1.0]], ConeDims(nonneg=2), batch=4)
    program.A[:] = [[1, -1], [1, -1], [-1, -1], [2, -1]]
    program.b[:] = [[1, 1], [-2, 1], [1, 1], [3, 1]]
    program.q[:] = -1.0
    status = [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE, Status.SOLVED]
    return program, status


def program_of(A: list[list[float]], dims: ConeDims, batch: int = 1) -> ConeProgram:
    """A linear program with this dense A; q and b are zero, to be filled in."""
    dense = np.array(A)
    m, n = dense.shape
    rows = np.tile(np.arange(m, dtype=np.int32), n)
    structure = ProblemStructure(
        dims,
        Pattern((n, n), np.zeros(0, np.int32), np.zeros(n + 1, np.int32)),
        Pattern((m, n), rows, np.arange(0, m * n + 1, m, dtype=np.int32)),
    )
    values = np.tile(dense.T.ravel(), (batch, 1))
    q, b = np.zeros((batch, n)), np.zeros((batch, m))
    return ConeProgram(structure, np.zeros((batch, 0)), q, values, b, batch)


#: min x, or ½ x² + x, over one constraint A x + s = b of every kind: dims, A, b and the solution.
ONE_VARIABLE = [
    (ConeDims(zero=1), [[2.0]], [3.0], 1.5),
    (ConeDims(nonneg=1), [[-1.0]], [-2.0], 2.0),
    (ConeDims(soc=(1,)), [[-1.0]], [-2.0], 2.0),
    (ConeDims(psd=(1,)), [[-1.0]], [-2.0], 2.0),
    (ConeDims(soc=(2,)), [[-1.0], [0.0]], [0.0, -2.0], 2.0),
    (ConeDims(exp=1), [[0.0], [0.0], [-1.0]], [1.0, 1.0, 0.0], np.e),
    (ConeDims(pow=(0.5,)), [[-1.0], [0.0], [0.0]], [0.0, 1.0, 2.0], 4.0),
]
