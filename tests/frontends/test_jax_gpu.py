"""Eager calls with arrays of a GPU are done there, by PyTorch.

Where there is no GPU, arrays of the CPU are taken for arrays of one: PyTorch and JAX hand them over
to each other in the same way.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
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
    draw,
    geometric_layer,
    loss,
    printed,
    projection_layer,
    softmax_layer,
)

from cvxlayers import SolverError
from cvxlayers.jax import CvxpyLayer, gpu
from cvxlayers.jax.task import BITS, Origin, to_numbers
from cvxlayers.solution_map import SolutionMap


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations that PyTorch has done."""
    names: list[str] = []
    run = gpu.run

    def recorded(task: Any, operands: Any) -> Any:
        names.append(task.name)
        return run(task, operands)

    monkeypatch.setattr(gpu, "run", recorded)
    return names


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch, ran: list[str]) -> list[str]:
    """As `ran`, with every array of JAX taken for one of a GPU."""
    monkeypatch.setattr(gpu, "is_on_gpu", lambda _: True)
    monkeypatch.setattr(gpu, "has_torch", lambda: True)
    return ran


@pytest.fixture(params=["float64", "float32"])
def bound(request: pytest.FixtureRequest) -> Iterator[float]:
    """In the precision of the name, how far results may be apart."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield 1e-9 if request.param == "float64" else 1e-5
    jax.config.update("jax_enable_x64", before)


def on_host(function: Function, *args: Any) -> Any:
    """What the function gives by way of NumPy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "takes", lambda *_: False)
        return function(*args)


def agree(function: Function, bound: float, *args: Any) -> None:
    """Both ways give the same numbers, of the same types."""
    found, true = function(*args), on_host(function, *args)
    close(found, true, bound)
    types = [[y.dtype for y in jax.tree.leaves(tree)] for tree in (found, true)]
    assert types[0] == types[1]


def projected() -> tuple[CvxpyLayer, tuple[Any, ...]]:
    return projection_layer(), (draw(4), draw(2, 4, seed=1), draw(2, seed=2))


CASES = {
    "projection": projected,
    "softmax": lambda: (softmax_layer(), (draw(3),)),
    "geometric": lambda: (geometric_layer(), (draw(), draw(seed=1))),
}
# With the operations that they come down to.
ORDERS: dict[str, tuple[Function, set[str]]] = {
    "grad": (lambda f: jax.grad(loss(f)), {"solve", "vjp"}),
    "jvp": (lambda f: lambda *v: jax.jvp(f, v, tuple(map(jnp.cos, v))), {"solve", "jvp"}),
    "hessian": (lambda f: jax.hessian(loss(f)), {"solve", "jvp", "vjp", "hvp"}),
    "jvp of jvp": (
        lambda f: lambda *v: jax.jvp(lambda *v: jax.jvp(f, v, v)[1], v, v),
        {"solve", "jvp", "jvp2"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_results(case: str, bound: float, forced: list[str]) -> None:
    layer, thetas = CASES[case]()
    agree(layer, bound, *thetas)
    assert forced == ["solve"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES)
def test_derivatives(case: str, order: str, bound: float, forced: list[str]) -> None:
    layer, thetas = CASES[case]()
    derived, operations = ORDERS[order]
    agree(derived(layer), bound, *thetas)
    assert set(forced) == operations


def test_maps(bound: float, forced: list[str]) -> None:
    layer, (_, A, b) = projected()
    t, axes = draw(3, 4), (0, None, None)
    agree(jax.vmap(layer, axes), bound, t, A, b)
    agree(jax.vmap(jax.grad(loss(layer), (0, 1, 2)), axes), bound, t, A, b)
    agree(jax.grad(loss(jax.vmap(layer, axes)), (0, 1, 2)), bound, t, A, b)
    assert set(forced) == {"solve", "vjp"}


@pytest.mark.parametrize("batch", [(0,), (1,), (3, 1)], ids=str)
def test_batches(batch: tuple[int, ...], bound: float, forced: list[str]) -> None:
    layer, (_, A, b) = projected()
    t = draw(*batch, 4)
    agree(layer, bound, t, A, b)
    agree(jax.grad(loss(layer), (0, 1, 2)), bound, t, A, b)
    assert set(forced) == {"solve", "vjp"}


def test_constants_keep_double_precision(bound: float, forced: list[str]) -> None:
    layer, (t, A, b) = projected()
    A, b = np.asarray(A, float) / 3, np.asarray(b, float) / 3
    agree(lambda t: layer(t, A, b), bound, t)
    agree(jax.grad(lambda t: loss(layer)(t, A, b)), bound, t)
    assert set(forced) == {"solve", "vjp"}
    (y,) = box_layer()(np.array([1 / 3, 0.1]), jnp.asarray(1.0))
    np.testing.assert_array_equal(y, np.array([1 / 3, 0.1]).astype(y.dtype))


def test_matrices(bound: float, forced: list[str]) -> None:
    """CVXPY stores them by columns, JAX by rows."""
    S, X = cp.Parameter((2, 3), name="S"), cp.Variable((2, 3))
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - S))), [S], [X])
    value = jnp.arange(12.0).reshape(2, 2, 3)
    agree(layer, bound, value)
    agree(jax.grad(loss(layer)), bound, value)
    assert set(forced) == {"solve", "vjp"}


def test_results_with_gaps_in_memory(bound: float) -> None:
    import torch

    wide = torch.arange(12.0, dtype=torch.float64).reshape(2, 2, 3) / 7
    for tensor in (wide[..., ::2], wide.mT, wide[:1, :, :1].expand(3, 2, 4)):
        float32 = gpu._typed(tensor, np.dtype(np.float32))
        close(jax.dlpack.from_dlpack(float32), tensor.numpy().astype(np.float32), 0.0)
        bits = jax.dlpack.from_dlpack(gpu._typed(tensor, BITS))
        close(to_numbers(np.asarray(bits)), tensor.numpy(), 0.0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision(dtype: Any, forced: list[str]) -> None:
    layer, t = box_layer(), jnp.array([0.5, 3.0], dtype)
    agree(lambda t: layer(t, 2.0), 1e-2, t)
    agree(jax.grad(lambda t: layer(t, 2.0)[0].sum()), 1e-2, t)
    assert set(forced) == {"solve", "vjp"}


def test_the_point_is_not_made_again(
    forced: list[str], bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SolutionMap, "at", lambda *_: pytest.fail("made again"))
    layer, thetas = projected()
    jax.hessian(loss(layer))(*thetas)
    assert "hvp" in forced


def test_an_eager_call_is_forgotten_with_its_results(forced: list[str]) -> None:
    layer, t = softmax_layer(), jnp.ones(3)

    def kept() -> int:
        """Calls of this layer with a point in memory."""
        gc.collect()
        origins = [o for o in gc.get_objects() if type(o) is Origin]
        return sum(
            o.operations is layer.operations and "differentiable" in vars(o) for o in origins
        )

    _, pull = jax.vjp(layer, t)
    assert kept() == 1
    del pull
    assert kept() == 0
    jax.vmap(jax.grad(loss(layer)))(jnp.stack([t, t]))
    assert kept() == 0 and forced == ["solve", "solve", "vjp"]


def test_results_are_memory_of_jax(forced: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would write to its own when JAX has let go of it."""
    handed: list[int] = []
    take = jax.dlpack.from_dlpack

    def recorded(tensor: Any) -> Any:
        handed.append(tensor.data_ptr())
        return take(tensor)

    monkeypatch.setattr(jax.dlpack, "from_dlpack", recorded)
    outputs, pull = jax.vjp(lambda t: box_layer()(t, 1.0)[0], jnp.array([0.5, 2.0]))
    arrays = [outputs, *pull(jnp.ones(2))]
    assert handed and not {y.unsafe_buffer_pointer() for y in arrays} & set(handed)


def test_failures(forced: list[str]) -> None:
    t, u = draw(3, 2), jnp.array([3.0, -1.0, 1.0])
    layer = box_layer(on_failure="nan")
    ((y,), info) = layer.solve(t, u)
    assert jnp.isnan(y[1]).all() and jnp.isfinite(y[::2]).all()
    assert info.summary() == {"SOLVED": 2, "PRIMAL_INFEASIBLE": 1}
    gradient = jax.grad(lambda t: layer(t, u)[0].sum())(t)
    assert (gradient[1] == 0).all() and (gradient[2] != 0).any()
    with pytest.raises(SolverError, match="DENSE"):
        box_layer()(t, u)
    assert set(forced) == {"solve", "vjp"}


def test_infos_of_mapped_calls(forced: list[str]) -> None:
    layer = box_layer()
    agree(lambda t: jax.vmap(lambda t: layer.solve(t, 3.0)[1].status)(t), 0.0, draw(3, 2))
    assert forced == ["solve", "inspect"]


def test_results_stay_where_the_operands_are(forced: list[str]) -> None:
    device = jax.devices("cpu")[0]
    (y,) = box_layer()(jax.device_put(jnp.ones(2), device), 1.0)
    assert y.devices() == {device} and y.committed and forced == ["solve"]


# Where PyTorch is not taken.


def test_compiled_programs(forced: list[str]) -> None:
    layer, thetas = projected()
    jax.jit(layer)(*thetas)
    jax.jit(jax.hessian(loss(layer)))(*thetas)
    jax.vjp(jax.jit(layer), *thetas)[1](layer_ones(thetas))
    assert forced == []
    layer(*thetas)
    assert forced == ["solve"]


def layer_ones(thetas: tuple[Any, ...]) -> tuple[Any, Any]:
    """Weights of the results of `projection_layer`."""
    return jnp.ones_like(thetas[0]), jnp.ones_like(thetas[2])


@pytest.mark.parametrize(
    ("solver", "taken"), [("CLARABEL", False), ("LANES", False), ("DENSE", True), (None, True)]
)
def test_solvers(solver: str | None, taken: bool, forced: list[str]) -> None:
    jax.grad(lambda t: box_layer(solver=solver)(t, 1.0)[0].sum())(jnp.ones(2))
    assert forced == (["solve", "vjp"] if taken else [])


def test_arrays_of_the_cpu(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "has_torch", lambda: True)
    t = jax.device_put(jnp.ones(2), jax.devices("cpu")[0])
    jax.grad(lambda t: box_layer()(t, 1.0)[0].sum())(t)
    assert ran == []


def test_some_arrays_on_the_cpu(forced: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "is_on_gpu", lambda array: array.ndim == 1)
    box_layer()(jnp.ones(2), jnp.asarray(1.0))
    assert forced == []


def test_no_array_of_jax(forced: list[str]) -> None:
    box_layer()(np.ones(2), 1.0)
    assert forced == []


def test_without_pytorch(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(gpu, "is_on_gpu", lambda _: True)
    for installed, reaches in ((False, True), (True, False)):
        monkeypatch.setattr(gpu, "find_spec", lambda _, there=installed: there or None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=reaches: there)
        gpu.has_torch.cache_clear()
        (y,) = box_layer()(jnp.ones(2), 1.0)
        gpu.has_torch.cache_clear()
        close(y, jnp.ones(2))
    assert ran == []


def test_types_that_pytorch_does_not_take(forced: list[str]) -> None:
    (y,) = box_layer()(jnp.ones(2, jnp.float8_e5m2), 2.0)
    assert y.dtype == jnp.float8_e5m2 and forced == []


def test_pytorch_is_imported_for_a_gpu_only() -> None:
    printed("""
import sys
import cvxpy as cp, jax, jax.numpy as jnp
with_cvxpy = "torch" in sys.modules  # which imports the solvers that it finds
from cvxlayers.jax import CvxpyLayer
x, b = cp.Variable(2), cp.Parameter(2)
layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0]), [b], [x])
b = jax.device_put(jnp.ones(2), jax.devices("cpu")[0])
jax.grad(lambda b: layer(b)[0].sum())(b)
assert with_cvxpy or "torch" not in sys.modules
""")


def test_arrays_on_two_devices() -> None:
    printed("""
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import cvxpy as cp, jax, jax.numpy as jnp
from cvxlayers.jax import CvxpyLayer, gpu
x, b, c = cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= c]), [b, c], [x])
first, second = jax.devices()
names, run = [], gpu.run
gpu.is_on_gpu, gpu.has_torch = lambda _: True, lambda: True
gpu.run = lambda task, operands: names.append(task.name) or run(task, operands)
b = jax.device_put(jnp.ones(2), second)
(y,) = layer(b, jax.device_put(jnp.zeros(2), first))
assert names == [] and y.devices() == {second}
layer(jax.device_put(b, first), jax.device_put(jnp.zeros(2), first))
assert names == ["solve"]
""")


def lacking() -> str | None:
    """What there is not, of what a GPU needs."""
    if jax.default_backend() != "gpu":
        return f"JAX has no GPU here; it computes on {jax.default_backend()}"
    return None if gpu.has_torch() else "there is no PyTorch that reaches the GPU here"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu(case: str, order: str, bound: float, ran: list[str]) -> None:
    reason = lacking()
    if reason is not None:
        pytest.skip(reason)
    layer, thetas = CASES[case]()
    derived, operations = ORDERS[order]
    agree(layer, bound, *thetas)
    agree(derived(layer), bound, *thetas)
    (y, *_) = layer(*thetas)
    assert y.devices() == thetas[0].devices() and set(ran) == operations
