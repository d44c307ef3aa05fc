"""`cvxlayers.mlx.vmap`: what it maps is what a loop over the instances gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

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

from cvxlayers import ParameterTypeError, ParameterValueError, SolverError
from cvxlayers.derivative import Geometry
from cvxlayers.mlx import CvxpyLayer, vmap

B, C = 4, 2
Map = Callable[..., Function]


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    with mx.stream(mx.cpu):  # float64 is nowhere else
        yield


def exact(**settings: Any) -> CvxpyLayer:
    return ratio_layer(solver_args={"eps": 1e-11}, **settings)


# Of `f(a, b)`, one instance at a time, with a map of either library, to a function of batches.
TRANSFORMS: dict[str, Callable[[Function, Map], Function]] = {
    "value": lambda f, vmap: vmap(f),
    "gradient": lambda f, vmap: vmap(gradient(f)),
    "tangent": lambda f, vmap: vmap(along(f)),
    "second gradient": lambda f, vmap: vmap(gradient(summed(gradient(f)))),
    "second tangent": lambda f, vmap: vmap(along(along(f))),
    "gradient of the map": lambda f, vmap: gradient(summed(vmap(f))),
    "tangent of the map": lambda f, vmap: along(vmap(f)),
    "second gradient of the map": lambda f, vmap: gradient(summed(gradient(summed(vmap(f))))),
    "gradient of the map of the gradient": lambda f, vmap: gradient(summed(vmap(gradient(f)))),
    "tangent of the map of the gradient": lambda f, vmap: along(vmap(gradient(f))),
    "gradient of the map of the tangent": lambda f, vmap: gradient(summed(vmap(along(f)))),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_of_a_map(name: str) -> None:
    transform, values = TRANSFORMS[name], [draw(B), draw(B, N)]
    agree(transform(loss(exact()), vmap)(*values), transform(loss(ratio), mx.vmap)(*values), 1e-7)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_of_a_map_inside_a_map(name: str) -> None:
    transform, a, b = TRANSFORMS[name], draw(C, B), draw(B, N)

    def nested(function: Function, vmap: Map) -> Function:
        return vmap(lambda a: transform(loss(function), vmap)(a, b))

    agree(nested(exact(), vmap)(a), nested(ratio, mx.vmap)(a), 1e-7)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("in_axes", [(0, 1), (None, 2), (0, None), (1, 0)])
def test_axes(name: str, in_axes: tuple[int | None, int | None]) -> None:
    """The instances are batches themselves."""

    def mapped(vmap: Map) -> Map:
        return lambda f: vmap(f, in_axes=in_axes)

    def shape(own: tuple[int, ...], axis: int | None) -> list[int]:
        return list(own) if axis is None else [*own[:axis], B, *own[axis:]]

    values = [draw(*shape((C,), in_axes[0])), draw(*shape((C, N), in_axes[1]))]
    transform = TRANSFORMS[name]
    found = transform(loss(exact()), mapped(vmap))(*values)
    agree(found, transform(loss(ratio), mapped(mx.vmap))(*values), 1e-7)


def test_the_layer_alone_and_out_axes() -> None:
    layer, a, b = exact(), draw(B), draw(B, N)
    agree(vmap(layer)(a, b), layer(a, b))
    (x,) = vmap(layer, out_axes=(1,))(a, b)
    agree(x, layer(a, b)[0].T)


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_a_jacobian_by_a_map_over_directions_alone(mode: str) -> None:
    """The layer's inputs are not mapped: there is one solve."""
    layer, a, b = exact(), draw(), draw(N)

    def row(direction: mx.array) -> mx.array:
        if mode == "rows":
            return mx.vjp(lambda b: layer(a, b)[0], [b], [direction])[1][0]
        return mx.jvp(lambda b: layer(a, b)[0], [b], [direction])[1][0]

    agree(vmap(row)(mx.eye(N, dtype=mx.float64)), mx.eye(N, dtype=mx.float64) / a)


def test_constants_and_names_in_a_map() -> None:
    layer, b = exact(), draw(B, N)
    found = vmap(lambda b: layer(b=b, a=np.array([1.0, 2.0]))[0])(b)
    agree(found, mx.stack([b, b / 2], axis=1))


def test_float32() -> None:
    layer, a, b = exact(), draw(B).astype(mx.float32), draw(B, N).astype(mx.float32)
    found = vmap(gradient(loss(layer)))(a, b)
    assert [d.dtype for d in found] == [mx.float32] * 2
    agree(found, mx.vmap(gradient(loss(ratio)))(a, b), 1e-5)


def test_all_instances_are_solved_together(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, solves = exact(), []
    solve = layer.operations.solution_map.solve

    def counted(theta: Any, *args: Any, **keywords: Any) -> Any:
        solves.append(keywords["differentiable"])
        return solve(theta, *args, **keywords)

    monkeypatch.setattr(layer.operations.solution_map, "solve", counted)
    a, b = draw(B), draw(B, N)
    vmap(loss(layer))(a, b)
    vmap(lambda a: vmap(lambda b: loss(layer)(a, b))(b))(a)
    assert solves == [False, False]
    del solves[:]
    vmap(gradient(loss(layer)))(a, b)
    gradient(summed(vmap(loss(layer))))(a, b)
    assert solves == [True, True]


def test_nothing_is_factored_without_a_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(Geometry, "engine_for", lambda *_: None)  # lanes keep no factor
    for name in ("implicit", "polish"):
        module = import_module(f"cvxlayers.derivative.{name}")
        factor = module.factor
        monkeypatch.setattr(module, "factor", lambda *args, f=factor: calls.append(1) or f(*args))
    vmap(ratio_layer(solver_args={"polish": False}))(draw(B), draw(B, N))
    assert not calls
    vmap(gradient(loss(ratio_layer())))(draw(B), draw(B, N))
    assert calls


def test_failures() -> None:
    t, u = np.ones(2), array([2.0, -1.0])

    def total(layer: CvxpyLayer) -> Function:
        return lambda u: layer(t, u)[0].sum()

    for transform in (lambda f: f, gradient, along):
        with pytest.raises(SolverError, match="row 1 PRIMAL_INFEASIBLE"):
            vmap(transform(total(box_layer())))(u)
    layer = box_layer(on_failure="nan")
    assert np.isnan(np.array(vmap(total(layer))(u))).tolist() == [False, True]
    agree(vmap(gradient(lambda u: (layer(np.full(2, 5.0), u)[0]).sum()))(u), [array([2.0, 0.0])])


def test_values_and_shapes_are_checked() -> None:
    with pytest.raises(ParameterValueError, match="'a'"):
        vmap(ratio_layer())(-draw(B), draw(B, N))
    with pytest.raises(ParameterValueError, match=r"'b'.*\(3,\)"):
        vmap(ratio_layer())(draw(B), draw(B, N + 1))


def test_a_third_derivative_is_an_error() -> None:
    third = gradient(summed(gradient(summed(gradient(loss(ratio_layer()))))))
    with pytest.raises(NotImplementedError, match="third"):
        vmap(third)(draw(B), draw(B, N))


def test_the_map_of_mlx_is_an_error_that_names_ours() -> None:
    layer, a, b = ratio_layer(), draw(B), draw(B, N)

    def inner(outer: Map, map_: Map) -> Function:
        return outer(lambda a: map_(lambda b: layer(a, b)[0])(b))

    for call in (
        lambda: mx.vmap(layer)(a, b),
        lambda: mx.vmap(gradient(loss(layer)))(a, b),
        lambda: gradient(summed(mx.vmap(loss(layer))))(a, b),
        lambda: inner(mx.vmap, vmap)(a),
    ):
        with pytest.raises(ParameterTypeError, match=r"CvxpyLayer.*use cvxlayers\.mlx\.vmap"):
            call()
    agree(inner(vmap, mx.vmap)(a), inner(vmap, vmap)(a))


def test_after_an_error_the_map_is_over() -> None:
    layer, a, b = ratio_layer(), draw(B), draw(B, N)
    with pytest.raises(ZeroDivisionError):
        vmap(lambda a, b: 1 / 0)(a, b)
    with pytest.raises(ParameterTypeError):
        mx.vmap(layer)(a, b)


def test_a_compiled_function_in_a_map_is_never_used_without_values() -> None:
    layer, a, b = ratio_layer(), draw(B), draw(B, N)
    compiled = mx.compile(loss(layer))
    agree(vmap(compiled)(a, b), vmap(loss(layer))(a, b))
    agree(vmap(compiled)(2 * a, b), vmap(loss(layer))(2 * a, b))
    agree(vmap(gradient(compiled))(a, b), vmap(gradient(loss(layer)))(a, b))
    with pytest.raises((ParameterTypeError, RuntimeError, ValueError)):
        mx.eval(compiled(a[0], b[0]))

    def not_mapped(a: mx.array) -> mx.array:
        return vmap(lambda b: layer(a, np.ones(N))[0] + b)(b)

    with pytest.raises((ParameterTypeError, RuntimeError, ValueError)):
        mx.eval(mx.compile(not_mapped)(a[0]))
