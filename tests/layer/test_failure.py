"""What becomes of instances that are not solved: trap 12 (docs/design), and the two policies."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from layer_checks import draw, nonneg_least_squares, run, same_bits, tensor

from cvxlayers import CvxlayersError, SolverError, SolverWarning, Status
from cvxlayers.derivative import Polished
from cvxlayers.torch import CvxpyLayer
from solvers.toys import DEFAULT

GOOD, BAD = 2.0, -1.0


def box_problem() -> tuple[cp.Problem, list, list]:
    """Projection of C 1 + t on [0, u]²: infeasible where u < 0."""
    t, u, C = cp.Parameter(2, name="t"), cp.Parameter(name="u"), cp.Parameter((2, 2), name="C")
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    constraints = [x >= 0, x <= u, y == C @ np.ones(2) + t]
    return cp.Problem(cp.Minimize(cp.sum_squares(x - y)), constraints), [t, u, C], [x]


def box_layer(**settings: object) -> CvxpyLayer:
    return CvxpyLayer(*box_problem(), **settings)


def box_values(u: list[float]) -> list[torch.Tensor]:
    return [torch.as_tensor(v) for v in (draw(len(u), 2), np.array(u), draw(2, 2))]


def linear_layer(**settings: object) -> CvxpyLayer:
    """min cᵀx subject to x ≥ 0, sum(x) ≤ b: unbounded never, infeasible where b < 0."""
    c, b, x = cp.Parameter(2, name="c"), cp.Parameter(name="b"), cp.Variable(2, name="x")
    problem = cp.Problem(cp.Minimize(c @ x), [x >= 0, cp.sum(x) <= b])
    return CvxpyLayer(problem, [c, b], [x], **settings)


# --- Trap 12: the last iterate of a failed solve is returned as a solution.


@pytest.mark.parametrize("solver", [None, cp.SCS, cp.DIFFCP])
def test_trap_12_an_infeasible_linear_program_is_an_error(solver: str | None) -> None:
    layer = linear_layer(solver=solver)
    with pytest.raises(SolverError, match="PRIMAL_INFEASIBLE") as caught:
        layer(torch.ones(2), torch.tensor(-1.0))
    assert caught.value.statuses == {(): Status.PRIMAL_INFEASIBLE}
    assert "infeasible: no point satisfies" in str(caught.value)


@pytest.mark.parametrize("solver", [None, cp.SCS, cp.DIFFCP])
def test_trap_12_an_infeasible_linear_program_is_nan_and_has_zero_gradients(
    solver: str | None,
) -> None:
    layer = linear_layer(solver=solver, on_failure="nan")
    c, b = tensor([1.0, 2.0]), tensor(-1.0)
    (x,) = layer(c, b)
    assert x.shape == (2,) and x.isnan().all()
    x.sum().backward()
    assert torch.equal(c.grad, torch.zeros_like(c)) and torch.equal(b.grad, torch.zeros_like(b))


@pytest.mark.parametrize("solver", [None, cp.SCS, cp.DIFFCP])
def test_an_unbounded_problem_is_an_error(solver: str | None) -> None:
    c, x = cp.Parameter(2), cp.Variable(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(c @ x), [x >= 0]), [c], [x], solver=solver)
    with pytest.raises(SolverError, match="DUAL_INFEASIBLE: unbounded") as caught:
        layer(torch.tensor([-1.0, 1.0]))
    assert caught.value.statuses == {(): Status.DUAL_INFEASIBLE}


@pytest.mark.parametrize("wants_gradient", [False, True])
def test_the_iteration_limit_is_an_error(wants_gradient: bool) -> None:
    layer = CvxpyLayer(*nonneg_least_squares())
    values = [tensor(v).requires_grad_(wants_gradient) for v in (draw(3, 2), draw(3))]
    with pytest.raises(SolverError, match=r"MAX_ITERATIONS.*raise max_iters"):
        layer(*values, solver_args={"max_iters": 1})


# --- The message.


def test_the_error_names_solver_row_status_and_remedy() -> None:
    values = box_values([GOOD, GOOD, BAD, GOOD, GOOD])
    with pytest.raises(SolverError) as caught:
        box_layer()(*values)
    message = str(caught.value)
    for part in ("1 of 5", DEFAULT, "row 2 ", "PRIMAL_INFEASIBLE", "on_failure='nan'"):
        assert part in message
    assert caught.value.statuses == {(2,): Status.PRIMAL_INFEASIBLE}
    assert isinstance(caught.value, CvxlayersError) and isinstance(caught.value, RuntimeError)


def test_the_error_names_indices_of_several_batch_axes() -> None:
    t, u, C = box_values([GOOD, GOOD, BAD, GOOD, GOOD, BAD])
    with pytest.raises(SolverError) as caught:
        box_layer()(t.reshape(2, 3, 2), u.reshape(2, 3), C)
    assert set(caught.value.statuses) == {(0, 2), (1, 2)}
    for part in ("2 of 6", "(0, 2)", "(1, 2)"):
        assert part in str(caught.value)


def test_the_error_is_short_when_many_rows_fail() -> None:
    with pytest.raises(SolverError) as caught:
        box_layer()(*box_values([BAD] * 200))
    assert len(caught.value.statuses) == 200
    assert len(str(caught.value)) < 600 and "190 more" in str(caught.value)


def test_the_error_tells_different_statuses_apart() -> None:
    c, b, x = cp.Parameter(2), cp.Parameter(), cp.Variable(2)
    problem = cp.Problem(cp.Minimize(c @ x), [x >= 0, x[0] <= b])
    layer = CvxpyLayer(problem, [c, b], [x])
    c_t = torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    with pytest.raises(SolverError) as caught:
        layer(c_t, torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    assert caught.value.statuses == {
        (0,): Status.PRIMAL_INFEASIBLE,
        (1,): Status.DUAL_INFEASIBLE,
    }
    assert "row 0 PRIMAL_INFEASIBLE" in str(caught.value)
    assert "row 1 DUAL_INFEASIBLE" in str(caught.value)


# --- on_failure="nan".


@pytest.mark.parametrize("solver", [None, cp.SCS, cp.DIFFCP])
def test_a_failing_row_leaves_the_others_bitwise_as_they_are(solver: str | None) -> None:
    """Answers, gradients, and the gradient of what the batch shares."""
    layer = box_layer(solver=solver, on_failure="nan")
    t, u, C = box_values([GOOD, GOOD, BAD, GOOD, GOOD])
    good = torch.tensor([0, 1, 3, 4])
    weight = torch.as_tensor(draw(5, 2))

    def outcome(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = [tensor(t[rows]), tensor(u[rows]), tensor(C)]
        (x,) = layer(*leaves)
        return x.detach(), *torch.autograd.grad((weight[rows] * x).sum(), leaves)

    x, dt, du, dC = outcome(torch.arange(5))
    assert x[2].isnan().all() and not x[good].isnan().any()
    assert torch.equal(dt[2], torch.zeros(2, dtype=dt.dtype)) and du[2] == 0
    assert same_bits((x[good], dt[good], du[good], dC), outcome(good))
    assert (dC != 0).any()


def test_failing_rows_keep_shared_weights_finite_whatever_the_loss_does_with_them() -> None:
    """The upstream gradient of a NaN row is NaN for most losses."""
    layer = box_layer(on_failure="nan")
    t, u, C = (tensor(v) for v in box_values([BAD, GOOD, BAD]))
    (x,) = layer(t, u, C)
    x.square().sum().backward()
    alone = [tensor(t[1]), tensor(u[1]), tensor(C)]
    layer(*alone)[0].square().sum().backward()
    torch.testing.assert_close(C.grad, alone[2].grad, rtol=1e-12, atol=0)
    assert torch.equal(t.grad[0], torch.zeros(2, dtype=t.dtype)) and u.grad[2] == 0


def test_every_row_failing_gives_nan_and_zero_gradients() -> None:
    layer = box_layer(on_failure="nan")
    leaves = [tensor(v) for v in box_values([BAD, BAD])]
    (x,) = layer(*leaves)
    assert x.isnan().all()
    x.sum().backward()
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in leaves)


def test_failing_rows_of_a_geometric_program_and_of_dual_variables() -> None:
    u, x = cp.Parameter(pos=True), cp.Variable(pos=True)
    bound = x <= u
    problem = cp.Problem(cp.Minimize(1 / x), [bound, x >= 1])
    layer = CvxpyLayer(problem, [u], [x, bound.dual_variables[0]], gp=True, on_failure="nan")
    u_t = tensor([2.0, 0.5, 4.0])
    x_t, dual = layer(u_t)
    torch.testing.assert_close(x_t[[0, 2]], u_t[[0, 2]])
    assert x_t[1].isnan() and dual[1].isnan() and not dual[[0, 2]].isnan().any()
    (x_t.sum() + dual.sum()).backward()
    torch.testing.assert_close(u_t.grad, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))


def test_failing_rows_over_several_batch_axes_with_broadcasting() -> None:
    layer = box_layer(on_failure="nan")
    t, u, C = tensor(draw(3, 1, 2)), tensor([GOOD, BAD]), tensor(draw(2, 2))
    (x,) = layer(t, u, C)
    assert x.shape == (3, 2, 2)
    assert x[:, 1].isnan().all() and not x[:, 0].isnan().any()
    x.nansum().backward()
    good = [tensor(t[:, 0]), tensor(u[0]), tensor(C)]
    layer(*good)[0].sum().backward()
    torch.testing.assert_close(t.grad[:, 0], good[0].grad, rtol=1e-12, atol=0)
    torch.testing.assert_close(C.grad, good[2].grad, rtol=1e-12, atol=0)
    assert u.grad[1] == 0 and u.grad[0] == pytest.approx(float(good[1].grad))


def test_nan_without_a_gradient() -> None:
    with torch.no_grad():
        (x,) = box_layer(on_failure="nan")(*box_values([GOOD, BAD]))
    assert x[1].isnan().all() and not x[0].isnan().any()


def test_a_later_call_is_not_affected_by_a_failed_one() -> None:
    layer = box_layer()
    values = box_values([GOOD, GOOD])
    before = run(layer, values)
    with pytest.raises(SolverError):
        run(layer, box_values([GOOD, BAD]))
    after = run(layer, values)
    assert same_bits(after[0], before[0]) and same_bits(after[1], before[1])


def test_the_policy_warn_says_what_the_error_would_and_returns_what_nan_does() -> None:
    warning, silent = box_layer(on_failure="warn"), box_layer(on_failure="nan")
    values = box_values([GOOD, BAD, GOOD])
    with pytest.warns(SolverWarning, match="1 of 3 .*row 1 PRIMAL_INFEASIBLE"):
        outputs, gradients = run(warning, values)
    true_outputs, true_gradients = run(silent, values)
    assert same_bits(outputs, true_outputs) and same_bits(gradients, true_gradients)
    with pytest.raises(SolverError):
        warning(*values, on_failure="raise")
    with pytest.warns(SolverWarning):
        silent(*values, on_failure="warn")
    values[0][1] = torch.nan  # as with "nan", the row is not solved
    with pytest.warns(SolverWarning, match="row 1"):
        warning(*values)


def test_a_solution_that_cannot_be_polished_is_named_in_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Newton's method leads nowhere from a rough answer: it is returned, and so is a gradient."""

    def no_steps(geometry: Any, program: Any, x: Any, z: Any, s: Any) -> Polished:
        return Polished(x, z, s, np.where(np.arange(len(x)) == 1, 1e-3, 1e-12), None)

    monkeypatch.setattr("cvxlayers.solution_map.polish", no_steps)
    layer = box_layer(solver=cp.SCS, solver_args={"eps": 1e-3})
    with pytest.warns(UserWarning, match=r"1 of 3 instances \(1\) could not be polished.*1\.0e-03"):
        outputs, gradients = run(layer, box_values([GOOD, GOOD, GOOD]))
    assert all(v.isfinite().all() for v in [*outputs, *gradients])


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS", "DIFFCP"])
def test_almost_solved_is_judged_alike_with_and_without_a_gradient(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the derivative is the solver's own: the polish says what the answer is worth."""
    x, b = cp.Variable(3), cp.Parameter(3)
    layer = CvxpyLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0]), [b], [x], solver=solver
    )
    kind = type(layer.operations.solution_map.solver)
    solve = kind.solve

    def almost(*arguments: Any, **named: Any) -> Any:
        solution = solve(*arguments, **named)
        solution.status[:] = Status.ALMOST_SOLVED
        return solution

    monkeypatch.setattr(kind, "solve", almost)
    monkeypatch.setattr("cvxlayers.solution_map.retry", lambda *_: None)
    value = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    for wanted in (False, True):
        (y,) = layer(value.clone().requires_grad_(wanted))
        torch.testing.assert_close(y.detach(), value.clamp(min=0), rtol=0, atol=1e-9)
