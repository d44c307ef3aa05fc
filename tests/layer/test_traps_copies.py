"""Trap 10 (docs/design): deepcopy, pickle, spawn and fork. Nothing may hold on to CVXPY's ids."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest
import torch
from layer_checks import draw, run, same_bits, tensor

from cvxlayers.torch import CvxpyLayer

VALUES = [np.array(1.5), draw(3, 2, 2) + 3.0]


def geometric_layer(**settings: object) -> CvxpyLayer:
    """With symmetric data, logarithms and duals: everything that has its own parameters inside."""
    a, c = cp.Parameter(pos=True), cp.Parameter((2, 2), pos=True)
    x, y = cp.Variable(pos=True), cp.Variable(2, pos=True)
    constraint = c @ y <= 1
    problem = cp.Problem(cp.Minimize(a * x + 1 / (x * y[0] * y[1])), [constraint])
    return CvxpyLayer(problem, [a, c], [y, x, constraint.dual_variables[0]], gp=True, **settings)


def saved_and_loaded(layer: CvxpyLayer) -> CvxpyLayer:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer)), saved_and_loaded],
    ids=["deepcopy", "copy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("used", [False, True])
def test_trap_10_a_copy_is_the_same_function(
    duplicate: Callable[[CvxpyLayer], CvxpyLayer], used: bool
) -> None:
    layer = geometric_layer(solver_args={"eps": 1e-9}, on_failure="nan")
    if used:
        run(layer, VALUES)
    twin = duplicate(layer)
    expected, found = run(layer, VALUES), run(twin, VALUES)
    assert same_bits(found[0], expected[0]) and same_bits(found[1], expected[1])
    assert twin.operations.settings.on_failure == "nan"
    assert twin.operations.settings.solver_args == {"eps": 1e-9}
    assert repr(twin) == repr(layer)


def test_trap_10_a_copy_inside_a_network() -> None:
    """As exponential moving averages and target networks do."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Softplus()).double()
    network.layer = geometric_layer()  # type: ignore[assignment]
    twin = copy.deepcopy(network)
    twin.load_state_dict(network.state_dict())
    a, rows = tensor(1.0), torch.as_tensor(draw(5, 2))

    def answer(net: torch.nn.Sequential) -> torch.Tensor:
        return net.layer(a, net[1](net[0](rows)).reshape(5, 2, 2) + 0.1)[0]

    assert same_bits([answer(twin)[0].detach()], [answer(network)[0].detach()])
    assert "layer" not in "".join(network.state_dict())


def test_trap_10_a_graph_survives_copies_and_deletion_of_the_layer() -> None:
    layer = geometric_layer()
    expected = run(layer, VALUES)[1]
    leaves = [tensor(v) for v in VALUES]
    outputs = layer(*leaves)
    pickle.loads(pickle.dumps(layer))
    del layer
    loss = sum((torch.as_tensor(draw(*o.shape, seed=i)) * o).sum() for i, o in enumerate(outputs))
    assert same_bits(torch.autograd.grad(loss, leaves), expected)


def script(folder: Path, code: str, *arguments: str) -> None:
    """Run code in a new interpreter, which fails if it hangs for a minute.

    It is a file, because a spawned process imports the one that it comes from.
    """
    here = Path(__file__).resolve().parent
    path = folder / "script.py"
    path.write_text(f"import sys; sys.path[:0] = {[str(here), str(here.parent)]!r}\n{code}")
    result = subprocess.run(
        [sys.executable, str(path), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout


def test_trap_10_pickle_into_another_interpreter(tmp_path: Path) -> None:
    """Where CVXPY counts its ids anew, and gives them to another problem's leaves."""
    layer = geometric_layer()
    expected = run(layer, VALUES)
    path = tmp_path / "layer.pickle"
    path.write_bytes(pickle.dumps((layer, expected)))
    script(
        tmp_path,
        """
import pickle
import cvxpy as cp
from layer_checks import run, same_bits
from cvxlayers.torch import CvxpyLayer
from test_traps_copies import VALUES
others = [cp.Parameter(7) for _ in range(50)] + [cp.Variable(3) for _ in range(50)]
with open(sys.argv[1], "rb") as file:
    layer, expected = pickle.load(file)
found = run(layer, VALUES)
assert same_bits(found[0], expected[0]) and same_bits(found[1], expected[1])
""",
        str(path),
    )


WORKERS = """
import multiprocessing, warnings
import torch
from layer_checks import run, same_bits
from test_traps_copies import VALUES, geometric_layer

def work(layer, queue):
    queue.put([[t.numpy() for t in part] for part in run(layer, VALUES)])

if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about fork and threads
    layer = geometric_layer()
    expected = run(layer, VALUES)  # the pool of threads is in use before the processes start
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    processes = [context.Process(target=work, args=(layer, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        found = [[torch.from_numpy(a) for a in part] for part in queue.get(timeout=50)]
        assert same_bits(found[0], expected[0]) and same_bits(found[1], expected[1])
    for process in processes:
        process.join()
        assert process.exitcode == 0
    again = run(layer, VALUES)
    assert same_bits(again[0], expected[0]) and same_bits(again[1], expected[1])
"""


@pytest.mark.parametrize(
    "method", sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods()))
)
def test_trap_10_other_processes_after_the_threads_were_used(method: str, tmp_path: Path) -> None:
    script(tmp_path, WORKERS, method)
