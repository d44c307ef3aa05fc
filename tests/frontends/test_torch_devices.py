"""The route of tensors that live on a device, taken by tensors of the CPU: the same code, but that
nothing leaves the device (for that see tests/dense/test_far.py).

With ``-m slow`` the suites of the torch frontend take this route as a whole.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from conformance.oracle import gradient, relative_error, solution, weights
from conformance.problems import CASES, Case
from cvxlayers import SolverError, Status, call, solution_map
from cvxlayers.errors import UnsupportedProblemError
from cvxlayers.solvers import get_solver
from cvxlayers.solvers.clarabel import Clarabel
from cvxlayers.solvers.dense import Dense
from cvxlayers.torch import CvxpyLayer

VALUE_BOUND, GRADIENT_BOUND = 1e-7, 1e-5
TESTS = Path(__file__).parents[1]
# What tests of the solvers of the CPU say that is not so of DENSE: an answer that does not depend
# on the neighbours bit by bit, a name in messages, progress that is printed, memory that NumPy
# counts.
OWN = (
    "bitwise",
    "neighbours",
    "touch_no_other",
    "reach_the_iteration_limit",
    "into_another_interpreter",
    "names_solver",
    "unknown_option",
    "prints_nothing",
    "both_ways_of_factoring",
    "limit_of_memory_holds",
)


@pytest.fixture(autouse=True)
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvxlayers.torch.function.is_on_device", lambda tensor: True)


def projection(n: int = 4, **settings: Any) -> CvxpyLayer:
    x, b, radius = cp.Variable(n), cp.Parameter(n), cp.Parameter(nonneg=True)
    constraints = [cp.norm(x) <= radius, x >= -0.2]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), constraints)
    return CvxpyLayer(problem, [b, radius], [x], **settings)


def values(batch: int = 5, n: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(batch, n, dtype=torch.float64, generator=generator)
    return [b.requires_grad_(), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case) -> None:
    """The values and the gradients of every case, by DENSE without help from another solver."""
    problem, parameters, variables = case.build()
    layer = CvxpyLayer(problem, parameters, variables, gp=case.gp)
    tensors = [torch.tensor(value, requires_grad=True) for value in case.values()]
    outputs, info = layer.solve(*tensors)
    for found, true in zip(outputs, solution(case), strict=True):
        bound = VALUE_BOUND * (1 + np.abs(true).max())
        np.testing.assert_allclose(found.detach(), true, rtol=0, atol=bound)
    pairs = zip(weights(case), outputs, strict=True)
    sum((torch.as_tensor(c) * output).sum() for c, output in pairs).backward()
    gradients = [t.grad.numpy() for t in tensors if t.grad is not None]
    assert relative_error(gradients, gradient(case)) <= GRADIENT_BOUND
    assert info.attempt == 0 and isinstance(info.status, np.ndarray)


def test_it_is_dense_that_solves(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Tensor] = []
    solve = Dense._run

    def counted(self: Dense, program: Any, *arguments: Any) -> Any:
        calls.append(program.q)
        return solve(self, program, *arguments)

    monkeypatch.setattr(Dense, "_run", counted)
    for solver in (None, "DENSE"):
        projection(solver=solver)(*values())
        assert isinstance(calls.pop(), torch.Tensor)
    # A solver of the CPU that was named is taken at its word.
    for solver in ("LANES", "CLARABEL"):
        projection(solver=solver)(*values())
        assert not calls


def test_a_solver_for_devices_that_takes_no_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CuClarabel and Moreau: the data go to it by the host, and all else is done here."""
    assert get_solver("CUCLARABEL").is_for_devices and get_solver("MOREAU").is_for_devices
    monkeypatch.setattr(Clarabel, "is_for_devices", True)
    kinds: list[type] = []
    solve, polish = Clarabel.solve, solution_map.polish

    def solved(self: Clarabel, program: Any, *arguments: Any, **named: Any) -> Any:
        kinds.append(type(program.q))
        return solve(self, program, *arguments, **named)

    def polished(geometry: Any, program: Any, *arguments: Any) -> Any:
        kinds.append(type(program.q))
        return polish(geometry, program, *arguments)

    monkeypatch.setattr(Clarabel, "solve", solved)
    monkeypatch.setattr(solution_map, "polish", polished)
    given = values()
    (y,) = projection(solver="CLARABEL")(*given)
    y.sum().backward()
    assert kinds == [np.ndarray, torch.Tensor]
    expected = values()
    (other,) = projection()(*expected)
    other.sum().backward()
    torch.testing.assert_close(y, other, rtol=0, atol=1e-9)
    torch.testing.assert_close(given[0].grad, expected[0].grad, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    """The problem is solved in float64; outputs and gradients have the tensors' dtype."""
    exact = [v.detach().to(dtype) for v in values()]
    given = [v.clone().requires_grad_() for v in exact]
    (y,) = projection()(*given)
    y.sum().backward()
    doubles = [v.double().requires_grad_() for v in exact]
    (true,) = projection()(*doubles)
    true.sum().backward()
    assert y.dtype == dtype
    torch.testing.assert_close(y, true.to(dtype), rtol=0, atol=0)
    for one, other in zip(given, doubles, strict=True):
        assert one.grad is not None and one.grad.dtype == dtype
        torch.testing.assert_close(one.grad, other.grad.to(dtype))


def test_autocast_changes_nothing() -> None:
    (expected,) = projection()(*values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = values()
        (y,) = projection()(*given)
        y.sum().backward()
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    assert given[0].grad is not None and given[0].grad.dtype == torch.float64


def test_defaults_of_torch_change_nothing() -> None:
    (expected,) = projection()(*values())
    given, before = values(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            (y,) = projection()(*given)
            y.sum().backward()
    finally:
        torch.set_default_dtype(before)
    assert all(t.grad is not None and t.grad.dtype == torch.float64 for t in given)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


def test_constants_join_the_tensors() -> None:
    (expected,) = projection()(*values())
    b, _ = values()
    (y,) = projection()(b, np.float64(1.0))
    torch.testing.assert_close(y, expected)


def test_a_batch_in_pieces() -> None:
    """A limit of memory changes the results by rounding alone, derivatives of all orders too."""

    def everything(layer: CvxpyLayer) -> list[torch.Tensor]:
        given = values(40)
        (y,) = layer(*given)
        first = torch.autograd.grad((y**3).sum(), given, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), given)
        return [y, *first, *second]

    whole = everything(projection())
    parts = everything(projection(max_batch_memory=100_000.0))
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_pieces_are_freed_with_their_outputs() -> None:
    """Without the garbage collector, which does not see the memory of a device."""
    layer = projection(max_batch_memory=100_000.0)

    def alive() -> int:
        return sum(type(o) is torch.Tensor for o in gc.get_objects())

    def call() -> None:
        (y,) = layer(*values(12))
        y.sum().backward()

    call()
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for _ in range(3):
            call()
        assert alive() <= before + 2
    finally:
        gc.enable()


def test_the_point_is_known_by_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward neither compares it nor solves again."""
    shared: list[bool] = []
    same = call._same

    def watched(a: Any, b: Any) -> bool:
        shared.append(a.data_ptr() == b.data_ptr())
        return same(a, b)

    monkeypatch.setattr(call, "_same", watched)
    (y,) = projection()(*values())
    y.sum().backward()
    assert shared == [True]


def test_failing_rows() -> None:
    """They are NaN with zero gradients, and the others as without them."""
    b, radius = values()
    radii = torch.tensor([1.0, -1.0, 1.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    x, r, c = cp.Variable(4), cp.Parameter(), cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.norm(x) <= r])
    with pytest.raises(SolverError, match="row 1 PRIMAL_INFEASIBLE") as error:
        CvxpyLayer(problem, [c, r], [x])(b, radii)
    assert error.value.statuses == {(1,): Status.PRIMAL_INFEASIBLE}
    layer = CvxpyLayer(problem, [c, r], [x], on_failure="nan")
    (y,), info = layer.solve(b, radii)
    assert info.summary() == {"SOLVED": 4, "PRIMAL_INFEASIBLE": 1}
    assert y[1].isnan().all() and not y[[0, 2, 3, 4]].isnan().any()
    y.nansum().backward()
    assert radii.grad is not None and radii.grad[1] == 0.0 and radii.grad.isfinite().all()
    del radius


def test_what_is_left_over_goes_to_clarabel(monkeypatch: pytest.MonkeyPatch) -> None:
    (expected,) = projection()(*values())
    statuses = np.full(8, int(Status.INSUFFICIENT_PROGRESS))
    monkeypatch.setattr("cvxlayers.solvers.dense.STATUS_OF", statuses)
    given = values()
    (y,), info = projection().solve(*given)
    assert (info.attempt == 1).all()
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-9)
    y.sum().backward()
    assert given[0].grad is not None


def test_every_variable_is_defined_by_a_row() -> None:
    """minimize ‖y‖² with 2 y = c: nothing is left of the system once they are taken out."""
    y, c = cp.Variable(3), cp.Parameter(3)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(y)), [2 * y == c]), [c], [y])
    given = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, 4.0]], dtype=torch.float64)
    given.requires_grad_()
    (found,) = layer(given)
    torch.testing.assert_close(found, given / 2)
    (gradient,) = torch.autograd.grad((found**2).sum(), given)
    torch.testing.assert_close(gradient, given / 2)


def test_too_large() -> None:
    """What dense matrices cannot hold is refused, with what to do."""
    n = 2500
    x, b = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
    b_t = torch.ones(n, dtype=torch.float64)
    b_t[::3] = -1.0
    with pytest.raises(UnsupportedProblemError, match=r"4,000.*solver='CLARABEL'"):
        CvxpyLayer(problem, [b], [x])(b_t)
    (y,) = CvxpyLayer(problem, [b], [x], solver="CLARABEL")(b_t)
    torch.testing.assert_close(y, b_t.clamp_min(0.0), rtol=0, atol=1e-6)


def test_options() -> None:
    layer = projection()
    loose = layer.solve(*values(), solver_args={"max_iters": 40, "eps": 1e-3})[1]
    assert (loose.iterations < layer.solve(*values())[1].iterations).any()
    with pytest.warns(UserWarning, match="max_step_fraction"):
        layer(*values(), solver_args={"max_step_fraction": 0.9})


def test_attributes_are_checked() -> None:
    """With the message that names the parameter."""
    x, S = cp.Variable(3), cp.Parameter((3, 3), PSD=True)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.quad_form(x, S) - cp.sum(x))), [S], [x])
    with pytest.raises(ValueError, match="declared PSD, but the value has the eigenvalue -2"):
        layer(torch.diag(torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"index \(0, 1\)"):
        layer(torch.tensor([[1.0, torch.nan, 0.0]] * 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="declared nonneg, but entry"):
        projection()(values()[0], torch.tensor(-1.0, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize(
    "suite",
    [
        ["conformance/test_torch.py", "conformance/test_transforms.py"],
        [f"frontends/test_{name}.py" for name in ("torch_gradcheck", "smoothed", "lpgd")],
        ["layer", "-k", f"not ({' or '.join(OWN)})"],
    ],
    ids=["conformance", "frontends", "layer"],
)
def test_suites(suite: list[str]) -> None:
    """What the other route passes."""
    script = (
        "import sys, pytest, cvxlayers.torch.function as function\n"
        "function.is_on_device = lambda tensor: True\n"
        "sys.exit(pytest.main(sys.argv[1:]))\n"
    )
    arguments = [sys.executable, "-c", script, "-q", "-x", "-p", "no:cacheprovider", *suite]
    done = subprocess.run(arguments, cwd=TESTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
