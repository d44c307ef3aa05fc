"""The order of elimination, against SuperLU's minimum degree and patterns whose fill is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg

from cvxlayers.lanes import available, engine_for, load, why_not
from cvxlayers.program import ConeDims, Pattern, ProblemStructure

pytestmark = pytest.mark.skipif(not available(), reason="cvxlayers was installed without a core")

Entries = tuple[np.ndarray, np.ndarray]
PLENTY = 10**9


def order_of(size: int, entries: Entries, most: int = PLENTY) -> list[int] | None:
    module = load()
    assert module is not None
    i, j = (v.tolist() for v in entries)
    found: list[int] | None = module.minimum_degree(size, i, j, most)
    return found


def fill(size: int, entries: Entries, order: np.ndarray) -> int:
    """Entries of L with its diagonal: the columns are eliminated one by one, as sets."""
    position = np.empty(size, dtype=int)
    position[order] = np.arange(size)
    columns: list[set[int]] = [set() for _ in range(size)]
    for a, b in zip(*(position[v] for v in entries), strict=True):
        if a != b:
            columns[min(a, b)].add(max(a, b))
    for column in columns:
        if column:
            parent = min(column)
            columns[parent] |= column - {parent}
    return size + sum(map(len, columns))


def superlu(size: int, entries: Entries) -> np.ndarray:
    """SuperLU's multiple minimum degree; off the diagonal so small that it pivots nowhere."""
    i, j = entries
    K = sp.coo_array((np.full(len(i), 1e-3 / size), (i, j)), shape=(size, size))
    factor = scipy.sparse.linalg.splu(
        (K + K.T + sp.eye_array(size)).tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    return np.argsort(factor.perm_c)


def random(size: int, degree: float, seed: int) -> Entries:
    rng = np.random.default_rng(seed)
    i, j = rng.integers(0, size, (2, int(size * degree)))
    return i, j


def grid(side: int) -> Entries:
    number = np.arange(side * side).reshape(side, side)
    pairs = [(number[1:], number[:-1]), (number[:, 1:], number[:, :-1])]
    i, j = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in (0, 1))
    return i, j


def tree(size: int, seed: int) -> Entries:
    rng = np.random.default_rng(seed)
    names = rng.permutation(size)
    return names[1:], names[[int(rng.integers(0, k)) for k in range(1, size)]]


@pytest.mark.parametrize("seed", range(12))
def test_as_little_fill_as_multiple_minimum_degree(seed: int) -> None:
    size = 150 + 50 * seed
    entries = random(size, (1.0, 1.5, 2.5, 6.0)[seed % 4], seed)
    order = np.array(order_of(size, entries))
    np.testing.assert_array_equal(np.sort(order), np.arange(size))
    assert fill(size, entries, order) <= 1.05 * fill(size, entries, superlu(size, entries))


def test_a_grid() -> None:
    entries = grid(30)
    found = fill(900, entries, np.array(order_of(900, entries)))
    assert found <= 1.15 * fill(900, entries, superlu(900, entries))


@pytest.mark.parametrize("seed", range(5))
def test_a_tree_is_not_filled(seed: int) -> None:
    entries = tree(200, seed)
    assert fill(200, entries, np.array(order_of(200, entries))) == 200 + 199


def test_a_dense_row_comes_last() -> None:
    i, j = np.zeros(99, dtype=int), np.arange(1, 100)
    assert fill(100, (i, j), np.array(order_of(100, (i, j)))) == 199


def test_entries_in_any_number() -> None:
    """Repeated, from either triangle, and on the diagonal."""
    i, j = random(60, 2.0, 0)
    many = np.concatenate([i, j, i, np.arange(60)]), np.concatenate([j, i, j, np.arange(60)])
    assert order_of(60, many) == order_of(60, (i, j))


@pytest.mark.parametrize("size", [0, 1, 5])
def test_nothing_to_order(size: int) -> None:
    none = np.zeros(0, dtype=int)
    assert sorted(order_of(size, (none, none)) or []) == list(range(size))


@pytest.mark.parametrize("seed", range(5))
def test_the_most_entries_are_counted_exactly(seed: int) -> None:
    entries = random(120, 2.0, seed)
    order = order_of(120, entries)
    assert order is not None
    most = fill(120, entries, np.array(order))
    assert order_of(120, entries, most) == order
    assert order_of(120, entries, most - 1) is None


def test_indices_are_checked() -> None:
    for i, j in (([3], [0]), ([-1], [0])):
        with pytest.raises(ValueError, match="out of range"):
            order_of(3, (np.array(i), np.array(j)))
    with pytest.raises(ValueError, match="not of one length"):
        order_of(3, (np.array([1, 2]), np.array([0])))


def test_a_factor_that_is_too_large_is_refused_before_it_is_found() -> None:
    """Most of a random matrix fills in. Its order alone took SuperLU a minute."""
    n, m, rng = 6000, 13_900, np.random.default_rng(0)
    A = sp.random(m, n, density=139_000 / (m * n), random_state=rng, format="csc")
    pattern = Pattern((m, n), A.indices.astype(np.int32), A.indptr.astype(np.int32))
    each = np.arange(n + 1, dtype=np.int32)
    structure = ProblemStructure(ConeDims(nonneg=m), Pattern((n, n), each[:-1], each), pattern)
    assert engine_for(structure) is None
    assert "factors of up to 500,000 entries" in str(why_not(structure))
