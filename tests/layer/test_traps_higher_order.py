"""Trap 14 (docs/design): where a rule is missing the answer is an error, never a silent zero."""

from __future__ import annotations

import cvxpy as cp
import pytest
import torch
from layer_checks import draw, nonneg_least_squares, projection, tensor
from torch.autograd import forward_ad

from cvxlayers.torch import CvxpyLayer

# PyTorch's own, when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


@pytest.fixture(scope="module")
def layer() -> CvxpyLayer:
    return CvxpyLayer(*nonneg_least_squares())


def values() -> tuple[torch.Tensor, torch.Tensor]:
    return tensor(draw(3, 2)), tensor(abs(draw(3)) + 1)


@pytest.mark.parametrize("loss", ["linear", "quadratic"])
@pytest.mark.parametrize("other_path", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_trap_14_double_backward_raises(
    layer: CvxpyLayer, loss: str, other_path: bool, accumulate: bool
) -> None:
    """Also where the loss is linear in the solution, and where another term has a true second
    derivative, beside which a missing one would not be noticed."""
    A, b = values()
    (x,) = layer(A, b)
    value = (x.square() if loss == "quadratic" else x).sum()
    if other_path:
        value = value + A.pow(3).sum()
    with pytest.raises((RuntimeError, NotImplementedError)):
        (first,) = torch.autograd.grad(value, A, create_graph=True)
        penalty = first.square().sum()
        if accumulate:
            penalty.backward()
        else:
            torch.autograd.grad(penalty, A)


def test_trap_14_double_backward_with_respect_to_the_upstream_gradient_raises(
    layer: CvxpyLayer,
) -> None:
    A, b = values()
    upstream = tensor(draw(2))
    (first,) = torch.autograd.grad(layer(A, b)[0], b, upstream, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), upstream)


def test_trap_14_hessian_raises(layer: CvxpyLayer) -> None:
    A, b = values()
    with pytest.raises(RuntimeError):
        torch.autograd.functional.hessian(lambda b: layer(A.detach(), b)[0].square().sum(), b)


def test_trap_14_forward_mode_raises(layer: CvxpyLayer) -> None:
    A, b = (v.detach() for v in values())
    with forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError)):
        layer(A, forward_ad.make_dual(b, torch.ones_like(b)))


def test_trap_14_forward_mode_with_inputs_that_want_a_gradient_raises(layer: CvxpyLayer) -> None:
    A, b = values()
    with forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError)):
        layer(A, forward_ad.make_dual(b, torch.ones_like(b)))


@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.jacrev, torch.func.grad])
def test_trap_14_transforms_raise_or_are_right(layer: CvxpyLayer, transform: object) -> None:
    """The derivative of min ‖A x − b‖², x ≥ 0, at a positive x: the pseudo-inverse of A."""
    A, x = torch.as_tensor(draw(3, 2)), torch.tensor([1.0, 2.0], dtype=torch.float64)
    b = A @ x
    jacobian = torch.linalg.pinv(A)
    reduce = torch.Tensor.sum if transform is torch.func.grad else torch.Tensor.clone
    true = jacobian.sum(0) if transform is torch.func.grad else jacobian
    try:
        found = transform(lambda b: reduce(layer(A, b)[0]))(b)  # type: ignore[operator]
    except (RuntimeError, NotImplementedError):
        return
    torch.testing.assert_close(found, true, rtol=1e-6, atol=1e-8)


def test_trap_14_jvp_raises_or_is_right(layer: CvxpyLayer) -> None:
    A, x = torch.as_tensor(draw(3, 2)), torch.tensor([1.0, 2.0], dtype=torch.float64)
    b, direction = A @ x, torch.as_tensor(draw(3))
    try:
        _, found = torch.func.jvp(lambda b: layer(A, b)[0], (b,), (direction,))
    except (RuntimeError, NotImplementedError):
        return
    torch.testing.assert_close(found, torch.linalg.pinv(A) @ direction, rtol=1e-6, atol=1e-8)


def test_trap_14_vmap_raises_or_is_right(layer: CvxpyLayer) -> None:
    A, b = (v.detach() for v in values())
    batch = torch.stack([b, 2 * b])
    try:
        found = torch.func.vmap(lambda b: layer(A, b)[0])(batch)
    except (RuntimeError, NotImplementedError):
        return
    torch.testing.assert_close(found, layer(A, batch)[0])


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
