"""What the JAX layer computes, compiles and keeps, and what it does not."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import cvxpy as cp
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from jax_checks import (
    Function,
    box_layer,
    close,
    double,  # noqa: F401
    draw,
    factorisations,  # noqa: F401
    loss,
    printed,
    projection,
    projection_layer,
    softmax_layer,
)

from cvxlayers.call import Call
from cvxlayers.jax import CvxpyLayer
from cvxlayers.jax.task import Origin, to_bits
from cvxlayers.sensitivity import Point

compiled = pytest.mark.parametrize("compile_", [lambda f: f, jax.jit], ids=["eager", "jit"])


@compiled
def test_a_value_does_not_depend_on_whether_it_is_differentiated(compile_: Function) -> None:
    """To the last bit."""
    layer, t = softmax_layer(), draw(3)
    plain = compile_(layer)(t)[0]
    assert (plain == compile_(lambda t: jax.vjp(layer, t)[0])(t)[0]).all()
    assert (plain == compile_(lambda t: jax.jvp(layer, (t,), (t,))[0])(t)[0]).all()
    assert (plain == compile_(jax.checkpoint(layer))(t)[0]).all()


@compiled
def test_nothing_of_the_derivative_is_computed_without_one(
    compile_: Function,
    factorisations: list[int],  # noqa: F811
) -> None:
    layer, t = softmax_layer(), draw(2, 3)

    def plain(t: Any) -> Any:
        return layer(t, solver_args={"polish": False})[0].sum()

    compile_(plain)(t)
    compile_(jax.vmap(plain))(t)
    compile_(jax.checkpoint(plain))(t)
    # Neither where the layer does not depend on what is differentiated.
    compile_(jax.grad(lambda s: s * plain(t)))(2.0)
    compile_(jax.grad(lambda t: t.sum() * plain(jax.lax.stop_gradient(t))))(t)
    assert not factorisations
    compile_(jax.grad(plain))(t).block_until_ready()
    assert factorisations


ORDERS = {
    "grad": lambda f: jax.grad(f),
    "jvp": lambda f: lambda t: jax.jvp(f, (t,), (t,))[1],
    "linearize": lambda f: lambda t: jax.linearize(f, t)[1](t),
    "hessian product": lambda f: lambda t: jax.jvp(jax.grad(f), (t,), (t,))[1],
    "product by reverse": lambda f: jax.grad(lambda t: (jax.grad(f)(t) * t).sum()),
    "jacrev": lambda f: jax.jacrev(jax.jacrev(f)),
    "jacfwd": lambda f: jax.jacfwd(jax.jacfwd(f)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
    "hessian": jax.hessian,
}


@compiled
@pytest.mark.parametrize("order", ORDERS)
def test_derivatives_reuse_the_factorisation_of_the_solve(
    order: str,
    compile_: Function,
    factorisations: list[int],  # noqa: F811
    double: None,  # noqa: F811
) -> None:
    layer, t = projection_layer(), draw(4)
    A, b = np.asarray(draw(2, 4, seed=1)), np.asarray(draw(2, seed=2))
    call = Call(layer.operations)
    *outputs, v = call.run("solve", [np.asarray(t), A, b])
    call.run("vjp", [np.asarray(t), A, b, v, *(np.ones_like(y) for y in outputs)])
    needed = len(factorisations)
    assert needed >= 1
    function = compile_(ORDERS[order](lambda t: loss(layer)(t, A, b)))
    for _ in range(3):
        factorisations.clear()
        jax.block_until_ready(function(t))
        assert len(factorisations) == needed


def test_two_calls_before_the_way_back(
    factorisations: list[int],  # noqa: F811
    double: None,  # noqa: F811
) -> None:
    layer, A, b = projection_layer(), draw(2, 4, seed=1), draw(2, seed=2)

    def total(f: Function, steps: int) -> Function:
        def run(t: Any) -> Any:
            for _ in range(steps):
                t = jnp.sin(f(t, A, b)[0])
            return t.sum()

        return run

    counts = []
    for steps in (1, 3):
        for compile_ in (lambda f: f, jax.jit):
            function = compile_(jax.grad(total(layer, steps)))
            function(draw(4)).block_until_ready()
            factorisations.clear()
            close(function(draw(4)), jax.grad(total(projection, steps))(draw(4)))
            counts.append(len(factorisations))
    assert counts[0] == counts[1] and counts[2] == counts[3] == 3 * counts[0]


def test_one_point_may_have_several_derivatives(double: None) -> None:  # noqa: F811
    """A loop runs one call many times: its points are told apart by the values as well."""
    p, a, x = cp.Parameter(), cp.Parameter(), cp.Variable()
    layer = CvxpyLayer(cp.Problem(cp.Minimize(x**2), [a * x == p]), [p, a], [x])

    def total(p: Any, a: Any) -> Any:
        return jax.lax.map(lambda pair: layer(*pair)[0], (p, a)).sum()

    a = jnp.array([2.0, 4.0, 8.0])
    close(jax.grad(total)(jnp.zeros(3), a), 1 / a)
    close(jax.jit(jax.grad(total))(jnp.zeros(3), a), 1 / a)


def test_eager_calls_compile_nothing() -> None:
    layer, t = projection_layer(), draw(4)
    A, b = draw(2, 4, seed=1), draw(2, seed=2)
    batch = jnp.stack([t, t])
    calls = [
        lambda: layer(t, A, b),
        lambda: jax.vmap(layer, (0, None, None))(batch, A, b),
        lambda: jax.grad(lambda t: layer(t, A, b)[0].sum())(t),
        lambda: jax.vmap(jax.grad(lambda t: layer(t, A, b)[0].sum()))(batch),
        lambda: jax.jvp(layer, (t, A, b), (t, A, b)),
        lambda: jax.hessian(lambda t: layer(t, A, b)[0].sum())(t),
    ]
    for call in calls:
        call()
    compilations: list[str] = []

    def listen(event: str, _: float, **__: Any) -> None:
        if "compile" in event:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for call in calls:
            call()
        assert compilations == []
        jax.jit(lambda t: t + 12.5)(t)
        assert compilations
    finally:
        jax.monitoring.clear_event_listeners()


def test_an_eager_call_is_forgotten_with_its_results() -> None:
    """JAX keeps what it has traced; no point may be among it."""
    layer, t = softmax_layer(), jnp.ones(3)
    geometry = layer.operations.solution_map.geometry

    def points() -> int:
        """Those of this layer."""
        gc.collect()
        found = [o.derivative for o in gc.get_objects() if type(o) is Point]
        return sum(getattr(derivative, "geometry", None) is geometry for derivative in found)

    def arrays() -> int:
        gc.collect()
        return sum(
            isinstance(v, np.ndarray | jax.Array)
            for o in gc.get_objects()
            if type(o) is Origin
            for v in vars(o).values()
        )

    for order in ORDERS.values():
        order(loss(layer))(t)
        jax.vmap(order(loss(layer)))(jnp.stack([t, t]))
    assert points() == 0 and arrays() == 0
    _, pull = jax.vjp(layer, t)
    assert points() == 1
    del pull
    assert points() == 0


def test_the_point_is_exact_in_single_precision(double: None) -> None:  # noqa: F811
    v = np.array([[1 / 3, np.nan, -0.0], [np.inf, 5e-324, 1e300]])
    bits = to_bits(v.T[:, ::-1])
    assert bits.shape == (3, 2, 2) and bits.dtype == np.uint32
    assert np.array_equal(bits.view(np.float64)[..., 0], v.T[:, ::-1], equal_nan=True)


SINGLE = """
import cvxpy as cp, jax, jax.numpy as jnp, numpy as np
from cvxlayers.jax import CvxpyLayer
# Far from zero and badly scaled: from a point in single precision the derivatives would be wrong.
n = 3
A, b, x = cp.Parameter((n, n), name="A"), cp.Parameter(n, name="b"), cp.Variable(n)
layer = CvxpyLayer(
    cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= -1e9]), [A, b], [x]
)
H = np.array([[1 / (i + j + 1) for j in range(n)] for i in range(n)], np.float32)
H = H @ H
t = np.array([1.0, 2.0, 3.0], np.float32)
A_, b_ = jnp.asarray(H), jnp.asarray(t / 1000)
true = np.linalg.inv(H.astype(float)).T
assert not jax.config.jax_enable_x64
for compile_ in (lambda f: f, jax.jit):
    (found,) = compile_(layer)(A_, b_)
    g = compile_(jax.jacrev(lambda b: layer(A_, b)[0]))(b_)
    h = compile_(jax.jacfwd(lambda b: layer(A_, b)[0]))(b_)
    second = compile_(jax.hessian(lambda b: (layer(A_, b)[0] ** 2).sum()))(b_)
    for array in (found, g, h, second):
        assert array.dtype == jnp.float32
    print(*(
        f"{np.abs(a - b).max() / np.abs(b).max():.1e}"
        for a, b in ((g, true.T), (h, true.T), (second, 2 * true @ true.T))
    ))
assert not jax.config.jax_enable_x64
"""


def test_derivatives_are_exact_in_single_precision() -> None:
    """Rounded once, at the end: cond(AᵀA) = 5e10 is beyond single precision."""
    result = printed(SINGLE)
    errors = [float(e) for e in result.split()]
    assert len(errors) == 6 and max(errors) < 1e-5, result


LARGE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import cvxpy as cp, jax, jax.numpy as jnp
from cvxlayers.jax import CvxpyLayer
A, x = cp.Parameter((800, 800)), cp.Variable()
layer = CvxpyLayer(cp.Problem(cp.Minimize((x - cp.sum(A)) ** 2)), [A], [x])
f = jax.jit(lambda A: layer(jnp.cos(layer(A / A.size)[0] * A) / A.size)[0] * A)
B = jnp.ones((800, 800))
results = [f(B + k) for k in range(20)]
print(jax.block_until_ready(results)[-1].shape)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity of processes")
def test_large_arrays_on_one_processor() -> None:
    """A callback that waited for JAX to hand it its arrays would wait for itself."""
    assert printed(LARGE) == "(800, 800)"


def test_threads(double: None) -> None:  # noqa: F811
    layer, A, b = projection_layer(), draw(2, 4, seed=1), draw(2, seed=2)
    function = jax.jit(jax.grad(lambda t: loss(layer)(t, A, b)))
    truth = jax.jit(jax.vmap(jax.grad(lambda t: loss(projection)(t, A, b))))
    values = draw(8, 10, 4)
    results: dict[int, Any] = {}

    def work(k: int) -> None:
        results[k] = [function(t) for t in values[k]]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(8):
        close(jnp.stack(results[k]), truth(values[k]))


def test_results_do_not_share_memory_with_what_is_remembered() -> None:
    layer, t = box_layer(), jnp.array([0.5, 2.0])
    outputs, pull = jax.vjp(lambda t: layer(t, 1.0)[0], t)
    before = pull(jnp.ones(2))
    jax.jit(lambda x: x * 0, donate_argnums=0)(outputs).block_until_ready()
    close(pull(jnp.ones(2)), before)
