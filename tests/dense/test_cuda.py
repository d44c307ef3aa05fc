"""The engine on a CUDA device gives what it gives on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cvxlayers.dense import Answer, Engine
from cvxlayers.program import OUTCOMES, ConeProgram
from solvers.random_programs import CONES, random_program

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"
)


def solved(program: ConeProgram, device: str) -> Answer:
    values = (program.P, program.q, program.A, program.b)
    tensors = [torch.tensor(v, device=device) for v in values]
    return Engine(program.structure).solve(*tensors, program.batch)


@pytest.mark.parametrize("cone", CONES)
@pytest.mark.parametrize("shared", ["", "P", "PA"])
def test_the_device_does_not_matter(cone: str, shared: str) -> None:
    program = random_program(CONES[cone], 6, batch=16, rank=6, shared=shared)
    program.q[3 % len(program.q), 0] = np.nan
    found, expected = solved(program, "cuda"), solved(program, "cpu")
    assert found.x.device.type == found.outcome.device.type == "cuda"
    np.testing.assert_array_equal(found.outcome.cpu(), expected.outcome)
    good = expected.outcome == OUTCOMES.index("solved")
    for name in ("x", "z", "s"):
        one, other = getattr(found, name).cpu()[good], getattr(expected, name)[good]
        size = other.abs().max() if good.any() else 1.0
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-7 * float(size))
