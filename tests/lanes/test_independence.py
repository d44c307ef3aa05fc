"""What is found for an instance is bitwise the same whatever is beside it, in however large a
batch, in whichever place, by however many threads, and after whatever else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from cvxlayers.lanes import Engine, available, engine, load
from cvxlayers.program import OUTCOMES, ConeDims, ConeProgram
from cvxlayers.torch import CvxpyLayer
from solvers.random_programs import random_program

module = load()
pytestmark = pytest.mark.skipif(module is None, reason="not compiled")

Array = np.ndarray

CONES = {
    "free": ConeDims(zero=3),
    "nonneg": ConeDims(nonneg=11),
    "soc": ConeDims(zero=1, soc=(1, 2, 3, 4)),
    "long soc": ConeDims(nonneg=2, soc=(5, 9, 17)),
    "exp": ConeDims(exp=3),
    "pow": ConeDims(pow=(0.2, 0.5, 0.85)),
    "psd": ConeDims(psd=(1, 2, 3, 4)),
    "large psd": ConeDims(nonneg=1, psd=(5, 6)),
    "all": ConeDims(zero=2, nonneg=3, soc=(3, 6), psd=(2, 3), exp=2, pow=(0.3,)),
}
NUMBER_OF_VARIABLES = 7
TOLERANCES = (1e-8, 1e-8, 1e-8)
BATCH = 16


def programs(cone: str, batch: int = BATCH, seed: int = 0) -> ConeProgram:
    """Every instance another one, quadratic."""
    return random_program(CONES[cone], NUMBER_OF_VARIABLES, batch=batch, rank=4, seed=seed)


class Found:
    """All that the engine finds for a batch, by name."""

    def __init__(self, program: ConeProgram, core: Engine | None = None):
        core = Engine(module, program.structure) if core is None else core
        batch = program.batch
        answer = core.solve(program, TOLERANCES, 100)
        x, z, s = answer.x.copy(), answer.z.copy(), answer.s.copy()
        good = np.isfinite(x).all(axis=1) & np.isfinite(z).all(axis=1) & np.isfinite(s).all(axis=1)
        x[~good], z[~good], s[~good] = 0.0, 0.0, 0.0
        residual = core.polish(program, x, z, s)
        rng = np.random.default_rng(5)
        r1 = np.tile(rng.standard_normal(program.structure.n), (batch, 1))
        r2 = np.tile(rng.standard_normal(program.structure.m), (batch, 1))
        u, v, missed = core.newton(program, x, z, s, r1, r2)
        w, y, without = core.newton(program, x, z, s, r1, None)
        self.parts: dict[str, Array] = {
            "x": answer.x,
            "z": answer.z,
            "s": answer.s,
            "outcome": answer.outcome,
            "iterations": answer.iterations,
            "polished x": x,
            "polished z": z,
            "polished s": s,
            "residual": residual,
            "u": u,
            "v": v,
            "missed": missed,
            "u without r2": w,
            "v without r2": y,
            "missed without r2": without,
        }

    def same(self, other: Found, mine: Any, its: Any) -> None:
        """Row by row; positions of NaN, too, and the sign of zeros."""
        for name, part in self.parts.items():
            a, b = np.atleast_1d(part[mine]), np.atleast_1d(other.parts[name][its])
            np.testing.assert_array_equal(a, b, err_msg=name)
            if a.dtype == np.float64:
                a, b = np.signbit(a) & ~np.isnan(a), np.signbit(b) & ~np.isnan(b)
                np.testing.assert_array_equal(a, b, err_msg=name)


def rows(program: ConeProgram, chosen: list[int]) -> ConeProgram:
    return program.take(np.array(chosen, dtype=np.intp))


@pytest.fixture(params=CONES)
def cone(request: pytest.FixtureRequest) -> str:
    return request.param


def test_it_works(cone: str) -> None:
    found = Found(programs(cone)).parts
    assert (found["outcome"] == OUTCOMES.index("solved")).mean() >= 0.8
    assert np.isfinite(found["u"]).all()


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9])
def test_batches_of_every_size(cone: str, size: int) -> None:
    program = programs(cone)
    whole = Found(program)
    found = Found(rows(program, list(range(size))))
    found.same(whole, slice(None), slice(size))


def test_a_long_batch(cone: str) -> None:
    """Lanes take the next instance when one has ended, so that these meet in many ways."""
    program = programs(cone)
    order = np.random.default_rng(1).permutation(np.tile(np.arange(BATCH), 4)).tolist()
    found = Found(rows(program, order))
    found.same(Found(program), slice(None), order)


def test_every_place(cone: str) -> None:
    program = programs(cone)
    alone = Found(rows(program, [0]))
    for place in (0, 1, 5, 7, 8, 15):
        order = [*range(1, place + 1), 0, *range(place + 1, BATCH)]
        Found(rows(program, order)).same(alone, place, 0)


def spoil(program: ConeProgram) -> None:
    """Neighbours that are not finite, infeasible, unbounded, huge and tiny; the first is kept."""
    program.q[1] = np.nan
    program.b[2] = np.inf
    program.A[3] *= 1e30
    program.q[4] *= 1e200
    program.b[5] = -1e3
    program.q[6] *= -1e6
    program.A[7], program.b[7] = 0.0, -1.0
    program.P[8], program.A[8] = 0.0, 0.0
    program.P[9] *= -1.0
    for values in (program.P, program.q, program.A, program.b):
        values[10] *= 1e-160
        values[11] = 1e308
        values[12] = 0.0
        values[13] = np.nan
    program.P[14] *= 1e-12


def test_any_neighbours(cone: str) -> None:
    program = programs(cone)
    expected = Found(program)
    spoil(program)
    found = Found(program)
    found.same(expected, [0, 15], [0, 15])
    # Of those, too, what is found does not depend on the others.
    for i in (2, 5, 7, 9, 11, 14):
        Found(rows(program, [i])).same(found, 0, i)


def test_calls_do_not_leave_anything(cone: str) -> None:
    program, other = programs(cone), programs(cone, seed=9)
    core = Engine(module, program.structure)
    first = Found(program, core)
    other = ConeProgram(program.structure, other.P, other.q, program.A * 3.0, other.b, BATCH)
    spoil(other)
    for batch in (other, rows(other, [2]), rows(program, [3]), rows(other, [0, 13])):
        Found(batch, core)
    again = Found(program, core)
    again.same(first, slice(None), slice(None))


def test_engines_do_not_meet() -> None:
    pairs = [(programs(cone), Engine(module, programs(cone).structure)) for cone in CONES]
    first = [Found(program, core) for program, core in pairs]
    for (program, core), before in zip(reversed(pairs), reversed(first), strict=True):
        Found(program, core).same(before, slice(None), slice(None))


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads(cone: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    program = rows(programs(cone), list(range(BATCH)) * 4)
    monkeypatch.setattr(engine, "workers", lambda: 1)
    single = Found(program)
    monkeypatch.setattr(engine, "workers", lambda: threads)
    Found(program).same(single, slice(None), slice(None))


@pytest.mark.parametrize("shared", ["P", "A", "PA", "q", "b", "PAqb"])
def test_a_shared_array_is_its_expansion(cone: str, shared: str) -> None:
    program = programs(cone)
    values = {"P": program.P, "q": program.q, "A": program.A, "b": program.b}
    if "q" in shared or "b" in shared:
        # What is the same for all has to be so for a whole instance, if it is to be feasible.
        values = {k: v if k in "qb" and k not in shared else v[:1] for k, v in values.items()}
        values["q"] = program.q[:1] * (
            1.0 if "q" in shared else np.linspace(1, 1.1, BATCH)[:, None]
        )
    for name in shared:
        values[name] = values[name][:1]
    few = ConeProgram(program.structure, *(values[k] for k in "PqAb"), BATCH)
    full = [np.repeat(v, BATCH, axis=0) if len(v) == 1 else v for v in map(values.get, "PqAb")]
    many = ConeProgram(program.structure, *full, BATCH)
    Found(few).same(Found(many), slice(None), slice(None))


@pytest.mark.parametrize("broken", [[0], [0, 15], [9, 2, 11, 4, 5, 6, 7, 8, 1], range(BATCH)])
@pytest.mark.parametrize(("name", "value"), [("q", np.nan), ("A", np.inf), ("b", 1e20)])
def test_beside_instances_that_are_none(
    cone: str, broken: Sequence[int], name: str, value: float
) -> None:
    """Those with data that are not finite, or no bounds, are not begun with."""
    program = programs(cone)
    core = Engine(module, program.structure)
    whole = core.solve(program, TOLERANCES, 100)
    values = {k: getattr(program, k) for k in "PqAb"}
    values[name] = (
        np.repeat(values[name], BATCH, axis=0) if len(values[name]) == 1 else values[name].copy()
    )
    values[name][np.array(broken), -1] = value
    found = core.solve(ConeProgram(program.structure, **values, batch=BATCH), TOLERANCES, 100)
    rest = np.setdiff1d(np.arange(BATCH), broken)
    for point in ("x", "z", "s"):
        np.testing.assert_array_equal(getattr(found, point)[rest], getattr(whole, point)[rest])
        assert np.isnan(getattr(found, point)[broken]).all()
    assert (found.outcome[broken] == OUTCOMES.index("numerical error")).all()
    assert (found.iterations[broken] == 0).all()


def test_variants_are_all_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each instruction set has registers of its own width."""
    program = programs("all")
    order = np.random.default_rng(2).permutation(BATCH).tolist()
    for name in available():
        monkeypatch.setenv("CVXLAYERS_LANES", name)
        one = load()
        found = Found(program, Engine(one, program.structure))
        other = Found(rows(program, order), Engine(one, program.structure))
        other.same(found, slice(None), order)
        for i in (0, 7):
            Found(rows(program, [i]), Engine(one, program.structure)).same(found, 0, i)


# ---- a whole layer ----


def soc_layer() -> tuple[CvxpyLayer, Callable[[int, int], list[torch.Tensor]]]:
    x, y = cp.Variable(4), cp.Variable()
    A, b, c = cp.Parameter((6, 4)), cp.Parameter(6), cp.Parameter(4)
    constraints = [cp.norm(A @ x - b) <= y, x >= -2, cp.norm(x[:2]) <= 3]
    problem = cp.Problem(cp.Minimize(y + cp.sum_squares(x) + c @ x), constraints)

    def draw(batch: int, seed: int) -> list[torch.Tensor]:
        rng = np.random.default_rng(seed)
        shapes = ((6, 4), (6,), (4,))
        return [torch.as_tensor(rng.standard_normal((batch, *shape))) for shape in shapes]

    return CvxpyLayer(problem, [A, b, c], [x, y]), draw


def entropy_layer() -> tuple[CvxpyLayer, Callable[[int, int], list[torch.Tensor]]]:
    x = cp.Variable(5)
    c, G = cp.Parameter(5), cp.Parameter((2, 5))
    constraints = [cp.sum(x) == 1, G @ x <= 1]
    problem = cp.Problem(cp.Minimize(c @ x - cp.sum(cp.entr(x))), constraints)

    def draw(batch: int, seed: int) -> list[torch.Tensor]:
        rng = np.random.default_rng(seed)
        return [torch.as_tensor(rng.standard_normal((batch, *k))) for k in ((5,), (2, 5))]

    return CvxpyLayer(problem, [c, G], [x]), draw


def answers(layer: CvxpyLayer, values: list[torch.Tensor]) -> list[Array]:
    leaves = [v.clone().requires_grad_() for v in values]
    outputs = layer(*leaves)
    loss = sum(
        (out.reshape(len(out), -1) * torch.arange(1.0, 1 + out[0].numel())).sum() for out in outputs
    )
    gradients = torch.autograd.grad(loss, leaves)
    return [t.detach().numpy() for t in (*outputs, *gradients)]


@pytest.mark.parametrize("make", [soc_layer, entropy_layer])
def test_layers(make: Callable[[], Any]) -> None:
    layer, draw = make()
    values = draw(24, 3)
    whole = answers(layer, values)
    for chosen in ([0], [5, 1], list(range(7)), list(range(8)), [*range(9)], [*range(23, -1, -1)]):
        part = answers(layer, [v[chosen] for v in values])
        for a, b in zip(part, whole, strict=True):
            np.testing.assert_array_equal(a, b[chosen])
    fresh, _ = make()
    for a, b in zip(answers(fresh, values), whole, strict=True):
        np.testing.assert_array_equal(a, b)


CHILD = """
import sys
import numpy as np
import torch
torch.set_num_threads(1)
from lanes.test_independence import answers, soc_layer
layer, draw = soc_layer()
np.savez(sys.argv[1], *answers(layer, draw(24, 3)))
"""


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_environment_says_how_many_threads(threads: str, tmp_path: Path) -> None:
    layer, draw = soc_layer()
    expected = answers(layer, draw(24, 3))
    tests = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([tests, *sys.path])
    environment = {**os.environ, "CVXLAYERS_NUM_THREADS": threads, "PYTHONPATH": path}
    subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "found.npz")], env=environment, check=True
    )
    with np.load(tmp_path / "found.npz") as found:
        for a, b in zip(found.values(), expected, strict=True):
            np.testing.assert_array_equal(a, b)
