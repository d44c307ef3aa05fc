"""The example runs, and its estimates are as good as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_demand() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "examples/jax_demand.py"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^\w+ +(\S+) +(\S+) ± (\S+)$", result.stdout, re.MULTILINE)
    assert len(rows) == 5, result.stdout
    for true, estimate, error in ([float(entry) for entry in row] for row in rows):
        assert error < 0.01 and abs(estimate - true) < 4 * error
