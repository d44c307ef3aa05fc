"""The MLX layer's derivatives against closed forms and finite differences."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from importlib import import_module

import cvxpy as cp
import mlx.core as mx
import numpy as np
import pytest
from mlx_checks import (
    Function,
    N,
    agree,
    along,
    array,
    box_layer,
    draw,
    gradient,
    loss,
    ratio,
    ratio_layer,
    summed,
)

from conformance import curvature, oracle
from conformance.problems import CASES, Case
from cvxlayers import SolverError
from cvxlayers.call import Call
from cvxlayers.derivative import Geometry, system
from cvxlayers.mlx import CvxpyLayer

Transform = Callable[[Function], Function]

TRANSFORMS: dict[str, Transform] = {
    "value": lambda f: f,
    "gradient": gradient,
    "tangent": along,
    "gradient of gradient": lambda f: gradient(summed(gradient(f))),
    "tangent of gradient": lambda f: along(summed(gradient(f))),
    "gradient of tangent": lambda f: gradient(along(f)),
    "tangent of tangent": lambda f: along(along(f)),
    "gradient of checkpoint": lambda f: gradient(mx.checkpoint(f)),
    "gradient of gradient of checkpoint": lambda f: gradient(summed(gradient(mx.checkpoint(f)))),
    # What an inner gradient gives has lost MLX's mark that the outer one will differentiate it.
    "gradient through a gradient": lambda f: gradient(lambda a, b: f(*gradient(g)(a, b))),
    "tangent through a tangent": lambda f: along(lambda a, b: f(along(g)(a, b), b)),
    "gradient through a tangent": lambda f: gradient(lambda a, b: f(along(g)(a, b), b)),
}
THIRD: dict[str, Transform] = {
    "ggg": lambda f: gradient(summed(gradient(summed(gradient(f))))),
    "jjj": lambda f: along(along(along(f))),
    "gjj": lambda f: gradient(along(along(f))),
    "jgj": lambda f: along(summed(gradient(along(f)))),
    "jjg": lambda f: along(along(summed(gradient(f)))),
}


def g(a: mx.array, b: mx.array) -> mx.array:
    """Neither layer nor closed form: something to be differentiated before."""
    return a**3 + (b * b).sum() * a


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    with mx.stream(mx.cpu):  # float64 is nowhere else
        yield


@pytest.fixture
def factorisations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every call of `factor`. Lanes keep no factor, and are left out."""
    monkeypatch.setattr(Geometry, "engine_for", lambda *_: None)
    calls: list[int] = []
    factor = system.factor

    def counted(*args: object) -> object:
        calls.append(1)
        return factor(*args)

    for name in ("implicit", "polish"):
        monkeypatch.setattr(import_module(f"cvxlayers.derivative.{name}"), "factor", counted)
    return calls


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_agrees_with_the_closed_form(name: str) -> None:
    transform, values = TRANSFORMS[name], [draw(), draw(N)]
    found = transform(loss(ratio_layer(solver_args={"eps": 1e-11})))(*values)
    agree(found, transform(loss(ratio))(*values))


@pytest.mark.parametrize("name", [n for n in TRANSFORMS if " through " not in n])
@pytest.mark.parametrize("shapes", [[(4, 1), (2, N)], [(), (5, N)], [(5,), (N,)], [(1,), (2, N)]])
def test_batch_axes_broadcast_in_every_transform(name: str, shapes: list[tuple[int, ...]]) -> None:
    transform, values = TRANSFORMS[name], [draw(*shape) for shape in shapes]
    found = transform(loss(ratio_layer(solver_args={"eps": 1e-11})))(*values)
    agree(found, transform(loss(ratio))(*values), 1e-7)


@pytest.mark.parametrize("name", THIRD)
def test_a_third_derivative_is_an_error(name: str) -> None:
    with pytest.raises(NotImplementedError, match="third"):
        THIRD[name](loss(ratio_layer()))(draw(), draw(N))


@pytest.mark.parametrize("chosen", CASES[:3] + CASES[-1:], ids=str)
def test_gradients_agree_with_finite_differences(chosen: Case) -> None:
    layer = CvxpyLayer(*chosen.build(), gp=chosen.gp)
    values, weights = (
        [array(v) for v in chosen.values()],
        [array(c) for c in oracle.weights(chosen)],
    )

    def total(*args: mx.array) -> mx.array:
        return sum((c * y).sum() for c, y in zip(weights, layer(*args), strict=True))

    found = [np.array(d) for d in gradient(total)(*values)]
    assert oracle.relative_error(found, oracle.gradient(chosen)) < 1e-6

    truth = curvature.curvature(chosen)
    directions = [[array(d) for d in ds] for ds in truth.directions]

    def first(direction: list[mx.array]) -> Function:
        return lambda *args: sum(
            (p * d).sum() for p, d in zip(gradient(total)(*args), direction, strict=True)
        )

    second = [[mx.jvp(first(p), values, q)[1][0].item() for q in directions] for p in directions]
    assert curvature.relative_error(np.array(second), truth) < 1e-4


def test_constants_have_no_gradient_and_stay_exact() -> None:
    layer, a = ratio_layer(), np.float64(1) / 3
    b = draw(N)
    agree(mx.grad(lambda b: layer(a, b)[0].sum())(b), array(np.full(N, 3.0)))
    agree(mx.grad(lambda b: layer(b=b, a=a)[0].sum())(b), array(np.full(N, 3.0)))
    found = gradient(summed(gradient(lambda b: loss(lambda b: layer(a, b))(b))))(b)
    agree(found, gradient(summed(gradient(lambda b: loss(lambda b: ratio(array(a), b))(b))))(b))


def test_one_array_for_two_parameters() -> None:
    b, c, x = cp.Parameter(N), cp.Parameter(N), cp.Variable(N)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - b - 2 * c))), [b, c], [x])
    agree(mx.grad(lambda b: layer(b, b)[0].sum())(draw(N)), array(np.full(N, 3.0)))


def test_an_output_that_the_loss_does_not_use() -> None:
    b, x = cp.Parameter(N), cp.Variable(N)
    bound = x <= b
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 4)), [bound])
    layer = CvxpyLayer(problem, [b], [x, bound.dual_variables[0]])
    agree(mx.grad(lambda b: layer(b)[0].sum())(draw(N)), array(np.ones(N)))
    agree(mx.grad(lambda b: layer(b)[1].sum())(draw(N)), array(np.full(N, -2.0)))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.float64], ids=str)
def test_results_are_those_of_float64_rounded(dtype: mx.Dtype) -> None:
    layer, a, b = ratio_layer(), draw().astype(dtype), draw(N).astype(dtype)
    exact = [a.astype(mx.float64), b.astype(mx.float64)]
    unit = {mx.float16: 1e-3, mx.bfloat16: 1e-2, mx.float32: 2e-7, mx.float64: 1e-9}[dtype]

    def run(a: mx.array, b: mx.array) -> mx.array:
        return layer(a, b)[0].sum()

    for transform in (lambda f: f, gradient, along, lambda f: gradient(along(f))):
        found, true = transform(run)(a, b), transform(run)(*exact)
        found = found if isinstance(found, list | tuple) else [found]
        true = true if isinstance(true, list | tuple) else [true]
        for f, t in zip(found, true, strict=True):
            assert f.dtype == dtype
            np.testing.assert_allclose(
                np.array(f.astype(mx.float64)), np.array(t), rtol=4 * unit, atol=4 * unit
            )


def test_the_solve_is_in_float64_whatever_the_dtype() -> None:
    """In float32 b and c are the same."""
    x, b, c = cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 1e6 * (b - c)))), [b, c], [x])
    (found,) = layer(mx.ones(2), np.ones(2) - 1e-9)
    assert found.dtype == mx.float32
    np.testing.assert_allclose(np.array(found), 1e-3, rtol=1e-5)


def test_a_promoted_dtype_and_gradients_in_that_of_each_parameter() -> None:
    layer, a, b = ratio_layer(), draw().astype(mx.float16), draw(N).astype(mx.bfloat16)
    assert layer(a, b)[0].dtype == mx.float32
    da, db = gradient(lambda a, b: layer(a, b)[0].sum())(a, b)
    assert da.dtype == mx.float16 and db.dtype == mx.bfloat16


def test_nan_for_an_instance_without_solution_and_exactly_no_gradient() -> None:
    layer = box_layer(on_failure="nan")
    t, u = array([[0.3, 5.0], [0.3, 5.0]]), array([2.0, -1.0])

    def total(t: mx.array, u: mx.array) -> mx.array:
        return (layer(t, u)[0] * 2).sum()

    (x,) = layer(t, u)
    assert np.isnan(np.array(x)).tolist() == [[False, False], [True, True]]
    dt, du = gradient(total)(t, u)
    agree([dt[0], du[0]], [array([2.0, 0.0]), array(2.0)])
    assert not np.array(dt[1]).any() and du[1].item() == 0
    assert not any(np.isnan(np.array(d)).any() for d in gradient(summed(gradient(total)))(t, u))


@pytest.mark.parametrize("transform", [lambda f: f, gradient, along, mx.checkpoint])
def test_an_error_arrives_as_itself(transform: Transform) -> None:
    layer = box_layer()
    with pytest.raises(SolverError, match="PRIMAL_INFEASIBLE"):
        transform(lambda u: layer(np.ones(2), u)[0].sum())(array(-1.0))


def test_a_policy_for_one_call() -> None:
    (x,) = box_layer()(np.ones(2), array(-1.0), on_failure="nan")
    assert np.isnan(np.array(x)).all()


def test_nothing_is_factored_without_a_derivative(factorisations: list[int]) -> None:
    layer, a, b = ratio_layer(solver_args={"polish": False}), draw(), draw(N)
    layer(a, b)
    mx.checkpoint(lambda a, b: layer(a, b)[0])(a, b)
    assert not factorisations
    gradient(loss(layer))(a, b)
    assert factorisations


def test_all_derivatives_share_one_factorisation(factorisations: list[int]) -> None:
    layer, a, b = ratio_layer(), draw(), draw(N)
    counts = []

    def total(a: mx.array, b: mx.array) -> mx.array:
        value = loss(layer)(a, b)
        counts.append(len(factorisations))
        return value

    gradient(summed(gradient(total)))(a, b)
    along(along(total))(a, b)
    (forward, second), end = counts, len(factorisations)
    assert forward > 0
    assert end == second == 2 * forward


def test_results_do_not_depend_on_when_they_are_evaluated() -> None:
    layer, a, b = ratio_layer(), draw(), draw(N)
    value, (da, db) = mx.value_and_grad(loss(layer), argnums=(0, 1))(a * 1, b * 1)
    other = gradient(loss(ratio))(a, b)
    mx.eval(db)
    a += 1
    b[0] = 100
    mx.eval(da)
    mx.eval(value)
    agree([da, db], other)


def test_inputs_may_be_changed_after_the_call() -> None:
    layer, constant = ratio_layer(), np.array(2.0)

    def total(b: mx.array) -> mx.array:
        moved = b * 1
        (x,) = layer(constant, moved)
        moved[0] = 100.0
        constant[...] = 5.0
        return (x * x).sum()

    b = draw(N)
    agree(mx.grad(total)(b), b / 2)


def test_a_call_is_forgotten_with_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[weakref.ref] = []
    create = Call.__init__

    def watched(self: Call, *args: object, **keywords: object) -> None:
        create(self, *args, **keywords)
        calls.append(weakref.ref(self))

    monkeypatch.setattr(Call, "__init__", watched)
    layer = ratio_layer()
    for transform in (gradient, along, lambda f: gradient(summed(gradient(f)))):
        mx.eval(transform(loss(layer))(draw(), draw(N)))
    assert calls and not any(call() for call in calls)


def test_a_value_does_not_depend_on_whether_it_is_differentiated() -> None:
    """To the last bit, although the solver's own answer is 1e-5 off on curved cones."""
    function = loss(ratio_layer())
    a, b = draw(), draw(N)
    value, _ = mx.value_and_grad(function)(a, b)
    assert np.array_equal(np.array(function(a, b)), np.array(value))
