"""The examples run, and learn."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# The options by which examples are made small, where they have them.
SMALL = {"steps": "10", "epochs": "1", "days": "20"}


def execute(*arguments: str) -> str:
    """Run Python in the root of the repository; return what it prints."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def run_quickstart(picture: Path, *arguments: str) -> dict[str, float]:
    """Run the example; return the errors on the test images that it prints, by their names."""
    output = execute("examples/quickstart.py", "--output", str(picture), *arguments)
    assert picture.stat().st_size > 0
    errors = re.findall(r"^  (\w[\w ]*?) +(\d\.\d+)$", output, re.MULTILINE)
    assert len(errors) == 3, output
    return {name: float(value) for name, value in errors}


def is_installed(package: str) -> bool:
    """Whether there is a package; a folder of tests that has its name is none."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return False
    places = spec.submodule_search_locations
    return places is None or any(Path(p).parent != ROOT / "tests" for p in places)


def test_quickstart_runs(tmp_path: Path) -> None:
    errors = run_quickstart(tmp_path / "quickstart.png", "--steps", "10")
    assert errors["learned D"] < errors["total variation"] < errors["noisy"]


@pytest.mark.slow
def test_quickstart_learns(tmp_path: Path) -> None:
    errors = run_quickstart(tmp_path / "quickstart.png")
    assert errors["learned D"] < 0.8 * errors["total variation"]


@pytest.mark.parametrize(
    "path", [p for p in EXAMPLES if p.name != "quickstart.py"], ids=lambda path: path.name
)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for package in re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE):
        if not is_installed(package):
            pytest.skip(f"{package} is not installed")
    options = {**SMALL, "output": str(tmp_path / "output")}
    arguments = [
        argument
        for name, value in options.items()
        if f'"--{name}"' in text
        for argument in (f"--{name}", value)
    ]
    assert execute("-W", "error", str(path), *arguments).strip()


def test_numpy_tastes_are_found() -> None:
    """To within some standard errors."""
    output = execute("examples/numpy_tastes.py")
    rows = re.findall(r"^  good \d +([\d.]+) +([\d.]+) +([\d.]+)$", output, re.MULTILINE)
    assert len(rows) == 4, output
    for true, found, error in (map(float, row) for row in rows):
        assert abs(found - true) < 4 * error < 0.1
