"""`CvxpyLayer` for PyTorch: an `nn.Module` around a `SolutionMap`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import forward_ad

from cvxlayers.calling import Bound, bind
from cvxlayers.canonicalize import ParameterSpec, canonicalize
from cvxlayers.errors import ParameterTypeError, ParameterValueError
from cvxlayers.solution_map import FailurePolicy, Point, SolutionMap, check_failure_policy

__all__ = ["CvxpyLayer"]

Array = NDArray[np.float64]


class CvxpyLayer(torch.nn.Module):
    """A parametrized convex problem as a differentiable PyTorch module.

    The problem is canonicalized once, here; every call solves it at the given parameter values,
    and `backward` applies the adjoint of the derivative of the solution map.

    Parameters
    ----------
    problem : cvxpy.Problem
        A disciplined parametrized problem (DPP).
    parameters : list of cvxpy.Parameter
        All parameters of the problem, in the order of the call's arguments.
    variables : list of cvxpy.Variable
        What a call returns, in this order: variables of the problem, or dual variables of its
        constraints (``constraint.dual_variables[0]``).
    solver : str, optional
        CVXPY's name of the solver: ``cp.CLARABEL`` (default), ``cp.SCS``, or ``cp.DIFFCP``, which
        brings its own derivative.
    gp : bool, optional
        Whether the problem is a geometric program (log-log convex).
    verbose : bool, optional
        Whether the solver prints its progress.
    canon_backend : str, optional
        CVXPY's canonicalization backend.
    solver_args : dict, optional
        Options for every call. ``eps`` (tolerance), ``max_iters`` and ``polish`` are understood for
        every solver, the others are the solver's own. An option that belongs to another solver
        gives a warning and is ignored.
    on_failure : {"raise", "nan"}, optional
        What to do when instances of a batch are not solved: raise a `cvxlayers.SolverError` that
        names them (default), or return NaN for them and let them contribute exactly zero to
        every gradient.

    Raises
    ------
    cvxlayers.NotDPPError
        If the problem is not DPP. The message names the expression.
    cvxlayers.UnsupportedProblemError
        If the problem has integer or complex variables, or cones that the solver lacks.
    ValueError, TypeError
        If parameters, variables or options are not what they should be.

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
    ):
        super().__init__()
        check_failure_policy(on_failure)
        canonical = canonicalize(problem, parameters, variables, gp, canon_backend)
        self.solution_map = SolutionMap(canonical, solver, solver_args, verbose)
        self.on_failure: FailurePolicy = on_failure

    def extra_repr(self) -> str:
        canonical = self.solution_map.canonical
        inputs = ", ".join(f"{p.name}{list(p.shape)}" for p in canonical.parameters)
        outputs = ", ".join(f"{v.name}{list(v.shape)}" for v in canonical.outputs)
        return f"({inputs}) -> ({outputs}), solver={self.solution_map.solver.name}"

    def forward(
        self,
        *params: torch.Tensor,
        solver_args: Mapping[str, Any] | None = None,
        warm_start: bool = False,
        on_failure: FailurePolicy | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Solve at the given parameter values.

        Parameters
        ----------
        *params : torch.Tensor
            One for each parameter, shape ``(*batch, *parameter.shape)``, floating point, all on
            one device. Batch axes are optional and broadcast against each other.
        solver_args : dict, optional
            Options for this call alone, on top of the constructor's.
        warm_start : bool, optional
            Must be False: no solver here starts from an earlier answer, so that an answer never
            depends on earlier calls.
        on_failure : {"raise", "nan"}, optional
            Overrides the constructor's.

        Returns
        -------
        tuple of torch.Tensor
            One for each variable, shape ``(*batch, *variable.shape)``, on the inputs' device and
            in their (promoted) dtype.

        Raises
        ------
        cvxlayers.SolverError
            If an instance is not solved and `on_failure` is "raise".
        ValueError, TypeError
            If a value has the wrong count, shape, batch size, dtype, device or content. The
            message names the parameter.
        """
        if torch.compiler.is_compiling():
            # The compiler would trace into the NumPy code and put arithmetic of its own in its
            # place. As a decorator this would import the compiler for everybody, for a second.
            opaque = torch.compiler.disable(self._forward)
            return opaque(params, solver_args, warm_start, on_failure)
        return self._forward(params, solver_args, warm_start, on_failure)

    def _forward(
        self,
        params: Sequence[Any],
        solver_args: Mapping[str, Any] | None,
        warm_start: bool,
        on_failure: FailurePolicy | None,
    ) -> tuple[torch.Tensor, ...]:
        if warm_start:
            raise ValueError(
                f"warm_start=True: {self.solution_map.solver.name} starts every solve afresh, so "
                "that an answer never depends on earlier calls. Leave warm_start=False."
            )
        policy = self.on_failure if on_failure is None else check_failure_policy(on_failure)
        specs = self.solution_map.canonical.parameters
        _check_tensors(params, specs)
        bound = bind([_to_numpy(p) for p in params], specs, allow_nan=policy == "nan")
        call = _Call(self.solution_map, bound, solver_args, policy, _output_type(params))
        if torch.is_grad_enabled() and any(p.requires_grad for p in params):
            return _Solve.apply(call, *params)
        return call.run(differentiable=False)[0]


class _Call:
    """One forward call: its values and settings, and how its answer becomes tensors."""

    def __init__(
        self,
        solution_map: SolutionMap,
        bound: Bound,
        solver_args: Mapping[str, Any] | None,
        on_failure: FailurePolicy,
        output_type: tuple[torch.dtype, torch.device],
    ):
        self.solution_map, self.bound = solution_map, bound
        self.solver_args, self.on_failure = solver_args, on_failure
        self.dtype, self.device = output_type

    def run(self, differentiable: bool) -> tuple[tuple[torch.Tensor, ...], Point, list[Array]]:
        point = self.solution_map.solve(
            self.bound.theta,
            self.bound.batch_shape,
            solver_args=self.solver_args,
            differentiable=differentiable,
            on_failure=self.on_failure,
        )
        values = self.solution_map.canonical.recover(point.x, point.z)
        tensors = tuple(
            torch.from_numpy(value.reshape(self.bound.batch_shape + value.shape[1:])).to(
                dtype=self.dtype, device=self.device
            )
            for value in values
        )
        return tensors, point, values


class _Solve(torch.autograd.Function):
    """The solution map with its vector-Jacobian product."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *params: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # `values`: the float64 outputs, before they were rounded to their dtype. Those that the
        # derivative looks at are copies: the tensors may be changed in place.
        tensors, ctx.point, values = call.run(differentiable=True)
        outputs = call.solution_map.canonical.outputs
        ctx.values = [
            value.copy() if output.exponentiate else value
            for value, output in zip(values, outputs, strict=True)
        ]
        # The values have done their part; the graph need not keep them.
        call.bound.theta = []
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*params)
        ctx.kinds = [(p.dtype, p.device) for p in params]
        return tensors

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        if all(gradient is None for gradient in gradients):
            return (None,) * (1 + len(wanted))
        if torch.is_grad_enabled():
            # With create_graph=True a gradient has to depend on the inputs: what is differentiated
            # again must not come out as a constant.
            pulled = _Pullback.apply(ctx, *ctx.saved_tensors, *gradients)
        else:
            pulled = _pull(ctx, gradients)
        return None, *(g if w else None for g, w in zip(pulled, wanted, strict=True))


class _Pullback(torch.autograd.Function):
    """The vector-Jacobian product as a function of the parameters and the upstream gradients."""

    @staticmethod
    def forward(ctx: Any, solve: Any, *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        return _pull(solve, tensors[len(solve.kinds) :])

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor | None) -> tuple[None, ...]:
        raise NotImplementedError(
            "CvxpyLayer has no second derivatives in this version. Detach the gradient before "
            "differentiating what is computed from it."
        )


def _pull(solve: Any, gradients: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
    """The vector-Jacobian product at the point of a `_Solve`."""
    try:
        upstream = [None if g is None else _to_numpy(g) for g in gradients]
    except RuntimeError as error:  # is_grads_batched=True hands over a tensor without storage
        message = f"The upstream gradient is traced by {_UNSUPPORTED}"
        raise NotImplementedError(message) from error
    pulled = solve.call.solution_map.vjp(solve.point, upstream, solve.values)
    return tuple(
        torch.from_numpy(np.ascontiguousarray(g)).to(dtype=dtype, device=device)
        for g, (dtype, device) in zip(solve.call.bound.unbind(pulled), solve.kinds, strict=True)
    )


def _to_numpy(tensor: torch.Tensor) -> Array:
    return tensor.detach().to(device="cpu", dtype=torch.float64).numpy()


def _check_tensors(params: Sequence[Any], specs: Sequence[ParameterSpec]) -> None:
    if len(params) != len(specs):
        raise ParameterValueError(
            f"Expected {len(specs)} parameter values ({', '.join(spec.name for spec in specs)}), "
            f"got {len(params)}. Pass one for every entry of `parameters`, in that order; options "
            "such as solver_args go by keyword."
        )
    for param, spec in zip(params, specs, strict=True):
        problem = _problem_of(param)
        if problem is not None:
            raise ParameterTypeError(f"Parameter {spec.label}: {problem}")
        if param.device != params[0].device:
            raise ParameterValueError(
                f"Parameter {spec.label} is on {param.device}, but {specs[0].label} is on "
                f"{params[0].device}. Move all to one device with .to(...)."
            )
        if param.device.type == "meta":
            raise ParameterTypeError(
                f"Parameter {spec.label}: expected a tensor with values, got one on the meta "
                "device, which holds none."
            )
        if forward_ad.unpack_dual(param).tangent is not None or _is_transformed(param):
            raise NotImplementedError(f"Parameter {spec.label} is traced by {_UNSUPPORTED}")


_UNSUPPORTED = (
    "forward-mode differentiation or a torch.func transform, which CvxpyLayer does not support in "
    "this version. Use .backward() or torch.autograd.grad, and a batch axis in place of vmap."
)


def _problem_of(param: Any) -> str | None:
    """What is wrong with the kind of a value, in words."""
    if not isinstance(param, torch.Tensor):
        return (
            f"expected a torch.Tensor, got {type(param).__name__}. Convert it with torch.as_tensor."
        )
    if not param.dtype.is_floating_point:
        remedy = (
            "Pass its real and imaginary parts as parameters of their own."
            if param.is_complex()
            else "Convert it with .to(torch.get_default_dtype())."
        )
        return f"expected a floating-point tensor, got {param.dtype}. {remedy}"
    if param.layout != torch.strided:
        return f"expected a dense tensor, got layout {param.layout}. Convert it with .to_dense()."
    return None


def _is_transformed(tensor: torch.Tensor) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def _output_type(params: Sequence[torch.Tensor]) -> tuple[torch.dtype, torch.device]:
    if not params:
        return torch.get_default_dtype(), torch.device("cpu")
    return reduce(torch.promote_types, (p.dtype for p in params)), params[0].device
