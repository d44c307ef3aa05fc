"""JAX's transforms of the layer are those of closed forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_checks import (
    Function,
    box_layer,
    close,
    double,  # noqa: F401
    draw,
    geometric,
    geometric_layer,
    loss,
    projection,
    projection_layer,
    softmax,
    softmax_layer,
)

from conformance.curvature import curvature
from conformance.curvature import relative_error as curvature_error
from conformance.oracle import gradient, relative_error, weights
from conformance.problems import CASES
from cvxlayers.jax import CvxpyLayer
from cvxlayers.jax.primitive import bind
from cvxlayers.jax.task import Origin, Task

pytestmark = pytest.mark.usefixtures("double")

PAIRS = {
    "projection": (
        projection_layer,
        projection,
        lambda *batch: (draw(*batch, 4), draw(*batch, 2, 4, seed=1), draw(*batch, 2, seed=2)),
    ),
    "softmax": (softmax_layer, softmax, lambda *batch: (draw(*batch, 3),)),
    "geometric": (
        geometric_layer,
        geometric,
        lambda *batch: (draw(*batch), draw(*batch, seed=1)),
    ),
}
pairs = pytest.mark.parametrize("name", PAIRS)
compiled = pytest.mark.parametrize("compile_", [lambda f: f, jax.jit], ids=["eager", "jit"])
# Uncompiled, JAX is slow on the closed form of a projection.
routes = pytest.mark.parametrize(
    ("name", "compile_"),
    [("softmax", lambda f: f), *((name, jax.jit) for name in PAIRS)],
    ids=["softmax eager", *PAIRS],
)
SECOND = {
    "forward over forward": lambda f, k: jax.jacfwd(jax.jacfwd(f, k), k),
    "forward over reverse": lambda f, k: jax.jacfwd(jax.jacrev(f, k), k),
    "reverse over forward": lambda f, k: jax.jacrev(jax.jacfwd(f, k), k),
    "reverse over reverse": lambda f, k: jax.jacrev(jax.jacrev(f, k), k),
    "hessian": jax.hessian,
}


def pair(name: str, *batch: int) -> tuple[Function, Function, tuple[Any, ...], tuple[int, ...]]:
    """A layer, its closed form, parameter values, and the numbers of all parameters."""
    build, formula, values = PAIRS[name]
    thetas = values(*batch)
    return build(), formula, thetas, tuple(range(len(thetas)))


def pulled(f: Function) -> Function:
    def run(*thetas: Any) -> Any:
        outputs, pull = jax.vjp(f, *thetas)
        return pull(jax.tree.map(jnp.cos, outputs))

    return run


@pairs
@compiled
def test_first_derivatives(name: str, compile_: Function) -> None:
    layer, formula, thetas, every = pair(name)
    close(compile_(layer)(*thetas), formula(*thetas))
    for transform in (
        lambda f: jax.grad(loss(f), every),
        lambda f: jax.value_and_grad(loss(f), every),
        lambda f: jax.jacrev(f, every),
        lambda f: jax.jacfwd(f, every),
        lambda f: jax.jacfwd(f, 0),
        lambda f: jax.grad(loss(f), len(thetas) - 1),
        lambda f: lambda *v: jax.jvp(f, v, tuple(jnp.cos(x) for x in v)),
        pulled,
        lambda f: lambda *v: jax.linearize(f, *v)[1](*(jnp.cos(x) for x in v)),
        lambda f: jax.grad(jax.checkpoint(loss(f)), every),
        lambda f: jax.grad(jax.jit(loss(f)), every),
    ):
        close(compile_(transform(layer))(*thetas), jax.jit(transform(formula))(*thetas))


@pairs
@compiled
@pytest.mark.parametrize("order", SECOND)
def test_second_derivatives(name: str, compile_: Function, order: str) -> None:
    layer, formula, thetas, every = pair(name)
    found = compile_(SECOND[order](loss(layer), every))(*thetas)
    close(found, jax.jit(jax.hessian(loss(formula), every))(*thetas), 1e-6)
    for i in every:
        for j in every:
            swapped = jnp.moveaxis(
                found[j][i], tuple(range(thetas[j].ndim)), tuple(range(-thetas[j].ndim, 0))
            )
            close(found[i][j], swapped, 1e-6)


@routes
def test_the_hessian_of_outputs(name: str, compile_: Function) -> None:
    layer, formula, thetas, every = pair(name)
    found = compile_(jax.jacfwd(jax.jacrev(layer, every), every))(*thetas)
    close(found, jax.jit(jax.jacfwd(jax.jacrev(formula, every), every))(*thetas), 1e-6)


@routes
def test_products_with_the_hessian(name: str, compile_: Function) -> None:
    layer, formula, thetas, every = pair(name)
    along = tuple(jnp.cos(v) for v in thetas)

    def dot(a: Any, b: Any) -> Any:
        return sum((x * y).sum() for x, y in zip(a, b, strict=True))

    for transform in (
        lambda f: jax.grad(lambda *v: dot(jax.grad(f, every)(*v), along), every),
        lambda f: lambda *v: jax.jvp(jax.grad(f, every), v, along)[1],
        lambda f: jax.grad(lambda *v: jax.jvp(f, v, along)[1], every),
        lambda f: lambda *v: jax.linearize(jax.grad(f, every), *v)[1](*along),
        lambda f: lambda *v: jax.vjp(jax.grad(f, every), *v)[1](along),
        lambda f: jax.grad(jax.checkpoint(lambda *v: dot(jax.grad(f, every)(*v), along)), every),
    ):
        found = compile_(transform(loss(layer)))(*thetas)
        close(found, jax.jit(transform(loss(formula)))(*thetas), 1e-6)


@routes
def test_mapped_second_derivatives(name: str, compile_: Function) -> None:
    layer, formula, thetas, every = pair(name, 3)
    for order in (SECOND["hessian"], SECOND["reverse over reverse"]):
        found = compile_(jax.vmap(order(loss(layer), every)))(*thetas)
        close(found, jax.jit(jax.vmap(jax.hessian(loss(formula), every)))(*thetas), 1e-6)


@pytest.mark.parametrize(
    ("axes", "compile_"),
    [
        ((0, None, None), jax.jit),
        ((None, 0, None), jax.jit),
        ((1, 2, 0), jax.jit),
        ((None, 1, 1), lambda f: f),
    ],
    ids=["first", "second", "all", "last two, eager"],
)
def test_mapped_over_some_of_the_parameters(axes: tuple, compile_: Function) -> None:
    """Gradients for a parameter that is not mapped are not summed over the mapped axis."""
    layer, thetas = projection_layer(), []
    for k, (shape, axis) in enumerate(zip([(4,), (2, 4), (2,)], axes, strict=True)):
        full = shape if axis is None else (*shape[:axis], 3, *shape[axis:])
        thetas.append(draw(*full, seed=k))
    for transform in (lambda f: jax.vmap(f, axes), lambda f: jax.vmap(f, axes, out_axes=1)):
        found = compile_(transform(layer))(*thetas)
        close(found, jax.jit(transform(projection))(*thetas))
    for transform in (
        lambda f: jax.vmap(jax.grad(loss(f), (0, 1, 2)), axes),
        lambda f: jax.grad(lambda *v: loss(jax.vmap(f, axes))(*v), (0, 1, 2)),
        lambda f: jax.jacfwd(jax.vmap(f, axes), (0, 1, 2)),
        lambda f: jax.hessian(loss(jax.vmap(f, axes)), 2),
        lambda f: jax.grad(lambda *v: sum(
            (g**2).sum() for g in jax.vmap(jax.grad(loss(f), (0, 1, 2)), axes)(*v)
        ), (0, 1, 2)),
    ):  # fmt: skip
        found = compile_(transform(layer))(*thetas)
        close(found, jax.jit(transform(projection))(*thetas), 1e-6)


@compiled
def test_maps_inside_maps_around_a_batch(compile_: Function) -> None:
    """Three kinds of batch axes at once; A is shared by all."""
    t, A, b = draw(2, 3, 5, 4), draw(2, 4, seed=1), draw(3, 2, seed=2)

    def inner(f: Function) -> Function:
        rows = jax.vmap(f, (0, None, None)) if f is projection else f
        return jax.vmap(jax.vmap(rows, (0, None, 0)), (0, None, None))

    layer = projection_layer()
    close(compile_(inner(layer))(t, A, b), inner(projection)(t, A, b))
    orders = [lambda f: jax.grad(f, (0, 1, 2)), lambda f: jax.hessian(f, (1, 2))]
    for order in orders if compile_ is jax.jit else orders[:1]:
        found = compile_(order(loss(inner(layer))))(t, A, b)
        close(found, jax.jit(order(loss(inner(projection))))(t, A, b), 1e-6)


@compiled
def test_gradients_are_summed_over_batch_axes(compile_: Function) -> None:
    layer = projection_layer()
    t, A, b = draw(3, 1, 4), draw(2, 4, seed=1), draw(5, 2, seed=2)

    def formula(t: Any, A: Any, b: Any) -> Any:
        outer = jax.vmap(jax.vmap(projection, (None, None, 0)), (0, None, None))
        return outer(t[:, 0], A, b)

    close(compile_(layer)(t, A, b), formula(t, A, b))
    found = compile_(jax.grad(loss(layer), (0, 1, 2)))(t, A, b)
    close(found, jax.jit(jax.grad(loss(formula), (0, 1, 2)))(t, A, b))


@compiled
def test_different_cotangents_at_one_point(compile_: Function) -> None:
    layer, thetas = projection_layer(), (draw(4), draw(2, 4, seed=1), draw(2, seed=2))
    cotangents = draw(6, 4, seed=3), draw(6, 2, seed=4)

    def pull(f: Function) -> Function:
        return lambda *v: jax.vmap(jax.vjp(f, *v)[1])(cotangents)

    close(compile_(pull(layer))(*thetas), pull(projection)(*thetas))


def test_loops() -> None:
    layer, A, b = projection_layer(), draw(2, 4, seed=1), draw(2, seed=2)

    def scanned(f: Function, remat: bool = False) -> Function:
        def step(t: Any, shift: Any) -> Any:
            x, y = f(jnp.sin(t) + shift, A, b)
            return x, y

        body = jax.checkpoint(step) if remat else step
        return lambda t, s: loss(lambda t, s: jax.lax.scan(body, t, s))(t, s)

    t, shifts = draw(4), draw(3, 4, seed=3)
    for remat in (False, True):
        for order in (lambda f: jax.grad(f, (0, 1)), lambda f: jax.hessian(f, (0, 1))):
            found = jax.jit(order(scanned(layer, remat)))(t, shifts)
            close(found, jax.jit(order(scanned(projection)))(t, shifts), 1e-6)

    def mapped(f: Function) -> Function:
        return lambda t: jax.lax.map(lambda row: f(row, A, b), t)

    close(jax.jit(mapped(layer))(shifts), mapped(projection)(shifts))
    close(
        jax.jit(jax.grad(loss(mapped(layer))))(shifts), jax.grad(loss(mapped(projection)))(shifts)
    )

    def repeated(f: Function) -> Function:
        return lambda t: jax.lax.fori_loop(0, 3, lambda _, t: jnp.sin(f(t, A, b)[0]), t)

    close(jax.jit(repeated(layer))(t), repeated(projection)(t))
    close(jax.jit(jax.jacfwd(repeated(layer)))(t), jax.jacfwd(repeated(projection))(t))


@compiled
def test_branches_under_a_map(compile_: Function) -> None:
    """Mapping turns a branch into a selection: the point is mapped, and the parameters are not."""
    layer, A, b = projection_layer(), draw(2, 4, seed=1), draw(2, seed=2)

    def chosen(f: Function) -> Function:
        def run(which: Any, t: Any) -> Any:
            return jax.lax.cond(which, lambda t: loss(f)(t, A, b), lambda t: (t**2).sum(), t)

        return run

    which, t = jnp.array([True, False, True]), draw(4)
    orders = [jax.grad, jax.hessian, lambda f, k: jax.jacrev(jax.jacrev(f, k), k)]
    for order in orders if compile_ is jax.jit else orders[:1]:
        found = compile_(jax.vmap(order(chosen(layer), 1), (0, None)))(which, t)
        close(found, jax.jit(jax.vmap(order(chosen(projection), 1), (0, None)))(which, t), 1e-6)


def test_a_point_may_be_mapped_where_no_parameter_is() -> None:
    layer = softmax_layer()
    task = Task(Origin(layer.operations, None, False, None, np.dtype(float)), "solve")
    t, weights = draw(3), jnp.cos(draw(3))
    *_, v = bind(task, [t])
    (alone,) = bind(replace(task, name="vjp"), [t, v, weights])
    mapped = jax.vmap(lambda v: bind(replace(task, name="vjp"), [t, v, weights]))
    (found,) = mapped(jnp.stack([v, v]))
    close(found, jnp.stack([alone, alone]))


@compiled
def test_layers_feed_each_other(compile_: Function) -> None:
    first, second = projection_layer(), softmax_layer()
    A, b = draw(2, 4, seed=1), draw(2, seed=2)

    def chain(f: Function, g: Function) -> Function:
        return lambda t: loss(lambda t: g(f(g(t[:3])[0].sum() * t, A, b)[0][:3]))(t)

    for order in (jax.grad, jax.hessian):
        found = compile_(order(chain(first, second)))(draw(4))
        close(found, jax.jit(order(chain(projection, softmax)))(draw(4)), 1e-6)


@compiled
def test_a_third_derivative_raises(compile_: Function) -> None:
    f = loss(softmax_layer())
    for third in (jax.jacfwd(jax.hessian(f)), jax.jacrev(jax.hessian(f))):
        with pytest.raises(NotImplementedError, match="third one was asked for"):
            compile_(third)(draw(3))
    # What is not differentiated three times does not raise.
    product = jax.hessian(lambda t: (t**3).sum() * jax.hessian(f)(jax.lax.stop_gradient(t)).sum())
    assert compile_(product)(draw(3)).shape == (3, 3)


@compiled
def test_second_derivatives_depend_on_weights(compile_: Function) -> None:
    """They are linear in them: to differentiate them there is no third derivative."""
    layer, t, c = softmax_layer(), draw(3), jnp.cos(draw(3))
    orders = (jax.hessian, lambda f: jax.jacfwd(jax.jacfwd(f)), lambda f: jax.jacrev(jax.jacrev(f)))
    for inner in orders:

        def total(f: Function, inner: Function = inner) -> Function:
            return lambda c: (inner(lambda t: (c * f(t)[0]).sum())(t) ** 2).sum()

        for outer in (jax.grad, jax.jacfwd, jax.hessian):
            found = compile_(outer(total(layer)))(c)
            close(found, jax.jit(outer(total(softmax)))(c), 1e-6)


@compiled
def test_some_of_the_weights_are_mapped(compile_: Function) -> None:
    layer, A, b = projection_layer(), draw(2, 4, seed=1), draw(2, seed=2)
    t, first, second = draw(4), draw(4, seed=3), draw(3, 2, seed=4)

    def mapped(f: Function) -> Function:
        def pulled(first: Any, second: Any) -> Any:
            return jax.vjp(lambda A: f(t, A, b), A)[1]((first, second))[0]

        return lambda first: jax.vmap(pulled, (None, 0))(first, second)

    for order in (jax.jacfwd, jax.jacrev):
        close(compile_(order(mapped(layer)))(first), jax.jit(order(mapped(projection)))(first))


@compiled
def test_failed_rows(compile_: Function) -> None:
    """They are NaN, and contribute exactly zero to every gradient."""
    layer = box_layer(on_failure="nan")
    t, u = draw(3, 2), jnp.array([3.0, -1.0, 1.0])
    (x,) = compile_(layer)(t, u)
    assert jnp.isnan(x[1]).all() and jnp.isfinite(x[::2]).all()
    solved = jnp.array([True, False, True])

    def total(t: Any, u: Any) -> Any:
        (x,) = layer(t, u)
        return jnp.where(solved[:, None], jnp.sin(x), 0).sum()

    for gradients in (
        compile_(jax.grad(total, (0, 1)))(t, u),
        compile_(jax.grad(lambda t, u: layer(t, u)[0].sum(), (0, 1)))(t, u),
        compile_(jax.vmap(jax.grad(lambda t, u: layer(t, u)[0].sum(), (0, 1))))(t, u),
    ):
        for g in gradients:
            assert (g[1] == 0).all() and jnp.isfinite(g).all()
        assert (gradients[0][2] != 0).any()
    product = compile_(jax.grad(lambda t: (jax.grad(total)(t, u) ** 2).sum()))(t)
    assert (product[1] == 0).all() and jnp.isfinite(product).all()


@pytest.mark.parametrize("name", ["nearest_correlation", "gp_exponent"])
def test_against_finite_differences(name: str) -> None:
    cases = {case.name: case for case in CASES}
    case = cases.get(name) or pytest.fail(f"no case {name}; there are {sorted(cases)}")
    problem, parameters, variables = case.build()
    layer, values = CvxpyLayer(problem, parameters, variables, gp=case.gp), case.values()
    every = tuple(range(len(values)))

    def total(*thetas: Any) -> Any:
        return sum((c * y).sum() for c, y in zip(weights(case), layer(*thetas), strict=True))

    thetas = tuple(map(jnp.asarray, values))
    found = jax.jit(jax.grad(total, every))(*thetas)
    assert relative_error([np.asarray(g) for g in found], gradient(case)) <= 1e-6
    truth = curvature(case)

    def second(first: Any, other: Any) -> Any:
        derivative = lambda *v: jax.jvp(total, v, tuple(first))[1]  # noqa: E731
        return jax.jvp(derivative, thetas, tuple(other))[1]

    directions = [list(map(jnp.asarray, d)) for d in truth.directions]
    matrix = np.array([[second(a, b) for b in directions] for a in directions])
    assert curvature_error(matrix, truth) <= 1e-4


def test_matrices_come_out_of_compiled_programs_as_they_are() -> None:
    """CVXPY stores matrices by columns, JAX by rows."""
    S, X = cp.Parameter((2, 3), name="S"), cp.Variable((2, 3))
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - S))), [S], [X])
    value = jnp.arange(12.0).reshape(2, 2, 3)
    for compile_ in (lambda f: f, jax.jit):
        close(compile_(layer)(value), (value,))
        close(compile_(jax.jacrev(layer))(value[0]), jax.jacrev(lambda v: (v,))(value[0]))


def test_abstract_evaluation() -> None:
    layer = projection_layer()
    shapes = [jax.ShapeDtypeStruct(s, jnp.float64) for s in ((7, 4), (2, 4), (7, 2))]
    x, y = jax.eval_shape(layer, *shapes)
    assert (x.shape, y.shape, x.dtype) == ((7, 4), (7, 2), jnp.float64)
    assert "cvxpy_layer" in str(jax.make_jaxpr(layer)(*shapes))
