"""The second derivative of the solution map on random programs over every cone.

The oracle is mixed central differences of solutions that satisfy the optimality conditions to
1e-12; the adjoint is then a matter of algebra.
"""

from __future__ import annotations

import numpy as np
import pytest

from cvxlayers.derivative import ImplicitDerivative, implicit
from cvxlayers.derivative.balance import row_scales
from cvxlayers.program import ConeProgram, ProgramTangent
from derivative.test_implicit import DIMS, everything, moved, random_tangent, solved
from derivative.test_implicit import route as route
from solvers.random_programs import random_program

names = pytest.mark.parametrize("name", [name for name in DIMS if name != "long soc"])


def pairing(gradient: ProgramTangent, tangent: ProgramTangent) -> float:
    return sum(float((g * getattr(tangent, key)).sum()) for key, g in vars(gradient).items())


def mixed_difference(
    program: ConeProgram, t: ProgramTangent, u: ProgramTangent, h: float
) -> tuple[np.ndarray, np.ndarray]:
    """∂²(x, z)/∂t∂u by central differences with the steps h and h/2, extrapolated."""

    def corners(h: float) -> tuple[np.ndarray, np.ndarray]:
        total = [0.0, 0.0]
        for a in (h, -h):
            for b in (h, -h):
                at = solved(moved(moved(program, t, a), u, b))
                total[0] = total[0] + np.sign(a * b) * at.x
                total[1] = total[1] + np.sign(a * b) * at.z
        return total[0] / (4 * h * h), total[1] / (4 * h * h)

    coarse, fine = corners(h), corners(h / 2)
    return tuple((4 * f - c) / 3 for f, c in zip(fine, coarse, strict=True))


@names
def test_jvp2_agrees_with_mixed_differences(name: str, route: str) -> None:
    program = random_program(DIMS[name], 6, batch=2, rank=6, seed=1)
    rng = np.random.default_rng(2)
    t, u = random_tangent(program, rng), random_tangent(program, rng)
    found = solved(program).jvp2(t, u, everything(program))
    for second, true in zip(found, mixed_difference(program, t, u, 1e-3), strict=True):
        assert np.abs(second - true).max(initial=0) <= 1e-5 * (1 + np.abs(true).max(initial=0))


@pytest.mark.parametrize("name", DIMS)
@pytest.mark.parametrize("shared", [frozenset(), frozenset("PqAb")], ids=["batched", "shared"])
def test_hvp_is_the_adjoint_of_jvp2(name: str, shared: frozenset[str], route: str) -> None:
    """⟨hvp(g, u), t⟩ = ⟨g, jvp2(t, u)⟩, and hvp is symmetric in t and u."""
    program = random_program(DIMS[name], 6, batch=3, rank=6, seed=3)
    derivative, rng = solved(program), np.random.default_rng(4)
    t, u = random_tangent(program, rng), random_tangent(program, rng)
    if shared:
        t, u = (ProgramTangent(*(v[:1] for v in vars(s).values())) for s in (t, u))
    wanted = everything(program, shared)
    gx, gz = rng.standard_normal(derivative.x.shape), rng.standard_normal(derivative.z.shape)
    for upstream in (gz, None):
        right = (gx * (second := derivative.jvp2(t, u, wanted))[0]).sum()
        right += 0.0 if upstream is None else (upstream * second[1]).sum()
        assert pairing(derivative.hvp(gx, upstream, u, wanted), t) == pytest.approx(right, rel=1e-8)
        assert pairing(derivative.hvp(gx, upstream, t, wanted), u) == pytest.approx(right, rel=1e-8)


@pytest.mark.parametrize("name", ["soc", "psd", "exp", "pow", "all"])
def test_scaled_rows_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows balanced by powers of two: the derivatives are those in the rows as they came."""
    program = random_program(DIMS[name], 6, batch=2, rank=6, seed=5)
    derivative, rng = solved(program), np.random.default_rng(6)
    geometry = derivative.geometry
    assert row_scales(geometry, derivative.z, derivative.s) is None
    tau = np.ones((2, program.structure.m))
    for k, group in enumerate(geometry.cone.groups):
        tau[:, group.rows] = 2.0 ** (k % 3 - 1)
    monkeypatch.setattr(implicit, "row_scales", lambda *_: tau)
    scaled = ImplicitDerivative(geometry, program, derivative.x, derivative.z, derivative.s)
    t, u = random_tangent(program, rng), random_tangent(program, rng)
    wanted = everything(program)
    gx, gz = rng.standard_normal(derivative.x.shape), rng.standard_normal(derivative.z.shape)
    for found, true in zip(
        [*scaled.jvp2(t, u, wanted), *vars(scaled.hvp(gx, gz, u, wanted)).values()],
        [*derivative.jvp2(t, u, wanted), *vars(derivative.hvp(gx, gz, u, wanted)).values()],
        strict=True,
    ):
        np.testing.assert_allclose(found, true, rtol=1e-7, atol=1e-9 * np.abs(true).max(initial=1))
