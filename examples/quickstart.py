"""Learn an image denoiser whose last layer is a quadratic program.

A noisy image y of 64 pixels is denoised by solving

    minimize    ½ ‖z − y‖² + ‖D z‖₁
    subject to  0 ≤ z ≤ 1.

With D the differences of neighbouring pixels this is total-variation denoising. Here every entry
of D is a weight of the network: starting from total variation, it is fitted by gradient descent
through the optimization problem, on the handwritten digits that come with scikit-learn.

Run it with ``python examples/quickstart.py``; it prints its progress and writes
``examples/output/quickstart.png``.
"""

import argparse
import time
from pathlib import Path

import cvxpy as cp
import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from cvxlayers.torch import CvxpyLayer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIDE = 8  # the digits are 8 × 8 pixels
PIXELS = SIDE * SIDE
NOISE = 0.25  # standard deviation of the noise; a pixel lies between 0 and 1
BATCH = 16
TRAIN, TEST = 1500, 200  # numbers of images


# --- The data -------------------------------------------------------------------------------------


def load_data() -> tuple[Tensor, Tensor]:
    """Return the clean and the noisy images, each of shape (TRAIN + TEST, PIXELS)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.from_numpy(load_digits().images / 16.0).reshape(-1, PIXELS)
    clean = images[torch.randperm(len(images), generator=generator)[: TRAIN + TEST]]
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    return clean, clean + NOISE * noise


# --- The model ------------------------------------------------------------------------------------


def neighbour_differences() -> Tensor:
    """Return the matrix of total variation: one row per pair of neighbouring pixels."""
    index = np.arange(PIXELS).reshape(SIDE, SIDE)
    first = np.concatenate([index[:, :-1].ravel(), index[:-1, :].ravel()])
    second = np.concatenate([index[:, 1:].ravel(), index[1:, :].ravel()])
    rows = np.arange(len(first))
    D = np.zeros((len(first), PIXELS))
    D[rows, first] = -1.0
    D[rows, second] = 1.0
    return torch.from_numpy(D)


class Denoiser(nn.Module):
    """The quadratic program as a network with the weights D."""

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.D = nn.Parameter(initial.clone())

        # The problem is written in CVXPY. The values of its parameters come with every call.
        D = cp.Parameter(tuple(initial.shape))
        y = cp.Parameter(PIXELS)
        z = cp.Variable(PIXELS)
        objective = 0.5 * cp.sum_squares(z - y) + cp.norm1(D @ z)
        problem = cp.Problem(cp.Minimize(objective), [z >= 0, z <= 1])
        self.layer = CvxpyLayer(problem, parameters=[D, y], variables=[z])

    def forward(self, noisy: Tensor) -> Tensor:
        # D is shared by the batch, `noisy` has a leading batch axis: one problem per image.
        (denoised,) = self.layer(self.D, noisy)
        return denoised


# --- Training -------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(model: nn.Module, clean: Tensor, noisy: Tensor) -> float:
    """Return the mean squared error of the model's images."""
    return nn.functional.mse_loss(model(noisy), clean).item()


def best_total_variation(clean: Tensor, noisy: Tensor) -> Denoiser:
    """Return total-variation denoising with the strength that suits the given images best."""
    strengths = (0.02, 0.04, 0.06, 0.08, 0.10, 0.12)
    models = [Denoiser(strength * neighbour_differences()) for strength in strengths]
    return min(models, key=lambda model: evaluate(model, clean, noisy))


def train(model: Denoiser, clean: Tensor, noisy: Tensor, steps: int) -> list[float]:
    """Fit the model to pairs of images; return the training loss of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    losses = []
    start = time.perf_counter()
    for step in range(1, steps + 1):
        batch = torch.arange((step - 1) * BATCH, step * BATCH) % len(clean)
        loss = nn.functional.mse_loss(model(noisy[batch]), clean[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 10 == 0 or step == steps:
            recent = np.mean(losses[-10:])
            seconds = time.perf_counter() - start
            print(
                f"step {step:3d}/{steps}  training loss {recent:.4f}  {seconds:5.1f} s", flush=True
            )
    return losses


# --- The picture ----------------------------------------------------------------------------------


@torch.no_grad()
def save_picture(
    path: Path,
    clean: Tensor,
    noisy: Tensor,
    baseline: Denoiser,
    model: Denoiser,
    losses: list[float],
) -> None:
    """Save some images before and after, and the training loss."""
    rows = {
        "clean": clean,
        "noisy": noisy,
        "total variation": baseline(noisy),
        "learned D": model(noisy),
    }
    count = len(clean)
    figure = plt.figure(figsize=(11.5, 3.7), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.9, 1])

    axes = left.subplots(len(rows), count)
    for (name, images), line in zip(rows.items(), axes, strict=True):
        for image, axis in zip(images, line, strict=True):
            axis.imshow(image.reshape(SIDE, SIDE).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")

    axis = right.subplots()
    window = min(10, len(losses))
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axis.plot(np.arange(1, len(losses) + 1), losses, color="0.75", label="one batch")
    axis.plot(np.arange(window, len(losses) + 1), smooth, color="C0", label=f"mean of {window}")
    axis.set(xlabel="step", ylabel="training loss (mean squared error)")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=90, help="number of training steps")
    default = Path(__file__).parent / "output" / "quickstart.png"
    parser.add_argument("--output", type=Path, default=default, help="where to save the picture")
    arguments = parser.parse_args()

    clean, noisy = load_data()
    train_clean, train_noisy = clean[:TRAIN], noisy[:TRAIN]
    test_clean, test_noisy = clean[TRAIN:], noisy[TRAIN:]

    baseline = best_total_variation(train_clean[:100], train_noisy[:100])
    model = Denoiser(baseline.D.detach())
    losses = train(model, train_clean, train_noisy, arguments.steps)

    print(f"mean squared error on {TEST} test images:")
    print(f"  noisy            {nn.functional.mse_loss(test_noisy, test_clean).item():.4f}")
    print(f"  total variation  {evaluate(baseline, test_clean, test_noisy):.4f}")
    print(f"  learned D        {evaluate(model, test_clean, test_noisy):.4f}")

    shown = slice(0, 8)
    save_picture(arguments.output, test_clean[shown], test_noisy[shown], baseline, model, losses)
    print(f"saved {arguments.output}")


if __name__ == "__main__":
    main()
