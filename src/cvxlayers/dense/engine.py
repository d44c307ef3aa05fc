"""The engine for one structure: batches in pieces, from stored values to answers."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cvxlayers.dense.answer import Answer
from cvxlayers.dense.cones import Product
from cvxlayers.dense.data import Data, prepare
from cvxlayers.dense.iteration import Solve, is_over
from cvxlayers.dense.judgement import Tolerances, outcome
from cvxlayers.dense.substitution import Substitution
from cvxlayers.program import ProblemStructure

__all__ = ["Engine"]


class Cones(NamedTuple):
    """Of a program, and of what is left of it once variables are replaced."""

    whole: Product
    left: Product


# Made once for a structure, and for a structure and a device.
_substitutions: WeakKeyDictionary[ProblemStructure, Substitution] = WeakKeyDictionary()
_cones: WeakKeyDictionary[ProblemStructure, dict[torch.device, Cones]] = WeakKeyDictionary()


def _substitution_of(structure: ProblemStructure) -> Substitution:
    made = _substitutions.get(structure)
    if made is None:
        made = _substitutions[structure] = Substitution(structure)
    return made


def _cones_of(structure: ProblemStructure, device: torch.device) -> Cones:
    made = _cones.setdefault(structure, {})
    if device not in made:
        dims, whole = _substitution_of(structure).dims, Product(structure.dims, device)
        cones = Cones(whole, whole if dims == structure.dims else Product(dims, device))
        if device.type == "cuda":
            # Other streams may read it.
            torch.cuda.current_stream(device).synchronize()
        made[device] = cones
    return made[device]


class Engine:
    """Solves batches of programs of one structure, on any device that has float64.

    Parameters
    ----------
    structure : ProblemStructure
    memory : float
        Bytes that the matrices of the instances under way may take. A larger batch is solved in
        pieces of equal size.

    Notes
    -----
    An instance's answer depends on its own data, and on the others only as far as the rounding of a
    product of matrices depends on how many are multiplied at once.
    """

    def __init__(self, structure: ProblemStructure, memory: float = 2.0**30):
        self.structure, self.memory = structure, memory
        self._substitution = _substitution_of(structure)

    @property
    def bytes_per_instance(self) -> float:
        """Roughly what the matrices of one instance take while it is under way."""
        left, psd = self._substitution, sum(k * k for k in self.structure.dims.psd)
        n, m, zero = left.n, left.m, left.dims.zero
        given = self.structure.n * (self.structure.n + self.structure.m)
        steps = 6 * n * n + (4 * m + 3 * psd + 6 * zero) * n + 2 * zero * zero
        return 8.0 * max(4 * given, steps)

    def solve(
        self,
        P: Tensor,
        q: Tensor,
        A: Tensor,
        b: Tensor,
        batch: int,
        tolerances: tuple[float, float, float] = (1e-8, 1e-8, 1e-8),
        iterations: int = 200,
        deadline: float | None = None,
    ) -> Answer:
        """Solve every instance.

        Those that have data which are not finite, or a bound of 1e20, end as a numerical error.

        Parameters
        ----------
        P, q, A, b : Tensor
            float64 values as in `ConeProgram`, all on one device: shapes (B or 1, nnz of P),
            (B or 1, n), (B or 1, nnz of A), (B or 1, m). Matrices that are the same for the whole
            batch are kept once.
        batch : int
            B.
        tolerances : tuple of float
            Of the gap, absolute and relative, and of both residuals.
        iterations : int
            At most so many.
        deadline : float, optional
            A value of `time.monotonic`. What is under way then is stopped.
        """
        with torch.no_grad():
            cones, limits = _cones_of(self.structure, q.device), Tolerances(*tolerances)
            pieces = []
            for rows in self._pieces(batch):
                part = [v if len(v) == 1 else v[rows] for v in (P, q, A, b)]
                count = rows.stop - rows.start
                piece = self._solve_piece(part, count, cones, limits, iterations, deadline)
                pieces.append(piece)
            names = vars(pieces[0])
            return Answer(**{name: torch.cat([vars(p)[name] for p in pieces]) for name in names})

    def _pieces(self, batch: int) -> list[slice]:
        if batch == 0:
            return [slice(0, 0)]
        most = max(1, int(min(batch, self.memory / self.bytes_per_instance)))
        size = -(-batch // -(-batch // most))
        return [slice(i, min(i + size, batch)) for i in range(0, batch, size)]

    def _solve_piece(
        self,
        values: list[Tensor],
        batch: int,
        cones: Cones,
        tolerances: Tolerances,
        iterations: int,
        deadline: float | None,
    ) -> Answer:
        if batch == 0 or is_over(deadline):
            return _unsolved(batch, self.structure, values[0])
        data, usable = self._prepared(values, batch, cones.whole)
        answer = _unsolved(batch, self._substitution, values[0])
        solve = Solve(data, cones.left, usable, tolerances, linear=self.structure.P.nnz == 0)
        solve.run(iterations, deadline, answer)
        answer = self._substitution.whole(answer, data)
        answer.z, answer.s = answer.z[:, cones.whole.back], answer.s[:, cones.whole.back]
        return answer

    def _prepared(self, values: list[Tensor], batch: int, cones: Product) -> tuple[Data, Tensor]:
        P, q, A, b = values
        P, A = self.structure.P.dense(P, symmetric=True), self.structure.A.dense(A)
        data, usable = prepare(P, q, A, b, cones, batch)
        return self._substitution.applied(data), usable


def _unsolved(batch: int, size: ProblemStructure | Substitution, like: Tensor) -> Answer:
    return Answer(
        like.new_full((batch, size.n), torch.nan),
        like.new_full((batch, size.m), torch.nan),
        like.new_full((batch, size.m), torch.nan),
        torch.full((batch,), outcome("stopped"), dtype=torch.int8, device=like.device),
        torch.zeros(batch, dtype=torch.long, device=like.device),
    )
