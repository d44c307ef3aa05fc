"""What the layer is compared with: a loop over Clarabel as one would write it by hand, and
cvxpylayers, at its defaults and with the solver Moreau.

cvxpylayers 1.2.0 hands Moreau the rows of A and the sizes of their cones. What CVXPY extracts from
the rows for Moreau, as cones on the variables themselves (x >= 0, X >> 0), it does not read: those
constraints are lost without a word. So while such a layer is built, CVXPY extracts nothing; the
problem is the same, with all its constraints in A. Moreau's settings are its defaults: its
active-set method for small quadratic programs, else its interior-point method. Semidefinite
problems fail, because cvxpylayers does not pass the sizes of their cones on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import clarabel
import numpy as np
import scipy.sparse as sp

from benchmarks.measure import Stopwatch
from benchmarks.problems import Benchmark
from cvxlayers.program import ConeDims, ConeProgram

__all__ = ["PEERS", "BareLoop", "cvxpylayers_of", "gradient_steps"]

#: The solver that cvxpylayers is told to use, and the package that it is in.
PEERS: dict[str, tuple[str | None, str]] = {
    "cvxpylayers": (None, "diffcp"),
    "Moreau": ("MOREAU", "moreau"),
}


class BareLoop:
    """A fresh solver for every instance, a chunk of instances for every thread.

    Matrices are made beforehand, so that a call does nothing but solve.

    Parameters
    ----------
    program
        The batch, as the layer hands it to its solver.
    threads
        Number of threads; each solve takes one.
    settings
        Clarabel's settings, where they are not its defaults.
    """

    def __init__(self, program: ConeProgram, threads: int, **settings: Any):
        structure, self.batch = program.structure, program.batch
        self.instances = [
            (
                sp.csc_matrix((P, structure.P.indices, structure.P.indptr), (len(q), len(q))),
                q,
                sp.csc_matrix((A, structure.A.indices, structure.A.indptr), (len(b), len(q))),
                b,
            )
            for P, q, A, b in (_instance(program, i) for i in range(program.batch))
        ]
        self.cones = _cones(structure.dims)
        self.settings = clarabel.DefaultSettings()
        for name, value in ({"verbose": False, "max_threads": 1} | settings).items():
            setattr(self.settings, name, value)
        self.x = np.empty((program.batch, structure.n))
        self.chunks = np.array_split(np.arange(program.batch), min(threads, program.batch))
        self.pool = ThreadPoolExecutor(len(self.chunks))

    def solve(self) -> np.ndarray:
        """Solve every instance; the solutions x, shape (B, n)."""
        if len(self.chunks) == 1:
            self._solve_chunk(self.chunks[0])
        else:
            list(self.pool.map(self._solve_chunk, self.chunks))
        return self.x

    def _solve_chunk(self, chunk: np.ndarray) -> None:
        for i in chunk:
            solver = clarabel.DefaultSolver(*self.instances[i], self.cones, self.settings)
            self.x[i] = solver.solve().x


def cvxpylayers_of(benchmark: Benchmark, peer: str) -> Callable[..., Sequence[Any]] | None:
    """The same layer from one of `PEERS`, or None where that is not installed."""
    solver, package = PEERS[peer]
    if find_spec("cvxpylayers") is None or find_spec(package) is None:
        return None
    from cvxpy.reductions.solvers.conic_solvers.moreau_conif import MOREAU
    from cvxpylayers.torch import CvxpyLayer

    problem, parameters, variables, _ = benchmark
    with patch.object(MOREAU, "DIR_CONE_KINDS", frozenset()):
        return CvxpyLayer(problem, parameters=parameters, variables=variables, solver=solver)


def gradient_steps(
    layer: Callable[..., Sequence[Any]],
    inputs: Sequence[Any],
    weights: Sequence[Any],
    prefix: str = "",
) -> Callable[[Stopwatch], None]:
    """Forward with gradient and backward of a layer, as phases of these names."""
    import torch

    def steps(watch: Stopwatch) -> None:
        with watch(f"{prefix}forward"):
            outputs = layer(*inputs)
        with watch(f"{prefix}backward"):
            torch.autograd.grad(outputs, inputs, weights)

    return steps


def _instance(program: ConeProgram, i: int) -> list[np.ndarray]:
    values = (program.P, program.q, program.A, program.b)
    return [value[i if len(value) > 1 else 0] for value in values]


def _cones(dims: ConeDims) -> list[Any]:
    linear = [(clarabel.ZeroConeT, dims.zero), (clarabel.NonnegativeConeT, dims.nonneg)]
    return [
        *(cone(rows) for cone, rows in linear if rows),
        *(clarabel.SecondOrderConeT(rows) for rows in dims.soc),
        *(clarabel.PSDTriangleConeT(order) for order in dims.psd),
        *(clarabel.ExponentialConeT() for _ in range(dims.exp)),
        *(clarabel.PowerConeT(float(np.asarray(alpha))) for alpha in dims.pow),
    ]
