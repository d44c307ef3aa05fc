"""`CvxpyLayer` for MLX: a function around the five operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from cvxlayers.call import Call
from cvxlayers.calling import arrange, constant
from cvxlayers.canonicalize import ParameterSpec
from cvxlayers.errors import ParameterTypeError
from cvxlayers.frontend import Frontend, documented
from cvxlayers.info import Info
from cvxlayers.mlx.function import Operand, Task, apply
from cvxlayers.mlx.tracing import in_transformation
from cvxlayers.settings import FailurePolicy

__all__ = ["CvxpyLayer"]


@documented
class CvxpyLayer(Frontend):
    """A parametrized convex problem as a differentiable MLX function.

    The problem is canonicalized once, here; every call solves it at the given parameter values.
    `mx.grad`, `mx.value_and_grad`, `mx.vjp` and `mx.jvp` apply, in any order and to the second
    derivative, and so do `mx.checkpoint` and, in place of `mx.vmap`, `cvxlayers.mlx.vmap`.

    {constructor}

    Notes
    -----
    The problem is solved in float64 on the CPU whatever the inputs' dtype, and derivatives are
    computed at the point in float64. What arrives and leaves in float32 is rounded to it. A call
    evaluates its inputs and solves at once; it is not lazy as MLX's own operations are.

    The solution is polished by Newton steps with the same factorisation that the derivative
    takes, also where no derivative is asked for: the value of a function should not depend on
    whether it is differentiated. ``solver_args={"polish": False}`` is faster without. The layer
    has no state: nothing in it changes between calls, and it has no learnable parameters. It can be
    an attribute of an `mlx.nn.Module`, and be copied and pickled.

    `mx.compile` and `mx.export_function` run a function once without values and then never again;
    a layer raises there. Compile what comes before and after it.

    References
    ----------
    Agrawal, Amos, Barratt, Boyd, Diamond & Kolter, *Differentiable convex optimization layers*,
    NeurIPS 2019.

    Examples
    --------
    >>> import cvxpy as cp, mlx.core as mx
    >>> from cvxlayers.mlx import CvxpyLayer
    >>> x, b = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
    >>> layer = CvxpyLayer(problem, parameters=[b], variables=[x])
    >>> mx.grad(lambda b: layer(b)[0].sum())(mx.array([[1.0, -2.0], [3.0, 4.0]])).round(3)
    array([[1, 0],
           [1, 1]], dtype=float32)
    """

    def __call__(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: bool = False,
        on_failure: FailurePolicy | None = None,
        **named: Any,
    ) -> tuple[mx.array, ...]:
        """Solve at the given parameter values.

        Parameters
        ----------
        *params : mlx.core.array, array_like
            Values of the parameters in the order of the constructor, shape
            ``(*batch, *parameter.shape)``. Batch axes are optional and broadcast against each
            other. Arrays of MLX are floating point; NumPy arrays, lists and numbers are constants,
            which keep double precision.
        solver_args : dict, optional
            Options for this call alone, on top of the constructor's.
        warm_start : bool, optional
            Must be False: no solver here starts from an earlier answer, so that an answer never
            depends on earlier calls.
        on_failure : {"raise", "nan", "warn"}, optional
            Overrides the constructor's.
        **named : mlx.core.array, array_like
            Values by the names of their `cvxpy.Parameter`, for those not given by position.

        Returns
        -------
        tuple of mlx.core.array
            One for each variable, shape ``(*batch, *variable.shape)``, in the (promoted) dtype of
            the arrays of MLX; without any, in float32.

        Raises
        ------
        cvxlayers.SolverError
            If an instance is not solved and `on_failure` is "raise".
        ValueError, TypeError
            If a value is missing or has the wrong shape, batch size, dtype or content. The message
            names the parameter. If the call is inside `mx.compile`, `mx.export_function` or
            `mx.vmap`.
        NotImplementedError
            If a third derivative is asked for.
        """
        return self._run(params, named, solver_args, warm_start, on_failure)[0]

    forward = __call__

    def solve(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: bool = False,
        on_failure: FailurePolicy | None = None,
        **named: Any,
    ) -> tuple[tuple[mx.array, ...], Info]:
        """Solve, and say what became of every instance.

        Parameters
        ----------
        *params, solver_args, warm_start, on_failure, **named
            As for a call.

        Returns
        -------
        outputs : tuple of mlx.core.array
            As from a call; they can be differentiated like those.
        info : cvxlayers.Info
            Status, iterations, residuals of every instance, as NumPy arrays.
        """
        outputs, call = self._run(params, named, solver_args, warm_start, on_failure, True)
        if call.info is None:  # only placeholders have been seen, under cvxlayers.mlx.vmap
            raise ParameterTypeError(
                "solve: expected arrays with values, got placeholders of a vmap. Hand the layer a "
                "batch axis instead."
            )
        return outputs, call.info

    def _run(
        self,
        params: Sequence[Any],
        named: Mapping[str, Any],
        solver_args: Mapping[str, Any] | None,
        warm_start: bool,
        on_failure: FailurePolicy | None,
        inspected: bool = False,
    ) -> tuple[tuple[mx.array, ...], Call]:
        specs = self.operations.canonical.parameters
        operands, dtype = _operands(arrange(params, named, specs), specs)
        # MLX does not say what will be differentiated; and the value of a function should not
        # depend on whether it is.
        call = Call(
            self.operations,
            solver_args,
            warm_start,
            on_failure,
            differentiable=in_transformation(),
            polished=True,
            inspected=inspected,
        )
        return tuple(apply(Task(call, "solve", dtype), operands)), call


def _operands(
    values: Sequence[Any], specs: Sequence[ParameterSpec]
) -> tuple[list[Operand], mx.Dtype]:
    """Values as operands, and the dtype of the outputs."""
    operands: list[Operand] = []
    for value, spec in zip(values, specs, strict=True):
        if isinstance(value, mx.array):
            _check(value, spec)
            operands.append(value)
        else:
            operands.append(constant(value, spec))
    dtypes = [o.dtype for o in operands if isinstance(o, mx.array)]
    return operands, mx.result_type(*dtypes) if dtypes else mx.float32


def _check(array: mx.array, spec: ParameterSpec) -> None:
    if not mx.issubdtype(array.dtype, mx.floating):
        remedy = (
            "Pass its real and imaginary parts as parameters of their own."
            if mx.issubdtype(array.dtype, mx.complexfloating)
            else "Convert it with .astype(mx.float32)."
        )
        raise ParameterTypeError(
            f"Parameter {spec.label}: expected a floating-point array, got {array.dtype}. {remedy}"
        )
