"""Whether a certificate of infeasibility proves anything.

Interior-point methods judge a certificate relative to its own size, and call feasible problems
infeasible when their data are large.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.arrays import fetched, take
from cvxlayers.program import ConeDims, ConeProgram, ConeSolution
from cvxlayers.status import Status

__all__ = ["demand_proof", "is_proof", "power_of"]

Array = NDArray[np.float64]

# A certificate counts if only points of this many times the size of the data escape it, …
PROOF = 1e4
# … and their square or cube where the cones allow for squares or more: auxiliary variables bound
# them from above.
POWERS = {"soc": 2, "psd": 2, "exp": 3, "pow": 3}

_PRIMAL_INFEASIBLE, _DUAL_INFEASIBLE = int(Status.PRIMAL_INFEASIBLE), int(Status.DUAL_INFEASIBLE)
_NUMERICAL_ERROR = int(Status.NUMERICAL_ERROR)


def power_of(dims: ConeDims) -> int:
    """The power of the data's size that points may have."""
    return max((POWERS.get(kind, 1) for kind in dims.kinds), default=1)


def demand_proof(program: ConeProgram, solution: ConeSolution) -> None:
    """Leave the status infeasible to the instances whose certificate, which they have in place of
    a point, proves it; the others end as a numerical error."""
    power = power_of(program.structure.dims)
    told = np.flatnonzero(np.isin(solution.status, (_PRIMAL_INFEASIBLE, _DUAL_INFEASIBLE)))
    if not len(told):
        return
    part = program.take(told).on_host()
    points = [fetched(take(v, told)) for v in (solution.x, solution.z, solution.s)]
    for k, i in enumerate(told):
        P, q, A, b = (v[k if len(v) > 1 else 0] for v in (part.P, part.q, part.A, part.b))
        x, z, s = (v[k] for v in points)
        if solution.status[i] == _PRIMAL_INFEASIBLE:
            x = None
        matrix, of_A = program.structure.P.matrix(P), program.structure.A.matrix(A)
        if not is_proof(x, z, s, matrix, q, of_A, b, power):
            solution.status[i] = _NUMERICAL_ERROR


def is_proof(
    x: Array | None, z: Array, s: Array, P: Any, q: Array, A: Any, b: Array, power: int
) -> bool:
    """Whether a certificate holds up: of primal infeasibility, z, if x is None, else of dual
    infeasibility, (x, s). P is an upper triangle.

    z with Aᵀz = 0, z ∈ K*, bᵀz < 0 excludes all x with ‖x‖₁ < -bᵀz / ‖Aᵀz‖; x with P x = 0,
    A x + s = 0, qᵀx < 0 is a direction of descent that excludes all dual points but those of a
    size given likewise. They have to be larger than what the data lead to: A x for an x of the
    size that the rows ask for (or one), and its powers.
    """
    if x is None:
        gain, error, offset = b @ z, _height(A.T @ z), b
        rows = _largest(A.indices, A.data, len(b))
    else:
        Px = P @ x + P.T @ x - P.diagonal() * x
        gain, error, offset = q @ x, max(_height(Px), _height(A @ x + s)), q
        rows = _largest(np.repeat(np.arange(len(q)), np.diff(A.indptr)), A.data, len(q))
    told = rows > 0.0
    extent = max(_height(offset), _height(offset[told] / rows[told]))
    size = max(1.0, extent) * max(1.0, _height(A.data), _height(P.data))
    # In the unit of the data where they are small.
    unit = min(1.0, extent) if extent else 1.0
    return bool(-gain > PROOF * size**power * unit * error)


def _largest(index: Any, values: Array, count: int) -> Array:
    """The largest entry of every row, or column."""
    largest = np.zeros(count)
    np.maximum.at(largest, index, np.abs(values))
    return largest


def _height(values: Any) -> float:
    return float(np.abs(values).max(initial=0.0))
