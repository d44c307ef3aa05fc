"""Print the table with the oracle's times and errors: ``python -m conformance`` in tests/."""

from .oracle import gradient
from .problems import CASES
from .tight import TightSolver


def main() -> None:
    """Print one line for each case, as Markdown."""
    print("| case | cones | entries of parameters | seconds | error | kink | regularity |")
    print("|---|---|---:|---:|---:|---:|---:|")
    total = 0.0
    for case in CASES:
        solver, truth = TightSolver(case), gradient(case)
        solver.solve(case.values())
        entries = "+".join(str(value.size) for value in case.values())
        print(
            f"| {case.name} | {' '.join(sorted(case.cones))} | {entries} | {truth.seconds:.2f} "
            f"| {truth.relative_error:.0e} | {max(truth.kinks):.0e} | {solver.regularity():.0e} |"
        )
        total += truth.seconds
    print(f"\n{len(CASES)} cases, {total:.1f} s")


if __name__ == "__main__":
    main()
