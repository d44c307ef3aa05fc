"""Parameters with a sparsity pattern: their values as a whole, or the entries of the pattern alone.

The oracle is the dense parameter of the same problem: its outputs, and its gradients at the places
of the pattern.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from cvxlayers import CvxpyLayer as AnyLayer
from cvxlayers.calling import Layout, constant
from cvxlayers.canonicalize import ParameterSpec, canonicalize
from cvxlayers.errors import ParameterValueError
from cvxlayers.numpy import CvxpyLayer
from cvxlayers.torch import CvxpyLayer as TorchLayer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Reading from a sparse CVXPY"),
    pytest.mark.filterwarnings("ignore:Accessing a sparse CVXPY"),
]

M, N = 3, 4
# In no order, and with an entry given twice.
ROWS, COLUMNS = (2, 0, 1, 0, 2, 2), (0, 3, 1, 1, 0, 2)
# As CVXPY keeps it.
SORTED = np.array([[0, 0, 1, 2, 2], [1, 3, 1, 0, 2]])
ENTRIES = SORTED.shape[1]


def problem(**attributes: Any) -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    """The parameter in a matrix product, in the objective and in a constraint, once transposed."""
    S, b = cp.Parameter((M, N), name="S", **attributes), cp.Parameter(M, name="b")
    x, y = cp.Variable(N, name="x"), cp.Variable(M, name="y")
    cost = cp.sum_squares(S @ x - b) + 0.1 * cp.sum_squares(x) + cp.sum_squares(y)
    return cp.Problem(cp.Minimize(cost), [S.T @ y >= 0.3 * x - 1, cp.sum(x) <= 1]), [S, b], [x, y]


SPARSE = {"sparsity": (ROWS, COLUMNS)}


def values(*batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((*batch, ENTRIES)), rng.standard_normal(M)


def whole(entries: np.ndarray) -> np.ndarray:
    full = np.zeros((*entries.shape[:-1], M, N))
    full[..., *SORTED] = entries
    return full


def everything(layer: CvxpyLayer, *theta: np.ndarray, along: list[np.ndarray]) -> list[Any]:
    """Outputs, gradients, tangents and second derivatives."""
    outputs, pullback = layer.vjp(*theta)
    weights = [np.cos(np.arange(y.size)).reshape(y.shape) for y in outputs]
    return [
        outputs,
        pullback(*weights),
        layer.jvp(theta, along)[1],
        layer.hvp(theta, weights, along),
        layer.jvp2(theta, along, along),
    ]


def assert_close(found: Any, expected: Any, bound: float = 1e-7) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=bound, atol=bound)


def test_the_order_is_that_of_cvxpy() -> None:
    """Sorted by rows, without duplicates: not the user's order."""
    S = problem(**SPARSE)[1][0]
    np.testing.assert_array_equal(S.sparse_idx, SORTED)
    assert S.shape == (M, N)
    # So the entries of a value that CVXPY holds are a value.
    entries, _ = values()
    S.value_sparse = sp.coo_array((entries, S.sparse_idx), shape=(M, N))
    np.testing.assert_array_equal(S.value_sparse.toarray(), whole(entries))


@pytest.mark.parametrize("batch", [(), (1,), (2,), (2, 3)], ids=str)
def test_equals_the_dense_parameter(batch: tuple[int, ...]) -> None:
    """Outputs and derivatives of both orders, for both forms. b is shared by the batch."""
    entries, b = values(*batch)
    along, along_b = values(*batch, seed=1)
    sparse, dense = CvxpyLayer(*problem(**SPARSE)), CvxpyLayer(*problem())
    by_entries = everything(sparse, entries, b, along=[along, along_b])
    by_whole = everything(sparse, whole(entries), b, along=[whole(along), along_b])
    expected = everything(dense, whole(entries), b, along=[whole(along), along_b])
    for k in (0, 2, 4):  # shaped like the outputs
        assert_close(by_entries[k], expected[k])
        assert_close(by_whole[k], by_entries[k], bound=0)
    for k in (1, 3):  # shaped like the parameters
        assert by_entries[k][0].shape == (*batch, ENTRIES)
        assert by_whole[k][0].shape == (*batch, M, N)
        at_pattern = expected[k][0][..., *SORTED]
        assert np.abs(at_pattern).max() > 1e-3
        assert_close(by_entries[k], [at_pattern, expected[k][1]])
        assert_close(by_whole[k], [whole(by_entries[k][0]), by_entries[k][1]], bound=0)


def test_entries_that_the_batch_shares() -> None:
    entries, _ = values()
    b = np.random.default_rng(2).standard_normal((5, M))
    sparse, dense = CvxpyLayer(*problem(**SPARSE)), CvxpyLayer(*problem())
    weights = [np.ones((5, N)), np.ones((5, M))]
    for value in (entries, entries[None], entries[None, None]):
        shape = (1,) * (value.ndim - 2) + (5,)
        _, pullback = sparse.vjp(value, b.reshape(*shape, M))
        found = pullback(*(w.reshape(*shape, -1) for w in weights))[0]
        assert found.shape == value.shape
        expected = dense.vjp(whole(entries), b)[1](*weights)[0]
        np.testing.assert_allclose(found.ravel(), expected[*SORTED], rtol=1e-7, atol=1e-7)


def test_off_the_pattern_a_tangent_does_not_matter() -> None:
    entries, b = values()
    layer = CvxpyLayer(*problem(**SPARSE))
    along = np.random.default_rng(3).standard_normal((M, N))
    found = layer.jvp([whole(entries), b], [along, None])[1]
    assert_close(found, layer.jvp([entries, b], [along[*SORTED], None])[1], bound=0)


def test_finite_differences() -> None:
    entries, b = values()
    layer = CvxpyLayer(*problem(**SPARSE))
    outputs, pullback = layer.vjp(entries, b)
    weights = [np.cos(np.arange(y.size)) for y in outputs]
    found = pullback(*weights)[0]
    step = 1e-5
    for k, direction in enumerate(np.eye(ENTRIES)):
        ends = [
            sum(
                w @ y
                for w, y in zip(weights, layer.vjp(entries + h * direction, b)[0], strict=True)
            )
            for h in (step, -step)
        ]
        assert abs((ends[0] - ends[1]) / (2 * step) - found[k]) < 1e-6


def test_closed_form() -> None:
    """min ‖x − S 1‖²: x are the sums of the rows."""
    S, x = cp.Parameter((M, N), sparsity=(ROWS, COLUMNS)), cp.Variable(M)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - cp.sum(S, axis=1)))), [S], [x])
    (found,), pullback = layer.vjp(np.array([1.0, 20.0, 300.0, 4000.0, 50000.0]))
    np.testing.assert_allclose(found, [21.0, 300.0, 54000.0])
    np.testing.assert_allclose(
        pullback(np.array([1.0, 2.0, 3.0]))[0], [1.0, 1.0, 2.0, 3.0, 3.0], atol=1e-9
    )


@pytest.mark.parametrize("form", ["entries", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch(form: str, dtype: torch.dtype) -> None:
    """Gradients, also under vmap."""
    entries, b = values(6)
    bound = 1e-7 if dtype == torch.float64 else 1e-4
    layer = TorchLayer(*problem(**SPARSE))
    S = torch.tensor(entries if form == "entries" else whole(entries), dtype=dtype)
    S.requires_grad_()
    outputs = layer(S, torch.tensor(b, dtype=dtype))
    assert [y.dtype for y in outputs] == [dtype, dtype]
    sum((y**2).sum() for y in outputs).backward()
    assert S.grad.shape == S.shape and S.grad.dtype == dtype
    expected, pullback = CvxpyLayer(*problem()).vjp(whole(entries), b)
    assert_close([y.detach() for y in outputs], expected, bound)
    reference = pullback(*(2 * y for y in expected))[0][..., *SORTED]
    found = S.grad.numpy() if form == "entries" else S.grad.numpy()[..., *SORTED]
    np.testing.assert_allclose(found, reference, atol=bound * 10)
    if form == "whole":
        np.testing.assert_array_equal(S.grad.numpy(), whole(found))

    def loss(value: torch.Tensor) -> torch.Tensor:
        return sum((y**2).sum() for y in layer(value, torch.tensor(b, dtype=dtype)))

    mapped = torch.vmap(torch.func.grad(loss))(S.detach())
    np.testing.assert_allclose(mapped.numpy(), S.grad.numpy(), atol=bound * 10)
    if dtype == torch.float64 and form == "entries":
        first = S[0].detach().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda s: layer(s, torch.tensor(b))[0], first, atol=1e-5, rtol=1e-4, nondet_tol=1e-9
        )


def test_torch_compiled() -> None:
    entries, b = values(6)
    layer = TorchLayer(*problem(**SPARSE))
    compiled = torch.compile(lambda s, t: layer(2 * s, t)[0], backend="aot_eager", fullgraph=True)
    for value in (entries, whole(entries)):
        S = torch.tensor(value, requires_grad=True)
        compiled(S, torch.tensor(b)).square().sum().backward()
        other = torch.tensor(value, requires_grad=True)
        layer(2 * other, torch.tensor(b))[0].square().sum().backward()
        torch.testing.assert_close(S.grad, other.grad)


def test_jax() -> None:
    """Under jit, grad and vmap, in both forms."""
    jax = pytest.importorskip("jax")
    from cvxlayers.jax import CvxpyLayer as JaxLayer

    entries, b = values(6)
    layer = JaxLayer(*problem(**SPARSE))
    expected, pullback = CvxpyLayer(*problem()).vjp(whole(entries), b)
    reference = pullback(*(2 * y for y in expected))[0][..., *SORTED]

    def loss(value: Any) -> Any:
        return sum((y**2).sum() for y in layer(value, b))

    for form, given in (("entries", entries), ("whole", whole(entries))):
        S = jax.numpy.asarray(given)
        for transformed in (
            jax.grad(loss),
            jax.jit(jax.grad(loss)),
            jax.vmap(jax.grad(loss)),
            jax.jit(jax.vmap(jax.grad(loss))),
            jax.vmap(jax.jacfwd(loss)),
        ):
            found = np.asarray(transformed(S))
            assert found.shape == S.shape
            assert_close(
                [found if form == "entries" else found[..., *SORTED]], [reference], bound=2e-3
            )


def test_mlx() -> None:
    mx = pytest.importorskip("mlx.core")
    from cvxlayers.mlx import CvxpyLayer as MlxLayer
    from cvxlayers.mlx import vmap

    entries, b = values(6)
    layer = MlxLayer(*problem(**SPARSE))
    expected, pullback = CvxpyLayer(*problem()).vjp(whole(entries), b)
    reference = pullback(*(2 * y for y in expected))[0][..., *SORTED]

    def loss(value: Any) -> Any:
        return sum((y**2).sum() for y in layer(value, b))

    for form, given in (("entries", entries), ("whole", whole(entries))):
        S = mx.array(given.astype(np.float32))
        for transformed in (mx.grad(loss), vmap(mx.grad(loss))):
            found = np.array(transformed(S))
            assert found.shape == S.shape
            assert_close(
                [found if form == "entries" else found[..., *SORTED]], [reference], bound=2e-3
            )


def test_dispatch_and_names() -> None:
    entries, b = values()
    layer = AnyLayer(*problem(**SPARSE))
    (x, _) = layer(S=torch.tensor(entries), b=b.tolist())
    assert isinstance(x, torch.Tensor)
    np.testing.assert_allclose(layer(entries.tolist(), b)[0], x.numpy(), atol=1e-9)


# Which form it is.


@pytest.mark.parametrize("shape", [(4,), (6,), (2, 4), (M, N, 1), (N, M), (4, 3), ()])
def test_neither_form(shape: tuple[int, ...]) -> None:
    layer = CvxpyLayer(*problem(**SPARSE))
    with pytest.raises(ParameterValueError, match=r"'S' .*has shape \(3, 4\); expected that or "
                       r"\(\*batch, 3, 4\), or \(5,\) or \(\*batch, 5\) for the entries of its "
                       r"sparsity pattern, got"):  # fmt: skip
        layer(np.zeros(shape), np.zeros(M))


def test_without_a_pattern_there_is_one_form() -> None:
    D, x = cp.Parameter((3, 3), diag=True, name="D"), cp.Variable(3)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - D @ np.ones(3)))), [D], [x])
    with pytest.raises(ParameterValueError, match=r"or \(\*batch, 3, 3\), got \(3,\)\.$"):
        layer(np.ones(3))
    (found,), pullback = layer.vjp(np.diag([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(pullback(found)[0], np.diag(found), atol=1e-9)
    # The diagonal is all that is computed with.
    assert layer.operations.canonical.parameters[0].size == 3


def test_where_both_forms_fit_it_is_the_whole() -> None:
    """A batch of three times three entries is the matrix, except where an axis tells it apart."""
    rows, columns = (0, 1, 2), (1, 2, 0)
    S, x = cp.Parameter((3, 3), sparsity=(rows, columns), name="S"), cp.Variable(3)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - cp.sum(S, axis=1)))), [S], [x])
    matrix = np.zeros((3, 3))
    matrix[rows, columns] = [1.0, 2.0, 3.0]
    (found,), pullback = layer.vjp(matrix)
    np.testing.assert_allclose(found, [1.0, 2.0, 3.0])
    assert pullback(found)[0].shape == (3, 3)

    entries = np.arange(9.0).reshape(3, 3)
    with pytest.raises(ParameterValueError, match=r"sparsity, but entry \(0, 2\)"):
        layer(entries)
    (found,), pullback = layer.vjp(entries[:, None])
    assert found.shape == (3, 1, 3)
    np.testing.assert_allclose(found[:, 0], entries, atol=1e-7)
    assert pullback(found)[0].shape == (3, 1, 3)
    np.testing.assert_allclose(layer(entries[:2])[0], entries[:2], atol=1e-7)
    # A mapped axis is none of the value's.
    (found,) = torch.vmap(TorchLayer.of(layer.operations))(torch.tensor(entries))
    np.testing.assert_allclose(found.numpy(), entries, atol=1e-7)


def test_vectors() -> None:
    p, x = cp.Parameter(5, sparsity=[(3, 1)], name="p"), cp.Variable(5)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p))), [p], [x])
    for value in ([7.0, 9.0], [0.0, 7.0, 0.0, 9.0, 0.0]):
        (found,), pullback = layer.vjp(value)
        np.testing.assert_allclose(found, [0.0, 7.0, 0.0, 9.0, 0.0], atol=1e-9)
        assert pullback(found)[0].shape == (len(value),)


def test_mapped_axes_of_a_layout() -> None:
    spec = canonicalize(*problem(**SPARSE)).parameters[0]
    assert spec.forms == ((M, N), (ENTRIES,)) and spec.size == ENTRIES
    layout = Layout([(M, 2, ENTRIES)], [spec], mapped=1)
    assert (layout.forms, layout.leading) == ([(ENTRIES,)], [(2,)])
    layout = Layout([(ENTRIES, M, N)], [spec], mapped=1)
    assert (layout.forms, layout.leading) == ([(M, N)], [()])


# What the values promise.


def checked(**attributes: Any) -> CvxpyLayer:
    S, x = cp.Parameter((M, N), name="S", **SPARSE, **attributes), cp.Variable(M)
    return CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - cp.sum(S, axis=1)))), [S], [x])


LOWER = sp.coo_array(([1.0, -2.0, 0.0, 0.0, 0.0], ((2, 0, 0, 1, 2), (0, 1, 3, 1, 2))), (M, N))
UPPER = sp.coo_array(([5.0, 2.0, 2.0, 2.0, 2.0], ((2, 0, 0, 1, 2), (0, 1, 3, 1, 2))), (M, N))


@pytest.mark.parametrize(
    ("attributes", "good", "bad"),
    [
        ({"nonneg": True}, [1, 2, 3, 4, 0], [1, 2, 3, -4, 0]),
        ({"nonpos": True}, [-1, -2, -3, -4, 0], [-1, -2, -3, 4, 0]),
        ({"integer": True}, [1, 2, 3, 4, 0], [1, 2, 3, 4.5, 0]),
        ({"boolean": True}, [1, 0, 1, 1, 0], [1, 0, 1, 2, 0]),
        ({"bounds": [-1, 3]}, [1, -1, 3, 1, 0], [1, 2, 3, 4, 0]),
        ({"bounds": [LOWER, UPPER]}, [-2, 0, 0, 5, 0], [-2, 0, 0, 0, 0]),
        ({"bounds": [-2, UPPER]}, [-2, 0, 0, 5, 0], [-2, 0, 0, 6, 0]),
    ],
    ids=["nonneg", "nonpos", "integer", "boolean", "bounds", "sparse bounds", "one sparse bound"],
)
def test_attributes_are_judged_in_both_forms(
    attributes: dict[str, Any], good: list[float], bad: list[float]
) -> None:
    layer = checked(**attributes)
    kind = next(iter(attributes))
    for form in (np.asarray, whole):
        values = form(np.array([good, good], float)), form(np.array([good, bad], float))
        layer(values[0])
        place = r"\(1, 2, 0\)" if form is whole else r"\(1, 3\)"
        with pytest.raises(ParameterValueError, match=rf"declared {kind}, but entry {place}"):
            layer(values[1])


def test_an_entry_off_the_pattern() -> None:
    layer = checked(nonneg=True)
    value = whole(np.ones(ENTRIES))
    value[1, 2] = 0.5
    with pytest.raises(ParameterValueError, match=r"declared sparsity, but entry \(1, 2\)"):
        layer(value)


@pytest.mark.parametrize("form", ["entries", "whole"])
def test_not_finite(form: str) -> None:
    layer = CvxpyLayer(*problem(**SPARSE), on_failure="nan")
    entries, b = values(3)
    entries[1, 3] = np.nan
    value = entries if form == "entries" else whole(entries)
    outputs, pullback = layer.vjp(value, b)
    assert [np.isnan(y).any(axis=-1).tolist() for y in outputs] == [[False, True, False]] * 2
    gradient = pullback(*(np.ones_like(y) for y in outputs))[0]
    assert gradient.shape == value.shape and not gradient[1].any() and gradient[0].any()
    place = r"\(1, 3\)" if form == "entries" else r"\(1, 2, 0\)"
    with pytest.raises(ParameterValueError, match=f"'S'.*the first at index {place}"):
        CvxpyLayer(*problem(**SPARSE))(value, b)


# Sparse arrays of SciPy.


@pytest.mark.parametrize("kind", [sp.coo_array, sp.csr_array, sp.csc_array, sp.csr_matrix])
def test_scipy(kind: Any) -> None:
    entries, b = values()
    entries[2] = 0.0
    layer = CvxpyLayer(*problem(**SPARSE))
    value = kind(sp.coo_array(whole(entries)))  # without the entry that is zero
    assert value.nnz == ENTRIES - 1
    outputs, pullback = layer.vjp(value, b)
    assert_close(outputs, layer.vjp(entries, b)[0], bound=0)
    assert pullback(*outputs)[0].shape == (ENTRIES,)
    along = kind(whole(np.ones(ENTRIES)))
    expected = layer.jvp([entries, b], [np.ones(ENTRIES), None])[1]
    assert_close(layer.jvp([value, b], [along, None])[1], expected, bound=0)
    # Of a dense parameter it is a way to write it down.
    assert_close(CvxpyLayer(*problem()).vjp(value, b)[0], outputs)
    (x, _) = AnyLayer(*problem(**SPARSE))(value, torch.tensor(b))
    np.testing.assert_allclose(x.numpy(), outputs[0], atol=1e-6)


def test_scipy_duplicates_and_order() -> None:
    spec = ParameterSpec(
        "S", (M, N), 0, frozenset({"sparsity"}), stored=np.array([8, 1, 5, 3, 10], np.intp)
    )
    place = ([2, 0, 2, 0, 1], [0, 3, 0, 0, 1])
    value = sp.coo_array(([1.0, 2.0, 3.0, 0.0, 4.0], place), shape=(M, N))
    np.testing.assert_array_equal(constant(value, spec), [4.0, 0.0, 4.0, 2.0, 0.0])
    np.testing.assert_array_equal(value.data, [1.0, 2.0, 3.0, 0.0, 4.0])
    with pytest.raises(ParameterValueError, match=r"'S'.*entry \(0, 0\) of the value is 2.5"):
        constant(sp.coo_array(([2.5], ([0], [0])), shape=(M, N)), spec)
    with pytest.raises(ParameterValueError, match=r"'S'.*shape \(3, 4\).*got \(4, 3\)"):
        constant(sp.coo_array((N, M)), spec)
    empty = ParameterSpec("S", (M, N), 0, frozenset({"sparsity"}), stored=np.zeros(0, np.intp))
    assert constant(sp.coo_array((M, N)), empty).shape == (0,)


# Copies and files.


def test_copies_and_files(tmp_path: Path) -> None:
    entries, b = values(2)
    layer = CvxpyLayer(*problem(**SPARSE))
    expected = layer.vjp(entries, b)[1](np.ones((2, N)), None)
    layer.save(tmp_path / "layer")
    for again in (pickle.loads(pickle.dumps(layer)), CvxpyLayer.load(tmp_path / "layer")):
        for value in (entries, whole(entries)):
            found = again.vjp(value, b)[1](np.ones((2, N)), None)
            assert found[0].shape == value.shape
            at_pattern = found[0] if value is entries else found[0][..., *SORTED]
            assert_close([at_pattern, found[1]], expected, bound=0)
    checked(bounds=[LOWER, UPPER]).save(tmp_path / "layer")
    with pytest.raises(ParameterValueError, match=r"declared bounds, but entry \(3,\)"):
        CvxpyLayer.load(tmp_path / "layer")(np.zeros(ENTRIES))


# Size.

LARGE = """
import resource, sys
import cvxpy as cp, numpy as np
from cvxlayers.numpy import CvxpyLayer

n = 100_000
near = np.arange(n)
rows = np.concatenate([near, near, near])
columns = np.concatenate([near, (near + 1) % n, (near + 2) % n])
S, b, x = cp.Parameter((n, n), sparsity=(rows, columns)), cp.Parameter(n), cp.Variable(n)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [S @ x == 1]), [S, b], [x])
rng = np.random.default_rng(0)
entries = rng.uniform(-0.1, 0.1, 3 * n)
keep = S.sparse_idx[0] == S.sparse_idx[1]
entries[keep] = rng.uniform(1, 2, n)
(found,), pullback = layer.vjp(entries, np.zeros(n))
weights = rng.standard_normal(n)
gradient, _ = pullback(weights)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
# x = S⁻¹ 1, so dS = −(S⁻ᵀ g) xᵀ on the pattern.
import scipy.sparse as sp, scipy.sparse.linalg
matrix = sp.csc_array((entries, S.sparse_idx), shape=(n, n))
factor = sp.linalg.splu(matrix)
x = factor.solve(np.ones(n))
expected = -factor.solve(weights, "T")[S.sparse_idx[0]] * x[S.sparse_idx[1]]
assert np.abs(found - x).max() < 1e-6, np.abs(found - x).max()
assert np.abs(gradient - expected).max() < 1e-6, np.abs(gradient - expected).max()
print(peak * (1 if sys.platform == "darwin" else 1024))
"""


def test_a_hundred_thousand_rows_and_columns() -> None:
    """The whole would take 80 GB. In a process of its own, whose peak is its own."""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LARGE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1.5e9
