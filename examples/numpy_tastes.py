"""Find a shopper's tastes from purchases, with NumPy and SciPy alone.

Day by day a shopper sees the prices p of four goods and has the budget m. The amounts x solve

    maximize    Σ aᵢ log(1 + xᵢ) - pᵀx
    subject to  pᵀx ≤ m,  x ≥ 0.

The tastes a are unknown. They are fitted to 60 days of noisy purchases by nonlinear least squares:
`scipy.optimize.least_squares` takes the Jacobian that the layer's `vjp` gives. Second derivatives
(`hvp`) then say how accurate the estimate is, and `jvp` how purchases answer to a change of prices.

Run it with ``python examples/numpy_tastes.py``.
"""

import argparse
import time

import cvxpy as cp
import numpy as np
from scipy.optimize import least_squares

from cvxlayers import CvxpyLayer

GOODS = 4
NOISE = 0.05  # standard deviation of the error of an observed amount


# --- The problem ----------------------------------------------------------------------------------


def shopper() -> CvxpyLayer:
    """Return the amounts as a function of tastes, prices and budget."""
    a = cp.Parameter(GOODS, nonneg=True, name="a")
    p = cp.Parameter(GOODS, nonneg=True, name="p")
    m = cp.Parameter(nonneg=True, name="m")
    x = cp.Variable(GOODS, name="x")
    problem = cp.Problem(cp.Maximize(a @ cp.log1p(x) - p @ x), [p @ x <= m, x >= 0])
    # Called with NumPy arrays, the layer answers in NumPy arrays.
    return CvxpyLayer(problem, parameters=[a, p, m], variables=[x])


# --- The fit --------------------------------------------------------------------------------------


class Fit:
    """Residuals of all days and their derivatives, as functions of the tastes."""

    def __init__(
        self, layer: CvxpyLayer, prices: np.ndarray, budgets: np.ndarray, seen: np.ndarray
    ):
        self.layer, self.prices, self.budgets, self.seen = layer, prices, budgets, seen

    def residuals(self, a: np.ndarray) -> np.ndarray:
        # The tastes are shared by the days, prices and budgets have a leading batch axis. A plain
        # call is as accurate as the solver's tolerance. Next to derivatives that is not enough:
        # with polish=True it is as accurate as what `vjp` returns.
        options = {"polish": True}
        (x,) = self.layer(a, self.prices, self.budgets, solver_args=options)
        return (x - self.seen).ravel()

    def jacobian(self, a: np.ndarray) -> np.ndarray:
        # The gradient for a shared value is summed over the batch. Here one row for every day is
        # wanted, so each day gets a copy of the tastes. One solve serves all pullbacks.
        days = len(self.prices)
        copies = np.tile(a, (days, 1))
        (x,), pullback = self.layer.vjp(copies, self.prices, self.budgets)
        rows = np.empty((days, GOODS, GOODS))
        for i in range(GOODS):
            gradient = np.zeros_like(x)
            gradient[:, i] = 1.0
            rows[:, i], _, _ = pullback(gradient)
        return rows.reshape(-1, GOODS)

    def hessian(self, a: np.ndarray) -> np.ndarray:
        """Of half the sum of the squared residuals r: JᵀJ + Σ rᵢ ∇²xᵢ."""
        J = self.jacobian(a)
        r = self.residuals(a).reshape(self.seen.shape)
        values = {"a": a, "p": self.prices, "m": self.budgets}
        # The second term times a unit vector. A direction names only what moves.
        columns = [self.layer.hvp(values, [r], {"a": unit})[0] for unit in np.eye(GOODS)]
        return J.T @ J + np.column_stack(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=60, help="number of observed days")
    days = parser.parse_args().days

    generator = np.random.default_rng(0)
    layer = shopper()
    tastes = np.array([2.0, 1.0, 3.0, 1.5])
    prices = generator.uniform(0.5, 1.5, (days, GOODS))
    budgets = generator.uniform(2.0, 8.0, days)
    (amounts,) = layer(tastes, prices, budgets)
    seen = amounts + NOISE * generator.standard_normal(amounts.shape)

    fit = Fit(layer, prices, budgets, seen)
    start = time.perf_counter()
    result = least_squares(fit.residuals, np.ones(GOODS), jac=fit.jacobian, bounds=(1e-3, np.inf))
    seconds = time.perf_counter() - start
    print(
        f"{result.nfev} evaluations, {result.njev} Jacobians, {seconds:.1f} s; "
        f"root mean square residual {np.sqrt(np.mean(result.fun**2)):.4f} (noise {NOISE})"
    )

    errors = NOISE * np.sqrt(np.diag(np.linalg.inv(fit.hessian(result.x))))
    print("tastes     true  estimated  standard error")
    for i in range(GOODS):
        print(f"  good {i}  {tastes[i]:5.2f}  {result.x[i]:9.4f}  {errors[i]:14.4f}")

    # What if the first good becomes dearer? Directions are given by name, as values are.
    today = {"a": result.x, "p": np.ones(GOODS), "m": 3.0}
    (x,), (change,) = layer.jvp(today, {"p": np.eye(GOODS)[0]})
    print("at prices of 1 and a budget of 3 the shopper buys", x.round(3))
    print("and for each 0.01 that the first good costs more  ", (0.01 * change).round(4))


if __name__ == "__main__":
    main()
