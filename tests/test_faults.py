"""The table of faults names tests that are there. What happens is for those tests to judge."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "faults.rst"


def rows() -> list[tuple[str, list[str]]]:
    """What was done, and the tests that show what happens, for every row of the tables."""
    text = PAGE.read_text(encoding="utf-8")
    found = []
    for row in re.split(r"^    \* - ", text, flags=re.MULTILINE)[1:]:
        cells = re.split(r"^      - ", row.split("\n\n")[0], flags=re.MULTILINE)
        done, _, tests = (" ".join(cell.split()) for cell in cells)
        if done != "What was done":
            found.append((done, re.findall(r"`([^`]+)`", tests)))
    return found


@cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_the_page_was_read() -> None:
    """Not an empty list, because the page looks otherwise."""
    assert len(rows()) > 50
    assert PAGE.read_text(encoding="utf-8").count("::test_") == sum(len(t) for _, t in rows())


@pytest.mark.parametrize(("done", "tests"), rows(), ids=[done for done, _ in rows()])
def test_every_fault_has_a_test(done: str, tests: list[str]) -> None:
    assert tests, done
    for test in tests:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file(), test
        assert name in functions(path), test
