"""Trap 14 (docs/design): where a rule is missing the answer is an error, never a silent zero."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import pytest
import torch
from layer_checks import draw, nonneg_least_squares, projection, tensor

from cvxlayers.torch import CvxpyLayer

# PyTorch's own, when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


@pytest.fixture(scope="module")
def layer() -> CvxpyLayer:
    return CvxpyLayer(*nonneg_least_squares())


def interior(A: torch.Tensor) -> torch.Tensor:
    """A right-hand side for which no bound is active."""
    return A @ torch.tensor([1.0, 2.0], dtype=torch.float64) + 0.1


def least_squares(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve(A.mT @ A, A.mT @ b)


@pytest.mark.parametrize("loss", ["linear", "quadratic"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_trap_14_double_backward_is_right(layer: CvxpyLayer, loss: str, accumulate: bool) -> None:
    """Where no bound is active x = A⁺ b, which PyTorch differentiates itself; also where the loss
    is linear in the solution, whose own second derivative then is all there is."""

    def penalty(solve: Callable[..., torch.Tensor], A: torch.Tensor) -> torch.Tensor:
        x = solve(A, interior(A.detach()))
        value = (x.square() if loss == "quadratic" else x).sum() + A.pow(3).sum()
        (first,) = torch.autograd.grad(value, A, create_graph=True)
        return first.square().sum()

    found, true = tensor(draw(3, 2)), tensor(draw(3, 2))
    if accumulate:
        penalty(lambda *v: layer(*v)[0], found).backward()
        penalty(least_squares, true).backward()
        torch.testing.assert_close(found.grad, true.grad, rtol=1e-9, atol=1e-9)
    else:
        (a,) = torch.autograd.grad(penalty(lambda *v: layer(*v)[0], found), found)
        (b,) = torch.autograd.grad(penalty(least_squares, true), true)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_trap_14_double_backward_with_respect_to_the_upstream_gradient(layer: CvxpyLayer) -> None:
    A = torch.as_tensor(draw(3, 2))
    b, upstream = interior(A).requires_grad_(), tensor(draw(2))
    (first,) = torch.autograd.grad(layer(A, b)[0], b, upstream, create_graph=True)
    (found,) = torch.autograd.grad(first, upstream, torch.eye(3)[1].double())
    torch.testing.assert_close(found, torch.linalg.pinv(A)[:, 1])


@pytest.mark.parametrize("order", ["jvp", "vjp"])
def test_trap_14_third_derivatives_raise(layer: CvxpyLayer, order: str) -> None:
    A = torch.as_tensor(draw(3, 2))
    b = interior(A)

    def value(A: torch.Tensor) -> torch.Tensor:
        return layer(A, b)[0].sum()

    transform = torch.func.jacfwd if order == "jvp" else torch.func.jacrev
    with pytest.raises(NotImplementedError, match="third"):
        transform(torch.func.hessian(value))(A)


def test_trap_14_derivatives_of_diffcp_have_none_of_their_own() -> None:
    layer = CvxpyLayer(*nonneg_least_squares(), solver=cp.DIFFCP)
    A = torch.as_tensor(draw(3, 2))
    with pytest.raises(NotImplementedError, match="solver=None"):
        torch.func.hessian(lambda b: layer(A, b)[0].sum())(interior(A))


def test_trap_14_first_order_gradcheck() -> None:
    """PyTorch's own finite differences, batched and shared inputs, two backward passes."""
    layer = CvxpyLayer(*projection())
    leaves = (tensor(draw(2, 4)), tensor(draw(2, 4)), tensor(draw(2)))
    assert torch.autograd.gradcheck(lambda *v: layer(*v), leaves, eps=1e-5, atol=1e-6)
    (x,) = layer(*leaves)
    first = torch.autograd.grad(x.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(x.sum(), leaves)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_trap_14_an_output_that_depends_on_no_parameter_has_a_zero_gradient() -> None:
    a, x, y = cp.Parameter(), cp.Variable(), cp.Variable()
    problem = cp.Problem(cp.Minimize(cp.square(x - a) + cp.square(y - 1)))
    a_t = tensor(3.0)
    x_t, y_t = CvxpyLayer(problem, [a], [x, y])(a_t)
    assert torch.autograd.grad(y_t, a_t, retain_graph=True)[0] == 0
    assert torch.autograd.grad(x_t, a_t)[0] == pytest.approx(1)
