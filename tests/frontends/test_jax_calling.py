"""How the JAX layer is called, what it returns, and what it says when something is wrong."""

from __future__ import annotations

import copy
import pickle
import re
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
    printed,
    projection,
    projection_layer,
)

from cvxlayers import ParameterTypeError, ParameterValueError, SolverError
from cvxlayers.jax import CvxpyLayer
from solvers.toys import DEFAULT

# JAX hands on the error of a callback as one of these.
HANDED_ON = (jax.errors.JaxRuntimeError, ValueError)


@pytest.fixture(scope="module")
def layer() -> CvxpyLayer:
    return projection_layer()


def test_by_position_and_by_name(layer: CvxpyLayer) -> None:
    t, A, b = draw(4), draw(2, 4, seed=1), draw(2, seed=2)
    first = layer(t, A, b)
    for other in (layer(t, A, b=b), layer(b=b, t=t, A=A), jax.jit(layer)(t, b=b, A=A)):
        assert all((x == y).all() for x, y in zip(first, other, strict=True))
    for wrong, message in (
        (lambda: layer(t, A), "'b' .*is missing"),
        (lambda: layer(t, A, b, t), "got 4"),
        (lambda: layer(t, A, b, t=t), "given twice"),
        (lambda: layer(t, A, c=b), "There is no parameter or option 'c'"),
    ):
        with pytest.raises(ParameterValueError, match=message):
            wrong()


def test_arrays_of_other_kinds_are_constants(layer: CvxpyLayer, double: None) -> None:  # noqa: F811
    t, A, b = draw(4), draw(2, 4, seed=1), draw(2, seed=2)
    found = jax.grad(lambda t: layer(t, np.asarray(A), b.tolist())[0].sum())(t)
    close(found, jax.grad(lambda t: projection(t, A, b)[0].sum())(t))
    p, q = cp.Parameter(), cp.Parameter()
    x = cp.Variable()
    quotient = CvxpyLayer(cp.Problem(cp.Minimize((x - p - q) ** 2)), [p, q], [x])
    close(quotient(1, 2.5), (jnp.asarray(3.5),))
    close(jax.jit(lambda p: quotient(p, np.float32(2.5)))(1.0), (jnp.asarray(3.5),))
    with pytest.raises(ParameterTypeError, match="got str"):
        quotient("1", 2.0)


def test_constants_keep_double_precision() -> None:
    """Also where JAX itself knows single precision alone."""
    p, q, x = cp.Parameter(), cp.Parameter(), cp.Variable()
    layer = CvxpyLayer(cp.Problem(cp.Minimize((x - 1e6 * (p - q)) ** 2)), [p, q], [x])
    value = 1.0 + 2.0**-26
    for compile_ in (lambda f: f, jax.jit):
        (found,) = compile_(lambda q: layer(value, q, solver_args={"polish": True}))(jnp.array(1.0))
        assert found.dtype == jnp.float32
        assert found == pytest.approx(1e6 * 2.0**-26, rel=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_outputs_have_the_dtype_of_the_arrays(dtype: Any) -> None:
    layer, t = box_layer(), jnp.array([0.5, -1.0], dtype)
    assert layer(t, 1.0)[0].dtype == dtype
    assert jax.jit(layer)(t, jnp.array(1.0, dtype))[0].dtype == dtype
    assert layer(t, jnp.array(1.0, jnp.float32))[0].dtype == jnp.float32
    for compile_ in (lambda f: f, jax.jit):
        gradients = compile_(jax.grad(lambda t, u: layer(t, u)[0].sum(), (0, 1)))(t, jnp.array(1.0))
        assert [g.dtype for g in gradients] == [dtype, jnp.float32]
        np.testing.assert_allclose(gradients[0].astype(float), [1, 0], atol=1e-6)
        second = compile_(jax.hessian(lambda t: (layer(t, 1.0)[0] ** 2).sum()))(t)
        assert second.dtype == dtype
        np.testing.assert_allclose(second.astype(float), [[2, 0], [0, 0]], atol=1e-6)


def test_without_arrays_of_jax(double: None) -> None:  # noqa: F811
    (x,) = box_layer()([0.5, 2.0], 1.0)
    assert isinstance(x, jax.Array) and x.dtype == jnp.float64
    (y,) = jax.jit(lambda: box_layer()([0.5, 2.0], 1.0))()
    assert (x == y).all()


@pytest.mark.parametrize("compile_", [lambda f: f, jax.jit, jax.vmap, jax.grad])
def test_wrong_shapes_and_dtypes_are_refused_while_tracing(compile_: Function) -> None:
    layer = box_layer()

    def call(t: Any) -> Any:
        return layer(t, 1.0)[0].sum()

    batch = (1,) if compile_ is jax.vmap else ()
    with pytest.raises(ParameterValueError, match=r"'t'.*\(2,\).*got \(3,\)"):
        compile_(call)(jnp.ones((*batch, 3)))
    with pytest.raises(ParameterValueError, match="do not broadcast"):
        compile_(lambda t: layer(t, np.ones(4))[0].sum())(jnp.ones((*batch, 3, 2)))
    if compile_ is not jax.grad:
        with pytest.raises(ParameterTypeError, match=r"'t'.*floating-point.*int32.*astype"):
            compile_(call)(jnp.ones((*batch, 2), int))
        with pytest.raises(ParameterTypeError, match=r"'t'.*complex64.*real and imaginary"):
            compile_(call)(jnp.ones((*batch, 2)) * 1j)
        with pytest.raises(ParameterTypeError, match=r"'t'.*uint32"):
            compile_(call)(jnp.ones((*batch, 2), jnp.uint32))


CONTENTS = {
    "fails": (-1.0, SolverError, "PRIMAL_INFEASIBLE.*on_failure='nan'"),
    "NaN": (float("nan"), ParameterValueError, "'u'.*expected finite numbers"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_wrong_contents(name: str) -> None:
    value, kind, text = CONTENTS[name]
    t, u = jnp.ones(2), jnp.asarray(value)
    total = lambda t, u: box_layer()(t, u)[0].sum()  # noqa: E731
    for eager in (total, jax.grad(total), jax.hessian(total)):
        with pytest.raises(kind, match=f"(?s){text}"):
            eager(t, u)
    for compiled in (jax.jit(total), jax.jit(jax.grad(total))):
        with pytest.raises(HANDED_ON, match=f"(?s){text}"):
            jax.block_until_ready(compiled(t, u))
    with pytest.raises(HANDED_ON, match=f"(?s){text}"):
        jax.block_until_ready(jax.lax.map(lambda u: total(t, u), u[None]))


def test_mapped_rows_are_named() -> None:
    with pytest.raises(SolverError, match=r"1 of 3 instances were.* row 1 ") as caught:
        jax.vmap(box_layer(), (None, 0))(jnp.ones(2), jnp.array([1.0, -1.0, 2.0]))
    assert list(caught.value.statuses) == [(1,)]


def test_options_of_a_call() -> None:
    layer, t, u = box_layer(), jnp.ones(2), jnp.array(-1.0)
    for compile_ in (lambda f: f, jax.jit):
        (x,) = compile_(lambda t, u: layer(t, u, on_failure="nan"))(t, u)
        assert jnp.isnan(x).all()
        # The option's value cannot be hashed, and need not be.
        limited = compile_(lambda t, u: layer(t, u, solver_args={"max_iters": 1}))
        with pytest.raises((SolverError, *HANDED_ON), match="MAX_ITERATIONS"):
            jax.block_until_ready(limited(t, -u))
    with pytest.raises(ValueError, match="warm_start"):
        layer(t, u, warm_start=True)
    with pytest.raises(ValueError, match="on_failure"):
        layer(t, u, on_failure="ignore")
    with pytest.raises(ValueError, match="nonsense"):
        layer(t, u, solver_args={"nonsense": 1})


def test_empty_batch() -> None:
    layer = box_layer()
    for compile_ in (lambda f: f, jax.jit):
        (x,) = compile_(layer)(jnp.ones((0, 2)), jnp.array(1.0))
        assert x.shape == (0, 2)
        gradient = jax.grad(lambda u: layer(jnp.ones((0, 2)), u)[0].sum())
        assert compile_(gradient)(jnp.array(1.0)) == 0


def test_copies_and_pickles() -> None:
    layer, t = box_layer(), jnp.array([0.5, 2.0])
    jax.grad(lambda t: layer(t, 1.0)[0].sum())(t)
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert (other(t, 1.0)[0] == layer(t, 1.0)[0]).all()
        assert repr(other) == repr(layer)
    assert repr(layer) == f"CvxpyLayer((t[2], u[]) -> (x[2]), solver={DEFAULT})"
    assert (CvxpyLayer.of(layer.operations)(t, 1.0)[0] == layer(t, 1.0)[0]).all()


def test_an_array_stays_on_its_device() -> None:
    device = jax.devices()[0]
    (x,) = box_layer()(jax.device_put(jnp.ones(2), device), 1.0)
    assert x.committed and x.devices() == {device}
    (x,) = box_layer()(jnp.ones(2), 1.0)
    assert not x.committed


def test_no_other_framework_is_imported() -> None:
    found = printed(
        "import sys, cvxlayers.jax; print({'torch', 'mlx', 'jax'}.intersection(sys.modules))"
    )
    assert found == "{'jax'}"


SEVERAL = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np, cvxpy as cp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from cvxlayers.jax import CvxpyLayer
b, x = cp.Parameter(2), cp.Variable(2)
layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 1.5]), [b], [x])
rows = NamedSharding(Mesh(np.array(jax.devices()), "i"), PartitionSpec("i"))
B = jax.device_put(jnp.arange(16.0).reshape(8, 2), rows)
for compile_ in (lambda f: f, jax.jit):
    gradient = compile_(jax.grad(lambda B: ((layer(B)[0] - 3 * B) ** 2).sum()))(B)
    print(np.abs(gradient - jnp.where(B > 1.5, 8 * B, 18 * B - 9)).max() < 1e-4, end=" ")
alone = jax.device_put(B[1], jax.devices()[2])
print(layer(alone)[0].devices() == jax.jit(layer)(alone)[0].devices() == alone.devices())
"""


def test_several_devices() -> None:
    assert re.fullmatch("True True True", printed(SEVERAL))
