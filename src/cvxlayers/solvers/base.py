"""What a solver is to this library.

A solver is a small class: it unpacks a `ConeProgram`, converts to its own conventions, solves
every instance and fills a `ConeSolution`. What it can do is class data, readable without
importing the package behind it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from cvxlayers.program import ConeProgram, ConeSolution, Linearization, ProblemStructure

__all__ = ["MOST_ITERATIONS", "Solver", "seconds_left"]

#: What every solver takes for its limit.
MOST_ITERATIONS = 2**31 - 1


def seconds_left(deadline: float | None) -> float | None:
    """Time until a value of `time.monotonic`, negative after it; None without one."""
    return None if deadline is None else deadline - time.monotonic()


class Solver(ABC):
    """Solves batches of conic programs of one structure.

    Attributes
    ----------
    name : str
        CVXPY's own name for the solver, if CVXPY has it.
    cones : frozenset of str
        Kinds of cones it takes, as in `ConeDims.kinds`; see `refusal`.
    options : frozenset of str
        The options it understands, under the solver's own names.
    tolerances : tuple of str
        Those among them that `eps` stands for.
    iteration_limit : str
        That which `max_iters` stands for.
    has_derivative : bool
        Whether it brings a derivative of its own (see `linearize`).
    is_for_devices : bool
        Whether everything else, the maps, the polish and the derivative, is done on the device of
        a call's tensors if this solver was named.
    takes_tensors : bool
        Whether it takes tensors of a device as they are, and leaves its answers there. The data of
        the others are copied to the host and back.
    """

    name: ClassVar[str]
    cones: ClassVar[frozenset[str]]
    options: ClassVar[frozenset[str]]
    tolerances: ClassVar[tuple[str, ...]] = ()
    iteration_limit: ClassVar[str] = "max_iters"
    has_derivative: ClassVar[bool] = False
    is_for_devices: ClassVar[bool] = False
    takes_tensors: ClassVar[bool] = False

    def __init__(self, structure: ProblemStructure):
        self.structure = structure

    @property
    def memory_per_instance(self) -> float:
        """Bytes that the solver needs for each instance of a batch at once; 0 where it keeps to an
        amount of its own."""
        return 0.0

    @classmethod
    def refusal(cls, structure: ProblemStructure) -> str | None:
        """Why the solver does not take problems of this structure, as a sentence without its full
        stop; None where it does."""
        missing = structure.dims.kinds - cls.cones
        if missing:
            return f"{cls.name} does not handle the cones {sorted(missing)} of this problem"
        return None

    @classmethod
    def common_options(cls, eps: float | None, max_iters: int | None) -> dict[str, Any]:
        """The solver's own names and values for the options that every solver understands."""
        named: dict[str, Any] = {} if eps is None else dict.fromkeys(cls.tolerances, eps)
        return named if max_iters is None else named | {cls.iteration_limit: max_iters}

    @abstractmethod
    def solve(
        self,
        program: ConeProgram,
        options: Mapping[str, Any],
        verbose: bool = False,
        deadline: float | None = None,
    ) -> ConeSolution:
        """Solve every instance.

        A row that fails gets its status and NaN (an almost solved one keeps its point); it never
        raises and never disturbs the others. An instance's answer depends on its own data only.

        Parameters
        ----------
        program : ConeProgram
        options : mapping
            Options under the solver's own names (see `options`).
        verbose : bool
            Whether the solver prints its progress.
        deadline : float, optional
            A value of `time.monotonic`: what is not solved by then is stopped, or not begun.

        Raises
        ------
        ValueError
            If the solver does not take an option's value; before anything is solved.
        """

    def linearize(
        self, program: ConeProgram, solution: ConeSolution, options: Mapping[str, Any]
    ) -> Linearization:
        """The solver's own derivative at a solution, if it `has_derivative`.

        It covers the whole batch; instances without a point contribute zero.
        """
        raise NotImplementedError(f"{self.name} has no derivative of its own")
