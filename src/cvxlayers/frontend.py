"""What the layers of all frameworks share: the constructor, and its documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Self, TypeVar

import cvxpy as cp

from cvxlayers.operations import Operations
from cvxlayers.settings import Derivative, FailurePolicy, Settings

__all__ = ["Frontend", "documented"]

_CONSTRUCTOR = """\
Parameters
    ----------
    problem : cvxpy.Problem
        A disciplined parametrized problem (DPP).
    parameters : list of cvxpy.Parameter
        All parameters of the problem, in the order of the call's arguments. One with ``sparsity=``
        takes all its entries in a call, or those of its pattern alone, ``(*batch, nnz)``, in the
        order of ``parameter.sparse_idx`` (CVXPY's: sorted, without duplicates; not that of the
        indices given), or a sparse array of SciPy; its gradient has the form of the value. Where
        a shape fits both, it is the whole.
    variables : list of cvxpy.Variable
        What a call returns, in this order: variables of the problem, or dual variables of its
        constraints (``constraint.dual_variables[0]``).
    solver : str, optional
        ``"LANES"``, the library's own, which solves many instances at once; or CVXPY's name of
        another: ``cp.CLARABEL``, ``cp.SCS``, or ``cp.DIFFCP``, which brings its own derivative.
        Default: LANES where it takes the problem and the options, and otherwise Clarabel; for
        arrays on a GPU, ``"DENSE"``, which solves them there.
    gp : bool, optional
        Whether the problem is a geometric program (log-log convex).
    verbose : bool, optional
        Whether the solver prints its progress. If no solver was named, Clarabel solves then.
    canon_backend : str, optional
        CVXPY's canonicalization backend.
    solver_args : dict, optional
        Options for every call. ``eps`` (tolerance), ``max_iters``, ``time_limit`` (seconds, for all
        instances of a call together) and ``polish`` are understood for every solver, the others
        are the solver's own. If no solver was named, an option that Clarabel has and LANES has not
        leads to Clarabel. An option that belongs to another solver gives a warning and is ignored.
    on_failure : {"raise", "nan", "warn"}, optional
        What to do when instances of a batch are not solved: raise a `cvxlayers.SolverError` that
        names them (default), or return NaN for them and let them contribute exactly zero to
        every gradient, without a word or with a warning that says what the error would.
    derivative : {"exact", "smoothed", "lpgd"}, optional
        What stands for the gradient: that of the solution (default); that of the point of the
        central path at `smoothing`; or a difference of two solutions, with the objective moved
        along the incoming gradient and against it, `smoothing` times (Lagrangian proximal gradient
        descent). The outputs are the solution in any case. The gradient of a linear program's
        solution with respect to its costs is zero almost everywhere; the other two tell the
        direction in which the solution would move. They have no second derivative.
    smoothing : float, optional
        Of "smoothed": the barrier parameter, in units of objective: the product of the slack and
        the dual of every inequality on the central path. Of "lpgd": the length of the step, in
        units of objective per unit of the incoming gradient, so that it goes with the scale of
        the loss. Less is nearer to the exact gradient, more reaches further.
    max_batch_memory : float, optional
        Bytes that the intermediate results of a batch may take, such as the factors that are kept
        for gradients. A batch that needs more is solved in pieces, and the factors are computed
        again for the gradient. Default: a quarter of the machine's memory, or of what is free
        on the GPU.

    Raises
    ------
    cvxlayers.NotDPPError
        If the problem is not DPP. The message names the expression.
    cvxlayers.UnsupportedProblemError
        If the problem has integer or complex variables, or the solver that was named does not take
        it.
    ValueError, TypeError
        If parameters, variables or options are not what they should be."""

Class = TypeVar("Class", bound=type)


def documented(cls: Class) -> Class:
    """Put the documentation of the constructor in the place of ``{constructor}``."""
    cls.__doc__ = (cls.__doc__ or "").replace("{constructor}", _CONSTRUCTOR)
    return cls


class Frontend:
    """The base of the layers: holds the operations of one problem.

    Attributes
    ----------
    operations : Operations
        What the framework's rules are made of.
    """

    operations: Operations

    def __init__(
        self,
        problem: cp.Problem,
        parameters: Sequence[cp.Parameter],
        variables: Sequence[cp.Variable],
        solver: str | None = None,
        gp: bool = False,
        verbose: bool = False,
        canon_backend: str | None = None,
        solver_args: Mapping[str, Any] | None = None,
        *,
        on_failure: FailurePolicy = "raise",
        derivative: Derivative = "exact",
        smoothing: float | None = None,
        max_batch_memory: float | None = None,
    ):
        settings = Settings(
            solver, solver_args, verbose, on_failure, derivative, smoothing, max_batch_memory
        )
        self._hold(Operations(problem, parameters, variables, gp, canon_backend, settings))

    @classmethod
    def of(cls, operations: Operations) -> Self:
        """The layer of operations that exist already."""
        layer = cls.__new__(cls)
        layer._hold(operations)
        return layer

    def save(self, path: str | PathLike[str]) -> None:
        """Write the layer to a file, from which `load` makes it again without the problem.

        Parameters
        ----------
        path : str or path-like
            The file; its name is taken as it is. It holds arrays and JSON in NumPy's format for
            several arrays, and no Python objects.

        Raises
        ------
        cvxlayers.StorageError
            If an option of `solver_args` cannot be written down.

        Examples
        --------
        >>> import cvxpy as cp, os, tempfile
        >>> from cvxlayers import CvxpyLayer
        >>> x, b = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
        >>> path = os.path.join(tempfile.mkdtemp(), "projection.layer")
        >>> CvxpyLayer(problem, parameters=[b], variables=[x]).save(path)
        >>> CvxpyLayer.load(path)([1.0, -2.0])[0].round(6) + 0
        array([1., 0.])
        """
        self.operations.save(path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """The layer that `save` wrote, in any framework.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        cvxlayers.StorageError
            If the file is damaged, not one of a layer, or of another version. Nothing in a file is
            executed, and what it says is checked.
        """
        return cls.of(Operations.load(path))

    def _hold(self, operations: Operations) -> None:
        self.operations = operations

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.operations!r})"
