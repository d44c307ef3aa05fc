"""What a solver is to this library.

A solver is a small class: it unpacks a `ConeProgram`, converts to its own conventions, solves
every instance and fills a `ConeSolution`. What it can do is class data, readable without
importing the package behind it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from cvxlayers.program import ConeProgram, ConeSolution, Linearization, ProblemStructure

__all__ = ["Solver"]


class Solver(ABC):
    """Solves batches of conic programs of one structure.

    Attributes
    ----------
    name : str
        CVXPY's own name for the solver.
    cones : frozenset of str
        Kinds of cones it takes, as in `ConeDims.kinds`.
    options : frozenset of str
        The options it understands, under the solver's own names.
    """

    name: ClassVar[str]
    cones: ClassVar[frozenset[str]]
    options: ClassVar[frozenset[str]]

    def __init__(self, structure: ProblemStructure):
        self.structure = structure

    @classmethod
    @abstractmethod
    def common_options(cls, eps: float | None, max_iters: int | None) -> dict[str, Any]:
        """The solver's own names and values for the options that every solver understands."""

    @abstractmethod
    def solve(
        self, program: ConeProgram, options: Mapping[str, Any], verbose: bool = False
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

        Raises
        ------
        ValueError
            If the solver does not take an option's value; before anything is solved.
        """

    def linearize(
        self, program: ConeProgram, solution: ConeSolution, options: Mapping[str, Any]
    ) -> Linearization | None:
        """The solver's own derivative at a solution, or None to use the library's.

        It covers the whole batch; instances without a point contribute zero.
        """
        return None
