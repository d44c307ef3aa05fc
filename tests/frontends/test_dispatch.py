"""`cvxlayers.CvxpyLayer` answers in the framework of its arguments; frameworks do not meet.

What concerns installed or missing packages runs in processes of its own: to replace entries of
sys.modules under a loaded framework may abort the interpreter.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import cvxpy as cp
import numpy as np
import pytest
import torch

import cvxlayers
from cvxlayers import CvxpyLayer, ParameterTypeError, ParameterValueError

FRAMEWORKS = ("torch", "jax", "mlx")


@pytest.fixture(scope="module")
def layer() -> CvxpyLayer:
    a, b, x = cp.Parameter(2, name="a"), cp.Parameter(2, name="b"), cp.Variable(2)
    return CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - a - 2 * b))), [a, b], [x])


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


A, B = np.array([1.0, 2.0]), np.array([3.0, 4.0])


def test_numpy(layer: CvxpyLayer) -> None:
    for values in ((A, B), (A.tolist(), B.tolist()), (A, B.astype(np.float32))):
        (x,) = layer(*values)
        assert isinstance(x, np.ndarray)
        np.testing.assert_allclose(x, A + 2 * B, rtol=1e-6)


def test_torch(layer: CvxpyLayer) -> None:
    a = torch.tensor(A, requires_grad=True)
    (x,) = layer(a, b=B)
    assert isinstance(x, torch.Tensor)
    x.sum().backward()
    torch.testing.assert_close(a.grad, torch.ones(2, dtype=torch.float64))
    parameter = torch.nn.Parameter(torch.tensor(B))  # a subclass of Tensor
    (x,) = layer(A, parameter)
    x.sum().backward()
    torch.testing.assert_close(parameter.grad, torch.full((2,), 2.0, dtype=torch.float64))


def test_jax(layer: CvxpyLayer) -> None:
    jax = pytest.importorskip("jax")
    (x,) = layer(jax.numpy.asarray(A), B)
    assert isinstance(x, jax.Array)
    gradient = jax.jit(jax.grad(lambda a: layer(a, B)[0].sum()))(jax.numpy.asarray(A))
    np.testing.assert_allclose(gradient, np.ones(2), rtol=1e-6)


def test_mlx(layer: CvxpyLayer) -> None:
    mx = pytest.importorskip("mlx.core")
    (x,) = layer(mx.array(A), B)
    assert isinstance(x, mx.array)
    gradient = mx.grad(lambda a: layer(a, B)[0].sum())(mx.array(A))
    np.testing.assert_allclose(np.array(gradient), np.ones(2), rtol=1e-6)


@pytest.mark.parametrize("other", ["jax", "mlx"])
def test_two_frameworks_at_once_are_an_error_that_names_both(layer: CvxpyLayer, other: str) -> None:
    package = pytest.importorskip("mlx.core" if other == "mlx" else "jax.numpy")
    array = package.array(A.astype(np.float32))
    with pytest.raises(ParameterTypeError, match=rf"torch \(Tensor\).*{other} \(\w+\)"):
        layer(torch.tensor(A), b=array)


def test_options_and_names_reach_the_frontend(layer: CvxpyLayer) -> None:
    for value in (A, torch.tensor(A)):
        with pytest.raises(ParameterValueError, match="no parameter or option 'c'"):
            layer(value, c=B)
        with pytest.raises(ValueError, match="warm_start"):
            layer(value, B, warm_start=True)


def test_the_methods_of_numpy_refuse_tensors(layer: CvxpyLayer) -> None:
    _, pullback = layer.vjp(A, B)
    np.testing.assert_allclose(pullback(np.ones(2))[1], [2.0, 2.0])
    with pytest.raises(ParameterTypeError, match="one of torch"):
        layer.vjp(torch.tensor(A), B)


def test_the_problem_is_canonicalized_once(
    layer: CvxpyLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("canonicalized again")

    monkeypatch.setattr("cvxlayers.operations.canonicalize", refuse)
    fresh = CvxpyLayer.of(layer.operations)
    fresh(torch.tensor(A), B)
    fresh(A, B)


def test_the_module_lists_its_layer() -> None:
    assert "CvxpyLayer" in dir(cvxlayers) and "CvxpyLayer" in cvxlayers.__all__
    with pytest.raises(AttributeError, match="no attribute 'Layer'"):
        cvxlayers.Layer  # noqa: B018


@pytest.mark.parametrize("name", ["numpy", *FRAMEWORKS])
def test_importing_one_framework_loads_no_other(name: str) -> None:
    # CVXPY itself loads JAX where it is installed: what it loads is not counted.
    others = [f for f in FRAMEWORKS if f != name]
    loaded = run(
        f"""
        import sys
        import cvxpy
        before = set(sys.modules)
        import cvxlayers.{name}
        print(*[f for f in {others} if f in sys.modules and f not in before])
        """
    )
    assert not loaded.split()


def test_importing_torch_does_not_load_the_compiler() -> None:
    code = "import sys, cvxlayers.torch; print('torch._dynamo' in sys.modules)"
    assert run(code).strip() == "False"


@pytest.mark.parametrize("missing", FRAMEWORKS)
@pytest.mark.parametrize("name", ["numpy", *FRAMEWORKS])
def test_a_missing_framework_disables_no_other(name: str, missing: str) -> None:
    """The missing one gives the usual ImportError, which names it."""
    out = run(
        f"""
        import sys

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == {missing!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Absent())
        import cvxpy as cp
        import cvxlayers

        b, x = cp.Parameter(2), cp.Variable(2)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)))
        layer = cvxlayers.CvxpyLayer(problem, [b], [x])
        print(layer([1.0, 2.0])[0].round(3).tolist())
        try:
            from cvxlayers.{name} import CvxpyLayer
            print(CvxpyLayer(problem, [b], [x])([1.0, 2.0])[0].tolist())
        except ModuleNotFoundError as error:
            print(error)
        """
    )
    first, second = out.strip().splitlines()
    assert first == "[1.0, 2.0]"
    if name == missing:
        assert f"No module named '{missing}" in second
    else:
        np.testing.assert_allclose(np.array(eval(second)), [1.0, 2.0], atol=1e-6)
