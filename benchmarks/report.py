"""How results are shown: as text while they come in, as Markdown and as a picture."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

__all__ = ["COLUMNS", "Row", "Table", "number", "save", "setting"]

Row = dict[str, str | int | float | None]

COLUMNS = (
    "problem",
    "B",
    "forward / loop",
    "with gradient / loop",
    "backward / forward",
    "cvxpylayers / ours",
)
PACKAGES = ("cvxlayers", "cvxpy", "clarabel", "numpy", "scipy", "torch", "cvxpylayers", "diffcp")


class Table:
    """Rows that are printed as they are added."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    @property
    def has_peer(self) -> bool:
        """Whether cvxpylayers was measured, or nothing was."""
        return not self.rows or any(row.get(COLUMNS[-1]) is not None for row in self.rows)

    def add(self, row: Row) -> None:
        """Keep and print a row."""
        if not self.rows:
            print(_line(COLUMNS), flush=True)
        self.rows.append(row)
        print(_line(self.cells(row)), flush=True)

    @staticmethod
    def cells(row: Row) -> list[str]:
        """The row's values as text."""
        return [str(row["problem"]), str(row["B"]), *(number(row.get(c)) for c in COLUMNS[2:])]


def number(value: str | int | float | None) -> str:
    """A ratio to three digits, or what stands in its place; "-" where there is nothing."""
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def setting(threads: int) -> str:
    """Versions and machine."""
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return (
        f"{versions}, Python {platform.python_version()}\n"
        f"{platform.machine()}, {platform.system()}, {threads} threads, one BLAS thread each"
    )


def save(path: Path, table: Table, notes: Sequence[str], threads: int) -> None:
    """Write the results as PATH.md and, where matplotlib is installed, PATH.png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [list(COLUMNS), ["---", *["---:"] * (len(COLUMNS) - 1)], *map(table.cells, table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    text = "\n".join([*setting(threads).splitlines(), "", *lines, "", "```", *notes, "```", ""])
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("matplotlib is not installed: no picture is written.")
        return
    figure = Figure(figsize=(9, 1 + 0.3 * len(table.rows)), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['problem']}, B={row['B']}" for row in table.rows]
    for offset, column in ((-0.2, COLUMNS[2]), (0.2, COLUMNS[3])):
        places = [k + offset for k in range(len(names))]
        axes.barh(places, [float(row[column] or 0) for row in table.rows], 0.4, label=column)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("time relative to a bare Clarabel loop")
    axes.legend()
    figure.savefig(path.with_suffix(".png"), dpi=150)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _line(cells: Sequence[str]) -> str:
    first, *others = cells
    widths = [max(5, len(column)) for column in COLUMNS[1:]]
    cells = [f"{first:<16}", *(c.rjust(w) for c, w in zip(others, widths, strict=True))]
    return "  ".join(cells)
