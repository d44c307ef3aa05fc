"""DistributedDataParallel: processes that share a batch get the gradient of the whole batch."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest
import torch
from torch_checks import close, execute, least_squares, numbers, python, softmax

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this PyTorch has no gloo",
)

# With a port that is free.
TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


class Model(torch.nn.Module):
    """A layer that follows a network, and one with a weight among its inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(int(os.environ.get("RANK", "0")))  # the weights of rank 0 are everyone's
        self.linear = torch.nn.Linear(2, 3).double()
        self.A = torch.nn.Parameter(torch.randn(3, 2).double() + torch.eye(3, 2))
        self.unused = torch.nn.Parameter(torch.ones(1).double())
        self.choose, self.fit = softmax(), least_squares()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fit(self.A, 1 + self.choose(self.linear(x))[0])[0]


def training(
    model: torch.nn.Module, weights: list[torch.nn.Parameter], x: torch.Tensor
) -> list[list[torch.Tensor]]:
    """The gradients of three steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = []
    for k in range(3):
        optimizer.zero_grad()
        model(x + k).square().sum(1).mean().backward()
        rows.append([p.grad.clone() for p in weights])
        optimizer.step()
    return rows


def used_weights(model: Model) -> list[torch.nn.Parameter]:
    return [p for name, p in model.named_parameters() if name != "unused"]


PROCESS = """
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from test_torch_distributed import Model, numbers, training, used_weights

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
assert world == 2
model = Model()
parallel = DistributedDataParallel(model, find_unused_parameters=True)
rows = training(parallel, used_weights(model), numbers(8, 2)[rank::world])
torch.save(rows, f"{sys.argv[1]}{rank}")
dist.barrier()
dist.destroy_process_group()
"""


def test_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    parts = str(tmp_path / "rank")
    python(PROCESS, tmp_path, parts, launcher=TWO_PROCESSES, timeout=600)
    first, second = (torch.load(f"{parts}{rank}") for rank in range(2))
    close(first, second, 0)
    model = Model()
    true = training(model, used_weights(model), numbers(8, 2))
    assert all(g.abs().max() > 1e-6 for row in true for g in row)
    close(first, true, 1e-10)


def test_the_example_under_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes print, once, what one process prints."""
    example = str(Path(__file__).resolve().parents[2] / "examples" / "torch_distributed.py")
    two = execute([*TWO_PROCESSES, example, "--epochs", "1"], timeout=600)
    monkeypatch.setenv("CVXLAYERS_NUM_THREADS", "1")
    monkeypatch.setattr("sys.argv", [example, "--epochs", "1"])
    runpy.run_path(example, run_name="__main__")
    lines = [line for line in two.splitlines() if line.startswith("epoch")]
    assert len(lines) == 1 and lines == capsys.readouterr().out.splitlines()
