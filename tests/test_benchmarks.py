"""The benchmarks run, and what they compare has the same answers. No times are judged here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

problems = importlib.import_module("benchmarks.problems")
peers = importlib.import_module("benchmarks.peers")
run = importlib.import_module("benchmarks.run")

ALL = problems.PROBLEMS | problems.OVERHEAD | problems.LARGE
B = 3


def recovered(setup: Any, **settings: float) -> list[np.ndarray]:
    """The variables' values from the bare loop."""
    canonical = setup.layer.operations.solution_map.canonical
    x = peers.BareLoop(setup.program(), threads=2, **settings).solve()
    return canonical.recover(x, np.zeros((B, canonical.structure.m)))


@pytest.mark.parametrize("name", ALL)
def test_layer_without_gradient_agrees_with_bare_loop(name: str) -> None:
    setup = run.Setup(ALL[name], B, small=True)
    for value, expected in zip(setup.solve(), recovered(setup), strict=True):
        np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_layer_with_gradient_agrees_with_tight_bare_loop(name: str) -> None:
    """Polished, the layer's answer is better than the solver's at its default tolerance."""
    setup = run.Setup(ALL[name], B, small=True)
    tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-13)
    values = [value.detach() for value in setup.layer(*setup.inputs)]
    for value, expected in zip(values, recovered(setup, **tight), strict=True):
        np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_layer_reaches_the_optimal_value(name: str) -> None:
    setup = run.Setup(ALL[name], 1, small=True)
    problem, parameters, variables, _ = setup.benchmark
    found = setup.solve()
    for parameter, value in zip(parameters, setup.inputs, strict=True):
        parameter.value = value.detach().numpy().reshape(parameter.shape)
    optimal = problem.solve(solver="CLARABEL")
    for variable, value in zip(variables, found, strict=True):
        variable.value = value.numpy()[0]
    assert problem.objective.value == pytest.approx(optimal, rel=1e-6, abs=1e-6)


def test_harness_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "cvxpylayers_of", lambda benchmark: None)
    names = ["simplex", "entropy", "tiny_qp", "sparse_qp"]
    run.main(
        ["--quick", "--batch", "1", "2", "--problems", *names, "--save", str(tmp_path / "table")]
    )
    printed = capsys.readouterr().out
    assert "Install it with" in printed
    assert "per call beside the solver" in printed
    assert "peak memory" in printed
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table.count("| simplex |") == table.count("| entropy |") == 2


def test_failing_rows_are_compared_with_the_same_batch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM"):
        monkeypatch.setenv(f"{library}_NUM_THREADS", "1")  # set by the import, too
    failure = importlib.import_module("benchmarks.failure")
    for make in failure.PROBLEMS.values():
        benchmark = make()
        problem, parameters, variables, _ = benchmark
        layer = failure.CvxpyLayer(problem, parameters, variables, on_failure="nan")
        batches = failure.batches(benchmark, 10)
        (expected,) = layer(*batches.pop("none"))
        assert expected.isfinite().all()
        for name, inputs in batches.items():
            (found,) = layer(*inputs)
            good = found.isfinite().all(dim=1)
            assert int((~good).sum()) == (0 if name == "again" else 1)
            assert good.equal(found.isfinite().any(dim=1)) and found[good].equal(expected[good])
    failure.main(["--batch", "3", "--rounds", "1", "--problems", "lp"])
    assert capsys.readouterr().out.count("lp ") == 3
