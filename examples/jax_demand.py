"""Estimate what customers value from what they buy, by Newton's method through their decisions.

A customer who values the goods at u and has one unit of money buys at the prices p

    x(u, p) = argmax  uᵀx − ½ ‖x‖²   subject to  pᵀx ≤ 1,  x ≥ 0.

Purchases are observed with noise, at prices that change from day to day. The negative
log-likelihood of u is a function of the solutions. Its gradient and its Hessian come from
`jax.grad` and `jax.hessian`; the inverse of the Hessian tells how sure the estimate is.

Run it with ``python examples/jax_demand.py``.
"""

import time

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np

from cvxlayers.jax import CvxpyLayer

jax.config.update("jax_enable_x64", True)

GOODS = ("apples", "bread", "cheese", "dates", "eggs")
DAYS = 200
NOISE = 0.03  # standard deviation of an observed purchase


# --- The model ------------------------------------------------------------------------------------


def demand_layer() -> CvxpyLayer:
    """Return the purchase as a function of the values and the prices."""
    n = len(GOODS)
    u, p, x = cp.Parameter(n, name="u"), cp.Parameter(n, name="p", pos=True), cp.Variable(n)
    problem = cp.Problem(cp.Maximize(u @ x - 0.5 * cp.sum_squares(x)), [p @ x <= 1, x >= 0])
    return CvxpyLayer(problem, parameters=[u, p], variables=[x])


layer = demand_layer()


def purchases(values: jax.Array, prices: jax.Array) -> jax.Array:
    """Return what is bought: `values` are shared by all days, `prices` has a row for each."""
    (x,) = layer(values, prices)
    return x


def loss(values: jax.Array, prices: jax.Array, observed: jax.Array) -> jax.Array:
    """Return the negative log-likelihood, without its constant."""
    return ((purchases(values, prices) - observed) ** 2).sum() / (2 * NOISE**2)


# --- Newton's method ------------------------------------------------------------------------------


@jax.jit
def newton_step(
    values: jax.Array, damping: float, prices: jax.Array, observed: jax.Array
) -> jax.Array:
    gradient = jax.grad(loss)(values, prices, observed)
    hessian = jax.hessian(loss)(values, prices, observed)
    # Away from the minimum the Hessian may be indefinite: its eigenvalues are made positive.
    size, directions = jnp.linalg.eigh(hessian)
    size = jnp.abs(size) + damping
    return values - directions @ ((directions.T @ gradient) / size)


def estimate(prices: jax.Array, observed: jax.Array) -> jax.Array:
    """Return the values of the largest likelihood, from a start that knows nothing."""
    current = jax.jit(loss)
    values, damping = jnp.ones(len(GOODS)), 1.0
    best = current(values, prices, observed)
    print(f"step  0  loss {best:12.4f}")
    for step in range(1, 30):
        trial = newton_step(values, damping, prices, observed)
        found = current(trial, prices, observed)
        print(f"step {step:2d}  loss {found:12.4f}")
        if abs(best - found) < 1e-6 * best:
            break
        if found < best:
            values, best, damping = trial, found, damping / 10
        else:
            damping *= 10
    return values


def main() -> None:
    generator = np.random.default_rng(0)
    true = jnp.array([1.5, 0.9, 1.2, 0.7, 1.0])
    prices = jnp.asarray(generator.uniform(0.3, 1.5, (DAYS, len(GOODS))))
    noise = NOISE * generator.standard_normal((DAYS, len(GOODS)))
    observed = purchases(true, prices) + noise

    start = time.perf_counter()
    values = estimate(prices, observed)
    covariance = jnp.linalg.inv(jax.jit(jax.hessian(loss))(values, prices, observed))
    print(f"{time.perf_counter() - start:.1f} s")

    print("good     true   estimate")
    for name, t, v, e in zip(GOODS, true, values, jnp.sqrt(jnp.diag(covariance)), strict=True):
        print(f"{name:8} {t:.3f}  {v:.3f} ± {e:.3f}")


if __name__ == "__main__":
    main()
