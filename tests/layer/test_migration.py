"""Scripts written for cvxpylayers run with only the import changed."""

from __future__ import annotations

import cvxpy as cp
import pytest
import torch

from cvxlayers.torch import CvxpyLayer


def test_the_readme_example() -> None:
    """The example of cvxpylayers' README with only its import changed."""
    torch.manual_seed(0)
    n, m = 2, 3
    x = cp.Variable(n)
    A = cp.Parameter((m, n))
    b = cp.Parameter(m)
    constraints = [x >= 0]
    objective = cp.Minimize(0.5 * cp.pnorm(A @ x - b, p=1))
    problem = cp.Problem(objective, constraints)
    assert problem.is_dpp()

    cvxpylayer = CvxpyLayer(problem, parameters=[A, b], variables=[x])
    A_tch = torch.randn(m, n, requires_grad=True)
    b_tch = torch.randn(m, requires_grad=True)

    # solve the problem
    (solution,) = cvxpylayer(A_tch, b_tch)

    # compute the gradient of the sum of the solution with respect to A, b
    solution.sum().backward()
    assert A_tch.grad is not None and A_tch.grad.isfinite().all()
    assert b_tch.grad is not None and b_tch.grad.isfinite().all()


def regularised_problem() -> tuple[cp.Problem, list, list]:
    A, b, x = cp.Parameter((4, 3)), cp.Parameter(4), cp.Variable(3)
    cost = cp.sum_squares(A @ x - b) + 0.1 * cp.sum_squares(x)
    return cp.Problem(cp.Minimize(cost), [x >= 0]), [A, b], [x]


@pytest.mark.parametrize(
    "solver_args",
    [
        {},
        {"eps": 1e-10, "max_iters": 1000},
        {"eps": 1e-8, "max_iters": 10000, "acceleration_lookback": 0},
        {"solve_method": "SCS"},
        {"solve_method": "SCS", "eps": 1e-8, "max_iters": 20000},
        {"solve_method": "Clarabel"},
        {"mode": "lsqr"},
        {"n_jobs_forward": 1, "n_jobs_backward": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("solver", [None, cp.SCS, cp.DIFFCP, cp.CLARABEL])
# Options of other solvers are ignored with a warning; scripts go on.
@pytest.mark.filterwarnings("ignore:solver_args:UserWarning")
def test_solver_args_of_cvxpylayers(solver: str | None, solver_args: dict) -> None:
    """At a call and at construction, with every solver."""
    problem, parameters, variables = regularised_problem()
    torch.manual_seed(0)
    A = torch.randn(4, 3, dtype=torch.float64)
    x_true = torch.rand(3, dtype=torch.float64) + 1
    H = A.T @ A + 0.1 * torch.eye(3, dtype=torch.float64)
    b = A @ x_true
    expected = torch.linalg.solve(H, A.T @ b)
    assert (expected > 0.1).all()  # so that x >= 0 is inactive and this is the solution
    rows = torch.linalg.solve(H, A.T).sum(0)  # gradient of sum(x) with respect to b
    construct = {} if solver is None else {"solver": solver}
    for layer, keywords in (
        (CvxpyLayer(problem, parameters, variables, **construct), {"solver_args": solver_args}),
        (CvxpyLayer(problem, parameters, variables, solver_args=solver_args, **construct), {}),
    ):
        b_t = b.clone().requires_grad_()
        (x,) = layer(A, b_t, **keywords)
        torch.testing.assert_close(x.detach(), expected, rtol=1e-3, atol=1e-3)
        x.sum().backward()
        torch.testing.assert_close(b_t.grad, rows, rtol=1e-2, atol=1e-2)


def test_positional_constructor_arguments_and_gp() -> None:
    """The log-log example of cvxpylayers' README."""
    x, y, z = cp.Variable(pos=True), cp.Variable(pos=True), cp.Variable(pos=True)
    a, b, c = cp.Parameter(pos=True), cp.Parameter(pos=True), cp.Parameter()
    objective_fn = 1 / (x * y * z)
    constraints = [a * (x * y + x * z + y * z) <= b, x >= y**c]
    problem = cp.Problem(cp.Minimize(objective_fn), constraints)
    assert problem.is_dgp(dpp=True)

    layer = CvxpyLayer(problem, parameters=[a, b, c], variables=[x, y, z], gp=True)
    a_tch = torch.tensor(2.0, requires_grad=True)
    b_tch = torch.tensor(1.0, requires_grad=True)
    c_tch = torch.tensor(0.5, requires_grad=True)
    x_star, y_star, z_star = layer(a_tch, b_tch, c_tch)
    (x_star + y_star + z_star).backward()
    torch.testing.assert_close(
        a_tch * (x_star * y_star + x_star * z_star + y_star * z_star), b_tch, rtol=1e-5, atol=0
    )
    for grad in (a_tch.grad, b_tch.grad, c_tch.grad):
        assert grad is not None and grad.isfinite().all() and grad != 0


def test_a_layer_trains_inside_a_module() -> None:
    """The usual training loop: a batch, a learnable parameter, an optimiser."""
    problem, parameters, variables = regularised_problem()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A = torch.nn.Parameter(torch.eye(4, 3))
            self.layer = CvxpyLayer(problem, parameters, variables)

        def forward(self, b: torch.Tensor) -> torch.Tensor:
            return self.layer(self.A, b)[0]

    torch.manual_seed(0)
    model = Model()
    b, target = torch.rand(8, 4), torch.rand(8, 3)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = (model(b) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert [name for name, _ in model.named_parameters()] == ["A"]
    assert losses[-1] < 0.7 * losses[0]
