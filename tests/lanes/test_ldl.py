"""K = L D Lᵀ in panels, against SciPy on random quasi-definite matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg

from cvxlayers.lanes import load

module = load()
pytestmark = pytest.mark.skipif(module is None, reason="not compiled")

Array = np.ndarray
Pairs = list[tuple[int, int]]


def dense(size: int, rng: np.random.Generator) -> Pairs:
    return [(i, j) for j in range(size) for i in range(j)]


def diagonal(size: int, rng: np.random.Generator) -> Pairs:
    return []


def banded(size: int, rng: np.random.Generator) -> Pairs:
    return [(i, j) for j in range(size) for i in range(max(0, j - 3), j)]


def arrow(size: int, rng: np.random.Generator) -> Pairs:
    hub = int(rng.integers(size))
    return [(min(i, hub), max(i, hub)) for i in range(size) if i != hub]


def scattered(size: int, rng: np.random.Generator) -> Pairs:
    found = {tuple(sorted(pair)) for pair in rng.integers(0, size, (2 * size, 2)).tolist()}
    return sorted((i, j) for i, j in found if i != j)


def disconnected(size: int, rng: np.random.Generator) -> Pairs:
    """Cliques of up to twelve unknowns, in no order."""
    order, pairs, start = rng.permutation(size).tolist(), [], 0
    while start < size:
        clique = order[start : start + int(rng.integers(1, 13))]
        pairs += [(min(i, j), max(i, j)) for k, i in enumerate(clique) for j in clique[:k]]
        start += len(clique)
    return pairs


def coupled(size: int, rng: np.random.Generator) -> Pairs:
    """Dense blocks on the diagonal, and columns that run through some of them: wide supernodes."""
    pairs = set(disconnected(size, rng))
    for hub in rng.choice(size, min(size, 6), replace=False).tolist():
        for i in rng.choice(size, size // 2, replace=False).tolist():
            if i != hub:
                pairs.add((min(i, hub), max(i, hub)))
    return sorted(pairs)


PATTERNS: dict[str, Callable[[int, np.random.Generator], Pairs]] = {
    f.__name__: f for f in (dense, diagonal, banded, arrow, scattered, disconnected, coupled)
}
SIZES = (1, 2, 3, 5, 8, 9, 17, 40, 121)


class Problem:
    """Quasi-definite matrices of one pattern, one for each instance, and a right-hand side."""

    def __init__(self, pattern: str, size: int, batch: int, seed: int = 0):
        rng = np.random.default_rng([size, seed, sorted(PATTERNS).index(pattern)])
        pairs = PATTERNS[pattern](size, rng)
        self.size, self.batch = size, batch
        self.sign = rng.choice([-1.0, 1.0], size)
        self.i = np.array([*(i for i, _ in pairs), *range(size)], dtype=int)
        self.j = np.array([*(j for _, j in pairs), *range(size)], dtype=int)
        self.order = rng.permutation(size)
        values = rng.standard_normal((batch, len(self.i)))
        # Both diagonal blocks are definite because their rows are dominated by the diagonal.
        i, j, same = self.i, self.j, self.sign[self.i] == self.sign[self.j]
        heights = np.abs(values) * (same & (i != j))
        total = np.full((batch, size), 0.1)
        np.add.at(total, (slice(None), i), heights)
        np.add.at(total, (slice(None), j), heights)
        values[:, len(pairs) :] = self.sign * total
        self.values = values
        self.right = rng.standard_normal((batch, size))

    def matrix(self, instance: int) -> sp.csc_array:
        upper = sp.csc_array(
            (self.values[instance], (self.i, self.j)), shape=(self.size, self.size)
        )
        return (upper + sp.triu(upper, 1).T).tocsc()

    def solve(self, wide: bool, order: Array | None = None) -> Array:
        left = np.full((self.batch, self.size), np.nan)
        module.factor_and_solve(
            self.i.tolist(),
            self.j.tolist(),
            (self.order if order is None else order).tolist(),
            self.sign.tolist(),
            self.values,
            self.right,
            left,
            wide,
        )
        return left


def check(problem: Problem, left: Array) -> None:
    for k in range(problem.batch):
        K = problem.matrix(k)
        expected = scipy.sparse.linalg.spsolve(K, problem.right[k])
        height = np.abs(K).sum(axis=1).max() * np.abs(expected).max()
        # Without pivoting, the factor grows where definiteness is weak.
        assert np.abs(K @ left[k] - problem.right[k]).max() <= 1e-11 * height
        np.testing.assert_allclose(left[k], expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_against_scipy(pattern: str, size: int, wide: bool) -> None:
    problem = Problem(pattern, size, batch=3)
    check(problem, problem.solve(wide))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_against_scipy_at_every_size(pattern: str, seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 301, 6)
    for size in (*sizes.tolist(), 300):
        problem = Problem(pattern, size, batch=2, seed=seed)
        check(problem, problem.solve(True))
        np.testing.assert_array_equal(problem.solve(True), problem.solve(False))


@pytest.mark.parametrize("batch", [1, 7, 8, 9])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_lanes_are_bitwise_what_single_numbers_are(pattern: str, batch: int) -> None:
    for size in (1, 6, 33, 70):
        problem = Problem(pattern, size, batch)
        np.testing.assert_array_equal(problem.solve(True), problem.solve(False))


def test_another_lane_takes_no_part() -> None:
    problem = Problem("coupled", 40, batch=9)
    expected = problem.solve(True)
    problem.values[[1, 4]] = np.nan
    problem.right[6] = np.inf
    problem.values[8] *= 1e200
    found = problem.solve(True)
    for k in (0, 2, 3, 5, 7):
        np.testing.assert_array_equal(found[k], expected[k])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_order_does_not_matter(pattern: str) -> None:
    problem = Problem(pattern, 30, batch=2)
    for seed in range(5):
        check(problem, problem.solve(True, np.random.default_rng(seed).permutation(30)))


def test_entries_of_either_triangle_and_repeated_ones() -> None:
    problem = Problem("scattered", 25, batch=2)
    expected = problem.solve(True)
    problem.i, problem.j = problem.j, problem.i
    np.testing.assert_array_equal(problem.solve(True), expected)
    # In two halves, which add up exactly.
    problem.i, problem.j = np.tile(problem.i, 2), np.tile(problem.j, 2)
    problem.values = np.tile(0.5 * problem.values, (1, 2))
    np.testing.assert_array_equal(problem.solve(True), expected)


def test_an_ill_conditioned_matrix() -> None:
    """As beside a solution: blocks of the size of 1e8 and of 1e-8 in one matrix."""
    problem = Problem("coupled", 60, batch=4)
    scale = 10.0 ** np.random.default_rng(0).uniform(-4, 4, problem.size)
    problem.values *= scale[problem.i] * scale[problem.j]
    left = problem.solve(True)
    for k in range(problem.batch):
        K = problem.matrix(k)
        height = abs(K) @ np.abs(left[k]) + np.abs(problem.right[k])
        assert (np.abs(K @ left[k] - problem.right[k]) <= 1e-10 * height).all()


@pytest.mark.parametrize("wide", [False, True])
def test_a_pivot_of_the_wrong_sign_is_replaced(wide: bool) -> None:
    """Replaced by the least number that the test's factorisation takes, 1e-300."""
    left = np.empty((2, 2))
    values = np.array([[1.0, -1.0], [-1.0, -1.0]])
    module.factor_and_solve(
        [0, 1], [0, 1], [0, 1], [1.0, -1.0], values, np.ones((2, 2)), left, wide
    )
    np.testing.assert_array_equal(left[0], [1.0, -1.0])
    np.testing.assert_allclose(left[1], [1e300, -1.0])


def test_shared_arrays() -> None:
    """The right-hand side, and the matrix, once for all instances."""
    problem = Problem("banded", 12, batch=5)
    problem.right[:] = problem.right[0]
    expected = problem.solve(True)
    left = np.empty_like(expected)
    module.factor_and_solve(
        problem.i.tolist(),
        problem.j.tolist(),
        problem.order.tolist(),
        problem.sign.tolist(),
        problem.values,
        problem.right[:1].copy(),
        left,
        True,
    )
    np.testing.assert_array_equal(left, expected)


def test_a_wrong_shape_is_refused() -> None:
    problem = Problem("banded", 4, batch=2)
    problem.right = problem.right[:, :3].copy()
    with pytest.raises(ValueError, match="wrong width"):
        problem.solve(True)
