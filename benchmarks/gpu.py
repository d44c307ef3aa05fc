"""``python -m benchmarks.gpu``: the dense engine on an accelerator, in one call.

It checks, then it times. Every problem is solved by the engine on the device and on the CPU, and
the answers are compared with each other and with those of LANES; then batches are solved by the
engine on the device and by LANES, in turn. Without an accelerator it says so and ends, unless
``--device cpu`` is asked for, which shows that it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.measure import Stopwatch, interleaved, limit_processors
from benchmarks.problems import PROBLEMS, SMALL
from benchmarks.report import Row, Table, setting
from benchmarks.setup import Setup, timed
from cvxlayers.dense import Engine
from cvxlayers.parallel import workers
from cvxlayers.program import OUTCOMES, ConeProgram
from cvxlayers.solvers import get_solver
from cvxlayers.status import Status

CHECKED, BATCHES = 64, (128, 1024, 8192)
# How far answers may be apart, relative to the largest entry: objectives are within 1e-8, and so
# x within its square root where they are curved.
AGREEMENT = 1e-4
COLUMNS = (
    "problem",
    "B",
    "solved",
    "iterations",
    "CPU − device",
    "LANES − device",
    "LANES / device",
    "device µs",
    "bytes each",
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
    print(f"{setting(workers())}\ndense engine on: {name}")
    table, wrong = Table("The dense engine.", COLUMNS), 0
    for problem in options.problems:
        sizes = SMALL[problem] if options.quick else None
        for batch in (CHECKED, *options.batch):
            row = measured(Setup(PROBLEMS[problem], batch, sizes), device, options.rounds)
            apart = [float(str(row[name])) for name in COLUMNS if "−" in name and name in row]
            wrong += any(not distance <= AGREEMENT for distance in apart)
            table.add({"problem": problem, "B": batch} | row)
    if wrong:
        print(f"\n{wrong} rows have answers that are more than {AGREEMENT} apart.")
    return int(wrong > 0)


def measured(setup: Setup, device: torch.device, rounds: int) -> Row:
    """One row: how far answers are apart, and how long they take."""
    program, structure = setup.program(), setup.program().structure
    engine, lanes = Engine(structure, _memory(device)), get_solver("LANES")(structure)
    on_device = _tensors(program, device)

    def solve() -> Any:
        answer = engine.solve(*on_device, program.batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return answer

    found, expected = solve(), lanes.solve(program, {})
    solved = (found.outcome == OUTCOMES.index("solved")).cpu()
    both = solved & torch.from_numpy(expected.status == int(Status.SOLVED))
    row: Row = {
        "solved": f"{100.0 * float(solved.double().mean()):.4g} %",
        "iterations": f"{float(found.iterations.double().mean()):.3g}",
        "LANES − device": _distance(found.x.cpu()[both], torch.from_numpy(expected.x)[both]),
        "bytes each": engine.bytes_per_instance,
    }
    if program.batch <= CHECKED:
        again = Engine(structure).solve(*_tensors(program, torch.device("cpu")), program.batch)
        row["CPU − device"] = _distance(found.x.cpu()[both], again.x[both])
    competitors: dict[str, Callable[[Stopwatch], None]] = {
        "device": timed("device", solve),
        "LANES": timed("LANES", lambda: lanes.solve(program, {})),
    }
    times = interleaved(competitors, rounds)
    row["LANES / device"] = times.ratio("LANES", "device")
    row["device µs"] = times.microseconds("device") / program.batch
    return row


def _tensors(program: ConeProgram, device: torch.device) -> list[torch.Tensor]:
    return [torch.tensor(v, device=device) for v in (program.P, program.q, program.A, program.b)]


def _memory(device: torch.device) -> float:
    """Half of what is free on an accelerator."""
    return 0.5 * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 2.0**28


def _distance(found: torch.Tensor, expected: torch.Tensor) -> str:
    size = float(expected.abs().max()) if len(expected) else 1.0
    apart = float((found - expected).abs().max()) if len(expected) else 0.0
    return f"{apart / max(1.0, size):.0e}"


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
