"""What a problem will take is known before it is taken, and who is to blame.

The truth is the compiled problem: the nonzeros of its maps, and the peak of what NumPy allocates
while it is made.
"""

from __future__ import annotations

import gc
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp

from conformance.problems import CASES, Case
from cvxlayers import machine
from cvxlayers.canonicalize import CanonicalProblem, canonicalize, memory
from cvxlayers.canonicalize.memory import predict
from cvxlayers.machine import available_memory, total_memory
from cvxlayers.numpy import CvxpyLayer

pytestmark = pytest.mark.filterwarnings("ignore:Reading from a sparse CVXPY")

Problem = tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]
RNG = np.random.default_rng(0)


def problem(
    constraints: Sequence[Any], parameters: list[cp.Parameter], cost: Any = None
) -> Problem:
    """Constraints on variables that are found in them."""
    variables = cp.Problem(cp.Minimize(0), list(constraints)).variables()
    if cost is None:
        cost = sum(cp.sum(x) for x in variables)
    variables = cp.Problem(cp.Minimize(cost), list(constraints)).variables()
    return cp.Problem(cp.Minimize(cost), list(constraints)), parameters, variables


def matrix_vector(n: int) -> Problem:
    A, x = cp.Parameter((n, n + 1)), cp.Variable(n + 1)
    return problem([A @ x <= 1], [A])


def least_squares(n: int) -> Problem:
    A, b, x = cp.Parameter((2 * n, n)), cp.Parameter(2 * n), cp.Variable(n)
    return problem([], [A, b], cp.sum_squares(A @ x - b))


def matrix_matrix(n: int) -> Problem:
    n = round(n ** (2 / 3))
    A, X = cp.Parameter((n, n + 2)), cp.Variable((n + 2, n + 1))
    return problem([A @ X <= 1, X @ np.ones((n + 1, 1)) >= 0], [A])


def from_the_right(n: int) -> Problem:
    n = round(n ** (2 / 3))
    A, X = cp.Parameter((n, n)), cp.Variable((n, n))
    return problem([X @ A.T + X == 2], [A])


def elementwise(n: int) -> Problem:
    A, X = cp.Parameter((n, n)), cp.Variable((n, n))
    return problem([cp.multiply(A, X) - 2 * X <= 1], [A])


def repeated(n: int) -> Problem:
    """The same parameter in every step."""
    n = n // 4
    A, X = cp.Parameter((n, n)), cp.Variable((n, 9))
    return problem([X[:, t + 1] == A @ X[:, t] for t in range(8)], [A])


def quadratic(n: int) -> Problem:
    P, q, x = cp.Parameter((n, n), PSD=True), cp.Parameter(n), cp.Variable(n)
    return problem([x >= 0], [P, q], cp.quad_form(x, P) + q @ x)


def one_number(n: int) -> Problem:
    a, X = cp.Parameter(), cp.Variable((n, n))
    return problem([a * X + X.T <= 1], [a])


def sparse(n: int) -> Problem:
    n = n * n // 10
    near = np.arange(n)
    rows, columns = np.tile(near, 3), np.concatenate([near, (near + 1) % n, (near + 2) % n])
    A, x = cp.Parameter((n, n), sparsity=(rows, columns)), cp.Variable(n)
    return problem([A @ x <= 1], [A])


def diagonal(n: int) -> Problem:
    D, X = cp.Parameter((n, n), diag=True), cp.Variable((n, n))
    return problem([D @ X <= 1], [D])


def constant(n: int) -> Problem:
    A, b, x = RNG.standard_normal((n, n)), cp.Parameter(n), cp.Variable(n)
    return problem([A @ x <= b], [b])


def sparse_constant(n: int) -> Problem:
    A = sp.random_array((n * n, n), density=2 / n, rng=0).tocsr()
    b, x = cp.Parameter(n * n), cp.Variable(n)
    return problem([A @ x <= b], [b])


def scaled(n: int) -> Problem:
    """A constant times a parameter times a variable."""
    A, p, x = RNG.standard_normal((n, n)), cp.Parameter(n), cp.Variable(n)
    return problem([A @ cp.multiply(p, x) <= 1], [p])


def product_with_a_constant(n: int) -> Problem:
    n = round(n ** (2 / 3))
    A, C, x = cp.Parameter((n, n)), RNG.standard_normal((n, n)), cp.Variable(n)
    return problem([(A @ C) @ x <= 1], [A])


def kronecker(n: int) -> Problem:
    n = round(n**0.5)
    A, X = cp.Parameter((n, n)), cp.Variable((n, n))
    return problem([cp.kron(np.ones((n, n)), X) <= A[0, 0]], [A])


def norms(n: int) -> Problem:
    A, b, x = cp.Parameter((n, n)), cp.Parameter(n), cp.Variable(n)
    return problem([cp.norm(A @ x - b) <= 1], [A, b])


def absolute(n: int) -> Problem:
    A, b, x = cp.Parameter((n, n)), cp.Parameter(n), cp.Variable(n)
    return problem([], [A, b], cp.norm1(A @ x - b))


def exponential(n: int) -> Problem:
    A, x = cp.Parameter((n, n)), cp.Variable(n)
    return problem([x <= 1], [A], cp.log_sum_exp(A @ x))


def semidefinite(n: int) -> Problem:
    n = n // 2
    C, X = cp.Parameter((n, n)), cp.Variable((n, n), PSD=True)
    return problem([cp.trace(X) == 1], [C], cp.sum(cp.multiply(C, X)))


PROBLEMS: list[Callable[[int], Problem]] = [
    matrix_vector, least_squares, matrix_matrix, from_the_right, elementwise, repeated, quadratic,
    one_number, sparse, diagonal, constant, sparse_constant, scaled, product_with_a_constant, norms,
    absolute, exponential, semidefinite, kronecker,
]  # fmt: skip


def truth(canonical: CanonicalProblem) -> tuple[float, list[int]]:
    """The nonzeros of all maps, and those of every parameter."""
    constants, own = 0, [0] * len(canonical.parameters)
    for f in (canonical.P, canonical.q, canonical.A, canonical.b):
        constants += np.count_nonzero(f.offset)
        for (position, _), block in zip(canonical.parts, f.blocks, strict=True):
            own[position] += block.nnz
    return constants + sum(own), own


@pytest.mark.parametrize("build", PROBLEMS, ids=lambda build: build.__name__)
def test_entries(build: Callable[[int], Problem]) -> None:
    """Exact for every parameter; the rest up to entries that fall together."""
    made = build(40)
    found = predict(made[0])
    total, own = truth(canonicalize(*made))
    assert [round(found.entries[p.id]) for p in made[1]] == own
    assert 0.9 < found.total / total < 1.7


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_entries_of_the_table(case: Case) -> None:
    """Small problems, of many constants and auxiliary variables each."""
    made = case.build()
    total, _ = truth(canonicalize(*made, gp=case.gp))
    assert 1 / 4 < predict(made[0], case.gp).total / total < 3


@pytest.mark.parametrize("build", PROBLEMS, ids=lambda build: build.__name__)
def test_bytes(build: Callable[[int], Problem]) -> None:
    """The peak of NumPy's allocations; nothing grows with products of sizes that are not there."""
    made = build(200)
    canonicalize(*build(20))  # what is imported late
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    canonical = canonicalize(*made)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    found = predict(made[0])
    assert 1 / 3 < found.peak / peak < 3
    kept = sum(
        array.nbytes
        for f in (canonical.P, canonical.q, canonical.A, canonical.b)
        for block in f.blocks
        for array in (block.data, block.indices, block.indptr, f.offset, f.rows)
    )
    assert 1 / 3 < found.kept / (2 * kept) < 6  # a copy is made by the first call


def test_bytes_of_elementwise_squares() -> None:
    b, x = cp.Parameter(1500), cp.Variable(1500)
    made = problem([], [b], cp.sum(cp.square(x - b)))
    tracemalloc.start()
    canonicalize(*made)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 1 / 3 < predict(made[0]).peak / peak < 3


# The warning.


def warned(made: Problem, monkeypatch: pytest.MonkeyPatch, available: float, **options: Any) -> str:
    """The one warning of a canonicalization that is cut short where it would begin."""

    class Begun(Exception):
        pass

    def begin(*_: Any, **__: Any) -> None:
        raise Begun

    monkeypatch.setattr(memory, "available_memory", lambda: available)
    monkeypatch.setattr("cvxlayers.canonicalize.compile.resolve_and_build_chain", begin)
    with warnings.catch_warnings(record=True) as caught, pytest.raises(Begun):
        warnings.simplefilter("always")
        CvxpyLayer(*made, **options)
    monkeypatch.undo()
    if not caught:
        return ""
    assert [w.category for w in caught] == [UserWarning]
    assert caught[0].filename == __file__
    return str(caught[0].message)


def test_the_largest_parameter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    small = cp.Parameter((4, 300), name="small")
    large = cp.Parameter((300, 50), name="large")
    wide = cp.Parameter((300, 300), name="wide")
    x, X = cp.Variable(300, name="x"), cp.Variable((50, 40), name="X")
    made = problem([small @ x <= 1, wide @ x <= 1, large @ X <= 1], [small, large, wide])
    text = warned(made, monkeypatch, available=1e8)
    assert "Parameter 'large' of shape (300, 50) causes 6e+05 of them" in text
    assert "large @ X" in text and "sparsity=(rows, columns)" in text
    assert "about 120 MB of memory, of which 100 MB are available" in text
    assert "the layer will keep about 63" in text


def test_a_repeated_parameter_counts_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    A, B = cp.Parameter((20, 20), name="A"), cp.Parameter((40, 40), name="B")
    x, y = cp.Variable((20, 11)), cp.Variable(40)
    steps = [x[:, t + 1] == A @ x[:, t] for t in range(10)]
    text = warned(problem([*steps, B @ y <= 1], [A, B]), monkeypatch, available=1e3)
    assert "Parameter 'A' of shape (20, 20) causes 4e+03 of them" in text


def test_a_constant_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    b, x = cp.Parameter(300, name="b"), cp.Variable(200, name="x")
    made = problem([cp.Constant(np.ones((300, 200)), name="data") @ x <= b], [b])
    text = warned(made, monkeypatch, available=1e6)
    assert "A constant of shape (300, 200) causes 6e+04 of them" in text
    assert "data @ x" in text and "sparse array of SciPy" in text


@pytest.mark.parametrize("wrap", [lambda P: P, cp.psd_wrap, lambda P: cp.psd_wrap(P).T])
def test_a_sparse_constant_stays_one_in_a_quadratic_form(wrap: Any) -> None:
    """CVXPY wraps the matrix of `quad_form` where it is told that it is positive semidefinite."""
    n = 300
    x, q = cp.Variable(n), cp.Parameter(n)
    P = sp.diags_array(np.ones(n), format="csc")
    objective = cp.quad_form(x, wrap(P), assume_PSD=True) + q @ x
    made = cp.Problem(cp.Minimize(objective), [x <= 1]), [q], [x]
    canonical = canonicalize(*made)
    stored = canonical.structure.P.nnz + canonical.structure.A.nnz + 2 * n
    assert sum(predict(made[0]).entries.values()) <= 2 * stored


def test_other_culprits(monkeypatch: pytest.MonkeyPatch) -> None:
    P, x = cp.Parameter((100, 100), PSD=True, name="P"), cp.Variable(100, name="x")
    text = warned(problem([], [P], cp.quad_form(x, P)), monkeypatch, available=1e5)
    assert "'P' of shape (100, 100) causes 1e+04 of them" in text and "QuadForm(x, P)" in text
    assert "sparsity" not in text  # CVXPY does not combine it with PSD

    p, y = cp.Parameter(name="p"), cp.Variable((100, 100), name="y")
    text = warned(problem([cp.sum(y) >= p, y <= 3], [p]), monkeypatch, available=1e5)
    assert "the variables themselves" in text

    b, z = cp.Parameter(2000, name="b"), cp.Variable(2000, name="z")
    made = problem([], [b], cp.sum(cp.square(z - b)))
    text = warned(made, monkeypatch, available=1e6)
    assert "elementwise squares" in text and "(z + -b, 2.0)" in text and "cp.sum_squares" in text

    A, v = cp.Parameter((50, 50), pos=True, name="A"), cp.Variable(50, pos=True, name="v")
    made = problem([A @ v <= 1], [A], cp.sum(1 / v))
    text = warned(made, monkeypatch, available=1e4, gp=True)
    assert "Parameter 'A'" in text and "A @ v" in text and "sparsity" not in text


def test_no_warning_for_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    made = matrix_vector(30)
    need = predict(made[0]).peak
    assert warned(made, monkeypatch, available=need / memory.FRACTION * 1.01) == ""
    assert warned(made, monkeypatch, available=need / memory.FRACTION * 0.99)
    CvxpyLayer(*made)  # with what there is; a warning would be an error


def test_no_warning_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    monkeypatch.setattr(memory, "predict", lambda *_: pytest.fail("predicted"))
    CvxpyLayer(*matrix_vector(5))


def test_a_prediction_that_fails_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(memory, "predict", fail)
    CvxpyLayer(*matrix_vector(5))


def test_predicting_takes_no_memory() -> None:
    """8 PB of coefficients, and a megabyte to know it."""
    n = 30_000
    A, X = cp.Parameter((n, n), name="A"), cp.Variable((n, n))
    S, y = cp.Parameter((10 * n, 10 * n), sparsity=([0, 1], [1, 0])), cp.Variable(10 * n)
    made = cp.Problem(cp.Minimize(cp.sum_squares(y)), [A @ X + 1 <= 3 * X.T, S @ y >= 1])
    tracemalloc.start()
    found = predict(made)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    assert found.entries[A.id] == pytest.approx(float(n) ** 3)
    assert found.entries[S.id] == 2


def test_a_shared_expression_is_looked_at_once() -> None:
    """Every step holds the one before twice: 2^60 paths."""
    p, x = cp.Parameter(3), cp.Variable(3)
    expression = cp.multiply(p, x)
    for _ in range(60):
        expression = cp.hstack([expression, expression])
        expression = cp.reshape(expression, (2, 3), order="C")
        expression = cp.sum(expression, axis=0)
    # Not `predict`: CVXPY's own walk for the parameters takes every path.
    counts, _ = memory._Walk(gp=False)(expression)
    assert counts[p.id] == 3 * 2.0**60


# What is available.


def test_available_memory() -> None:
    found = available_memory()
    assert found is None or 0 <= found < 1e15


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    5000 kB\n"}, 5_120_000),
        ({"/proc/meminfo": "MemFree: 1 kB"}, 7 * 4096),
        ({}, 7 * 4096),
        ({"/proc/meminfo": "MemAvailable: 90000 kB", "/proc/self/statm": "99 10 1",
          "/sys/fs/cgroup/memory.max": "409600\n"}, 90 * 4096),
        ({"/proc/meminfo": "MemAvailable: 90 kB", "/proc/self/statm": "99 10 1",
          "/sys/fs/cgroup/memory.max": "max\n"}, 92160),
        ({"/proc/meminfo": "MemAvailable: 90000 kB", "/proc/self/statm": "99 10 1",
          "/sys/fs/cgroup/memory/memory.limit_in_bytes": "40961"}, 1),
    ],
    ids=["linux", "old", "mac", "container", "unlimited container", "version 1"],
)  # fmt: skip
def test_what_systems_say(
    files: dict[str, str], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, *_: Any, **__: Any) -> str:
        if path.as_posix() not in files:
            raise FileNotFoundError(path)
        return files[path.as_posix()]

    pages = {"SC_PHYS_PAGES": 7, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(machine.os, "sysconf", pages.__getitem__, raising=False)
    found, total = available_memory(), total_memory.__wrapped__()
    monkeypatch.undo()
    assert found == expected
    limits = [float(v) for k, v in files.items() if "cgroup" in k and v != "max\n"]
    assert total == min([7 * 4096, *limits])


def test_a_system_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError

    monkeypatch.setattr(Path, "read_text", fail)
    monkeypatch.setattr(machine.os, "sysconf", fail, raising=False)
    found, total = available_memory(), total_memory.__wrapped__()
    monkeypatch.undo()
    assert found is None and total == 8e9
