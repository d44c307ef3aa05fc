"""The checks that are not about numbers: style, types, documentation, and texts that must agree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cvxlayers

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> None:
    """Run a Python module in the root of the repository; fail with its output if it fails."""
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{' '.join(arguments)}\n{result.stdout}"


def test_lint() -> None:
    run("ruff", "check", "--no-cache", ".")


def test_format() -> None:
    run("ruff", "format", "--no-cache", "--check", ".")


def test_types(tmp_path: Path) -> None:
    run("mypy", "--cache-dir", str(tmp_path))


def test_documentation_builds_without_warnings(tmp_path: Path) -> None:
    run("sphinx", "-W", "-q", "-d", str(tmp_path / "tree"), "docs", str(tmp_path / "html"))


def test_version_has_a_changelog_entry() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{cvxlayers.__version__}]" in changelog


def python_blocks(page: str) -> list[str]:
    """Return the Python code that a page of documentation shows, block by block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".md"):
        return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?: {4}.*\n|\n)+)", text, re.MULTILINE)
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in blocks]


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.rst", "docs/migrating.rst"])
def test_code_of_the_documentation_runs(page: str) -> None:
    """The blocks of a page run in order, in one namespace, as a reader would type them."""
    blocks = python_blocks(page)
    assert blocks
    namespace: dict[str, object] = {"__name__": "__documentation__"}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)
