"""The examples run, and learn."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_quickstart(picture: Path, *arguments: str) -> dict[str, float]:
    """Run the example; return the errors on the test images that it prints, by their names."""
    result = subprocess.run(
        [sys.executable, "examples/quickstart.py", "--output", str(picture), *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert picture.stat().st_size > 0
    errors = re.findall(r"^  (\w[\w ]*?) +(\d\.\d+)$", result.stdout, re.MULTILINE)
    assert len(errors) == 3, result.stdout
    return {name: float(value) for name, value in errors}


def test_quickstart_runs(tmp_path: Path) -> None:
    errors = run_quickstart(tmp_path / "quickstart.png", "--steps", "10")
    assert errors["learned D"] < errors["total variation"] < errors["noisy"]


@pytest.mark.slow
def test_quickstart_learns(tmp_path: Path) -> None:
    errors = run_quickstart(tmp_path / "quickstart.png")
    assert errors["learned D"] < 0.8 * errors["total variation"]
