"""The transforms of JAX, in double precision; see ``frameworks.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cvxlayers.jax

from .frameworks import DERIVATIVES, GRADIENTS, PAIRS, PRODUCTS, Array, Direction
from .oracle import weights
from .problems import Case


def _double(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any) -> Any:
        with jax.enable_x64(True):
            return function(*args)

    return run


def _arrays(values: Sequence[Array]) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(value) for value in values)


def _numbers(arrays: Sequence[jax.Array]) -> list[Array]:
    return [np.asarray(array) for array in arrays]


@cache
def _loss(case: Case) -> Callable[..., jax.Array]:
    problem, parameters, variables = case.build()
    layer = cvxlayers.jax.CvxpyLayer(problem, parameters, variables, gp=case.gp)
    cs = _arrays(weights(case))

    def loss(*values: jax.Array) -> jax.Array:
        return sum((c * y).sum() for c, y in zip(cs, layer(*values), strict=True))

    return loss


def _gradient(function: Callable[..., jax.Array], case: Case) -> Callable[..., Any]:
    return jax.grad(function, tuple(range(len(case.values()))))


def _along(function: Callable[..., Any], direction: Direction) -> Callable[..., Any]:
    """The derivative of a function along a direction, as a function."""
    tangents = _arrays(direction)
    return lambda *values: jax.jvp(function, values, tangents)[1]


@_double
def _grad(case: Case) -> list[Array]:
    return _numbers(_gradient(_loss(case), case)(*_arrays(case.values())))


@_double
def _jit_grad(case: Case) -> list[Array]:
    return _numbers(jax.jit(_gradient(_loss(case), case))(*_arrays(case.values())))


@_double
def _vmap_grad(case: Case) -> list[Array]:
    """The middle one of three instances that are mapped over."""
    values = [jnp.stack([v, v, v]) for v in _arrays(case.values())]
    return [g[1] for g in _numbers(jax.vmap(_gradient(_loss(case), case))(*values))]


@_double
def _jvp(case: Case, along: Direction) -> float:
    return float(_along(_loss(case), along)(*_arrays(case.values())))


@_double
def _jvp_of_grad(case: Case, along: Direction) -> list[Array]:
    return _numbers(_along(_gradient(_loss(case), case), along)(*_arrays(case.values())))


@_double
def _jit_jvp_of_grad(case: Case, along: Direction) -> list[Array]:
    product = jax.jit(_along(_gradient(_loss(case), case), along))
    return _numbers(product(*_arrays(case.values())))


@_double
def _grad_of_jvp(case: Case, along: Direction) -> list[Array]:
    return _numbers(_gradient(_along(_loss(case), along), case)(*_arrays(case.values())))


@_double
def _grad_of_grad(case: Case, along: Direction) -> list[Array]:
    gradient, tangents = _gradient(_loss(case), case), _arrays(along)

    def product(*values: jax.Array) -> jax.Array:
        return sum((g * d).sum() for g, d in zip(gradient(*values), tangents, strict=True))

    return _numbers(_gradient(product, case)(*_arrays(case.values())))


@_double
def _jvp_of_jvp(case: Case, first: Direction, second: Direction) -> float:
    return float(_along(_along(_loss(case), first), second)(*_arrays(case.values())))


GRADIENTS["jax: grad"] = _grad
GRADIENTS["jax: jit(grad)"] = _jit_grad
GRADIENTS["jax: vmap(grad)"] = _vmap_grad
DERIVATIVES["jax: jvp"] = _jvp
PRODUCTS["jax: jvp of grad"] = _jvp_of_grad
PRODUCTS["jax: jit(jvp of grad)"] = _jit_jvp_of_grad
PRODUCTS["jax: grad of jvp"] = _grad_of_jvp
PRODUCTS["jax: grad of grad"] = _grad_of_grad
PAIRS["jax: jvp of jvp"] = _jvp_of_jvp
