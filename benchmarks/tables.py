"""The tables: what is measured for each, row by row."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks import duel
from benchmarks.measure import interleaved, peak_memory
from benchmarks.peers import BareLoop, gradient_steps
from benchmarks.problems import LARGE, NNLS, OVERHEAD, PROBLEMS, SIZES, SMALL
from benchmarks.report import Row
from benchmarks.setup import Setup, timed
from cvxlayers.parallel import workers

__all__ = ["SECTIONS", "Section"]

# The loop is measured on so many instances at most, and its time scaled to the batch.
LOOP = 256
BATCHES = (1, 8, 32, 128, 1024, 10_000)
DUELS = (1, 128)
SIZES_AT = 128


class Section(NamedTuple):
    """A table that can be asked for by name."""

    title: str
    columns: tuple[str, ...]
    rows: Callable[[Namespace], Iterator[Row]]


RATIOS = ("loop / solver", "loop / layer", "loop / forward", "backward / forward")
BEST, MEMORY = ("best / layer", "best / forward"), ("built, bytes", "called, bytes")
TIMES = ("loop µs", "solver µs", "forward µs", "backward µs")
EXPLAINED = """\
Loop: Clarabel, a fresh solver for every instance, on as many threads. Solver: the layer's solver
alone, on the same programs. Layer: a call without gradient. Forward: a call with gradient. Times
are per instance."""
PEERS_EXPLAINED = """\
Forward and backward: the time of cvxpylayers over ours, at its defaults and with Moreau; x and
gradient: how far they are from ours, relatively. The extra `bench` installs both."""


def cost(setup: Setup, rounds: int) -> Row:
    """Ratios to the loop, and microseconds per instance."""
    loop = BareLoop(setup.program(LOOP), workers())
    weights = [torch.randn_like(output) for output in setup.solve()]
    competitors = {
        "loop": timed("loop", loop.solve),
        "solver": timed("solver", setup.solver()),
        "layer": timed("layer", setup.solve),
        "gradient": gradient_steps(setup.layer, setup.inputs, weights),
    }
    times = interleaved(competitors, rounds)
    row: Row = {"backward / forward": times.ratio("backward", "forward")}
    for phase in ("solver", "layer", "forward"):
        ratio = times.ratio("loop", phase)
        row[f"loop / {phase}"] = ratio and ratio * setup.batch / loop.batch
    for phase in ("loop", "solver", "forward", "backward"):
        instances = loop.batch if phase == "loop" else setup.batch
        row[f"{phase} µs"] = times.microseconds(phase) / instances
    return row


def over_batches(options: Namespace) -> Iterator[Row]:
    for name in options.problems:
        for batch in options.batch or ((1, 3) if options.quick else BATCHES):
            setup = Setup(PROBLEMS[name], batch, SMALL[name] if options.quick else None)
            yield {"problem": name, "B": batch} | cost(setup, options.rounds)


def over_sizes(options: Namespace) -> Iterator[Row]:
    for name in options.problems:
        for sizes in [SMALL[name]] if options.quick else SIZES[name]:
            setup = Setup(PROBLEMS[name], 3 if options.quick else SIZES_AT, sizes)
            argument, size = next(iter(sizes.items()))
            structure = setup.layer.operations.solution_map.canonical.structure
            about: Row = {
                "problem": name,
                "size": f"{argument}={size}",
                "entries": structure.P.nnz + structure.A.nnz,
            }
            yield about | cost(setup, options.rounds)


def against_peers(options: Namespace) -> Iterator[Row]:
    for name in options.problems:
        for batch in options.batch or ((1, 3) if options.quick else DUELS):
            setup = Setup(PROBLEMS[name], batch, SMALL[name] if options.quick else None)
            yield {"problem": name, "B": batch} | duel.duel(setup, options.rounds)


def least_squares(options: Namespace) -> Iterator[Row]:
    for name, make in NNLS.items():
        setup = Setup(make, 1, SMALL[name] if options.quick else None)
        yield {"problem": name, "B": 1} | duel.duel(setup, max(1, options.rounds // 2))


def overhead(options: Namespace) -> Iterator[Row]:
    for name, make in OVERHEAD.items():
        setup = Setup(make, 1, SMALL[name] if options.quick else None)
        competitors = {
            "solver": timed("solver", setup.solver()),
            "layer": timed("layer", setup.solve),
            "loop": timed("loop", BareLoop(setup.program(), 1).solve),
        }
        times = interleaved(competitors, 3 * options.rounds)
        row: Row = {"problem": name, "B": 1, "loop / layer": times.ratio("loop", "layer")}
        for column in ("solver µs", "layer µs"):
            row[column] = times.microseconds(column.split()[0])
        yield row | {"beside µs": 1e6 * times.difference("layer", "solver")}


def large(options: Namespace) -> Iterator[Row]:
    [(name, make)] = LARGE.items()
    sizes = SMALL[name] if options.quick else None
    Setup(make, 1, SMALL[name]).gradient()  # modules that are imported late do not count
    made: list[Setup] = []
    building = peak_memory(lambda: made.append(Setup(make, 1, sizes)))
    setup = made[0]
    # Before anything else is solved: freed memory that is used again does not count.
    calling = peak_memory(setup.gradient)
    program = setup.program()
    entries = program.P.size + program.A.size
    weights = [torch.ones_like(output) for output in setup.solve()]
    competitors: dict[str, Any] = {
        method: timed(method, BareLoop(program, 1, direct_solve_method=method).solve)
        for method in ("faer", "qdldl")
    }
    competitors["layer"] = timed("layer", setup.solve)
    competitors["gradient"] = gradient_steps(setup.layer, setup.inputs, weights)
    times = interleaved(competitors, max(1, options.rounds // 2))
    best = min(("faer", "qdldl"), key=times.microseconds)
    yield {
        "problem": name,
        "n": len(program.q[0]),
        "m": len(program.b[0]),
        "Clarabel's best": best,
        "best / layer": times.ratio(best, "layer"),
        "best / forward": times.ratio(best, "forward"),
        "backward / forward": times.ratio("backward", "forward"),
        "built, bytes": building and building / entries,
        "called, bytes": calling and calling / entries,
    }


# The large problem is first, because of its memory.
SECTIONS = {
    "large": Section(
        "One large sparse instance, against the better of Clarabel's factorizations. Bytes: peak\n"
        "memory of building the layer, and of forward and backward, per entry of P and A.",
        ("problem", "n", "m", "Clarabel's best", *BEST, "backward / forward", *MEMORY),
        large,
    ),
    "overhead": Section(
        "What a call without gradient costs beside its solver.",
        ("problem", "B", "loop / layer", "solver µs", "layer µs", "beside µs"),
        overhead,
    ),
    "batch": Section(
        f"Over the number of instances B.\n{EXPLAINED}",
        ("problem", "B", *RATIOS, *TIMES),
        over_batches,
    ),
    "sizes": Section(
        f"Over the size of the problem; entries of P and A; B={SIZES_AT}.\n{EXPLAINED}",
        ("problem", "size", "entries", *RATIOS, *TIMES),
        over_sizes,
    ),
    "layers": Section(
        f"The layer against its peers.\n{PEERS_EXPLAINED}",
        ("problem", "B", *duel.COLUMNS),
        against_peers,
    ),
    "nnls": Section(
        f"Nonnegative least squares, whose 1000 × 500 matrix is a parameter.\n{PEERS_EXPLAINED}",
        ("problem", "B", *duel.COLUMNS),
        least_squares,
    ),
}
