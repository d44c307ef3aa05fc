"""`CvxpyLayer` for JAX: a function around the five operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cvxlayers.calling import arrange, constant
from cvxlayers.canonicalize import ParameterSpec
from cvxlayers.errors import ParameterTypeError
from cvxlayers.frontend import Frontend, documented
from cvxlayers.info import FIELDS, Info
from cvxlayers.jax.primitive import bind
from cvxlayers.jax.task import Origin, Task, to_bits
from cvxlayers.settings import FailurePolicy

__all__ = ["CvxpyLayer"]


@documented
class CvxpyLayer(Frontend):
    """A parametrized convex problem as a differentiable JAX function.

    The problem is canonicalized once, here; every call solves it at the given parameter values.
    All of JAX's transformations apply, in any order and to the second derivative: `jax.jit`,
    `jax.vmap`, `jax.grad`, `jax.jvp`, `jax.hessian`, `jax.checkpoint`, `jax.lax.scan`.

    {constructor}

    Notes
    -----
    The problem is solved in float64 whatever the inputs' dtype, also without ``jax_enable_x64``,
    which is left as it is. Derivatives are computed at the point in float64. What arrives and
    leaves in float32 is rounded to it.

    The solution is polished by Newton steps with the same factorisation that the derivative takes,
    also where no derivative is asked for: the value of a function should not depend on whether it
    is differentiated. ``solver_args={"polish": False}`` is faster without. The layer has no state:
    nothing in it changes between calls. It can be copied and pickled.

    Outside of compiled programs, arrays on one GPU are solved there, by the solver DENSE, if there
    is a PyTorch that reaches it and no other solver was named. This has not been run on a GPU.

    In a compiled program the solver runs on the host, by a callback. JAX hands on what it raises
    there as an error of its own, mostly a `jax.errors.JaxRuntimeError`, whose text ends with the
    message.

    References
    ----------
    Agrawal, Amos, Barratt, Boyd, Diamond & Kolter, *Differentiable convex optimization layers*,
    NeurIPS 2019.

    Examples
    --------
    >>> import cvxpy as cp, jax, jax.numpy as jnp
    >>> from cvxlayers.jax import CvxpyLayer
    >>> x, b = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
    >>> layer = CvxpyLayer(problem, parameters=[b], variables=[x])
    >>> jax.grad(lambda b: layer(b)[0].sum())(jnp.array([[1.0, -2.0], [3.0, 4.0]]))
    Array([[1., 0.],
           [1., 1.]], dtype=float32)
    """

    def __call__(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: bool = False,
        on_failure: FailurePolicy | None = None,
        **named: Any,
    ) -> tuple[jax.Array, ...]:
        """Solve at the given parameter values.

        Parameters
        ----------
        *params : jax.Array, array_like
            Values of the parameters in the order of the constructor, shape
            ``(*batch, *parameter.shape)``. Batch axes are optional and broadcast against each
            other. Arrays of JAX are floating point; NumPy arrays, lists and numbers are constants,
            which keep double precision. But a NumPy array that is an argument of a transformed
            function, such as one under `jax.jit`, arrives here as an array of JAX: without
            ``jax_enable_x64``, rounded to float32.
        solver_args : dict, optional
            Options for this call alone, on top of the constructor's.
        warm_start : bool, optional
            Must be False: no solver here starts from an earlier answer, so that an answer never
            depends on earlier calls.
        on_failure : {"raise", "nan", "warn"}, optional
            Overrides the constructor's.
        **named : jax.Array, array_like
            Values by the names of their `cvxpy.Parameter`, for those not given by position.

        Returns
        -------
        tuple of jax.Array
            One for each variable, shape ``(*batch, *variable.shape)``, in the arrays' (promoted)
            dtype; without any array of JAX, in JAX's default one.

        Raises
        ------
        cvxlayers.SolverError
            If an instance is not solved and `on_failure` is "raise".
        ValueError, TypeError
            If a value is missing or has the wrong shape, batch size, dtype or content. The message
            names the parameter.
        jax.errors.JaxRuntimeError
            In a compiled program, in place of those that depend on what an array contains, with
            the same message.
        NotImplementedError
            If a third derivative is asked for.
        """
        row, task = self._task(params, named, solver_args, warm_start, on_failure)
        return tuple(bind(task, row))

    def solve(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: bool = False,
        on_failure: FailurePolicy | None = None,
        **named: Any,
    ) -> tuple[tuple[jax.Array, ...], Info]:
        """Solve, and say what became of every instance.

        Parameters
        ----------
        *params, solver_args, warm_start, on_failure, **named
            As for a call.

        Returns
        -------
        outputs : tuple of jax.Array
            As from a call.
        info : cvxlayers.Info
            Status, iterations, residuals of every instance, as NumPy arrays. Inside `jax.jit` or
            another transformation, as arrays of JAX in float32, without times and adjoint
            residuals; an info is a pytree, so that a transformed function can return it.

        Examples
        --------
        >>> import cvxpy as cp, jax, jax.numpy as jnp
        >>> from cvxlayers.jax import CvxpyLayer
        >>> x, b = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x)), [x >= b, x <= 1])
        >>> layer = CvxpyLayer(problem, parameters=[b], variables=[x], on_failure="nan")
        >>> outputs, info = jax.jit(layer.solve)(jnp.array([[0.5, 0.5], [2.0, 0.5]]))
        >>> info.summary()
        {'SOLVED': 1, 'PRIMAL_INFEASIBLE': 1}
        """
        row, task = self._task(params, named, solver_args, warm_start, on_failure)
        if not any(isinstance(value, jax.core.Tracer) for value in row):
            task.origin.plain.inspected = True
            outputs = tuple(bind(task, row))
            assert task.origin.plain.info is not None
            return outputs, task.origin.plain.info
        *values, v = bind(replace(task, differentiable=True), row)
        # What became of an instance is no function to be differentiated.
        operands = [jax.lax.stop_gradient(operand) for operand in (*row, v)]
        (facts,) = bind(replace(task, name="inspect", differentiable=True), operands)
        return tuple(values), _info(facts)

    def _task(
        self,
        params: Sequence[Any],
        named: Mapping[str, Any],
        solver_args: Mapping[str, Any] | None,
        warm_start: bool,
        on_failure: FailurePolicy | None,
    ) -> tuple[list[Any], Task]:
        """The operands of a solve, and it."""
        specs = self.operations.canonical.parameters
        values = arrange(params, named, specs)
        dtype = _dtype(values, specs)
        row = [
            value if isinstance(value, jax.Array) else to_bits(constant(value, spec))
            for value, spec in zip(values, specs, strict=True)
        ]
        origin = Origin(self.operations, solver_args, warm_start, on_failure, dtype)
        return row, Task(origin, "solve", differentiable=False)


def _info(facts: jax.Array) -> Info:
    """An info of the numbers that the operation "inspect" gives."""
    fields: dict[str, Any] = {name: facts[..., k] for k, name in enumerate(FIELDS)}
    for name in ("status", "iterations", "attempt"):
        fields[name] = fields[name].astype(jnp.int32)
    fields["degenerate"] = fields["degenerate"] > 0.5
    for name in ("solve_time", "adjoint_residual"):
        fields[name] = jnp.full_like(fields[name], jnp.nan)
    return Info(**fields)


jax.tree_util.register_dataclass(Info, [*FIELDS, "times"], [])


def _dtype(values: Sequence[Any], specs: Sequence[ParameterSpec]) -> np.dtype[Any]:
    """The dtype of the outputs."""
    given = []
    for value, spec in zip(values, specs, strict=True):
        if isinstance(value, jax.Array):
            if value.dtype.kind != "f":
                _check(value.dtype, spec)
            given.append(value)
    # JAX's own promotion is slow, and says nothing where there is nothing to promote.
    if given and all(v.dtype == given[0].dtype and not v.weak_type for v in given):
        return np.dtype(given[0].dtype)
    return np.dtype(jnp.result_type(*given) if given else jnp.result_type(float))


def _check(dtype: Any, spec: ParameterSpec) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        remedy = (
            "Pass its real and imaginary parts as parameters of their own."
            if jnp.issubdtype(dtype, jnp.complexfloating)
            else "Convert it with .astype(float)."
        )
        raise ParameterTypeError(
            f"Parameter {spec.label}: expected a floating-point array, got {dtype}. {remedy}"
        )
