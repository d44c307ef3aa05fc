"""Trap 8 (docs/design): options leak from one call into the next, or into the caller's dict."""

from __future__ import annotations

import copy

import pytest
import torch
from layer_checks import draw, nonneg_least_squares, run, same_bits

from cvxlayers import SolverError, Status
from cvxlayers.torch import CvxpyLayer

VALUES = [draw(3, 2), draw(2, 3)]


@pytest.fixture
def layer() -> CvxpyLayer:
    return CvxpyLayer(*nonneg_least_squares())


def test_trap_8_options_of_a_call_are_forgotten_after_it(layer: CvxpyLayer) -> None:
    before = run(layer, VALUES)
    with pytest.raises(SolverError, match="MAX_ITERATIONS"):
        run(layer, VALUES, solver_args={"max_iters": 1})
    after = run(layer, VALUES)
    assert same_bits(before[0], after[0]) and same_bits(before[1], after[1])


def test_trap_8_a_failure_policy_of_a_call_is_forgotten_after_it(layer: CvxpyLayer) -> None:
    values = [torch.as_tensor(v) for v in VALUES]
    (x,) = layer(*values, solver_args={"max_iters": 1}, on_failure="nan")
    assert x.isnan().all()
    with pytest.raises(SolverError):
        layer(*values, solver_args={"max_iters": 1})


def test_trap_8_options_of_a_call_come_on_top_of_the_constructors() -> None:
    layer = CvxpyLayer(*nonneg_least_squares(), solver_args={"max_iters": 1, "eps": 1e-9})
    values = [torch.as_tensor(v) for v in VALUES]
    with pytest.raises(SolverError):
        layer(*values)
    layer(*values, solver_args={"max_iters": 50})
    with pytest.raises(SolverError):
        layer(*values, solver_args={"eps": 1e-3})  # the constructor's max_iters still holds
    with pytest.raises(SolverError):
        layer(*values)


def test_trap_8_the_callers_dicts_are_not_mutated() -> None:
    at_construction, at_call = {"eps": 1e-9, "max_iters": 60}, {"tol_feas": 1e-10, "polish": False}
    kept = copy.deepcopy((at_construction, at_call))
    layer = CvxpyLayer(*nonneg_least_squares(), solver_args=at_construction)
    run(layer, VALUES, solver_args=at_call)
    assert (at_construction, at_call) == kept


def test_trap_8_a_dict_changed_by_the_caller_does_not_reach_the_layer() -> None:
    options = {"max_iters": 50}
    layer = CvxpyLayer(*nonneg_least_squares(), solver_args=options)
    options["max_iters"] = 1
    layer(*map(torch.as_tensor, VALUES))
    layer(*map(torch.as_tensor, VALUES), solver_args={"eps": 1e-9})


def test_trap_8_two_layers_of_one_problem_have_their_own_options() -> None:
    problem, parameters, variables = nonneg_least_squares()
    strict = CvxpyLayer(problem, parameters, variables, solver_args={"max_iters": 1})
    free = CvxpyLayer(problem, parameters, variables)
    free(*map(torch.as_tensor, VALUES))
    with pytest.raises(SolverError) as caught:
        strict(*map(torch.as_tensor, VALUES))
    assert set(caught.value.statuses.values()) == {Status.MAX_ITERATIONS}
    free(*map(torch.as_tensor, VALUES))
