"""`CvxpyLayer` for PyTorch: an `nn.Module` around the five operations."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch._C import _functorch
from torch.autograd import forward_ad

from cvxlayers.call import Call
from cvxlayers.calling import arrange, constant
from cvxlayers.canonicalize import ParameterSpec
from cvxlayers.errors import ParameterTypeError, ParameterValueError
from cvxlayers.frontend import Frontend, documented
from cvxlayers.info import Info
from cvxlayers.operations import Operations
from cvxlayers.settings import FailurePolicy
from cvxlayers.torch.function import Operation, Task
from cvxlayers.torch.operator import announce, operation

__all__ = ["CvxpyLayer"]


@documented
class CvxpyLayer(Frontend, torch.nn.Module):
    """A parametrized convex problem as a differentiable PyTorch module.

    The problem is canonicalized once, here; every call solves it at the given parameter values,
    and `backward` applies the adjoint of the derivative of the solution map.

    {constructor}

    Notes
    -----
    The problem is solved in float64 whatever the inputs' dtype. When a gradient is wanted the
    solution is polished by Newton steps with the same factorisation that the gradient takes.
    The layer has no state: nothing in it changes between calls, it has no learnable parameters
    and no buffers. It can be copied and pickled.

    References
    ----------
    Agrawal, Amos, Barratt, Boyd, Diamond & Kolter, *Differentiable convex optimization layers*,
    NeurIPS 2019.

    Examples
    --------
    >>> import cvxpy as cp, torch
    >>> from cvxlayers.torch import CvxpyLayer
    >>> x, b = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
    >>> layer = CvxpyLayer(problem, parameters=[b], variables=[x])
    >>> b_t = torch.tensor([[1.0, -2.0], [3.0, 4.0]], requires_grad=True)
    >>> (x_star,) = layer(b_t)
    >>> x_star.sum().backward()
    >>> b_t.grad
    tensor([[1., 0.],
            [1., 1.]])
    """

    def _hold(self, operations: Operations) -> None:
        torch.nn.Module.__init__(self)
        super()._hold(operations)
        self.key = uuid.uuid4().hex
        announce(self.key, operations)

    __repr__ = torch.nn.Module.__repr__

    def extra_repr(self) -> str:
        return repr(self.operations)

    def forward(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: bool = False,
        on_failure: FailurePolicy | None = None,
        **named: Any,
    ) -> tuple[torch.Tensor, ...]:
        """Solve at the given parameter values.

        Parameters
        ----------
        *params : torch.Tensor, array_like
            Values of the parameters in the order of the constructor, shape
            ``(*batch, *parameter.shape)``. Batch axes are optional and broadcast against each
            other. Tensors are floating point and all on one device; NumPy arrays, lists and
            numbers are constants.
        solver_args : dict, optional
            Options for this call alone, on top of the constructor's.
        warm_start : bool, optional
            Must be False: no solver here starts from an earlier answer, so that an answer never
            depends on earlier calls.
        on_failure : {"raise", "nan", "warn"}, optional
            Overrides the constructor's.
        **named : torch.Tensor, array_like
            Values by the names of their `cvxpy.Parameter`, for those not given by position.

        Returns
        -------
        tuple of torch.Tensor
            One for each variable, shape ``(*batch, *variable.shape)``, on the tensors' device and
            in their (promoted) dtype; without any tensor, in that of the NumPy arrays, or torch's
            default.

        Raises
        ------
        cvxlayers.SolverError
            If an instance is not solved and `on_failure` is "raise".
        ValueError, TypeError
            If a value is missing or has the wrong shape, batch size, dtype, device or content.
            The message names the parameter.
        NotImplementedError
            If a third derivative is asked for.
        """
        specs = self.operations.canonical.parameters
        tensors, dtype = _tensors(arrange(params, named, specs), specs)
        if torch.compiler.is_compiling():
            return self._traced(tensors, solver_args, warm_start, on_failure, dtype)
        return self._run(tensors, dtype, solver_args, warm_start, on_failure)[0]

    def solve(
        self,
        *params: Any,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: bool = False,
        on_failure: FailurePolicy | None = None,
        **named: Any,
    ) -> tuple[tuple[torch.Tensor, ...], Info]:
        """Solve, and say what became of every instance.

        Parameters
        ----------
        *params, solver_args, warm_start, on_failure, **named
            As for a call.

        Returns
        -------
        outputs : tuple of torch.Tensor
            As from a call; they can be differentiated like those.
        info : cvxlayers.Info
            Status, iterations, residuals of every instance, as NumPy arrays.

        Examples
        --------
        >>> import cvxpy as cp, torch
        >>> from cvxlayers.torch import CvxpyLayer
        >>> x, b = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x)), [x >= b, x <= 1])
        >>> layer = CvxpyLayer(problem, parameters=[b], variables=[x], on_failure="nan")
        >>> outputs, info = layer.solve(torch.tensor([[0.5, 0.5], [2.0, 0.5], [0.1, 0.2]]))
        >>> info.summary()
        {'SOLVED': 2, 'PRIMAL_INFEASIBLE': 1}
        """
        if torch.compiler.is_compiling():
            from cvxlayers.torch.tracing import uncompiled_solve

            return uncompiled_solve(
                self.solve,
                *params,
                solver_args=solver_args,
                warm_start=warm_start,
                on_failure=on_failure,
                **named,
            )
        specs = self.operations.canonical.parameters
        tensors, dtype = _tensors(arrange(params, named, specs), specs)
        outputs, call = self._run(tensors, dtype, solver_args, warm_start, on_failure, True)
        assert call.info is not None
        return outputs, call.info

    def _run(
        self,
        tensors: Sequence[torch.Tensor],
        dtype: torch.dtype,
        solver_args: Mapping[str, Any] | None,
        warm_start: bool,
        on_failure: FailurePolicy | None,
        inspected: bool = False,
    ) -> tuple[tuple[torch.Tensor, ...], Call]:
        differentiable = _is_differentiated(tensors)
        call = Call(
            self.operations,
            solver_args,
            warm_start,
            on_failure,
            differentiable,
            inspected=inspected,
        )
        task = Task(call, "solve", dtype)
        if differentiable:
            return Operation.apply(task, *tensors)[:-1], call
        if _functorch.peek_interpreter_stack() is not None:  # vmap alone
            return Operation.apply(task, *tensors), call
        return task.run(tensors), call

    def _traced(
        self,
        tensors: Sequence[torch.Tensor],
        solver_args: Mapping[str, Any] | None,
        warm_start: bool,
        on_failure: FailurePolicy | None,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, ...]:
        """The call as one operator of the graph that is being made."""
        from cvxlayers.torch.tracing import options_of, uncompiled

        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        options = options_of(solver_args, warm_start, on_failure, differentiable, dtype)
        if options is None:
            arguments = (tensors, dtype, solver_args, warm_start, on_failure)
            return uncompiled(self._run, *arguments)[0]
        results = operation(self.key, options, "solve", 0, tensors)
        return tuple(results[: len(self.operations.canonical.outputs)])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        announce(self.key, self.operations)


def _is_differentiated(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a derivative may be asked for."""
    if _functorch.peek_interpreter_stack() is not None:
        # What vmap maps does not show whether it wants a gradient.
        tensors = [_unmapped(t) for t in tensors]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return True
    stack = _functorch.get_interpreter_stack()
    if stack is not None and any(level.key() != _functorch.TransformType.Vmap for level in stack):
        return True
    # Unpacking a tensor outside a dual level would be an error.
    level = forward_ad._current_level
    return level >= 0 and any(
        forward_ad.unpack_dual(t, level=level).tangent is not None for t in tensors
    )


def _unmapped(tensor: torch.Tensor) -> torch.Tensor:
    while _functorch.is_batchedtensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def _tensors(
    values: Sequence[Any], specs: Sequence[ParameterSpec]
) -> tuple[list[torch.Tensor], torch.dtype]:
    """Values as tensors, and the dtype of the outputs."""
    pairs = [
        (v, spec) for v, spec in zip(values, specs, strict=True) if isinstance(v, torch.Tensor)
    ]
    given = [tensor for tensor, _ in pairs]
    for tensor, spec in pairs:
        _check(tensor, spec)
        if tensor.device != given[0].device:
            raise ParameterValueError(
                f"Parameter {spec.label} is on {tensor.device}, but {pairs[0][1].label} is on "
                f"{given[0].device}. Move all to one device with .to(...)."
            )
        if tensor.device.type == "meta":
            raise ParameterTypeError(
                f"Parameter {spec.label}: expected a tensor with values, got one on the meta "
                "device, which holds none."
            )
    # Without a tensor the arrays decide, as in torch.as_tensor.
    like = given or [torch.from_numpy(v) for v in values if _is_floating_array(v)]
    dtype = (
        reduce(torch.promote_types, (t.dtype for t in like)) if like else torch.get_default_dtype()
    )
    device = given[0].device if given else None
    tensors = [
        value if isinstance(value, torch.Tensor) else _constant(value, spec, device)
        for value, spec in zip(values, specs, strict=True)
    ]
    return tensors, dtype


def _constant(value: Any, spec: ParameterSpec, device: torch.device | None) -> torch.Tensor:
    # The compiler has NumPy of its own, and traces tensors more surely.
    plain = value if torch.compiler.is_compiling() else constant(value, spec)
    return torch.as_tensor(plain, dtype=torch.float64, device=device)


def _is_floating_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype in (np.float16, np.float32, np.float64)


def _check(tensor: torch.Tensor, spec: ParameterSpec) -> None:
    if not tensor.dtype.is_floating_point:
        remedy = (
            "Pass its real and imaginary parts as parameters of their own."
            if tensor.is_complex()
            else "Convert it with .to(torch.get_default_dtype())."
        )
        raise ParameterTypeError(
            f"Parameter {spec.label}: expected a floating-point tensor, got {tensor.dtype}. "
            f"{remedy}"
        )
    if tensor.layout != torch.strided:
        raise ParameterTypeError(
            f"Parameter {spec.label}: expected a dense tensor, got layout {tensor.layout}. Convert "
            "it with .to_dense(), or pass .coalesce().values() for a parameter with that sparsity."
        )
