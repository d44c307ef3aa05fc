"""Iterations that are recorded and repeated, with a stand-in for the recorder, which is CUDA's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cvxlayers.dense import Answer, Engine
from cvxlayers.dense.repetition import VARIABLE, Repetition, is_wanted
from cvxlayers.program import OUTCOMES, ConeProgram
from solvers.random_programs import CONES, random_program


class Rehearsed(Repetition):
    """Does the step anew each time, on the tensors that a graph would read and write."""

    made: list[Rehearsed]

    def __init__(
        self,
        state: Sequence[torch.Tensor],
        step: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]],
    ):
        self.state = [tensor.clone() for tensor in state]
        self.step, self.count = step, 0
        # While it is recorded, nothing is computed, but Python runs.
        step([tensor.clone() for tensor in state])
        Rehearsed.made.append(self)

    def __call__(self) -> None:
        self.count += 1
        for old, new in zip(self.state, self.step(self.state), strict=True):
            old.copy_(new)


def solved(program: ConeProgram, iterations: int = 200) -> Answer:
    tensors = [torch.tensor(v) for v in (program.P, program.q, program.A, program.b)]
    return Engine(program.structure).solve(*tensors, program.batch, iterations=iterations)


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvxlayers.dense.iteration.Repetition", Rehearsed)
    monkeypatch.setattr("cvxlayers.dense.iteration.is_wanted", lambda device: True)
    Rehearsed.made = []


@pytest.mark.parametrize("cone", CONES)
@pytest.mark.parametrize("iterations", [1, 2, 5, 200])
def test_repeating_changes_nothing(
    cone: str, iterations: int, request: pytest.FixtureRequest
) -> None:
    """Also where instances leave the batch, and where the limit comes first."""
    program = random_program(CONES[cone], 6, batch=8, rank=6)
    program.q[2] *= 1e6
    program.q[5, 0] = np.nan
    expected = solved(program, iterations)
    request.getfixturevalue("rehearsed")
    found = solved(program, iterations)
    for name, value in vars(expected).items():
        torch.testing.assert_close(vars(found)[name], value, rtol=0, atol=0, equal_nan=True)
    repeated = sum(repetition.count for repetition in Rehearsed.made)
    eigenvalues = any(kind == "psd" for kind in program.structure.dims.kinds)
    if eigenvalues or iterations <= 2:
        assert not Rehearsed.made
    elif iterations == 200:
        assert (expected.outcome == OUTCOMES.index("solved")).sum() == 7
        assert repeated >= int(expected.iterations.max()) - 2


def test_what_cannot_be_recorded(rehearsed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and the solve goes on without."""
    program = random_program(CONES["soc"], 6, batch=8, rank=6)
    monkeypatch.setattr("cvxlayers.dense.iteration.is_wanted", lambda device: False)
    expected = solved(program)
    monkeypatch.setattr("cvxlayers.dense.iteration.is_wanted", lambda device: True)

    def refuses(state: Any, step: Callable[[Any], Any]) -> None:
        step([tensor.clone() for tensor in state])
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("cvxlayers.dense.iteration.Repetition", refuses)
    with pytest.warns(UserWarning, match="not permitted when stream is capturing"):
        found = solved(program)
    for name, value in vars(expected).items():
        torch.testing.assert_close(vars(found)[name], value, rtol=0, atol=0)


def test_it_has_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not is_wanted(torch.device("cuda"))
    monkeypatch.setenv(VARIABLE, "1")
    assert is_wanted(torch.device("cuda"))
    assert not is_wanted(torch.device("cpu"))
    monkeypatch.setenv(VARIABLE, "0")
    assert not is_wanted(torch.device("cuda"))
