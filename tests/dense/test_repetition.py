"""Iterations that are repeated: with a state of its own, compiled, recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cvxlayers.dense import Answer, Engine, iteration
from cvxlayers.dense.repetition import VARIABLE, Repetition, way
from cvxlayers.program import OUTCOMES, ConeProgram
from solvers.random_programs import CONES, random_program


def solved(program: ConeProgram, iterations: int = 200) -> Answer:
    tensors = [torch.tensor(v) for v in (program.P, program.q, program.A, program.b)]
    return Engine(program.structure).solve(*tensors, program.batch, iterations=iterations)


def agree(found: Answer, expected: Answer, bound: float = 0.0) -> None:
    for name, value in vars(expected).items():
        other = vars(found)[name]
        torch.testing.assert_close(other, value, rtol=bound, atol=bound, equal_nan=True)


@pytest.mark.parametrize("cone", CONES)
@pytest.mark.parametrize("iterations", [1, 2, 5, 200])
def test_repeating_changes_nothing(
    cone: str, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where instances leave the batch, and where the limit comes first. A CPU records nothing:
    the step is done anew, on the tensors that a graph would read and write."""
    program = random_program(CONES[cone], 6, batch=8, rank=6)
    program.q[2] *= 1e6
    program.q[5, 0] = np.nan
    expected, steps = solved(program, iterations), []
    repeat = Repetition.__call__
    monkeypatch.setattr(Repetition, "__call__", lambda self: (steps.append(1), repeat(self)))
    monkeypatch.setenv(VARIABLE, "recorded")
    agree(solved(program, iterations), expected)
    if iterations <= 2:
        assert not steps
    elif iterations == 200:
        assert (expected.outcome == OUTCOMES.index("solved")).sum() == 7
        assert len(steps) >= int(expected.iterations.max()) - 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*deprecated")  # of PyTorch's, in its compiler
@pytest.mark.parametrize("cone", ["nonneg", "soc", "mixed"])
def test_compiled(cone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By PyTorch's compiler, with its rounding; a second batch compiles nothing."""
    if shutil.which("g++") is None:
        pytest.skip("PyTorch's compiler needs a C++ compiler, and there is no g++")
    program = random_program(CONES[cone], 6, batch=8, rank=6)
    expected = solved(program)
    monkeypatch.setenv(VARIABLE, "compiled")
    monkeypatch.setattr(iteration, "warn", refuse_to_warn)
    torch._dynamo.reset()
    # Objectives agree to 1e-8, and so points to its root where they are curved.
    agree(solved(program), expected, 1e-6)
    with torch.compiler.set_stance("fail_on_recompile"):
        agree(solved(program), expected, 1e-6)


def refuse_to_warn(message: str, *_: object) -> None:
    raise AssertionError(message)


@pytest.mark.parametrize("name", ["recorded", "compiled"])
def test_what_cannot_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and the solve goes on without."""
    program = random_program(CONES["soc"], 6, batch=8, rank=6)
    expected = solved(program)

    def refuses(state: Any, step: Callable[[Any], Any], *_: bool) -> None:
        step([tensor.clone() for tensor in state])
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(iteration, "Repetition", refuses)
    monkeypatch.setitem(iteration.COMPACT, name, 0.0)
    monkeypatch.setenv(VARIABLE, name)
    with pytest.warns(UserWarning, match="not permitted when stream is capturing"):
        agree(solved(program), expected, 1e-6)


def test_it_has_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert way() == "eager"
    for name in ("eager", "recorded", "compiled"):
        monkeypatch.setenv(VARIABLE, name)
        assert way() == name
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(ValueError, match="expected 'eager', 'recorded' or 'compiled', got '1'"):
        way()
