"""``python -m benchmarks.gpu``: layers on an accelerator, in one call.

It checks, then it times. Every problem is solved and differentiated where its tensors are, and by
LANES on the CPU; answers and gradients are compared, and the memory that a batch took with what is
predicted. Then both take turns, and with them DENSE with iterations that are recorded as CUDA
graphs, and compiled, and Moreau where it is installed. Without an accelerator it says so and ends,
unless ``--device cpu`` is asked for, which shows that it runs: tensors of the CPU take the
accelerator's route then.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.duel import distance
from benchmarks.measure import Stopwatch, interleaved, limit_processors
from benchmarks.problems import PROBLEMS, SMALL
from benchmarks.report import Row, Table, setting
from benchmarks.setup import Setup
from cvxlayers.arrays import memory_beside
from cvxlayers.dense.repetition import VARIABLE
from cvxlayers.parallel import workers
from cvxlayers.torch import CvxpyLayer, function

CHECKED, BATCHES = 64, (128, 1024, 8192)
# How far answers and gradients may be apart, in relative Euclidean norms.
AGREEMENT = {"x apart": 1e-8, "gradient apart": 1e-6}
COLUMNS = (
    "problem",
    "B",
    "x apart",
    "gradient apart",
    "iterations",
    "LANES / device",
    "LANES / recorded",
    "LANES / compiled",
    "Moreau / device",
    "device µs",
    "forward",
    "bytes each",
    "predicted",
)


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; the exit code is one if answers disagree."""
    options = _parse(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here; --device cpu shows that this runs.")
        return 0
    if options.threads is not None:
        limit_processors(options.threads)
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    memory = memory_beside(torch.zeros(0, device=device))
    print(f"{setting(workers())}\ndevice: {name}, {memory:.3g} bytes")
    title = "Forward and backward of a layer on the device, and on the CPU by LANES."
    table, wrong = Table(title, COLUMNS), 0
    with _routed(device):
        for problem in options.problems:
            sizes = SMALL[problem] if options.quick else None
            for batch in (CHECKED, *options.batch):
                row = measured(Setup(PROBLEMS[problem], batch, sizes), device, options.rounds)
                wrong += any(not float(str(row[n])) <= most for n, most in AGREEMENT.items())
                table.add({"problem": problem, "B": batch} | row)
    if wrong:
        print(f"\n{wrong} rows have answers that are further apart than {AGREEMENT}.")
    return int(wrong > 0)


def measured(setup: Setup, device: torch.device, rounds: int) -> Row:
    """One row: how far answers are apart, what they take, and how long."""
    problem, parameters, variables, _ = setup.benchmark
    on_cpu = CvxpyLayer(problem, parameters, variables, solver="LANES")
    there = [t.detach().to(device).requires_grad_() for t in setup.inputs]
    weights = [torch.randn_like(y) for y in on_cpu(*setup.inputs)]
    sent = [w.to(device) for w in weights]

    expected = _gradient(on_cpu, setup.inputs, weights)
    found, most = _with_memory(lambda: _gradient(setup.layer, there, sent), device)
    apart = [
        distance([t.cpu() for t in one], other) for one, other in zip(found, expected, strict=True)
    ]
    row: Row = {name: f"{d:.0e}" for name, d in zip(AGREEMENT, apart, strict=True)}
    with torch.no_grad():
        iterations = setup.layer.solve(*there)[1].iterations
    row["iterations"] = f"{float(iterations.mean()):.3g}"
    row["predicted"] = _predicted(setup.layer, there)
    if most is not None:
        row["bytes each"] = most / setup.batch

    def steps(prefix: str, layer: Any, inputs: Any, own: Any) -> Callable[[Stopwatch], None]:
        def body(watch: Stopwatch) -> None:
            with watch(f"{prefix}forward"):
                outputs = layer(*inputs)
                _wait(device)
            with watch(f"{prefix}backward"):
                torch.autograd.grad(outputs, inputs, own)
                _wait(device)

        return body

    competitors = {
        "device": steps("device ", setup.layer, there, sent),
        "LANES": steps("LANES ", on_cpu, setup.inputs, weights),
    }
    for way in ("recorded", "compiled") if device.type == "cuda" else ():
        competitors[way] = _done(way, steps(f"{way} ", setup.layer, there, sent))
    if find_spec("moreau") is not None:
        moreau = CvxpyLayer(problem, parameters, variables, solver="MOREAU")
        competitors["Moreau"] = steps("Moreau ", moreau, there, sent)
    times = interleaved(competitors, rounds)
    pairs = [("LANES", name) for name in ("device", "recorded", "compiled")]
    for one, other in (*pairs, ("Moreau", "device")):
        if {one, other} <= competitors.keys():
            both = (f"{name} forward+{name} backward" for name in (one, other))
            row[f"{one} / {other}"] = times.ratio(*both)
    forward, backward = (times.microseconds(f"device {way}") for way in ("forward", "backward"))
    row["device µs"] = (forward + backward) / setup.batch
    row["forward"] = f"{100.0 * forward / (forward + backward):.0f} %"
    return row


def _gradient(layer: Any, inputs: Any, weights: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    outputs = layer(*inputs)
    return outputs, torch.autograd.grad(outputs, inputs, weights)


def _with_memory(body: Callable[[], Any], device: torch.device) -> tuple[Any, float | None]:
    """What it returns, and the most memory of the device that it took; nobody counts a CPU's."""
    if device.type != "cuda":
        return body(), None
    body()  # what is sent once
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = body()
    return result, float(torch.cuda.max_memory_allocated(device) - before)


def _predicted(layer: Any, inputs: Sequence[torch.Tensor]) -> float:
    """Bytes that an instance is reckoned to take."""
    specs = layer.operations.canonical.parameters
    flat = [t.detach().reshape(-1, spec.size) for t, spec in zip(inputs, specs, strict=True)]
    bytes_each: float = layer.operations.solution_map.bytes_per_instance(flat, True)
    return bytes_each


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _done(way: str, body: Callable[[Stopwatch], None]) -> Callable[[Stopwatch], None]:
    """The same with iterations that are done this way."""

    def steps(watch: Stopwatch) -> None:
        os.environ[VARIABLE] = way
        try:
            body(watch)
        finally:
            del os.environ[VARIABLE]

    return steps


@contextmanager
def _routed(device: torch.device) -> Iterator[None]:
    """Tensors of this device take the accelerator's route."""
    own = function.is_on_device
    if device.type == "cpu":
        function.is_on_device = lambda tensor: True
    try:
        yield
    finally:
        function.is_on_device = own


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--device", default="cuda", help="as PyTorch names it (default: cuda)")
    add("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS), metavar="NAME")
    add("--batch", nargs="*", type=int, default=list(BATCHES), metavar="B")
    add("--rounds", type=int, default=5, help="medians are over so many rounds (default: 5)")
    add("--threads", type=int, help="processors for LANES (default: all)")
    add("--quick", action="store_true", help="small sizes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
