"""On a CUDA device: what the engine and layers give on the CPU, without copies to it.

Everything here runs on a pretended device in tests/dense/test_far.py, too.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch

from conformance.problems import CASES, Case
from cvxlayers.dense import Answer, Engine
from cvxlayers.dense.repetition import VARIABLE
from cvxlayers.program import OUTCOMES, ConeProgram
from cvxlayers.torch import CvxpyLayer
from solvers.random_programs import CONES, check_same_minimum, kkt_residual, random_program

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"
)


def solved(program: ConeProgram, device: str) -> Answer:
    values = (program.P, program.q, program.A, program.b)
    tensors = [torch.tensor(v, device=device) for v in values]
    return Engine(program.structure).solve(*tensors, program.batch, (1e-10,) * 3)


@pytest.mark.parametrize("way", ["eager", "recorded"])
@pytest.mark.parametrize("cone", CONES)
@pytest.mark.parametrize("shared", ["", "P", "PA"])
def test_the_device_does_not_matter(
    cone: str, shared: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, way)
    program = random_program(CONES[cone], 6, batch=16, rank=6, shared=shared)
    program.q[3 % len(program.q), 0] = np.nan
    found, expected = solved(program, "cuda"), solved(program, "cpu")
    assert found.x.device.type == found.outcome.device.type == "cuda"
    # At the limit of what rounding allows one of them may get no farther than almost there.
    good = expected.outcome <= OUTCOMES.index("almost solved")
    np.testing.assert_array_equal(found.outcome.cpu() <= OUTCOMES.index("almost solved"), good)
    np.testing.assert_array_equal(found.outcome.cpu()[~good], expected.outcome[~good])
    rows = np.flatnonzero(good)
    x, z, s = (v.cpu().numpy() for v in (found.x, found.z, found.s))
    check_same_minimum(program, x[rows], expected.x.numpy()[rows], rows)
    for i in rows:
        assert kkt_residual(program, i, x[i], z[i], s[i]) < 1e-6


def run(case: Case, device: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    problem, parameters, variables = case.build()
    layer = CvxpyLayer(problem, parameters, variables, gp=case.gp).to(device)
    values = [torch.tensor(v, device=device, requires_grad=True) for v in case.values()]
    outputs = layer(*values)
    sum((y**2).sum() for y in outputs).backward()
    assert all(y.device.type == device for y in outputs)
    assert all(v.grad is None or v.grad.device.type == device for v in values)
    gradients = [torch.zeros_like(v) if v.grad is None else v.grad for v in values]
    return [y.detach().cpu() for y in outputs], [g.cpu() for g in gradients]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers(case: Case) -> None:
    """Values within 1e-8 and gradients within 1e-6 of those of the CPU."""
    pairs = zip(run(case, "cuda"), run(case, "cpu"), (1e-8, 1e-6), strict=True)
    for found, expected, bound in pairs:
        for one, other in zip(found, expected, strict=True):
            size = 1.0 + float(other.abs().max()) if other.numel() else 1.0
            torch.testing.assert_close(one, other, rtol=0, atol=bound * size)


def projection() -> tuple[CvxpyLayer, torch.Tensor]:
    x, b = cp.Variable(4), cp.Parameter(4)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0]), [b], [x])
    return layer, torch.randn(64, 4, dtype=torch.float64, device="cuda")


def test_streams() -> None:
    """A call on another stream waits for nothing but that, and is right."""
    layer, b = projection()
    layer(b)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        (y,) = layer(2.0 * b)
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(y, 2.0 * b.clamp_min(0.0), rtol=0, atol=1e-6)


def test_autocast() -> None:
    layer, b = projection()
    with torch.autocast("cuda", dtype=torch.float16):
        (y,) = layer(b.requires_grad_())
    y.sum().backward()
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, b.clamp_min(0.0), rtol=0, atol=1e-9)


def test_devices_are_not_mixed() -> None:
    layer, b = projection()
    with pytest.raises(ValueError, match="cpu"):
        x, c, d = cp.Variable(), cp.Parameter(), cp.Parameter()
        problem = cp.Problem(cp.Minimize(cp.square(x - c) + d * x))
        CvxpyLayer(problem, [c, d], [x])(b[0, 0], b[0, 0].cpu())
    del layer
