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
duel = importlib.import_module("benchmarks.duel")
run = importlib.import_module("benchmarks.run")
setup_of = importlib.import_module("benchmarks.setup").Setup

ALL = problems.PROBLEMS | problems.NNLS | problems.OVERHEAD | problems.LARGE
B = 3


def recovered(setup: Any, **settings: float) -> list[np.ndarray]:
    """The variables' values from the bare loop."""
    canonical = setup.layer.operations.solution_map.canonical
    x = peers.BareLoop(setup.program(), threads=2, **settings).solve()
    return canonical.recover(x, np.zeros((B, canonical.structure.m)))


@pytest.mark.parametrize("name", ALL)
def test_layer_without_gradient_agrees_with_bare_loop(name: str) -> None:
    setup = setup_of(ALL[name], B, problems.SMALL[name])
    # Two solvers: at 1e-8 for the objective value their points differ by its root.
    tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-13)
    inputs = [value.detach() for value in setup.inputs]
    found = setup.layer(*inputs, solver_args={"eps": 1e-12})
    for value, expected in zip(found, recovered(setup, **tight), strict=True):
        np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_layer_with_gradient_agrees_with_tight_bare_loop(name: str) -> None:
    """Polished, the layer's answer is better than the solver's at its default tolerance."""
    setup = setup_of(ALL[name], B, problems.SMALL[name])
    tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-13)
    values = [value.detach() for value in setup.layer(*setup.inputs)]
    for value, expected in zip(values, recovered(setup, **tight), strict=True):
        np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_layer_reaches_the_optimal_value(name: str) -> None:
    setup = setup_of(ALL[name], 1, problems.SMALL[name])
    problem, parameters, variables, _ = setup.benchmark
    found = setup.solve()
    for parameter, value in zip(parameters, setup.inputs, strict=True):
        parameter.value = value.detach().numpy().reshape(parameter.shape)
    optimal = problem.solve(solver="CLARABEL")
    for variable, value in zip(variables, found, strict=True):
        variable.value = value.numpy()[0]
    assert problem.objective.value == pytest.approx(optimal, rel=1e-6, abs=1e-6)


def test_a_part_of_the_program_is_of_the_first_instances() -> None:
    setup = setup_of(problems.mpc, B, problems.SMALL["mpc"])
    whole, part = setup.program(), setup.program(2)
    assert (whole.batch, part.batch) == (B, 2)
    np.testing.assert_array_equal(part.b, whole.b[:2])


@pytest.mark.parametrize("name", problems.SIZES)
def test_work_grows_with_the_size(name: str) -> None:
    assert problems.SIZES[name][0].keys() <= problems.SMALL[name].keys()
    entries = []
    for sizes in problems.SIZES[name][:2]:
        structure = setup_of(ALL[name], 1, sizes).layer.operations.solution_map.canonical.structure
        entries.append(structure.P.nnz + structure.A.nnz)
    assert entries[0] < entries[1]


def test_harness_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duel, "cvxpylayers_of", lambda benchmark, peer: None)
    run.main(["--quick", "--problems", "simplex", "entropy", "--save", str(tmp_path / "results")])
    printed = capsys.readouterr().out
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    for name, rows in {"simplex": 5, "nnls": 1, "tiny_qp": 1, "sparse_qp": 1}.items():
        assert printed.count(f"| {name} ") == text.count(f"| {name} ") == rows
    for column in ("loop / solver", "backward µs", "Moreau: gradient", "called, bytes"):
        assert f" {column} |" in text
    assert "compiled module" in text
    for picture in ("results.png", "results_growth.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_peers_are_compared_by_their_answers_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own layer in their place; one that is wrong, and one that raises, get no time."""
    setup = setup_of(problems.sdp, B, problems.SMALL["sdp"])
    layer = setup.layer
    monkeypatch.setattr(duel, "cvxpylayers_of", lambda benchmark, peer: layer)
    row = duel.duel(setup, 1)
    assert row["Moreau"] > 0 and row["cvxpylayers"] > 0
    assert row["Moreau: x"] == row["Moreau: gradient"] == "0e+00"

    wrong: dict[str, Any] = {
        "Moreau": lambda *values: [1.001 * x for x in layer(*values)],
        "cvxpylayers": None,
    }
    monkeypatch.setattr(duel, "cvxpylayers_of", lambda benchmark, peer: wrong[peer])
    row = duel.duel(setup, 1)
    assert row["Moreau"] == "fails" and "cvxpylayers" not in row
    assert row["note"] == "Moreau, sdp: the answers are 1e-03 apart"

    def raising(*values: Any) -> None:
        raise Exception("no")

    wrong["Moreau"] = raising
    row = duel.duel(setup, 1)
    assert row["Moreau"] == "fails" and row["note"] == "Moreau, sdp: Exception: no"


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


def test_layers_on_a_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU in place of one; and an exit code that says so where answers disagree."""
    gpu = importlib.import_module("benchmarks.gpu")
    command = [
        "--device",
        "cpu",
        "--quick",
        "--problems",
        "simplex",
        "sdp",
        "--batch",
        "5",
        "--rounds",
        "1",
    ]
    assert gpu.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith(("| simplex", "| sdp"))]) == 4
    monkeypatch.setattr(gpu, "AGREEMENT", dict.fromkeys(gpu.AGREEMENT, -1.0))
    assert gpu.main(command) == 1
    assert "4 rows have answers" in capsys.readouterr().out


def test_without_a_device_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    gpu = importlib.import_module("benchmarks.gpu")
    if gpu.torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert gpu.main([]) == 0
    assert "no CUDA device" in capsys.readouterr().out
