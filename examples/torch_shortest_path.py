"""Learn to predict the travel times of a road network, by the routes that they lead to.

Every day one crosses a grid of streets from one corner to the other. The travel times c of the
streets are not known in advance, only features of the day are (say, weather and weekday). A model
predicts times ĉ, and the route is the shortest path for them, a linear program:

    minimize    ĉᵀx
    subject to  A x = b,  0 ≤ x ≤ 1.

The loss is the regret: the time that the route really takes, cᵀx, minus that of the best route.
The route jumps between corners of the feasible set, so the exact derivative of x with respect to ĉ
is zero and nothing is learned. With ``derivative="smoothed"`` the route is the same, but the
gradient is that of a nearby point of the central path, and it tells how to improve. With
``derivative="lpgd"`` it is the difference to a route that is a little better for the loss.

Run it with ``python examples/torch_shortest_path.py``.
"""

import argparse
import time

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor, nn

from cvxlayers.torch import CvxpyLayer

SIDE = 4  # the grid has 4 × 4 crossings
FEATURES = 5
NOISE = 0.2  # travel times vary by up to ± 20 % for reasons that no feature tells
BATCH = 20
RATE = 1.0  # of gradient descent
TRAIN, TEST = 200, 100  # numbers of days


# --- The data -------------------------------------------------------------------------------------


def streets() -> np.ndarray:
    """Return the pairs (from, to) of crossings; one drives to the right or down."""
    index = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    right = np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], axis=1)
    down = np.stack([index[:-1, :].ravel(), index[1:, :].ravel()], axis=1)
    return np.concatenate([right, down])


def load_data() -> tuple[Tensor, Tensor]:
    """Return the features and the true travel times of TRAIN + TEST days."""
    generator = np.random.default_rng(0)
    edges, days = len(streets()), TRAIN + TEST
    weights = generator.standard_normal((FEATURES, edges)) / np.sqrt(FEATURES)
    features = generator.standard_normal((days, FEATURES))
    times = (1.0 + 0.3 * (3.0 + features @ weights).clip(min=0.0) ** 2) / 4.0
    times *= generator.uniform(1.0 - NOISE, 1.0 + NOISE, times.shape)
    return torch.from_numpy(features), torch.from_numpy(times)


# --- The model ------------------------------------------------------------------------------------


def shortest_path(**options) -> CvxpyLayer:
    """Return the route as a function of the travel times."""
    edges = streets()
    columns = np.arange(len(edges))
    A = np.zeros((SIDE * SIDE, len(edges)))
    A[edges[:, 0], columns] = 1.0
    A[edges[:, 1], columns] = -1.0
    b = np.zeros(SIDE * SIDE)
    b[0], b[-1] = 1.0, -1.0

    c = cp.Parameter(len(edges))
    x = cp.Variable(len(edges))
    # The rows of A sum to zero: the last one follows from the others and is left out. The smoothed
    # derivative needs a bounded set of optima, which x <= 1 ensures whatever the network and c. It
    # also needs an interior: a street that every route takes or none does would leave none.
    constraints = [A[:-1] @ x == b[:-1], x >= 0, x <= 1]
    problem = cp.Problem(cp.Minimize(c @ x), constraints)
    return CvxpyLayer(problem, parameters=[c], variables=[x], **options)


class Planner(nn.Module):
    """From the features of a day to its route."""

    def __init__(self, layer: CvxpyLayer) -> None:
        super().__init__()
        torch.manual_seed(0)  # every planner starts with the same weights
        self.predict = nn.Sequential(
            nn.Linear(FEATURES, len(streets()), dtype=torch.float64),
            nn.Softplus(),  # times are positive
        )
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        (route,) = self.layer(self.predict(features))
        return route


# --- Training -------------------------------------------------------------------------------------


def train(model: Planner, features: Tensor, times: Tensor, steps: int) -> float:
    """Fit the model to the days; return the norm of the first gradient."""
    first = 0.0
    for step in range(steps):
        batch = torch.arange(step * BATCH, (step + 1) * BATCH) % len(features)
        # The time of the best route does not depend on the model: the gradient of the regret is
        # that of the time on the chosen route.
        loss = (times[batch] * model(features[batch])).sum(1).mean()
        model.zero_grad()
        loss.backward()
        if step == 0:
            first = nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
        # Plain gradient descent. Adam divides by the size of the gradient, and so would enlarge the
        # rounding errors that the exact gradient consists of.
        with torch.no_grad():
            for weight in model.parameters():
                weight -= RATE * weight.grad
    return first


@torch.no_grad()
def evaluate(model: Planner, features: Tensor, times: Tensor) -> float:
    """Return the mean regret, in percent of the mean time of the best route."""
    (best,) = model.layer(times)
    taken = (times * model(features)).sum(1).mean()
    optimal = (times * best).sum(1).mean()
    return (100.0 * (taken - optimal) / optimal).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="number of training steps")
    steps = parser.parse_args().steps

    features, times = load_data()
    unseen = features[TRAIN:], times[TRAIN:]
    layers = {
        "exact": shortest_path(),
        # In units of the objective: about as much longer as a route may be to be still felt. Times
        # here are about 1 for a street.
        "smoothed": shortest_path(derivative="smoothed", smoothing=0.1),
        # In units of the objective for one of the loss, which is the mean over a batch here.
        "lpgd": shortest_path(derivative="lpgd", smoothing=0.5 * BATCH),
    }

    print(f"mean regret on {TEST} unseen days, in % of the time of the best route:")
    print("derivative  first gradient  before   after")
    for name, layer in layers.items():
        model = Planner(layer)
        before = evaluate(model, *unseen)
        start = time.perf_counter()
        gradient = train(model, features[:TRAIN], times[:TRAIN], steps)
        seconds = time.perf_counter() - start
        after = evaluate(model, *unseen)
        print(
            f"{name:<10}  {gradient:14.1e}  {before:5.2f}%  {after:5.2f}%  ({seconds:.1f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
