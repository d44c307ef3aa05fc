"""`CvxpyLayer` for NumPy: the five operations by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.call import Call
from cvxlayers.calling import arrange, constant
from cvxlayers.errors import ParameterTypeError, ParameterValueError
from cvxlayers.frontend import Frontend, documented
from cvxlayers.info import Info
from cvxlayers.operations import Operations
from cvxlayers.settings import FailurePolicy

__all__ = ["CvxpyLayer"]

Arrays = tuple[NDArray[np.floating], ...]
Values = Sequence[Any] | Mapping[str, Any]


@documented
class CvxpyLayer(Frontend):
    """A parametrized convex problem as a function of NumPy arrays, with its derivatives.

    {constructor}

    Notes
    -----
    The problem is solved in float64. Results have the (promoted) dtype of the arrays that are
    given; numbers, lists and arrays of integers count as constants of float64.

    Examples
    --------
    >>> import cvxpy as cp, numpy as np
    >>> from cvxlayers.numpy import CvxpyLayer
    >>> x, b = cp.Variable(2), cp.Parameter(2, name="b")
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
    >>> layer = CvxpyLayer(problem, parameters=[b], variables=[x])
    >>> layer(b=[1.0, -2.0])[0].round(6) + 0
    array([1., 0.])
    """

    def __call__(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: bool = False,
        on_failure: FailurePolicy | None = None,
        **named: Any,
    ) -> Arrays:
        """Solve at the given parameter values.

        Parameters
        ----------
        *params : array_like
            Values of the parameters in the order of the constructor, shape
            ``(*batch, *parameter.shape)``. Batch axes are optional and broadcast against each
            other.
        solver_args : dict, optional
            Options for this call alone, on top of the constructor's.
        warm_start : bool, optional
            Must be False: an answer never depends on earlier calls.
        on_failure : {"raise", "nan", "warn"}, optional
            Overrides the constructor's.
        **named : array_like
            Values by the names of their `cvxpy.Parameter`, for those not given by position.

        Returns
        -------
        tuple of ndarray
            One for each variable, shape ``(*batch, *variable.shape)``.

        Raises
        ------
        cvxlayers.SolverError
            If an instance is not solved and `on_failure` is "raise".
        ValueError, TypeError
            If a value is missing or has the wrong shape, batch size, dtype or content. The message
            names the parameter.
        """
        at = _Values(self.operations, arrange(params, named, self.operations.canonical.parameters))
        call = Call(self.operations, solver_args, warm_start, on_failure, differentiable=False)
        return at.like_outputs(call.run("solve", at.arrays))

    def solve(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: bool = False,
        on_failure: FailurePolicy | None = None,
        **named: Any,
    ) -> tuple[Arrays, Info]:
        """Solve, and say what became of every instance.

        Parameters
        ----------
        *params, solver_args, warm_start, on_failure, **named
            As for a call.

        Returns
        -------
        outputs : tuple of ndarray
            As from a call.
        info : cvxlayers.Info
            Status, iterations, residuals of every instance.
        """
        at = _Values(self.operations, arrange(params, named, self.operations.canonical.parameters))
        call = Call(
            self.operations,
            solver_args,
            warm_start,
            on_failure,
            differentiable=False,
            inspected=True,
        )
        outputs = at.like_outputs(call.run("solve", at.arrays))
        assert call.info is not None
        return outputs, call.info

    def vjp(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        on_failure: FailurePolicy | None = None,
        **named: Any,
    ) -> tuple[Arrays, Callable[..., Arrays]]:
        """Solve, and return the function that takes gradients back through the solution.

        Parameters
        ----------
        *params, solver_args, on_failure, **named
            As for a call.

        Returns
        -------
        outputs : tuple of ndarray
            As from a call, polished.
        pullback : callable
            Takes the gradient of a scalar for each output (its shape; None is zero) and returns
            its gradient for each parameter, of the shape of the value that was given: summed
            over the batch where that was shared.

        Examples
        --------
        >>> import cvxpy as cp, numpy as np
        >>> x, b = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
        >>> layer = CvxpyLayer(problem, parameters=[b], variables=[x])
        >>> outputs, pullback = layer.vjp(np.array([1.0, -2.0]))
        >>> pullback(np.array([5.0, 7.0]))[0] + 0
        array([5., 0.])
        """
        values = arrange(params, named, self.operations.canonical.parameters)
        at, call, outputs, v = self._solve(values, solver_args, on_failure)

        def pullback(*gradients: Any) -> Arrays:
            row = at.outputs_row(gradients, outputs)
            return at.like_parameters(call.run("vjp", [*at.arrays, v, *row]))

        return outputs, pullback

    def jvp(
        self,
        params: Values,
        tangents: Values,
        *,
        solver_args: Mapping[str, Any] | None = None,
        on_failure: FailurePolicy | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Solve, and differentiate the outputs along a direction of the parameters.

        Parameters
        ----------
        params, tangents : sequence or dict of array_like
            Values, and a direction of their shapes: in the order of the parameters (None is a
            zero tangent), or by name (one left out is a zero tangent).
        solver_args, on_failure
            As for a call.

        Returns
        -------
        outputs, tangents : tuple of ndarray

        Examples
        --------
        >>> import cvxpy as cp, numpy as np
        >>> x, b = cp.Variable(2), cp.Parameter(2, name="b")
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
        >>> layer = CvxpyLayer(problem, parameters=[b], variables=[x])
        >>> layer.jvp({"b": [1.0, -2.0]}, {"b": [1.0, 1.0]})[1][0] + 0
        array([1., 0.])
        """
        at, call, outputs, v = self._solve(self._row("params", params), solver_args, on_failure)
        row = at.parameters_row(self._row("tangents", tangents, partial=True))
        return outputs, at.like_outputs(call.run("jvp", [*at.arrays, v, *row]))

    def hvp(
        self,
        params: Values,
        gradients: Sequence[Any],
        along: Values,
        *,
        solver_args: Mapping[str, Any] | None = None,
        on_failure: FailurePolicy | None = None,
    ) -> Arrays:
        """The derivative of what the pullback of `vjp` gives, along a direction of the parameters.

        For a function Σ ⟨gradient, output⟩ of the parameters this is its Hessian times `along`.

        Parameters
        ----------
        params, along : sequence or dict of array_like
            As `params` and `tangents` of `jvp`.
        gradients : sequence of array_like
            One for each output, None for zero.
        solver_args, on_failure
            As for a call.

        Returns
        -------
        tuple of ndarray
            One for each parameter.
        """
        at, call, outputs, v = self._solve(self._row("params", params), solver_args, on_failure)
        row = at.outputs_row(gradients, outputs)
        row += at.parameters_row(self._row("along", along, partial=True))
        return at.like_parameters(call.run("hvp", [*at.arrays, v, *row]))

    def jvp2(
        self,
        params: Values,
        tangents: Values,
        along: Values,
        *,
        solver_args: Mapping[str, Any] | None = None,
        on_failure: FailurePolicy | None = None,
    ) -> Arrays:
        """The second derivative of the outputs along two directions of the parameters.

        Parameters
        ----------
        params, tangents, along : sequence or dict of array_like
            As `params` and `tangents` of `jvp`.
        solver_args, on_failure
            As for a call.

        Returns
        -------
        tuple of ndarray
            One for each output.
        """
        at, call, _, v = self._solve(self._row("params", params), solver_args, on_failure)
        row = at.parameters_row(self._row("tangents", tangents, partial=True))
        row += at.parameters_row(self._row("along", along, partial=True))
        return at.like_outputs(call.run("jvp2", [*at.arrays, v, *row]))

    def _solve(
        self,
        values: Sequence[Any],
        solver_args: Mapping[str, Any] | None,
        on_failure: FailurePolicy | None,
    ) -> tuple[_Values, Call, Arrays, NDArray[np.float64]]:
        at = _Values(self.operations, values)
        call = Call(self.operations, solver_args, on_failure=on_failure)
        *outputs, v = call.run("solve", at.arrays)
        return at, call, at.like_outputs(outputs), v

    def _row(self, argument: str, values: Values, partial: bool = False) -> list[Any]:
        specs = self.operations.canonical.parameters
        if not isinstance(values, Mapping):
            _check_sequence(argument, values, "one for each parameter, or a dict by their names")
            return arrange(tuple(values), {}, specs)
        if partial:
            values = {**{spec.name: None for spec in specs}, **values}
        return arrange((), values, specs)


def _check_sequence(argument: str, values: Any, expected: str) -> None:
    if not isinstance(values, Sequence | np.ndarray):
        raise ParameterTypeError(
            f"{argument}: expected a list of arrays, {expected}, got {type(values).__name__}."
        )


class _Values:
    """The parameter values of a call, and how arrays are made like them."""

    def __init__(self, operations: Operations, values: Sequence[Any]):
        self.specs = operations.canonical.parameters
        self.outputs = operations.canonical.outputs
        pairs = zip(values, self.specs, strict=True)
        self.arrays = [constant(value, spec) for value, spec in pairs]
        given = [v.dtype if isinstance(v, np.ndarray | np.generic) else None for v in values]
        self.dtypes = [d if d is not None and d.kind == "f" else None for d in given]
        some = [d for d in self.dtypes if d is not None]
        self.dtype = np.result_type(*some) if some else np.dtype(np.float64)

    def like_outputs(self, results: Sequence[NDArray[np.float64]]) -> Arrays:
        return tuple(y.astype(self.dtype, copy=False) for y in results)

    def like_parameters(self, results: Sequence[NDArray[np.float64]]) -> Arrays:
        return tuple(
            g.astype(dtype or np.float64, copy=False)
            for g, dtype in zip(results, self.dtypes, strict=True)
        )

    def outputs_row(self, gradients: Sequence[Any], outputs: Arrays) -> list[Any]:
        """Gradients for the outputs, checked."""
        _check_sequence("gradients", gradients, "one for each output (None for zero)")
        if len(gradients) != len(outputs):
            raise ParameterValueError(
                f"Expected {len(outputs)} gradients, one for each output (None for zero), got "
                f"{len(gradients)}."
            )
        row: list[Any] = []
        for gradient, output, spec in zip(gradients, outputs, self.outputs, strict=True):
            array = None if gradient is None else np.asarray(gradient)
            if array is not None and array.dtype.kind not in "fiu":
                raise ParameterTypeError(
                    f"Gradient for {spec.name!r}: expected real numbers, got {array.dtype}."
                )
            if array is not None and array.shape != output.shape:
                raise ParameterValueError(
                    f"Gradient for {spec.name!r}: expected the output's shape {output.shape}, got "
                    f"{array.shape}."
                )
            row.append(None if array is None else array.astype(np.float64))
        return row

    def parameters_row(self, tangents: Sequence[Any]) -> list[Any]:
        """Tangents of the parameters, checked."""
        row: list[Any] = []
        for tangent, value, spec in zip(tangents, self.arrays, self.specs, strict=True):
            array = None if tangent is None else constant(tangent, spec)
            if array is not None and array.shape != value.shape:
                raise ParameterValueError(
                    f"Tangent of parameter {spec.label}: expected its value's shape {value.shape}, "
                    f"got {array.shape}."
                )
            row.append(array)
        return row
