"""The command: which comparisons are made, and their order."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.measure import Stopwatch, interleaved, limit_processors, peak_memory
from benchmarks.peers import NOT_INSTALLED, BareLoop, cvxpylayers_of, gradient_steps
from benchmarks.problems import LARGE, OVERHEAD, PROBLEMS, SMALL, Benchmark
from cvxlayers.parallel import workers
from cvxlayers.program import ConeProgram
from cvxlayers.torch import CvxpyLayer

__all__ = ["Setup", "main"]


class Setup:
    """A benchmark's layer with parameter values for B instances.

    Parameters
    ----------
    make
        One of the functions in `problems`.
    small
        Whether at the sizes of `SMALL`.
    """

    def __init__(self, make: Callable[..., Benchmark], batch: int, small: bool = False):
        self.benchmark = make(**(SMALL[make.__name__] if small else {}))
        problem, parameters, variables, draw = self.benchmark
        self.layer = CvxpyLayer(problem, parameters, variables)
        values = draw(np.random.default_rng(1), batch)
        self.inputs = [torch.tensor(value, requires_grad=True) for value in values]
        self.batch = batch

    def program(self) -> ConeProgram:
        """What the layer's solver is given."""
        canonical = self.layer.operations.solution_map.canonical
        values = [value.detach().numpy() for value in self.inputs]
        theta = [
            value.reshape(-1, spec.size)
            for value, spec in zip(values, canonical.parameters, strict=True)
        ]
        return canonical.program(theta, self.batch)

    def solve(self) -> Sequence[torch.Tensor]:
        """The layer's forward pass without gradient."""
        with torch.no_grad():
            return self.layer(*self.inputs)

    def gradient(self) -> None:
        """Forward and backward, once."""
        outputs = self.layer(*self.inputs)
        torch.autograd.grad(outputs, self.inputs, [torch.ones_like(value) for value in outputs])


def timed(phase: str, body: Callable[[], Any]) -> Callable[[Stopwatch], None]:
    """A competitor of one phase."""

    def competitor(watch: Stopwatch) -> None:
        with watch(phase):
            body()

    return competitor


def compare(make: Callable[..., Benchmark], batch: int, rounds: int, small: bool) -> report.Row:
    """One row of the table."""
    setup = Setup(make, batch, small)
    competitors = {
        "loop": timed("loop", BareLoop(setup.program(), workers()).solve),
        "layer": timed("forward", setup.solve),
        "gradient": gradient_steps(setup.layer, setup.inputs, "our"),
    }
    times = interleaved(competitors, rounds)
    row: report.Row = {
        "problem": make.__name__,
        "B": batch,
        "forward / loop": times.ratio("forward", "loop"),
        "with gradient / loop": times.ratio("our forward", "loop"),
        "backward / forward": times.ratio("our backward", "our forward"),
    }
    row["cvxpylayers / ours"] = duel(setup, make, rounds, small)
    return row


def duel(
    setup: Setup, make: Callable[..., Benchmark], rounds: int, small: bool
) -> float | str | None:
    """Forward and backward of cvxpylayers over ours; "fails" where it raises."""
    peer = cvxpylayers_of(make(**(SMALL[make.__name__] if small else {})))
    if peer is None:
        return None
    try:
        competitors = {
            "ours": gradient_steps(setup.layer, setup.inputs, "our"),
            "cvxpylayers": gradient_steps(peer, setup.inputs, "their"),
        }
        times = interleaved(competitors, rounds)
    except Exception as error:  # diffcp 1.1.9 has no adjoint for power cones, for example
        print(f"cvxpylayers, {make.__name__}: {type(error).__name__}: {error}")
        return "fails"
    return times.ratio("their forward+their backward", "our forward+our backward")


def overhead(make: Callable[..., Benchmark], rounds: int, small: bool) -> str:
    """What a call without gradient costs beside the solver itself."""
    setup = Setup(make, 1, small)
    loop = BareLoop(setup.program(), 1)
    competitors = {"loop": timed("loop", loop.solve), "layer": timed("forward", setup.solve)}
    times = interleaved(competitors, 3 * rounds)
    microseconds = 1e6 * times.difference("forward", "loop")
    return f"{make.__name__}, B=1, no gradient: {microseconds:.0f} µs per call beside the solver"


def large(make: Callable[..., Benchmark], rounds: int, small: bool) -> list[str]:
    """One large sparse instance, against Clarabel with the better of its factorisations."""
    made: list[Setup] = []
    building = peak_memory(lambda: made.append(Setup(make, 1, small)))
    setup = made[0]
    # Before anything else is solved: freed memory that is used again does not count.
    memory = {"building": building, "forward, backward": peak_memory(setup.gradient)}
    program = setup.program()
    entries = len(program.P[0]) + len(program.A[0])
    competitors = {
        method: timed(method, BareLoop(program, 1, direct_solve_method=method).solve)
        for method in ("faer", "qdldl")
    }
    competitors["layer"] = timed("forward", setup.solve)
    competitors["gradient"] = gradient_steps(setup.layer, setup.inputs, "our")
    times = interleaved(competitors, max(1, rounds // 2))
    best = max(("faer", "qdldl"), key=lambda method: times.ratio("forward", method) or 0.0)
    n, m = len(program.q[0]), len(program.b[0])
    lines = [f"{make.__name__}, n = {n:,}, m = {m:,}, B=1, Clarabel's best: {best}"]
    for label, phase, reference in (
        ("forward / Clarabel", "forward", best),
        ("with gradient / Clarabel", "our forward", best),
        ("backward / forward", "our backward", "our forward"),
    ):
        lines.append(f"  {label:<31} {report.number(times.ratio(phase, reference))}")
    for name, peak in memory.items():
        per_entry = "-" if peak is None else f"{peak / entries:,.0f}"
        lines.append(f"  peak memory, {name:<18} {per_entry} bytes per entry of P and A")
    return lines


def main(arguments: Sequence[str]) -> None:
    """Run what the command line asks for."""
    options = _parse(arguments)
    if options.threads is not None:
        limit_processors(options.threads)
    torch.set_num_threads(workers())
    rounds = 2 if options.quick else options.rounds
    chosen = options.problems
    print(report.setting(workers()), flush=True)

    table = report.Table()
    for name in [name for name in PROBLEMS if name in chosen]:
        for batch in options.batch:
            table.add(compare(PROBLEMS[name], batch, rounds, options.quick))
    notes = [overhead(f, rounds, options.quick) for name, f in OVERHEAD.items() if name in chosen]
    for name, make in LARGE.items():
        if name in chosen:
            notes += large(make, rounds, options.quick)
    if not table.has_peer:
        notes.append(NOT_INSTALLED)
    print(*notes, sep="\n")
    if options.save is not None:
        report.save(options.save, table, notes, workers())


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    names = [*PROBLEMS, *OVERHEAD, *LARGE]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Ratios of times, medians over interleaved rounds in one process.",
    )
    add = parser.add_argument
    known = ", ".join(names)
    add("--problems", nargs="+", choices=names, default=names, metavar="NAME", help=known)
    add("--batch", nargs="+", type=int, default=[1, 128], metavar="B", help="default: 1 128")
    add("--rounds", type=int, default=7, help="medians are over so many rounds (default: 7)")
    add("--threads", type=int, help="processors to run on (default: all)")
    add("--quick", action="store_true", help="small sizes, two rounds: only to see that it runs")
    add("--save", type=Path, metavar="PATH", help="write PATH.md and, with matplotlib, PATH.png")
    return parser.parse_args(arguments)
