"""How results are shown: as Markdown, which is printed while they come in and saved."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import cvxlayers
from cvxlayers.lanes import load

__all__ = ["Row", "Table", "number", "save", "setting"]

Row = dict[str, str | int | float | None]

PACKAGES = ("cvxpy", "clarabel", "numpy", "scipy", "torch", "cvxpylayers", "diffcp", "moreau")
# Columns of names, at the left, and how wide they are at least.
NAMES = {"problem": 16, "size": 12}


class Table:
    """Rows that are printed as they are added.

    Parameters
    ----------
    title
        What is in it.
    columns
        Names of the columns; a row is a dictionary by them, of which some may be missing. What a
        row has under "note" stands below the table.
    """

    def __init__(self, title: str, columns: Sequence[str]):
        self.title, self.columns, self.rows = title, columns, list[Row]()

    def add(self, row: Row) -> None:
        """Keep and print a row."""
        if not self.rows:
            print("", self.title, "", *self._head(), sep="\n", flush=True)
        self.rows.append(row)
        print(self._line(self._cells(row)), flush=True)

    def markdown(self) -> str:
        """The whole table."""
        lines = [*self._head(), *(self._line(self._cells(row)) for row in self.rows)]
        return "\n".join([self.title, "", *lines, "", *(f"- {note}\n" for note in self.notes())])

    def notes(self) -> list[str]:
        """Every note once."""
        return list(dict.fromkeys(str(row["note"]) for row in self.rows if row.get("note")))

    def _cells(self, row: Row) -> list[str]:
        return [number(row.get(column)) for column in self.columns]

    def _head(self) -> list[str]:
        rule = [(1 + self._width(c)) * "-" + ("-" if c in NAMES else ":") for c in self.columns]
        return [self._line(self.columns), f"|{'|'.join(rule)}|"]

    def _line(self, cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(self._width(c)) if c in NAMES else cell.rjust(self._width(c))
            for cell, c in zip(cells, self.columns, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    @staticmethod
    def _width(column: str) -> int:
        return max(NAMES.get(column, 7), len(column))


def number(value: str | int | float | None) -> str:
    """Three digits, or what stands in its place; "-" where there is nothing."""
    if value is None or isinstance(value, str):
        return value or "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def setting(threads: int) -> str:
    """Versions and machine."""
    module = load()
    variant = "none" if module is None else module.__name__.rpartition(".")[2]
    names = [f"{name} {_version(name)}" for name in PACKAGES]
    return (
        f"cvxlayers {cvxlayers.__version__} (compiled module: {variant}), {', '.join(names)}, "
        f"Python {platform.python_version()}\n"
        f"{_processor()}, {platform.system()}, {threads} threads, one BLAS thread each"
    )


def save(path: Path, setting: str, tables: Mapping[str, Table]) -> None:
    """Write the tables as PATH.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([setting, "", *(table.markdown() for table in tables.values())])
    path.with_suffix(".md").write_text(text, encoding="utf-8")


def _processor() -> str:
    """The model, where Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name")).split(":")[1].strip()
    except (OSError, StopIteration):
        model = platform.processor()
    return f"{model} ({platform.machine()})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"
