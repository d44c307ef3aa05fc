"""Train a model with an optimization layer on several processes.

A linear model predicts the values c of ten items from five features, and the layer spends a budget
on them:

    maximize    cᵀx - ½ ‖x‖²
    subject to  wᵀx ≤ 1,  0 ≤ x ≤ 1,

where the true values are not linear in the features. The model is trained by the value that its
choices really have. Every process takes its own part of the data; `DistributedDataParallel`
averages the gradients.

Run it with ``torchrun --nproc-per-node 2 examples/torch_distributed.py``, or as one process with
``python examples/torch_distributed.py``.
"""

import argparse
import os

import cvxpy as cp
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from cvxlayers.torch import CvxpyLayer

ITEMS, FEATURES = 10, 5
SAMPLES = 512


def share_processors() -> None:
    """Divide the processors between the processes of this machine.

    The layer solves the instances of a batch in as many threads as there are processors. Several
    processes that each do so are in each other's way.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = max(1, (os.cpu_count() or 1) // processes)
    os.environ.setdefault("CVXLAYERS_NUM_THREADS", str(threads))


def load_data() -> tuple[TensorDataset, Tensor]:
    """Return pairs of features and true values, and the items' costs: the same in every process."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(SAMPLES, FEATURES, generator=generator)
    linear = torch.randn(FEATURES, ITEMS, generator=generator)
    curved = torch.randn(FEATURES, ITEMS, generator=generator)
    values = features @ linear + features.square() @ curved
    costs = 0.2 + 0.6 * torch.rand(ITEMS, generator=generator)
    return TensorDataset(features, values), costs


class Chooser(nn.Module):
    """Features → predicted values → choice of items."""

    def __init__(self, costs: Tensor) -> None:
        super().__init__()
        self.predict = nn.Linear(FEATURES, ITEMS)
        c, x = cp.Parameter(ITEMS), cp.Variable(ITEMS)
        objective = cp.Maximize(c @ x - 0.5 * cp.sum_squares(x))
        problem = cp.Problem(objective, [costs.numpy() @ x <= 1, x >= 0, x <= 1])
        # Every process makes its own layer. It has no weights, so that there is nothing in it to
        # send around. If one process raised an error the others would wait for it forever: with
        # "nan" an instance that is not solved gives NaN and no gradient, and all stay in step.
        self.choose = CvxpyLayer(problem, parameters=[c], variables=[x], on_failure="nan")

    def forward(self, features: Tensor) -> Tensor:
        (x,) = self.choose(self.predict(features))
        return x


def loss_of(choices: Tensor, values: Tensor) -> Tensor:
    """Return the mean of what the choices are really worth, with a minus."""
    # What was not solved chooses nothing, and the mean is over all: the average over the processes
    # is the mean over the whole batch only if all divide by the same number.
    choices = choices.nan_to_num(nan=0.0)
    return -((values * choices).sum(1) - 0.5 * choices.square().sum(1)).mean()


def train(rank: int, world: int, epochs: int, batch: int) -> nn.Module:
    """Train; every process returns the same model."""
    data, costs = load_data()
    # Each process has the same number of samples in every step, as the mean of means wants it.
    sampler = DistributedSampler(data, num_replicas=world, rank=rank, drop_last=True)
    loader = DataLoader(data, batch_size=batch // world, sampler=sampler, drop_last=True)

    torch.manual_seed(0)
    model = Chooser(costs)
    # DistributedDataParallel starts all processes with the weights of rank 0. In the backward pass
    # it averages the gradients, while the layer's own part has no communication.
    parallel = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)

    for epoch in range(1, epochs + 1):
        sampler.set_epoch(epoch)  # another shuffle, the same in all processes
        total = torch.zeros(())
        for features, values in loader:
            loss = loss_of(parallel(features), values)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() / len(loader)
        if dist.is_initialized():
            dist.all_reduce(total)
        if rank == 0:
            print(f"epoch {epoch:2d}/{epochs}  loss {total.item() / world:.4f}", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10, help="number of passes over the data")
    parser.add_argument("--batch", type=int, default=64, help="samples per step, of all processes")
    arguments = parser.parse_args()

    share_processors()
    if "RANK" in os.environ:  # started by torchrun
        # With one GPU per process: backend "nccl", model.to(device), device_ids=[local_rank]. The
        # layer answers on the device of its arguments.
        dist.init_process_group("gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0
    world = dist.get_world_size() if dist.is_initialized() else 1
    try:
        train(rank, world, arguments.epochs, arguments.batch)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
