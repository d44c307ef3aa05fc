"""The table problems × frameworks × transforms, against the finite-difference oracles.

``python -m conformance.test_transforms [FRAMEWORK]`` in tests/ prints the worst error of every
column.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest

from conformance import frameworks_jax, frameworks_mlx  # noqa: F401 (they fill the tables)
from conformance.curvature import curvature
from conformance.curvature import relative_error as curvature_error
from conformance.frameworks import DERIVATIVES, GRADIENTS, PAIRS, PRODUCTS
from conformance.oracle import gradient, relative_error
from conformance.problems import CASES, Case

FIRST = 1e-6
SECOND = 1e-4
SYMMETRIC = 1e-6

# PyTorch's own, when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def gradient_error(name: str, case: Case) -> float:
    return relative_error(GRADIENTS[name](case), gradient(case))


def derivative_error(name: str, case: Case) -> float:
    truth = curvature(case)
    found = np.array([DERIVATIVES[name](case, along) for along in truth.directions])
    return float(np.abs(found - truth.first).max() / np.abs(truth.first).max())


def product_matrix(name: str, case: Case) -> np.ndarray:
    directions = curvature(case).directions
    products = [PRODUCTS[name](case, along) for along in directions]
    return np.array(
        [
            [sum((d * h).sum() for d, h in zip(row, product, strict=True)) for product in products]
            for row in directions
        ]
    )


def pair_matrix(name: str, case: Case) -> np.ndarray:
    directions = curvature(case).directions
    return np.array([[PAIRS[name](case, a, b) for b in directions] for a in directions])


def asymmetry(matrix: np.ndarray, case: Case) -> float:
    return float(np.abs(matrix - matrix.T).max() / curvature(case).scale)


@every_case
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name: str, case: Case) -> None:
    assert gradient_error(name, case) <= FIRST


@every_case
@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_along_directions(name: str, case: Case) -> None:
    assert derivative_error(name, case) <= FIRST


@every_case
@pytest.mark.parametrize("name", PRODUCTS)
def test_hessian_products(name: str, case: Case) -> None:
    matrix = product_matrix(name, case)
    assert curvature_error(matrix, curvature(case)) <= SECOND
    assert asymmetry(matrix, case) <= SYMMETRIC


@every_case
@pytest.mark.parametrize("name", PAIRS)
def test_second_derivatives_along_pairs(name: str, case: Case) -> None:
    matrix = pair_matrix(name, case)
    assert curvature_error(matrix, curvature(case)) <= SECOND
    assert asymmetry(matrix, case) <= SYMMETRIC


def main() -> None:
    for title, names, error in (
        ("gradient", GRADIENTS, gradient_error),
        ("derivative", DERIVATIVES, derivative_error),
        ("Hessian", PRODUCTS, lambda n, c: curvature_error(product_matrix(n, c), curvature(c))),
        ("asymmetry", PRODUCTS, lambda n, c: asymmetry(product_matrix(n, c), c)),
        ("Hessian", PAIRS, lambda n, c: curvature_error(pair_matrix(n, c), curvature(c))),
    ):
        for name in names:
            if not name.startswith(tuple(sys.argv[1:] or [""])):
                continue
            worst, which = max((error(name, case), case.name) for case in CASES)
            print(f"{title:12} {name:32} {worst:8.1e}  {which}")


if __name__ == "__main__":
    main()
