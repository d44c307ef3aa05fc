"""The command: which tables are made, and where they go."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.measure import limit_processors
from benchmarks.problems import PROBLEMS
from benchmarks.tables import SECTIONS
from cvxlayers.parallel import workers

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Run what the command line asks for."""
    options = _parse(arguments)
    if options.threads is not None:
        limit_processors(options.threads)
    torch.set_num_threads(workers())
    if options.quick:
        options.rounds = 2
    setting = report.setting(workers())
    print(setting, flush=True)
    tables: dict[str, report.Table] = {}
    for name in [name for name in SECTIONS if name in options.sections]:
        section = SECTIONS[name]
        tables[name] = report.Table(section.title, section.columns)
        for row in section.rows(options):
            tables[name].add(row)
        for note in tables[name].notes():
            print(f"\n{note}", flush=True)
        if options.save is not None:  # what there is so far
            report.save(options.save, setting, tables)
    if options.save is not None:
        _draw(options.save, tables)


def _draw(path: Path, tables: Mapping[str, report.Table]) -> None:
    try:
        from benchmarks.picture import draw
    except ImportError:
        print("matplotlib is not installed: no picture is drawn.")
        return
    draw(path, {name: table.rows for name, table in tables.items()})


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Ratios of times, medians over interleaved rounds in one process.",
    )
    add = parser.add_argument

    def choice(option: str, names: Sequence[str]) -> None:
        help = "default: all of " + ", ".join(names)
        add(option, nargs="+", choices=names, default=names, metavar="NAME", help=help)

    choice("--sections", list(SECTIONS))
    choice("--problems", list(PROBLEMS))
    add("--batch", nargs="+", type=int, metavar="B", help="numbers of instances in all tables")
    add("--rounds", type=int, default=7, help="medians are over so many rounds (default: 7)")
    add("--threads", type=int, help="processors to run on (default: all)")
    add("--quick", action="store_true", help="small sizes, two rounds: only to see that it runs")
    add("--save", type=Path, metavar="PATH", help="write PATH.md, PATH.png, PATH_growth.png")
    return parser.parse_args(arguments)
