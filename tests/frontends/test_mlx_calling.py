"""How the MLX layer is called, what it refuses, and how it lives with the rest of MLX."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx_checks import N, agree, array, box_layer, draw, gradient, loss, ratio, ratio_layer

from cvxlayers import ParameterTypeError, ParameterValueError
from cvxlayers.mlx import tracing, vmap
from solvers.toys import DEFAULT

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    with mx.stream(mx.cpu):  # float64 is nowhere else
        yield


def test_without_an_array_of_mlx_the_result_is_in_float32() -> None:
    layer = ratio_layer()
    for a, b in ((2, [1, 2, 3]), (np.float64(2), np.arange(1.0, 4.0)), (2.0, (1, 2.0, 3))):
        (x,) = layer(a, b)
        assert isinstance(x, mx.array) and x.dtype == mx.float32
        agree(x, array([0.5, 1.0, 1.5], mx.float32), 1e-5)


def test_values_by_name() -> None:
    layer, a, b = ratio_layer(), draw(), draw(N)
    agree(layer(a, b=b), layer(a, b))
    agree(layer(b=b, a=a), layer(a, b))
    with pytest.raises(ParameterValueError, match="Did you mean 'b'"):
        layer(a, bb=b)
    with pytest.raises(ParameterValueError, match="missing"):
        layer(a)


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint8, mx.bool_, mx.complex64], ids=str)
def test_only_floating_arrays(dtype: mx.Dtype) -> None:
    with pytest.raises(ParameterTypeError, match=r"'b'.*floating-point.*got mlx") as caught:
        ratio_layer()(draw(), mx.ones(N).astype(dtype))
    assert ("imaginary" in str(caught.value)) == (dtype == mx.complex64)


@pytest.mark.parametrize("value", ["123", None, {1: 2}, [[1.0], [2.0, 3.0]]])
def test_values_that_are_no_numbers(value: Any) -> None:
    with pytest.raises(ParameterTypeError, match="'b'"):
        ratio_layer()(draw(), value)


def test_wrong_values_are_named() -> None:
    layer = ratio_layer()
    with pytest.raises(ParameterValueError, match=r"'b'.*\(3,\)"):
        layer(draw(), draw(N + 1))
    with pytest.raises(ParameterValueError, match="'a'"):
        gradient(loss(layer))(-draw(), draw(N))
    with pytest.raises(ParameterValueError, match="do not broadcast"):
        layer(draw(2), draw(3, N))
    with pytest.raises(ValueError, match="warm_start"):
        layer(draw(), draw(N), warm_start=True)
    with pytest.raises(ValueError, match="on_failure"):
        layer(draw(), draw(N), on_failure="zero")


def test_options_for_one_call() -> None:
    layer, a, b = ratio_layer(), draw(), draw(N)
    (rough,), (fine,) = (layer(a, b, solver_args={"eps": eps}) for eps in (1e-1, 1e-11))
    agree(fine, ratio(a, b)[0], 1e-9)
    assert np.abs(np.array(rough - fine)).max() < 1


def test_an_empty_batch() -> None:
    (x,) = ratio_layer()(draw(), mx.zeros((0, N)))
    assert x.shape == (0, N)
    da, db = gradient(loss(ratio_layer()))(draw(), mx.zeros((0, N)))
    assert da.item() == 0 and db.shape == (0, N)


def test_repr_copies_and_pickles() -> None:
    layer, a, b = ratio_layer(), draw(), draw(N)
    assert repr(layer) == f"CvxpyLayer((a[], b[3]) -> (x[3]), solver={DEFAULT})"
    true = gradient(loss(layer))(a, b)
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        agree(gradient(loss(other))(a, b), true)


def compiled(function: Callable) -> Callable:
    return mx.compile(function)


def shapeless(function: Callable) -> Callable:
    return mx.compile(function, shapeless=True)


def exported(function: Callable) -> Callable:
    return lambda *args: mx.export_function(os.devnull, function, *args)


@pytest.mark.parametrize("transform", [compiled, shapeless, exported])
def test_a_compiled_function_is_an_error_that_says_what_to_do(transform: Callable) -> None:
    layer, a, b = ratio_layer(), draw(), draw(N)
    expected = r"CvxpyLayer.*\(a\[\], b\[3\]\).*Call the layer outside"
    for function in (loss(layer), gradient(loss(layer)), lambda a, b: layer(1.0, a + b)):
        with pytest.raises(ParameterTypeError, match=expected):
            transform(function)(a, b)
    with pytest.raises(ParameterTypeError, match=expected):
        transform(vmap(loss(layer)))(a[None], b[None])


def test_mlx_compiles_nothing_inside_a_gradient() -> None:
    layer, a, b = ratio_layer(), draw(), draw(N)
    for f in (mx.compile(loss(layer)), mx.compile(gradient(loss(layer)))):
        with pytest.raises(ParameterTypeError):
            f(a, b)
    agree(gradient(mx.compile(loss(layer)))(a, b), gradient(loss(ratio))(a, b))


def test_a_layer_between_compiled_functions() -> None:
    layer, a, b = ratio_layer(), draw(), draw(N)
    before, after = mx.compile(lambda b: mx.exp(b)), mx.compile(lambda x: (x * x).sum())
    found = gradient(lambda a, b: after(layer(a, before(b))[0]))(a, b)
    agree(found, gradient(lambda a, b: (ratio(a, mx.exp(b))[0] ** 2).sum())(a, b))


def test_in_transformation() -> None:
    found = {}

    def note(name: str) -> Callable[[mx.array], mx.array]:
        def function(x: mx.array) -> mx.array:
            found[name] = tracing.in_transformation()
            return (x * x).sum()

        return function

    x = mx.ones(2)
    note("nothing")(x)
    mx.checkpoint(note("checkpoint"))(x)
    mx.grad(note("grad"))(x)
    mx.jvp(note("jvp"), [x], [x])
    mx.vmap(note("vmap"))(mx.ones((2, 2)))
    mx.compile(note("compile"))(x)
    note("nothing again")(x)
    assert {name for name, inside in found.items() if not inside} == {
        "nothing",
        "checkpoint",
        "nothing again",
    }


def test_reading_keeps_the_graph() -> None:
    """Of what an inner transformation has taken MLX's mark from; an evaluation alone drops it."""
    values = []

    def outer(x: mx.array) -> mx.array:
        inner = mx.grad(lambda x: (x**3).sum())(x)
        values.extend(tracing.read([inner]))
        return (inner * inner).sum()

    x = draw(N)
    agree(mx.grad(outer)(x), 36 * x**3)
    agree(array(values[0]), 3 * x**2)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.float64], ids=str)
def test_reading_is_exact(dtype: mx.Dtype) -> None:
    x = array(np.array([1 / 3, 1e-5, -2e4]), dtype)
    (found,) = tracing.read([x])
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.array(x.astype(mx.float64)))
    (found,) = tracing.read([x.reshape(3, 1).T])
    np.testing.assert_array_equal(found, np.array(x.astype(mx.float64))[None])


def test_threads() -> None:
    layer, wrong = ratio_layer(), []
    a, b = draw(), draw(N)
    mx.eval(a, b)
    true = np.array(gradient(loss(ratio))(a, b)[1])

    def work() -> None:
        with mx.stream(mx.cpu):
            for _ in range(20):
                found = np.array(gradient(loss(layer))(a, b)[1])
                if not np.allclose(found, true, rtol=1e-8):
                    wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Model(nn.Module):
    """A linear map, whose result is projected on a box."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.upper = mx.array(0.5)
        self.layer = box_layer()

    def __call__(self, features: mx.array) -> mx.array:
        (x,) = self.layer(self.linear(features), self.upper)
        return x


def test_a_model_learns() -> None:
    mx.random.seed(0)
    model, features = Model(), mx.random.normal((16, 4))
    target = mx.clip(features[:, :2] + 0.3, 0, 1.2)
    names = [name for name, _ in nn.utils.tree_flatten(model.parameters())]
    assert sorted(names) == ["linear.bias", "linear.weight", "upper"]
    optimizer = optim.Adam(learning_rate=0.05)
    step = nn.value_and_grad(model, lambda m: nn.losses.mse_loss(m(features), target))
    losses = []
    for _ in range(100):
        value, gradients = step(model)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(value.item())
    assert losses[-1] < 0.1 * losses[0]
    assert model.upper.item() > 0.9  # 0.5 before


def python(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_the_import_loads_no_other_framework() -> None:
    loaded, by_cvxpy = (
        set(python("-c", f"import {name}, sys; print(*sys.modules, sep='\\n')").split())
        for name in ("cvxlayers.mlx", "cvxpy")
    )
    assert "mlx.core" in loaded
    assert not {"torch", "jax"}.intersection(loaded - by_cvxpy)


def test_the_example_learns() -> None:
    printed = python("examples/mlx_portfolio.py")
    found = re.findall(r"^  (.+?) +(-?\d+\.\d+) %$", printed, re.MULTILINE)
    utility = {name: float(value) for name, value in found}
    assert len(utility) == 3, printed
    assert (
        utility["fitted to the returns"]
        < utility["trained through the layer"]
        < utility["knowing the mean returns"]
    )
