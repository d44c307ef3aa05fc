"""Train a model of returns for the portfolio that is chosen with it, in MLX.

A linear model predicts the returns of five assets from three signals, and the portfolio w solves

    maximize  rᵀw - (risk / 2) wᵀΣw   subject to  w ≥ 0, sum(w) = 1

for the predicted r. The mean returns are not linear in the signals, so that every linear model is
wrong somewhere. Fitted to the returns it is wrong without regard to the portfolio. Trained through
the problem, as a layer, it is right where that matters for the choice.

Run it with ``python examples/mlx_portfolio.py``.
"""

import time

import cvxpy as cp
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from cvxlayers.mlx import CvxpyLayer

ASSETS, SIGNALS = 5, 3
RISK = 2.0
TRAIN, TEST = 400, 1000  # numbers of days


# --- The data -------------------------------------------------------------------------------------


def load_data(generator: np.random.Generator, days: int) -> tuple[mx.array, mx.array, mx.array]:
    """Return the signals, the mean returns, and the returns: shapes (days, SIGNALS or ASSETS)."""
    world = np.random.default_rng(0)
    linear = world.normal(size=(SIGNALS, ASSETS))
    curved = world.normal(size=(SIGNALS, ASSETS))
    signals = generator.normal(size=(days, SIGNALS))
    mean = 0.3 * signals @ linear + 0.5 * np.abs(signals) @ curved
    returns = mean + 0.3 * generator.normal(size=mean.shape)
    return mx.array(signals), mx.array(mean), mx.array(returns)


# --- The model ------------------------------------------------------------------------------------


def covariance() -> np.ndarray:
    """Return the covariance Σ of the returns, which is known."""
    factors = np.random.default_rng(1).normal(size=(ASSETS, ASSETS))
    return 0.1 * np.eye(ASSETS) + 0.1 * factors @ factors.T


SIGMA = covariance()


def portfolio_layer() -> CvxpyLayer:
    """Return the portfolio as a function of the predicted returns."""
    w, r = cp.Variable(ASSETS), cp.Parameter(ASSETS)
    utility = r @ w - RISK / 2 * cp.quad_form(w, SIGMA)
    problem = cp.Problem(cp.Maximize(utility), [w >= 0, cp.sum(w) == 1])
    return CvxpyLayer(problem, parameters=[r], variables=[w])


class Investor(nn.Module):
    """Signals → predicted returns → portfolio."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = nn.Linear(SIGNALS, ASSETS)
        self.choose = portfolio_layer()

    def __call__(self, signals: mx.array) -> mx.array:
        # One problem per day: the predicted returns have a leading batch axis.
        (w,) = self.choose(self.predict(signals))
        return w


def utility(w: mx.array, returns: mx.array) -> mx.array:
    """Return the mean utility of portfolios, of shape (days, ASSETS)."""
    risk = (w @ mx.array(SIGMA, dtype=w.dtype) * w).sum(axis=1)
    return (w * returns).sum(axis=1).mean() - RISK / 2 * risk.mean()


# --- Training -------------------------------------------------------------------------------------


def fit(model: Investor, signals: mx.array, returns: mx.array) -> None:
    """Set the model to the least-squares fit of the returns."""
    inputs = np.column_stack([np.array(signals), np.ones(len(signals))])
    solution, *_ = np.linalg.lstsq(inputs, np.array(returns), rcond=None)
    model.predict.weight = mx.array(solution[:-1].T, dtype=mx.float32)
    model.predict.bias = mx.array(solution[-1], dtype=mx.float32)


def train(model: Investor, signals: mx.array, returns: mx.array, steps: int = 60) -> None:
    """Maximize the utility of the model's portfolios."""
    optimizer = optim.Adam(learning_rate=0.03)

    def loss(model: Investor) -> mx.array:
        return -utility(model(signals), returns)

    # The layer is differentiated as any other part; only mx.compile cannot contain it.
    loss_and_gradients = nn.value_and_grad(model, loss)
    start = time.perf_counter()
    for step in range(1, steps + 1):
        value, gradients = loss_and_gradients(model)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        if step % 20 == 0:
            seconds = time.perf_counter() - start
            print(f"step {step:3d}/{steps}  training utility {-value.item():.4f}  {seconds:4.1f} s")


def main() -> None:
    generator = np.random.default_rng(2)
    train_signals, _, train_returns = load_data(generator, TRAIN)
    test_signals, test_mean, _ = load_data(generator, TEST)

    model = Investor()
    fit(model, train_signals, train_returns)
    fitted = utility(model(test_signals), test_mean).item()
    train(model, train_signals, train_returns)
    trained = utility(model(test_signals), test_mean).item()
    (best,) = portfolio_layer()(test_mean)

    print(f"mean utility of the portfolios on {TEST} new days:")
    print(f"  fitted to the returns     {100 * fitted:7.2f} %")
    print(f"  trained through the layer {100 * trained:7.2f} %")
    print(f"  knowing the mean returns  {100 * utility(best, test_mean).item():7.2f} %")


if __name__ == "__main__":
    main()
