"""An instance's answer and gradient are bitwise the same alone, in a batch, beside other
neighbours, after other calls, in other orders and from several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest
import torch
from layer_checks import draw, nonneg_least_squares, run, same_bits, tensor

from conformance.problems import exponential, mixed, quadratic, second_order, semidefinite
from conformance.problems.case import Case
from cvxlayers.torch import CvxpyLayer

ROWS = 5
# One of every family, so that every cone takes part; two with active sets that differ by row.
CASES = [
    *(family.CASES[0] for family in (quadratic, second_order, semidefinite, exponential, mixed)),
    *(case for case in quadratic.CASES if case.name in ("mpc", "qp_quad_form_mixed")),
]
# diffcp has no power cones.
SOLVED_BY = [
    (case, solver)
    for case in CASES
    for solver in (None, cp.SCS, cp.DIFFCP)
    if not (solver == cp.DIFFCP and "pow" in case.cones)
]

Values = list[torch.Tensor]


def layer_of(case: Case, solver: str | None = None) -> CvxpyLayer:
    problem, parameters, variables = case.build()
    return CvxpyLayer(problem, parameters, variables, gp=case.gp, solver=solver)


def batch_of(case: Case, rows: int = ROWS) -> Values:
    """The case's values, and multiples of them that differ from row to row."""
    scale = 1 + 0.03 * np.arange(rows)
    return [torch.as_tensor(np.stack([s * v for s in scale])) for v in case.values()]


def answer(layer: CvxpyLayer, values: Values, batch_axes: int = 1) -> list[torch.Tensor]:
    """Outputs and gradients of every row's own loss, whose weights are the same for all rows."""
    leaves = [tensor(v) for v in values]
    outputs = layer(*leaves)
    loss = sum(
        (out * torch.as_tensor(draw(*out.shape[batch_axes:], seed=i))).sum()
        for i, out in enumerate(outputs)
    )
    return [out.detach() for out in outputs] + list(torch.autograd.grad(loss, leaves))


def row(found: list[torch.Tensor], i: int) -> list[torch.Tensor]:
    return [t[i] for t in found]


def take(values: Values, rows: list[int]) -> Values:
    return [v[rows] for v in values]


@pytest.mark.parametrize(("case", "solver"), SOLVED_BY, ids=str)
def test_bitwise_the_same_whatever_the_neighbours(case: Case, solver: str | None) -> None:
    layer, values = layer_of(case, solver), batch_of(case)
    together = answer(layer, values)
    for i in (0, 2, ROWS - 1):
        assert same_bits(row(answer(layer, take(values, [i])), 0), row(together, i)), "alone"
    backwards = answer(layer, take(values, [4, 3, 2, 1, 0]))
    assert same_bits([t.flip(0) for t in backwards], together), "in another order"
    repeated = answer(layer, take(values, [2] * 9 + [0]))
    assert same_bits(row(repeated, 4), row(together, 2)), "beside copies of itself"
    assert same_bits(answer(layer, values), together), "after other calls"
    assert same_bits(answer(layer_of(case, solver), values), together), "from a new layer"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bitwise_the_same_without_a_batch_axis_and_over_two(case: Case) -> None:
    layer, values = layer_of(case), batch_of(case, 6)
    together = answer(layer, values)
    assert same_bits(answer(layer, [v[3] for v in values], batch_axes=0), row(together, 3))
    nested = answer(layer, [v.reshape(2, 3, *v.shape[1:]) for v in values], batch_axes=2)
    assert same_bits([t.flatten(0, 1) for t in nested], together)


def test_bitwise_the_same_beside_a_failing_or_a_hard_neighbour() -> None:
    u, t, x = cp.Parameter(), cp.Parameter(3), cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [x >= 0, cp.sum(x) <= u])
    layer = CvxpyLayer(problem, [t, u], [x], on_failure="nan")
    t_t = torch.as_tensor(draw(4, 3))
    u_t = torch.tensor([1.0, -1.0, 1e-9, 1e9], dtype=torch.float64)
    together = answer(layer, [t_t, u_t])
    alone = answer(layer, [t_t[:1], u_t[:1]])
    assert same_bits(row(alone, 0), row(together, 0))


def test_bitwise_the_same_after_calls_of_other_shapes_and_options() -> None:
    layer = CvxpyLayer(*nonneg_least_squares())
    values = [draw(3, 2), draw(4, 3)]
    before = run(layer, values)
    run(layer, [draw(3, 2), draw(1, 3)])
    run(layer, [1e4 * draw(2, 3, 2), draw(3)], solver_args={"eps": 1e-4})
    with torch.no_grad():
        layer(*map(torch.as_tensor, values))
    after = run(layer, values)
    assert same_bits(before[0], after[0]) and same_bits(before[1], after[1])


def in_threads(count: int, work: Callable[[int], None]) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def body(i: int) -> None:
        try:
            start.wait(10)
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


@pytest.mark.parametrize(("case", "solver"), SOLVED_BY, ids=str)
def test_bitwise_the_same_from_several_threads_at_once(case: Case, solver: str | None) -> None:
    layer, values = layer_of(case, solver), batch_of(case)
    expected = [answer(layer, take(values, [i, 4, 0])) for i in range(4)]
    fresh = layer_of(case, solver)  # with whatever a first call computes still to be computed

    def work(i: int) -> None:
        for _ in range(3):
            assert same_bits(answer(fresh, take(values, [i % 4, 4, 0])), expected[i % 4])

    in_threads(8, work)


def test_bitwise_the_same_when_backward_runs_in_another_thread_and_order() -> None:
    layer = CvxpyLayer(*nonneg_least_squares())
    inputs = [[draw(3, 2, seed=i), draw(4, 3, seed=i)] for i in range(4)]
    expected = [run(layer, values)[1] for values in inputs]
    leaves = [[tensor(v) for v in values] for values in inputs]
    losses = [(torch.as_tensor(draw(4, 2)) * layer(*leaf)[0]).sum() for leaf in leaves]
    for loss in reversed(losses[2:]):
        loss.backward()
    in_threads(2, lambda i: losses[i].backward())
    for leaf, true in zip(leaves, expected, strict=True):
        assert same_bits([v.grad for v in leaf], true)


@pytest.mark.parametrize("threads", [1, 2])
def test_bitwise_the_same_whatever_number_of_threads_torch_has(threads: int) -> None:
    layer = CvxpyLayer(*nonneg_least_squares(30, 20))
    values = [draw(30, 20), draw(3, 30)]
    before = torch.get_num_threads()
    expected = run(layer, values)
    try:
        torch.set_num_threads(threads)
        found = run(layer, values)
    finally:
        torch.set_num_threads(before)
    assert same_bits(found[0], expected[0]) and same_bits(found[1], expected[1])
