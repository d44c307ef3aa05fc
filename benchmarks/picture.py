"""The tables as pictures: how many times faster, and how times grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.report import Row

__all__ = ["draw"]

# Of the batch sizes that were measured, those that get a bar, and the colours of the bars.
BARS = (1, 128, 1024)
BLUES, ORANGES = ("#aec7e8", "#1f77b4", "#0b3d66"), ("#ffbb78", "#ff7f0e")


def draw(path: Path, tables: Mapping[str, Sequence[Row]]) -> None:
    """Write PATH.png and PATH_growth.png, as far as there is something to be shown."""
    comparisons(tables).savefig(path.with_suffix(".png"), dpi=150)
    growth(tables).savefig(path.with_name(f"{path.name}_growth.png"), dpi=150)


def comparisons(tables: Mapping[str, Sequence[Row]]) -> Figure:
    """Bars for every problem: the solver against the loop, and the layer against its peers."""
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = tables.get("batch", [])
    _bars(left, rows, [(f"B={B}", "loop / solver", B) for B in _shown(rows, 3)], BLUES)
    left.set(title="Solve", xlabel="time of a Clarabel loop over ours")
    rows = [*tables.get("layers", []), *tables.get("nnls", [])]
    peers = {"cvxpylayers": "cvxpylayers", "Moreau": "cvxpylayers with Moreau"}
    bars = [(f"{peers[p]}, B={B}", p, B) for p in peers for B in _shown(rows, 2)]
    _bars(right, rows, bars, (*BLUES[: len(bars) // 2], *ORANGES))
    right.set(title="Layer, forward and backward", xlabel="time of theirs over ours")
    return figure


def growth(tables: Mapping[str, Sequence[Row]]) -> Figure:
    """Lines over B and over the size, one for every problem."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    batch, sizes = tables.get("batch", []), tables.get("sizes", [])
    panels = (
        (axes[0, 0], batch, "B", "loop / solver", "solve: time of a Clarabel loop over ours"),
        (axes[0, 1], batch, "B", "forward µs", "forward with gradient, µs per instance"),
        (axes[1, 0], batch, "B", "backward µs", "backward, µs per instance"),
        (axes[1, 1], sizes, "entries", "forward µs", "forward with gradient, µs per instance"),
    )
    names = list(dict.fromkeys(row["problem"] for row in [*batch, *sizes]))
    lines: dict[str, Any] = {}
    for place, rows, over, column, label in panels:
        for k, name in enumerate(names):
            points = sorted((r[over], r[column]) for r in rows if r["problem"] == name)
            if points:
                x, y = zip(*points, strict=True)
                (lines[name],) = place.plot(x, y, marker="o", markersize=3, color=f"C{k}")
        place.set(xscale="log", yscale="log", title=label)
        place.set_xlabel("instances B" if over == "B" else "entries of P and A, at B=128")
        place.grid(alpha=0.3)
    axes[0, 0].axhline(1.0, color="black", linewidth=0.8)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=5)
    return figure


def _shown(rows: Sequence[Row], most: int) -> list[Any]:
    sizes = sorted({row["B"] for row in rows})
    return ([B for B in sizes if B in BARS] or sizes)[:most]


def _bars(
    axes: Axes,
    rows: Sequence[Row],
    series: Sequence[tuple[str, str, Any]],
    colors: Sequence[str],
) -> None:
    """A group of bars for every problem; a series is its label, its column and its B."""
    names = list(dict.fromkeys(row["problem"] for row in rows))
    height = 0.8 / max(1, len(series))
    for k, (label, column, B) in enumerate(series):
        found = {row["problem"]: row.get(column) for row in rows if row["B"] == B}
        # A log axis has no zero: where there is no number there is no bar.
        values = [v if isinstance(v := found.get(name), float) else float("nan") for name in names]
        places = [place + (k + 0.5) * height - 0.4 for place in range(len(names))]
        widths = [value - 1.0 for value in values]
        axes.barh(places, widths, height, left=1.0, label=label, color=colors[k])
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    if series:
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
