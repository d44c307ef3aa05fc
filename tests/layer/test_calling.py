"""What a caller may pass, and what is said when it is something else."""

from __future__ import annotations

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
    says,
    tensor,
)

from conformance.problems.case import positive_definite
from cvxlayers import CvxlayersError, ParameterTypeError, ParameterValueError
from cvxlayers.torch import CvxpyLayer


@pytest.fixture(scope="module")
def layer() -> CvxpyLayer:
    """Takes A (3, 2) and b (3,)."""
    return CvxpyLayer(*nonneg_least_squares())


@pytest.fixture(scope="module")
def projecting() -> CvxpyLayer:
    """Takes t (4,), A (2, 4) and b (2,)."""
    return CvxpyLayer(*projection())


A, B = torch.as_tensor(draw(3, 2)), torch.as_tensor(draw(3))


# --- Count, shape, batch axes.


@pytest.mark.parametrize("values", [(), (A,), (A, B, B)], ids=["none", "one", "three"])
def test_wrong_count(layer: CvxpyLayer, values: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(CvxlayersError, match=says("Expected 2", "A, b", f"got {len(values)}")):
        layer(*values)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ((A.T, B), ("'A'", "(3, 2)", "(2, 3)")),
        ((A, B[:2]), ("'b'", "(3,)", "(2,)")),
        ((A[0], B), ("'A'", "(3, 2)", "(2,)")),
        ((A, B[0]), ("'b'", "(3,)", "()")),
        ((A, B[:, None]), ("'b'", "(3,)", "(3, 1)")),
    ],
    ids=["transposed", "short", "row", "scalar", "column"],
)
def test_wrong_shape_names_the_parameter_and_both_shapes(
    layer: CvxpyLayer, values: tuple[torch.Tensor, ...], parts: tuple[str, ...]
) -> None:
    with pytest.raises(ParameterValueError, match=says(*parts)):
        layer(*values)


def test_batch_sizes_that_do_not_broadcast(layer: CvxpyLayer) -> None:
    with pytest.raises(
        ParameterValueError, match=says("'A' (argument 0) has (4,)", "'b' (argument 1) has (5,)")
    ):
        layer(A.expand(4, 3, 2), B.expand(5, 3))


@pytest.mark.parametrize(
    "batches",
    [
        ((5, 1), (7,), ()),
        ((7,), (5, 1), (5, 7)),
        ((1, 1), (1,), (2, 3)),
        ((2, 1, 3), (4, 1), (1,)),
        ((1, 1), (), (1,)),
        ((3, 2), (3, 2), (1, 2)),
    ],
    ids=str,
)
def test_batch_axes_broadcast_as_in_numpy(
    projecting: CvxpyLayer, batches: tuple[tuple[int, ...], ...]
) -> None:
    """Outputs against the closed form; gradients sum over broadcast axes."""
    values = [
        draw(*batch, *shape) for batch, shape in zip(batches, ((4,), (2, 4), (2,)), strict=True)
    ]
    agree(projecting, projection_formula, values)
    (x,) = projecting(*map(torch.as_tensor, values))
    assert x.shape == (*np.broadcast_shapes(*batches), 4)


def test_gradients_of_broadcast_axes_are_those_of_an_explicit_expansion(
    projecting: CvxpyLayer,
) -> None:
    values = [draw(5, 1, 4), draw(7, 2, 4), draw(2)]

    def expanded(t: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return projecting(t.expand(5, 7, 4), A.expand(5, 7, 2, 4), b.expand(5, 7, 2))

    outputs, gradients = run(projecting, values)
    true_outputs, true_gradients = run(expanded, values)
    assert outputs[0].shape == (5, 7, 4) and same_bits(outputs, true_outputs)
    for found, true in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("batch", [(0,), (0, 3), (3, 0)])
def test_an_empty_batch(layer: CvxpyLayer, batch: tuple[int, ...]) -> None:
    """As the last batch of a data set that was filtered: empty outputs, zero gradients."""
    A_t, b_t = tensor(A), tensor(np.zeros((*batch, 3)))
    (x,) = layer(A_t, b_t)
    assert x.shape == (*batch, 2)
    x.sum().backward()
    assert torch.equal(A_t.grad, torch.zeros_like(A)) and b_t.grad.shape == (*batch, 3)
    with torch.no_grad():
        assert layer(A_t, b_t)[0].shape == (*batch, 2)


@pytest.mark.parametrize("attribute", ["pos", "diag", "PSD"])
def test_an_empty_batch_of_a_parameter_with_an_attribute(attribute: str) -> None:
    p, x = cp.Parameter((2, 2), **{attribute: True}), cp.Variable((2, 2))
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p))), [p], [x])
    value = tensor(np.zeros((0, 2, 2)))
    (x_t,) = layer(value)
    x_t.sum().backward()
    assert x_t.shape == value.grad.shape == (0, 2, 2)


# --- Type, dtype, device.


@pytest.mark.parametrize(
    "value", [None, "A", {}, {1.0}, np.array(["A"]), np.ones(3) * 1j, [[1], [1, 2]]], ids=repr
)
def test_a_value_that_is_no_array(layer: CvxpyLayer, value: object) -> None:
    kind = type(value).__name__
    with pytest.raises(ParameterTypeError, match=says("'A'", "NumPy array", f"got {kind}")):
        layer(value, B)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128])
def test_a_dtype_that_is_not_floating_point(layer: CvxpyLayer, dtype: torch.dtype) -> None:
    with pytest.raises(ParameterTypeError, match=says("'b'", "floating-point", str(dtype))):
        layer(A, torch.ones(3, dtype=dtype))


def test_values_on_different_devices(layer: CvxpyLayer) -> None:
    with pytest.raises(
        ParameterValueError, match=says("'b' (argument 1) is on meta", "'A' (argument 0) is on cpu")
    ):
        layer(A, B.to("meta"))


def test_keyword_arguments_of_a_call_are_keyword_only(layer: CvxpyLayer) -> None:
    with pytest.raises(ParameterValueError, match=says("Expected 2", "got 3", "keyword")):
        layer(A, B, {"eps": 1e-8})


# --- Content.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(layer: CvxpyLayer, bad: float) -> None:
    b = torch.zeros(4, 3)
    b[2, 1] = b[3, 0] = bad
    with pytest.raises(ParameterValueError, match=says("'b'", "2 NaN or infinite", "(2, 1)")):
        layer(A, b)


@pytest.mark.parametrize(
    ("attributes", "value", "parts"),
    [
        ({"nonneg": True}, [1.0, -0.5], ("nonneg", "(1,)")),
        ({"nonpos": True}, [-1.0, 0.5], ("nonpos", "(1,)")),
        ({"pos": True}, [0.0, 1.0], ("pos", "(0,)")),
        ({"neg": True}, [-1.0, 0.0], ("neg", "(1,)")),
        ({"bounds": [0.0, 1.0]}, [0.5, 1.5], ("bounds", "(1,)")),
        ({"symmetric": True}, [[1.0, 2.0], [3.0, 1.0]], ("symmetric",)),
        ({"PSD": True}, [[1.0, 2.0], [3.0, 9.0]], ("PSD",)),
        ({"PSD": True}, [[1.0, 2.0], [2.0, 1.0]], ("PSD", "eigenvalue", "-1")),
        ({"NSD": True}, [[-1.0, 2.0], [2.0, -1.0]], ("NSD", "eigenvalue", "1")),
        ({"diag": True}, [[1.0, 0.0], [0.5, 1.0]], ("diag", "(1, 0)")),
        ({"sparsity": [(0, 1), (0, 1)]}, [[1.0, 0.5], [0.0, 1.0]], ("sparsity", "(0, 1)")),
    ],
    ids=["nonneg", "nonpos", "pos", "neg", "bounds", "symmetric", "PSD-symmetric", "PSD", "NSD",
         "diag", "sparsity"],
)  # fmt: skip
@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
@pytest.mark.filterwarnings("ignore:Reading from a sparse CVXPY expression")
def test_a_value_without_the_attribute_that_was_declared(
    attributes: dict, value: list, parts: tuple[str, ...], batch: bool
) -> None:
    value_t = torch.tensor(value, dtype=torch.float64)
    p = cp.Parameter(value_t.shape, name="p", **attributes)
    x = cp.Variable(value_t.shape)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p))), [p], [x])
    if batch:
        # The first instance is as declared: a definite matrix, or the entries repaired.
        fine = {"neg": -1.0, "nonpos": -1.0, "NSD": -1.0}.get(next(iter(attributes)), 1.0)
        good = fine * torch.eye(2) if value_t.ndim == 2 else torch.full((2,), fine)
        value_t = torch.stack([good.double(), value_t])
        parts = tuple(part.replace("(", "(1, ").replace(",)", ")") for part in parts)
    with pytest.raises(ParameterValueError, match=says("'p'", *parts)):
        layer(value_t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_does_not_break_a_declared_attribute(dtype: torch.dtype) -> None:
    """A Gram matrix is symmetric and semidefinite up to rounding only; a rank-one one, too."""
    S, x = cp.Parameter((5, 5), PSD=True), cp.Variable(5)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, S) + cp.sum_squares(x - 1)))
    layer = CvxpyLayer(problem, [S], [x])
    for rank in (1, 5):
        factor = torch.as_tensor(draw(20, 5, rank)).to(dtype)
        (x_t,) = layer(factor @ factor.mT)
        assert x_t.isfinite().all()


def test_a_slightly_asymmetric_value_counts_as_its_symmetric_part() -> None:
    S, x = cp.Parameter((3, 3), symmetric=True), cp.Variable((3, 3))
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - S))), [S], [x])
    value = positive_definite(np.random.default_rng(0), 3)
    value[0, 1] += 1e-7
    (found,) = layer(torch.as_tensor(value))
    np.testing.assert_allclose(found, (value + value.T) / 2, rtol=0, atol=1e-9)


# --- By name, and constants.


def test_parameters_go_by_position_or_by_name(layer: CvxpyLayer) -> None:
    (true,) = layer(A, B)
    for found in (layer(A=A, b=B), layer(b=B, A=A), layer(A, b=B)):
        assert same_bits(found, (true,))


def test_names_go_together_with_options(layer: CvxpyLayer) -> None:
    (x,) = layer(b=B, A=A, solver_args={"eps": 1e-9}, on_failure="nan", warm_start=False)
    assert x.shape == (2,)


@pytest.mark.parametrize(
    ("positional", "named", "parts"),
    [
        ((A,), {}, ("Expected 2 (A, b), got 1", "'b' (argument 1) is missing")),
        ((), {"b": B}, ("'A' (argument 0) is missing",)),
        ((A, B), {"b": B}, ("'b' (argument 1)", "twice")),
        ((B,), {"A": A}, ("'A' (argument 0)", "twice")),
        ((A,), {"B": B}, ("no parameter or option 'B'", "Did you mean 'b'?", "A, b")),
        ((A, B), {"solver_arg": {}}, ("no parameter or option 'solver_arg'", "'solver_args'?")),
    ],
    ids=["missing", "missing first", "twice", "twice first", "unknown", "misspelt option"],
)
def test_names_that_do_not_fit(
    layer: CvxpyLayer, positional: tuple, named: dict, parts: tuple[str, ...]
) -> None:
    with pytest.raises(ParameterValueError, match=says(*parts)):
        layer(*positional, **named)


def test_names_that_several_parameters_have() -> None:
    p, q, x = cp.Parameter(name="p"), cp.Parameter(name="p"), cp.Variable()
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.square(x - p - 2 * q))), [p, q], [x])
    assert float(layer(1.0, 2.0)[0]) == pytest.approx(5)
    with pytest.raises(ParameterValueError, match=says("2 parameters have the name 'p'")):
        layer(p=1.0)


def test_numbers_lists_and_arrays_are_constants_beside_tensors() -> None:
    """They change neither dtype nor device of the outputs, and want no gradient."""
    (A_p, b_p, lam), x = (cp.Parameter((3, 2)), cp.Parameter(3), cp.Parameter(pos=True)), None
    x = cp.Variable(2)
    objective = cp.sum_squares(A_p @ x - b_p) + lam * cp.sum_squares(x)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(objective)), [A_p, b_p, lam], [x])
    matrix, b = A.numpy(), tensor(B, torch.float32)
    (found,) = layer(matrix, b, 0.1)
    assert found.dtype == torch.float32
    ridge = matrix.T @ matrix + 0.1 * np.eye(2)
    true = np.linalg.solve(ridge, matrix.T @ B.numpy())
    np.testing.assert_allclose(found.detach(), true, rtol=1e-6)
    found.sum().backward()
    slope = np.linalg.solve(ridge, matrix.T).sum(0)
    np.testing.assert_allclose(b.grad, slope, rtol=1e-6)
    assert layer(matrix.tolist(), B, np.float64(0.1))[0].dtype == torch.float64
    assert layer([[1, 0], [0, 1], [0, 0]], [1, 2, 3], 1)[0].dtype == torch.get_default_dtype()
    assert layer(matrix, B.numpy(), 0.1)[0].dtype == torch.float64
    assert layer(matrix.astype(np.float32), [1, 2, 3], 0.1)[0].dtype == torch.float32


def test_a_constant_is_not_rounded_to_the_dtype_of_the_tensors() -> None:
    p, q, x = cp.Parameter(), cp.Parameter(), cp.Variable()
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.square(x - p - 1e8 * (q - 0.1)))), [p, q], [x])
    (found,) = layer(torch.zeros((), dtype=torch.float32), 0.1)
    assert abs(float(found)) < 1e-6  # 0.1 in single precision is 1.5e-9 off
