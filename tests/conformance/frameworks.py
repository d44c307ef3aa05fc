"""The transforms of every framework, as ways to differentiate the loss of a case.

The loss is that of the oracles, L(θ) = Σ_i <c_i, variable_i(θ)>, written down in the framework. A
*first* takes a case and gives full gradients, or the derivatives along directions; a *second* gives
the matrix of second derivatives along pairs of directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch.autograd import forward_ad

import cvxlayers.numpy
import cvxlayers.torch

from .oracle import weights
from .problems import Case

Array = np.ndarray
Direction = Sequence[Array]

# name -> gradients for all parameters
GRADIENTS: dict[str, Callable[[Case], list[Array]]] = {}
# name -> the derivative along a direction
DERIVATIVES: dict[str, Callable[[Case, Direction], float]] = {}
# name -> Hessian times a direction, one array for each parameter
PRODUCTS: dict[str, Callable[[Case, Direction], list[Array]]] = {}
# name -> the second derivative along two directions
PAIRS: dict[str, Callable[[Case, Direction, Direction], float]] = {}


# --- NumPy


@cache
def _numpy_layer(case: Case) -> cvxlayers.numpy.CvxpyLayer:
    problem, parameters, variables = case.build()
    return cvxlayers.numpy.CvxpyLayer(problem, parameters, variables, gp=case.gp)


def _weighted(case: Case, outputs: Sequence[Array]) -> float:
    return sum(float((c * y).sum()) for c, y in zip(weights(case), outputs, strict=True))


def _numpy_vjp(case: Case) -> list[Array]:
    _, pullback = _numpy_layer(case).vjp(*case.values())
    return list(pullback(*weights(case)))


def _numpy_jvp(case: Case, along: Direction) -> float:
    return _weighted(case, _numpy_layer(case).jvp(case.values(), along)[1])


def _numpy_hvp(case: Case, along: Direction) -> list[Array]:
    return list(_numpy_layer(case).hvp(case.values(), weights(case), along))


def _numpy_jvp2(case: Case, first: Direction, second: Direction) -> float:
    return _weighted(case, _numpy_layer(case).jvp2(case.values(), first, second))


GRADIENTS["numpy: vjp"] = _numpy_vjp
DERIVATIVES["numpy: jvp"] = _numpy_jvp
PRODUCTS["numpy: hvp"] = _numpy_hvp
PAIRS["numpy: jvp2"] = _numpy_jvp2


# --- PyTorch


@cache
def _torch_loss(case: Case) -> Callable[..., torch.Tensor]:
    problem, parameters, variables = case.build()
    layer = cvxlayers.torch.CvxpyLayer(problem, parameters, variables, gp=case.gp)
    cs = [torch.as_tensor(c) for c in weights(case)]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        return sum((c * y).sum() for c, y in zip(cs, layer(*values), strict=True))

    return loss


def _tensors(arrays: Sequence[Array], requires_grad: bool = False) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(a).requires_grad_(requires_grad) for a in arrays)


def _numbers(tensors: Sequence[torch.Tensor]) -> list[Array]:
    return [t.detach().numpy() for t in tensors]


def _everything(case: Case) -> tuple[int, ...]:
    return tuple(range(len(case.values())))


def _torch_backward(case: Case) -> list[Array]:
    values = _tensors(case.values(), True)
    return _numbers(torch.autograd.grad(_torch_loss(case)(*values), values))


def _torch_grad(case: Case) -> list[Array]:
    gradient = torch.func.grad(_torch_loss(case), _everything(case))
    return _numbers(gradient(*_tensors(case.values())))


def _torch_vmap_grad(case: Case) -> list[Array]:
    """The middle one of three instances that are mapped over."""
    values = [torch.stack([v, v, v]) for v in _tensors(case.values())]
    gradient = torch.func.vmap(torch.func.grad(_torch_loss(case), _everything(case)))
    return [g[1] for g in _numbers(gradient(*values))]


def _torch_compiled(case: Case) -> list[Array]:
    """Through the operator that stands for the layer in a compiled graph."""
    torch._dynamo.reset()
    values = _tensors(case.values(), True)
    loss = torch.compile(_torch_loss(case), fullgraph=True, backend="aot_eager")
    return _numbers(torch.autograd.grad(loss(*values), values))


def _torch_jvp(case: Case, along: Direction) -> float:
    _, derivative = torch.func.jvp(_torch_loss(case), _tensors(case.values()), _tensors(along))
    return float(derivative)


def _torch_dual(case: Case, along: Direction) -> float:
    with forward_ad.dual_level():
        pairs = zip(_tensors(case.values(), True), _tensors(along), strict=True)
        loss = _torch_loss(case)(*(forward_ad.make_dual(*pair) for pair in pairs))
        return float(forward_ad.unpack_dual(loss).tangent.detach())


def _torch_double_backward(case: Case, along: Direction) -> list[Array]:
    values = _tensors(case.values(), True)
    loss = _torch_loss(case)(*values)
    gradient = torch.autograd.grad(loss, values, create_graph=True)
    product = torch.autograd.grad(gradient, values, _tensors(along))
    return _numbers(product)


def _torch_forward_over_reverse(case: Case, along: Direction) -> list[Array]:
    gradient = torch.func.grad(_torch_loss(case), _everything(case))
    return _numbers(torch.func.jvp(gradient, _tensors(case.values()), _tensors(along))[1])


def _torch_reverse_over_forward(case: Case, along: Direction) -> list[Array]:
    loss, direction = _torch_loss(case), _tensors(along)

    def derivative(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(loss, values, direction)[1]

    gradient = torch.func.grad(derivative, _everything(case))
    return _numbers(gradient(*_tensors(case.values())))


def _torch_reverse_over_reverse(case: Case, along: Direction) -> list[Array]:
    gradient, direction = torch.func.grad(_torch_loss(case), _everything(case)), _tensors(along)

    def derivative(*values: torch.Tensor) -> torch.Tensor:
        pairs = zip(gradient(*values), direction, strict=True)
        return sum((g * d).sum() for g, d in pairs)

    return _numbers(torch.func.grad(derivative, _everything(case))(*_tensors(case.values())))


def _torch_forward_over_forward(case: Case, first: Direction, second: Direction) -> float:
    loss, direction = _torch_loss(case), _tensors(first)

    def derivative(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(loss, values, direction)[1]

    return float(torch.func.jvp(derivative, _tensors(case.values()), _tensors(second))[1])


GRADIENTS["torch: backward"] = _torch_backward
GRADIENTS["torch: grad"] = _torch_grad
GRADIENTS["torch: vmap(grad)"] = _torch_vmap_grad
GRADIENTS["torch: compile"] = _torch_compiled
DERIVATIVES["torch: jvp"] = _torch_jvp
DERIVATIVES["torch: dual numbers"] = _torch_dual
PRODUCTS["torch: backward of backward"] = _torch_double_backward
PRODUCTS["torch: jvp of grad"] = _torch_forward_over_reverse
PRODUCTS["torch: grad of jvp"] = _torch_reverse_over_forward
PRODUCTS["torch: grad of grad"] = _torch_reverse_over_reverse
PAIRS["torch: jvp of jvp"] = _torch_forward_over_forward
