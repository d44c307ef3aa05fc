"""What a constructor and its options may be, and what is said when they are something else."""

from __future__ import annotations

import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from layer_checks import draw, nonneg_least_squares, same_bits, says, tensor

from cvxlayers.torch import CvxpyLayer
from solvers.toys import DEFAULT

A, B = torch.as_tensor(draw(3, 2)), torch.as_tensor(draw(3))


@pytest.fixture(scope="module")
def layer() -> CvxpyLayer:
    """Takes A (3, 2) and b (3,)."""
    return CvxpyLayer(*nonneg_least_squares())


# --- The constructor's lists.


def test_a_parameter_that_is_not_the_problems() -> None:
    problem, parameters, variables = nonneg_least_squares()
    other = cp.Parameter(name="other")
    with pytest.raises(ValueError, match=says("parameters[1]", "other", "not a parameter")):
        CvxpyLayer(problem, [parameters[0], other, parameters[1]], variables)


def test_a_parameter_listed_twice() -> None:
    problem, (A_p, b_p), variables = nonneg_least_squares()
    with pytest.raises(ValueError, match=says("parameters[1]", "A", "twice")):
        CvxpyLayer(problem, [A_p, A_p, b_p], variables)


def test_a_missing_parameter_that_has_a_value() -> None:
    problem, (A_p, b_p), variables = nonneg_least_squares()
    b_p.value = np.ones(3)
    with pytest.raises(ValueError, match=says("[b]", "missing", ".value")):
        CvxpyLayer(problem, [A_p], variables)


def test_a_variable_that_is_not_the_problems() -> None:
    problem, parameters, variables = nonneg_least_squares()
    with pytest.raises(ValueError, match=says("variables[1]", "stranger", "neither")):
        CvxpyLayer(problem, parameters, [*variables, cp.Variable(name="stranger")])


@pytest.mark.parametrize("which", ["problem", "parameters", "variables"])
def test_an_argument_of_another_type(which: str) -> None:
    problem, parameters, variables = nonneg_least_squares()
    arguments = {"problem": problem, "parameters": parameters, "variables": variables}
    for wrong in (3.0, [parameters[0], 3.0], "abc"):
        with pytest.raises(TypeError, match=which):
            CvxpyLayer(**{**arguments, which: wrong})


def test_a_single_leaf_in_place_of_a_list_is_told_how_to_write_it() -> None:
    problem, parameters, variables = nonneg_least_squares()
    with pytest.raises(TypeError, match=says("variables", "list", "[...]")):
        CvxpyLayer(problem, parameters, variables[0])


def test_tuples_are_lists_and_a_variable_may_be_asked_for_twice() -> None:
    problem, parameters, (x,) = nonneg_least_squares()
    layer = CvxpyLayer(problem, tuple(parameters), (x, x))
    b = tensor(abs(draw(3)))
    first, second = layer(A, b)
    (together,) = torch.autograd.grad((first + second).sum(), b, retain_graph=True)
    (alone,) = torch.autograd.grad(first.sum(), b)
    assert torch.equal(first, second)
    torch.testing.assert_close(together, 2 * alone)


def test_a_problem_without_parameters() -> None:
    x = cp.Variable(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 3)), [x <= 2]), [], [x])
    (x_t,) = layer()
    torch.testing.assert_close(x_t.double(), torch.full((2,), 2.0, dtype=torch.float64))
    assert x_t.dtype == torch.get_default_dtype()


# --- Problems that are not disciplined.


def not_dpp_problems() -> dict[str, tuple[cp.Problem, list, list, tuple[str, ...]]]:
    x = cp.Variable(2, name="x")
    a, b = cp.Parameter(nonneg=True, name="a"), cp.Parameter(nonneg=True, name="b")
    S = cp.Parameter((2, 2), PSD=True, name="S")
    squares = cp.sum_squares(x)
    return {
        "product of parameters": (
            cp.Problem(cp.Minimize(a * b * squares + cp.sum(x))), [a, b], [x],
            ("expression a * b", "objective", "Parameter of its own"),
        ),
        "quad_form in a constraint": (
            cp.Problem(cp.Minimize(cp.sum(x)), [x <= 5, cp.quad_form(x, S) <= 1]), [S], [x],
            ("QuadForm(x, S)", "constraint 1", "sum_squares(L @ x)"),
        ),
        "function of a parameter": (
            cp.Problem(cp.Minimize(squares), [x >= cp.log1p(a)]), [a], [x],
            ("log1p(a)", "constraint 0", "Parameter of its own"),
        ),
        "inverse of a parameter": (
            cp.Problem(cp.Minimize(squares + cp.sum(x) * cp.inv_pos(a))), [a], [x],
            ("(a, -1", "objective", "Parameter of its own"),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", not_dpp_problems())
def test_not_dpp(name: str) -> None:
    """A ValueError and an AssertionError, which names the expression and a remedy."""
    problem, parameters, variables, parts = not_dpp_problems()[name]
    for kind in (ValueError, AssertionError):
        with pytest.raises(kind, match="not DPP") as caught:
            CvxpyLayer(problem, parameters, variables)
    for part in parts:
        assert part in str(caught.value)


def test_not_convex() -> None:
    x, a = cp.Variable(2, name="x"), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(a @ x), [cp.norm(x) >= 1])
    with pytest.raises(ValueError, match=says("not DCP", "constraint 0")):
        CvxpyLayer(problem, [a], [x])


def test_a_geometric_program_without_gp() -> None:
    a, x = cp.Parameter(pos=True), cp.Variable(pos=True)
    y = cp.Variable(pos=True)
    problem = cp.Problem(cp.Minimize(a / (x * y) + x + y))
    with pytest.raises(ValueError, match=says("not DCP", "gp=True")):
        CvxpyLayer(problem, [a], [x])


def test_gp_for_a_problem_that_is_none() -> None:
    with pytest.raises(ValueError, match="not DGP"):
        CvxpyLayer(*nonneg_least_squares(), gp=True)


# --- Solvers and options.


def test_an_unknown_solver_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match=says("'NOPE'", "CLARABEL", "SCS", "DIFFCP")):
        CvxpyLayer(*nonneg_least_squares(), solver="NOPE")


def test_an_unknown_option_lists_what_there_is(layer: CvxpyLayer) -> None:
    pattern = says("'max_iter_s'", "max_iter", f"{DEFAULT} has", "eps", "tol_feas")
    with pytest.raises(ValueError, match=pattern):
        CvxpyLayer(*nonneg_least_squares(), solver_args={"max_iter_s": 3})
    with pytest.raises(ValueError, match=pattern):
        layer(A, B, solver_args={"max_iter_s": 3})


def test_an_option_of_another_solver_warns_and_is_ignored(layer: CvxpyLayer) -> None:
    with pytest.warns(UserWarning, match=says("acceleration_lookback", "SCS")):
        other = CvxpyLayer(*nonneg_least_squares(), solver_args={"acceleration_lookback": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether every call says it again is not fixed here
        found = other(A, B)
    assert same_bits(found, layer(A, B))


@pytest.mark.parametrize("options", [{"eps": -1.0}, {"eps": "small"}, {"max_iters": 0}, [1], "eps"])
def test_an_impossible_option(layer: CvxpyLayer, options: object) -> None:
    with pytest.raises((ValueError, TypeError), match="solver_args"):
        layer(A, B, solver_args=options)


def test_an_unknown_failure_policy(layer: CvxpyLayer) -> None:
    for construct in (
        lambda: CvxpyLayer(*nonneg_least_squares(), on_failure="ignore"),
        lambda: layer(A, B, on_failure="ignore"),
    ):
        with pytest.raises(ValueError, match=says("on_failure", "'raise'", "'nan'", "'ignore'")):
            construct()


def test_warm_start_is_refused(layer: CvxpyLayer) -> None:
    with pytest.raises(ValueError, match=says("warm_start", "warm_start=False")):
        layer(A, B, warm_start=True)
    layer(A, B, warm_start=False)


def test_the_layer_prints_nothing_unless_asked(
    layer: CvxpyLayer, capfd: pytest.CaptureFixture[str]
) -> None:
    layer(A, B)
    assert capfd.readouterr() == ("", "")
    CvxpyLayer(*nonneg_least_squares(), verbose=True)(A, B)
    assert "Clarabel" in capfd.readouterr().out


def test_the_cvxpy_problem_is_left_as_it_was() -> None:
    problem, parameters, variables = nonneg_least_squares()
    layer = CvxpyLayer(problem, parameters, variables)
    layer(A, B)
    assert problem.status is None and variables[0].value is None
    assert all(parameter.value is None for parameter in parameters)
    assert all(c.dual_variables[0].value is None for c in problem.constraints)


def test_repr_shows_what_goes_in_and_out(layer: CvxpyLayer) -> None:
    assert repr(layer) == f"CvxpyLayer((A[3, 2], b[3]) -> (x[2]), solver={DEFAULT})"
