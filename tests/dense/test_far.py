"""Where everything happens when tensors are on a device, on one that only pretends (see `far`).

What it computes is compared with the other route, through NumPy and the solvers of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import cvxpy as cp
import numpy as np
import pytest
import torch

from conformance.problems import CASES, Case
from cvxlayers.call import Call
from cvxlayers.dense import Engine, iteration
from cvxlayers.operations import ARGUMENTS, Operations
from cvxlayers.program import OUTCOMES
from cvxlayers.settings import Settings
from dense.far import DEVICE, Far, Record, pretended
from solvers.random_programs import CONES, random_program

BATCH = 6
Problem: TypeAlias = tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]
# All cones, quadratic forms, duals, a geometric program.
CHOSEN = [
    case
    for case in CASES
    if case.name
    in {
        "qp_dense_duals",
        "qp_quad_form_mixed",
        "qp_no_constraints",
        "lp_vertex",
        "variable_diag",
        "portfolio_norm",
        "psd_dual",
        "entropy_softmax",
        "power_cone",
        "gp_exponent",
        "all_cones",
    }
]


def test_the_device_is_strict() -> None:
    """The instrument: it refuses to mix devices, and counts."""
    with pretended() as record:
        far = torch.ones(3, device=DEVICE)
        assert isinstance(far, Far) and far.device.type == DEVICE.type
        with pytest.raises(AssertionError, match="tensors of the CPU"):
            far + torch.ones(3)
        assert (far + 1.0).cpu().tolist() == [2.0, 2.0, 2.0] and record.copies == [3]
        assert bool((far > 0.0).all()) and record.questions == 1
        assert far[far > 0.0].shape == (3,) and record.questions > 1


def sent(values: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(v).to(DEVICE) for v in values]


def arguments_of(name: str, call: Call, outputs: list[np.ndarray], theta: list[np.ndarray]) -> Any:
    rng = np.random.default_rng(3)
    shapes = {"outputs": [y.shape for y in outputs], "parameters": [t.shape for t in theta]}
    return [rng.normal(size=shape) for kind in ARGUMENTS[name] for shape in shapes[kind]]


def every_operation(operations: Operations, theta: list[np.ndarray], far: bool) -> dict[str, Any]:
    """The results of the five, and what came to the host for each."""
    call, found = Call(operations), {}
    v: Any = None
    outputs: list[np.ndarray] = []
    for name in ("solve", "vjp", "jvp", "hvp", "jvp2"):
        with pretended() as record:
            put = sent if far else list
            row = [*put(theta), *([] if v is None else [v])]
            row += put(arguments_of(name, call, outputs, theta))
            record.sent.clear()
            results = call.run(name, row)
            if far:
                assert all(isinstance(r, Far) for r in results)
            if name == "solve":
                *results, v = results
            came = Record(list(record.copies), list(record.sent), record.questions)
            numbers = [r.inner.numpy() if far else r for r in results]
        if name == "solve":
            outputs = numbers
        found[name] = numbers, came
    return found


@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_everything_stays_where_it_is(case: Case) -> None:
    """Solve, polish and all derivatives; nothing comes back but a few numbers per instance."""
    problem, parameters, variables = case.build()
    theta = [np.stack([np.asarray(v, dtype=np.float64)] * BATCH) for v in case.values()]
    expected = every_operation(
        Operations(problem, parameters, variables, case.gp), theta, far=False
    )
    found = every_operation(Operations(problem, parameters, variables, case.gp), theta, far=True)
    for name, (numbers, came) in found.items():
        for one, other in zip(numbers, expected[name][0], strict=True):
            size = 1.0 + np.abs(other).max(initial=0.0)
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * size, err_msg=name)
        assert max(came.copies, default=0) <= 3 * BATCH, (name, came.copies)


def test_what_was_sent_once_is_not_sent_again() -> None:
    """Index arrays and sparse matrices go to the device in the first call alone."""
    x, A, b = cp.Variable(4), cp.Parameter((6, 4)), cp.Parameter(6)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [cp.norm(x) <= 1, x >= -0.5])
    operations, rng = Operations(problem, [A, b], [x]), np.random.default_rng(0)
    theta = [rng.normal(size=(BATCH, 6, 4)), rng.normal(size=(BATCH, 6))]
    every_operation(operations, theta, far=True)
    again = every_operation(operations, theta, far=True)
    for name, (_, came) in again.items():
        assert sum(came.sent) <= 3 * BATCH, (name, came.sent)


@pytest.mark.parametrize("cone", ["psd", "mixed"])
def test_one_question_every_few_iterations(cone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host waits for the device for nothing else, unless ended instances leave the batch, and
    sends nothing: what it does in between can be recorded."""
    monkeypatch.setitem(iteration.COMPACT, "eager", 0.0)
    program = random_program(CONES[cone], 6, batch=BATCH, rank=6)
    engine, asked, sizes = Engine(program.structure), [], []
    for iterations in (3, 9):
        with pretended() as record:
            values = sent([program.P, program.q, program.A, program.b])
            record.sent.clear()
            # Tolerances that are out of reach: nobody ends before the limit.
            answer = engine.solve(*values, BATCH, (1e-30, 1e-30, 1e-30), iterations)
            outcome = answer.outcome.inner
            asked.append(record.questions)
            sizes.append(sum(record.sent))
            assert record.copies == []
    assert (outcome != OUTCOMES.index("solved")).all()
    assert asked[1] - asked[0] == 2
    assert sizes[1] == 0, "the cones are made once for a structure"


def affine_qp() -> Problem:
    x, q, G, h = cp.Variable(20), cp.Parameter(20), cp.Parameter((30, 20)), cp.Parameter(30)
    objective = cp.Minimize(cp.sum_squares(x) + q @ x)
    return cp.Problem(objective, [G @ x <= h, cp.sum(x) == 0]), [q, G, h], [x]


def ball() -> Problem:
    x, q, F = cp.Variable(15), cp.Parameter(15), cp.Parameter((15, 15))
    return cp.Problem(cp.Minimize(q @ x), [cp.norm(F @ x) <= 1, x >= -1]), [q, F], [x]


def nearest_semidefinite() -> Problem:
    X, C = cp.Variable((5, 5), symmetric=True), cp.Parameter((5, 5), symmetric=True)
    return cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [X >> 0]), [C], [X]


def softmax() -> Problem:
    x, c = cp.Variable(12), cp.Parameter(12)
    objective = cp.Maximize(cp.sum(cp.entr(x)) + c @ x)
    return cp.Problem(objective, [cp.sum(x) == 1]), [c], [x]


@pytest.mark.parametrize("make", [affine_qp, ball, nearest_semidefinite, softmax])
def test_memory_is_as_predicted(make: Callable[[], Problem]) -> None:
    """By all tensors that are alive at once, in forward, backward and the second derivative."""
    batch, rng = 32, np.random.default_rng(0)
    operations = Operations(*make())
    theta = [rng.uniform(size=(batch, *p.shape)) for p in operations.canonical.parameters]
    theta = [t + np.swapaxes(t, 1, 2) if make is nearest_semidefinite else t for t in theta]

    def everything(call: Call) -> list[float]:
        most = []
        with pretended() as record:
            row: list[Any] = sent(theta)
            inputs = record.taken
            *y, v = call.run("solve", row)
            most.append(record.most_taken - inputs)
            ones = [torch.ones_like(a) for a in y]
            for name, arguments in (("vjp", ones), ("hvp", [*ones, *row])):
                record.most_taken = record.taken
                call.run(name, [*row, v, *arguments])
                most.append(record.most_taken - inputs)
        return most

    everything(Call(operations))  # constants are sent once
    most = max(everything(Call(operations))) / batch
    flat = [torch.from_numpy(t).reshape(batch, -1) for t in theta]
    predicted = operations.solution_map.bytes_per_instance(flat, factored=True)
    assert most <= predicted <= 4 * most


def least_squares() -> Problem:
    x, L, c = cp.Variable(20), cp.Parameter((30, 20)), cp.Parameter(30)
    return cp.Problem(cp.Minimize(cp.sum_squares(L @ x - c)), [cp.sum(x) == 1, x >= 0]), [L, c], [x]


@pytest.mark.parametrize("make", [affine_qp, ball, least_squares])
def test_memory_of_the_engine_is_as_predicted(make: Callable[[], Problem]) -> None:
    """Likewise, without a gradient, of problems whose matrices are not all shared."""
    batch, rng = 32, np.random.default_rng(0)
    problem, parameters, variables = make()
    operations = Operations(problem, parameters, variables)
    flat = [rng.uniform(size=(batch, p.size)) for p in operations.canonical.parameters]
    program = operations.canonical.program(flat, batch)
    engine = Engine(program.structure)
    for _ in range(2):  # constants are sent once
        with pretended() as record:
            values = sent([program.P, program.q, program.A, program.b])
            before = record.taken
            engine.solve(*values, batch)
            most = (record.most_taken - before) / batch
    predicted = operations.solution_map.bytes_per_instance(
        [torch.from_numpy(t) for t in flat], factored=False
    )
    assert most <= predicted <= 4 * most


def test_settings_of_smoothed_derivatives() -> None:
    """The other derivatives are taken there, too."""
    x, c = cp.Variable(5), cp.Parameter(5)
    problem = cp.Problem(cp.Minimize(c @ x), [cp.sum(x) == 1, x >= 0])
    theta = [np.random.default_rng(1).normal(size=(BATCH, 5))]
    for kind in ("smoothed", "lpgd"):
        settings = Settings(derivative=kind, smoothing=0.1)
        pair = []
        for far in (False, True):
            operations = Operations(problem, [c], [x], settings=settings)
            call = Call(operations)
            with pretended():
                row: list[Any] = sent(theta) if far else list(theta)
                y, v = call.run("solve", row)
                ones = np.arange(5.0)[None, :].repeat(BATCH, axis=0)
                (gradient,) = call.run("vjp", [*row, v, *(sent([ones]) if far else [ones])])
                pair.append([a.inner.numpy() if far else a for a in (y, gradient)])
        for one, other in zip(*pair, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
