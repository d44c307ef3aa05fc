"""Traps 6 and 15 (docs/design): batch axes, shared parameters, dtypes."""

from __future__ import annotations

import itertools

import cvxpy as cp
import numpy as np
import pytest
import torch
from layer_checks import (
    agree,
    draw,
    nonneg_least_squares,
    projection,
    projection_formula,
    run,
    same_bits,
    tensor,
)

from cvxlayers.torch import CvxpyLayer


@pytest.fixture(scope="module")
def layer() -> CvxpyLayer:
    return CvxpyLayer(*projection())


@pytest.fixture(scope="module")
def positive_layer() -> CvxpyLayer:
    return CvxpyLayer(*nonneg_least_squares())


# --- Trap 6: batches of one, shared parameters, constant matrices.

SOME = (None, 1, 3)


@pytest.mark.parametrize("batches", list(itertools.product(SOME, SOME, SOME)), ids=str)
def test_trap_6_batched_one_and_shared(layer: CvxpyLayer, batches: tuple[int | None, ...]) -> None:
    """Outputs' shape, gradients' shapes, and sums over the batch for what is shared."""
    shapes = ((4,), (2, 4), (2,))
    values = [
        draw(*(() if batch is None else (batch,)), *shape)
        for batch, shape in zip(batches, shapes, strict=True)
    ]
    agree(layer, projection_formula, values)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (1, 1), (2, 3)])
def test_trap_6_every_matrix_is_constant(batch: tuple[int, ...]) -> None:
    """Only q varies: soft thresholding; only b varies: clipping."""
    t, x = cp.Parameter(5), cp.Variable(5)
    layer = CvxpyLayer(
        cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - t) + 0.5 * cp.norm1(x))), [t], [x]
    )
    agree(layer, lambda t: (torch.nn.functional.softshrink(t, 0.5),), [2 * draw(*batch, 5)])
    u = cp.Parameter(5)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [x <= u]), [u], [x])
    agree(layer, lambda u: (u.clamp(max=1.0),), [2 * draw(*batch, 5)])


@pytest.mark.parametrize("batch", [(), (1,), (4,)])
def test_trap_6_scalar_parameters_and_variables(batch: tuple[int, ...]) -> None:
    a, x = cp.Parameter(), cp.Variable()
    constraint = x >= 0
    layer = CvxpyLayer(
        cp.Problem(cp.Minimize(cp.square(x - a)), [constraint]),
        [a],
        [x, constraint.dual_variables[0]],
    )
    agree(layer, lambda a: (a.relu(), 2 * (-a).relu()), [draw(*batch) - 0.1])


def test_trap_6_a_shared_gradient_sums_over_an_expanded_view(layer: CvxpyLayer) -> None:
    """A parameter expanded by the caller gets the same gradient as one that is shared."""
    t, A, b = draw(3, 4), draw(2, 4), draw(2)
    _, shared = run(layer, [t, A, b])

    def expanded(t: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return layer(t, A.expand(3, 2, 4), b.expand(3, 2))

    for found, true in zip(run(expanded, [t, A, b])[1], shared, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-10, atol=1e-12)


def test_trap_6_non_contiguous_inputs_and_gradients(layer: CvxpyLayer) -> None:
    A = tensor(draw(4, 2, 3))
    t, b = torch.as_tensor(draw(4, 3)), torch.as_tensor(draw(2, 3))
    (x,) = layer(t.T, A.permute(2, 1, 0), b.T)
    (true,) = projection_formula(t.T, A.permute(2, 1, 0), b.T)
    torch.testing.assert_close(x, true)
    found = torch.autograd.grad(x, A, torch.as_tensor(draw(4, 3)).T)[0]
    torch.testing.assert_close(
        found, torch.autograd.grad(true, A, torch.as_tensor(draw(4, 3)).T)[0]
    )


def test_inputs_changed_in_place_after_the_call_raise_in_backward() -> None:
    """As for PyTorch's own operations: never a gradient at other values."""
    a, b, x = cp.Parameter(pos=True), cp.Parameter(pos=True), cp.Variable(pos=True)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(a / x + b * x)), [a, b], [x], gp=True)
    a_t, b_t = tensor(2.0), tensor(0.5)
    (x_t,) = layer(a_t, b_t)  # sqrt(a / b), solved through logarithms
    with torch.no_grad():
        a_t.fill_(100.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x_t.backward()


def test_outputs_do_not_share_memory_with_what_backward_needs(layer: CvxpyLayer) -> None:
    """Changing an output in place raises or does no harm; it never gives a wrong gradient."""
    values = [draw(3, 4), draw(2, 4), draw(2)]
    true = run(layer, values)[1]
    leaves = [tensor(v) for v in values]
    (x,) = layer(*leaves)
    loss = (torch.as_tensor(draw(3, 4)) * x).sum()
    x.detach().zero_()
    assert same_bits(torch.autograd.grad(loss, leaves), true)


def test_only_some_inputs_want_a_gradient(layer: CvxpyLayer) -> None:
    t, A, b = torch.as_tensor(draw(4)), tensor(draw(2, 4)), torch.as_tensor(draw(2))
    layer(t, A, b)[0].sum().backward()
    assert t.grad is None and b.grad is None
    true = torch.autograd.grad(projection_formula(t, A, b)[0].sum(), A)[0]
    torch.testing.assert_close(A.grad, true)


def test_no_gradient_wanted_gives_the_same_answer_without_a_graph(layer: CvxpyLayer) -> None:
    values = [tensor(draw(4)), tensor(draw(2, 4)), tensor(draw(2))]
    with torch.no_grad():
        (x,) = layer(*values)
    assert not x.requires_grad
    torch.testing.assert_close(x, projection_formula(*values)[0].detach())
    with torch.inference_mode():
        assert same_bits(layer(*values), [x])


# --- Trap 15: float32 is rounded before the solve.


def test_trap_15_float32_is_rounded_after_the_solve_only(positive_layer: CvxpyLayer) -> None:
    """Bitwise the float64 answer and gradient at the same values, rounded."""
    values = [torch.tensor(draw(5, 3, 2), dtype=torch.float32), torch.tensor(draw(3)).float()]
    outputs, gradients = run(positive_layer, values)
    # The random weights of `run` are rounded to the outputs' dtype: round them here too.
    doubles = [v.double().requires_grad_() for v in values]
    (x,) = positive_layer(*doubles)
    upstream = torch.as_tensor(draw(5, 2)).float().double()
    exact = torch.autograd.grad(x, doubles, upstream)
    assert same_bits(outputs, [x.detach().float()])
    assert same_bits(gradients, [g.float() for g in exact])


def test_trap_15_float32_is_accurate_where_single_precision_is_not() -> None:
    """Normal equations of these data are singular in float32."""
    A = np.array([[1.0, 1.0], [1.0, 1.0 + 2.0**-12], [1.0, 1.0 - 2.0**-12]])
    b = A @ np.array([1.0, 2.0])
    A_p, b_p, x = cp.Parameter((3, 2)), cp.Parameter(3), cp.Variable(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(A_p @ x - b_p))), [A_p, b_p], [x])
    values = [torch.tensor(A).float(), torch.tensor(b).float()]
    true = torch.linalg.lstsq(values[0].double(), values[1].double()).solution.float()
    for wants_gradient in (False, True):
        (found,) = layer(*(v.clone().requires_grad_(wants_gradient) for v in values))
        torch.testing.assert_close(found.detach(), true, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_trap_15_outputs_and_gradients_have_the_inputs_dtype(
    positive_layer: CvxpyLayer, dtype: torch.dtype
) -> None:
    A, b = tensor(draw(3, 2), dtype), tensor(draw(2, 3), dtype)
    (x,) = positive_layer(A, b)
    assert x.dtype == dtype
    x.sum().backward()
    assert A.grad is not None and A.grad.dtype == dtype
    assert b.grad is not None and b.grad.dtype == dtype


def test_trap_15_mixed_dtypes_promote(positive_layer: CvxpyLayer) -> None:
    A, b = tensor(draw(3, 2), torch.float32), tensor(draw(3), torch.float64)
    (x,) = positive_layer(A, b)
    assert x.dtype == torch.float64
    x.sum().backward()
    assert A.grad is not None and A.grad.dtype == torch.float32
    assert b.grad is not None and b.grad.dtype == torch.float64
    (exact,) = positive_layer(A.detach().double(), b.detach().requires_grad_())
    assert same_bits([x.detach()], [exact.detach()])
