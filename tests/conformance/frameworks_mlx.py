"""The transforms of MLX; see ``frameworks.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import mlx.core as mx
import numpy as np

import cvxlayers.mlx

from .frameworks import DERIVATIVES, GRADIENTS, PAIRS, PRODUCTS, Array, Direction
from .oracle import weights
from .problems import Case

Loss = Callable[..., mx.array]


def _array(value: Array) -> mx.array:
    return mx.array(value, dtype=mx.float64)


def _arrays(values: Sequence[Array]) -> list[mx.array]:
    return [_array(value) for value in values]


def _numbers(arrays: Sequence[mx.array]) -> list[Array]:
    return [np.array(array) for array in arrays]


@cache
def _loss(case: Case) -> Loss:
    problem, parameters, variables = case.build()
    layer = cvxlayers.mlx.CvxpyLayer(problem, parameters, variables, gp=case.gp)
    cs = _arrays(weights(case))

    def loss(*values: mx.array) -> mx.array:
        return sum((c * y).sum() for c, y in zip(cs, layer(*values), strict=True))

    return loss


def _gradient(function: Loss, case: Case) -> Callable[..., Sequence[mx.array]]:
    places = tuple(range(len(case.values())))
    gradient = mx.grad(function, argnums=places)
    return lambda *values: gradient(*values) if len(places) > 1 else [gradient(*values)]


def _along(function: Loss, case: Case, direction: Direction) -> Loss:
    """The derivative of a function along a direction, as a function."""
    tangents = _arrays(direction)
    return lambda *values: mx.jvp(function, list(values), tangents)[1][0]


def _paired(function: Loss, case: Case, direction: Direction) -> Loss:
    """The product of a function's gradient with a direction, as a function."""
    gradient, tangents = _gradient(function, case), _arrays(direction)

    def product(*values: mx.array) -> mx.array:
        return sum((g * d).sum() for g, d in zip(gradient(*values), tangents, strict=True))

    return product


def _grad(case: Case) -> list[Array]:
    return _numbers(_gradient(_loss(case), case)(*_arrays(case.values())))


def _vjp(case: Case) -> list[Array]:
    values = _arrays(case.values())
    return _numbers(mx.vjp(_loss(case), values, [mx.ones((), dtype=mx.float64)])[1])


def _jvp(case: Case, along: Direction) -> float:
    return float(_along(_loss(case), case, along)(*_arrays(case.values())).item())


def _grad_of_grad(case: Case, along: Direction) -> list[Array]:
    product = _paired(_loss(case), case, along)
    return _numbers(_gradient(product, case)(*_arrays(case.values())))


def _grad_of_jvp(case: Case, along: Direction) -> list[Array]:
    derivative = _along(_loss(case), case, along)
    return _numbers(_gradient(derivative, case)(*_arrays(case.values())))


def _jvp_of_grad(case: Case, along: Direction) -> list[Array]:
    gradient = _gradient(_loss(case), case)
    values, tangents = _arrays(case.values()), _arrays(along)
    return _numbers(mx.jvp(lambda *v: list(gradient(*v)), values, tangents)[1])


def _jvp_of_jvp(case: Case, first: Direction, second: Direction) -> float:
    derivative = _along(_along(_loss(case), case, first), case, second)
    return float(derivative(*_arrays(case.values())).item())


GRADIENTS["mlx: grad"] = _grad
GRADIENTS["mlx: vjp"] = _vjp
DERIVATIVES["mlx: jvp"] = _jvp
PRODUCTS["mlx: grad of grad"] = _grad_of_grad
PRODUCTS["mlx: grad of jvp"] = _grad_of_jvp
PRODUCTS["mlx: jvp of grad"] = _jvp_of_grad
PAIRS["mlx: jvp of jvp"] = _jvp_of_jvp
