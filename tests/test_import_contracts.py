"""The layers of the code, and what ``import cvxlayers`` loads."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FRAMEWORKS = ("torch", "jax", "mlx")
OPTIONAL_SOLVERS = ("diffcp", "scs", "moreau", "juliacall", "cupy")


def python(code: str) -> str:
    """Run code in a new interpreter; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def modules_loaded_by(statement: str) -> set[str]:
    return set(python(f"{statement}; import sys; print(*sys.modules, sep='\\n')").split())


def test_import_contracts() -> None:
    """The contracts stand in pyproject.toml, under [tool.importlinter]."""
    report = python(
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    assert "3 kept, 0 broken" in report


def test_import_loads_no_framework_and_no_optional_solver() -> None:
    # CVXPY itself loads every solver that it finds installed: what it loads is not counted.
    loaded = modules_loaded_by("import cvxlayers")
    assert "cvxlayers" in loaded
    assert not loaded.intersection(FRAMEWORKS)
    assert not (loaded - modules_loaded_by("import cvxpy")).intersection(OPTIONAL_SOLVERS)


def test_import_needs_no_framework_and_no_optional_solver() -> None:
    # None in sys.modules makes an import fail as if the package were not installed.
    absent = dict.fromkeys(FRAMEWORKS + OPTIONAL_SOLVERS)
    python(f"import sys; sys.modules.update({absent}); import cvxlayers")
