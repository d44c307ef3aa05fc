"""The engine itself, on tensors: what it finds, and that no instance disturbs another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cvxlayers.dense import Answer, Engine, iteration
from cvxlayers.dense.cones import Product
from cvxlayers.program import OUTCOMES, ConeDims, ConeProgram
from cvxlayers.solvers.clarabel import Clarabel
from lanes.programs import draw
from solvers.random_programs import (
    CONES,
    check_same_minimum,
    dense_data,
    interior_points,
    kkt_residual,
    random_program,
)

SOLVED = OUTCOMES.index("solved")
NUMERICAL_ERROR = OUTCOMES.index("numerical error")
TIGHT = (1e-10, 1e-10, 1e-10)
# What two products of the same matrices may differ by, as it grows on the way to a solution.
ROUNDING = 1e-7


def tensors(program: ConeProgram) -> list[torch.Tensor]:
    return [torch.from_numpy(v) for v in (program.P, program.q, program.A, program.b)]


def solve(program: ConeProgram, memory: float = 2.0**28, **options: Any) -> Answer:
    return Engine(program.structure, memory).solve(*tensors(program), program.batch, **options)


def check_equal(found: Answer, expected: Answer, rows: Any = slice(None)) -> None:
    assert torch.equal(found.outcome, expected.outcome[rows])
    for name in ("x", "z", "s"):
        one, other = getattr(found, name).numpy(), getattr(expected, name)[rows].numpy()
        np.testing.assert_allclose(one, other, rtol=ROUNDING, atol=ROUNDING)


@pytest.fixture
def threads() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(count)


# ---- answers ----


@pytest.mark.parametrize("rank", [0, 3, 6])
@pytest.mark.parametrize("cone", CONES)
def test_optimality_conditions(cone: str, rank: int) -> None:
    program = random_program(CONES[cone], 6, batch=9, rank=6 if cone == "zero" else rank, seed=1)
    answer = solve(program)
    assert (answer.outcome == SOLVED).all()
    for i in range(9):
        point = (v[i].numpy() for v in (answer.x, answer.z, answer.s))
        assert kkt_residual(program, i, *point) < 1e-6


@pytest.mark.parametrize("cone", CONES)
def test_agrees_with_clarabel_at_tight_tolerances(cone: str) -> None:
    program = random_program(CONES[cone], 6, batch=9, rank=6, seed=2)
    answer = solve(program, tolerances=TIGHT)
    options = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-10)
    expected = Clarabel(program.structure).solve(program, options)
    assert (answer.outcome == SOLVED).all()
    rows = np.flatnonzero(expected.solved)
    check_same_minimum(program, answer.x.numpy()[rows], expected.x[rows], rows)


def test_iterations_are_counted_for_each_instance() -> None:
    program = random_program(CONES["nonneg"], 6, batch=9, rank=6, seed=1)
    answer = solve(program)
    assert len(set(answer.iterations.tolist())) > 1
    for i in range(9):
        assert int(solve(program.take(slice(i, i + 1))).iterations) == int(answer.iterations[i])


def test_float64() -> None:
    answer = solve(random_program(CONES["mixed"], 6, batch=2, seed=1))
    assert {answer.x.dtype, answer.z.dtype, answer.s.dtype} == {torch.float64}


@pytest.mark.usefixtures("threads")
def test_large_matrices_in_two_threads() -> None:
    """PyTorch's batched LU on a CPU is wrong from n = 160 on; here nothing depends on it."""
    dims = ConeDims(zero=20, nonneg=200)
    program = random_program(dims, 160, batch=16, rank=160, seed=0)
    answer = solve(program, tolerances=(1e-9,) * 3)
    assert (answer.outcome == SOLVED).all()
    for i in range(16):
        point = (v[i].numpy() for v in (answer.x, answer.z, answer.s))
        assert kkt_residual(program, i, *point) < 1e-8


# ---- equalities ----


@pytest.mark.parametrize("linear", [True, False])
def test_repeated_equalities_are_no_contradiction(linear: bool) -> None:
    """Of 64 instances with the third equality the sum of the others: all solved, to 1e-8."""
    rng = np.random.default_rng(0)
    dims = ConeDims(zero=6, nonneg=20)
    program = random_program(dims, 15, batch=64, rank=0 if linear else 5, density=1.0)
    A = program.A.reshape(64, 15, 26).copy()
    A[:, :, 5] = A[:, :, :5] @ rng.standard_normal(5)
    b, q = program.b.copy(), program.q.copy()
    for i in range(64):
        x, (s, z) = rng.standard_normal(15), interior_points(dims, rng)
        b[i] = A[i].T @ x + s
        q[i] = -dense_data(program, i)[0] @ x - A[i] @ z
    program = replace(program, q=q, A=A.reshape(64, -1), b=b)
    answer = solve(program, tolerances=(1e-9,) * 3)
    assert (answer.outcome == SOLVED).all()
    for i in range(64):
        point = (v[i].numpy() for v in (answer.x, answer.z, answer.s))
        assert kkt_residual(program, i, *point) < 1e-8


@pytest.mark.parametrize("cone", ["nonneg", "exp", "pow", "mixed"])
@pytest.mark.parametrize("shared", ["", "A"])
def test_contradictory_equalities_are_certified(cone: str, shared: str) -> None:
    """At once, and not where the difference may be one of rounding; neighbours go on."""
    dims = replace(CONES[cone], zero=3)
    program = random_program(dims, 6, batch=8, rank=6, density=1.0, shared=shared)
    expected = solve(program)
    A = program.A.reshape(-1, 6, dims.m).copy()
    A[:, :, 2] = A[:, :, 0] - 2.0 * A[:, :, 1]
    b = program.b.copy()
    b[:, 2] = b[:, 0] - 2.0 * b[:, 1] + [1.0, 0.0, 1e-3, 1e-12, -100.0, 0.0, 1.0, 0.0]
    wrong = [0, 2, 4, 6]
    answer = solve(replace(program, A=A.reshape(len(A), -1), b=b))
    assert (expected.outcome == SOLVED).all()
    assert (answer.outcome[wrong] == OUTCOMES.index("primal infeasible")).all()
    assert (answer.iterations[wrong] == 0).all()
    assert (answer.outcome[[1, 3, 5, 7]] != OUTCOMES.index("primal infeasible")).all()
    for i in wrong:
        z = answer.z[i].numpy()
        of_A = A[i if len(A) > 1 else 0].T
        assert 0.0 <= np.abs(of_A.T @ z).max() < -1e-9 * (b[i] @ z)
        assert (z[3:] == 0.0).all()


def test_rows_and_columns_without_entries() -> None:
    dims = ConeDims(zero=3, nonneg=4)
    program = random_program(dims, 5, batch=3, rank=5, density=1.0, seed=4)
    A = program.A.reshape(3, 5, 7).copy()
    A[:, :, 1] = A[:, 2] = 0.0
    b = program.b.copy()
    b[:, 1] = 0.0
    answer = solve(replace(program, A=A.reshape(3, -1), b=b))
    assert (answer.outcome == SOLVED).all()


# ---- neighbours ----


@pytest.mark.parametrize("cone", CONES)
def test_an_instance_alone_and_in_a_batch(cone: str) -> None:
    program = random_program(CONES[cone], 6, batch=12, rank=6, seed=3)
    together = solve(program, tolerances=TIGHT)
    for i in (0, 5, 11):
        alone = solve(program.take(slice(i, i + 1)), tolerances=TIGHT)
        assert alone.outcome[0] == together.outcome[i] == SOLVED
        check_same_minimum(program, alone.x.numpy(), together.x[i : i + 1].numpy(), [i])
        for answer, place in ((alone, 0), (together, i)):
            point = (v[place].numpy() for v in (answer.x, answer.z, answer.s))
            assert kkt_residual(program, i, *point) < 1e-6


@pytest.mark.parametrize("cone", CONES)
@pytest.mark.parametrize("shared", ["P", "A", "PA"])
def test_shared_matrices(cone: str, shared: str) -> None:
    program = random_program(CONES[cone], 6, batch=8, rank=6, seed=5, shared=shared)
    assert len(program.P if shared == "P" else program.A) == 1
    full = replace(
        program, P=np.repeat(program.P, 8 // len(program.P), 0), A=program.A + np.zeros((8, 1))
    )
    one, other = solve(program, tolerances=TIGHT), solve(full, tolerances=TIGHT)
    assert (one.outcome == SOLVED).all() and (other.outcome == SOLVED).all()
    check_same_minimum(full, one.x.numpy(), other.x.numpy(), range(8))
    for i in range(8):
        assert kkt_residual(full, i, *(v[i].numpy() for v in (one.x, one.z, one.s))) < 1e-6


def test_shared_vectors() -> None:
    program = random_program(CONES["mixed"], 6, batch=4, rank=6)
    one = program.take(slice(0, 1))
    shared = ConeProgram(one.structure, one.P, one.q, one.A, one.b, 4)
    answer = solve(shared)
    assert answer.x.shape == (4, 6)
    assert torch.equal(answer.x, answer.x[:1].expand(4, 6))


def test_data_that_are_not_finite() -> None:
    program = random_program(CONES["mixed"], 6, batch=12, rank=3)
    expected = solve(program)
    spoilt = {"P": 1, "q": 3, "A": 5, "b": 7}
    for name, row in spoilt.items():
        getattr(program, name)[row, 0] = np.nan
        getattr(program, name)[row + 1, -1] = np.inf
    bad = sorted([*spoilt.values(), *(row + 1 for row in spoilt.values())])
    answer = solve(program)
    assert (answer.outcome[bad] == NUMERICAL_ERROR).all() and (answer.iterations[bad] == 0).all()
    assert torch.isnan(answer.x[bad]).all()
    good = np.setdiff1d(np.arange(12), bad)
    assert (answer.outcome[good] == expected.outcome[good]).all()
    np.testing.assert_allclose(answer.x[good], expected.x[good], rtol=ROUNDING, atol=ROUNDING)


def test_shared_data_that_are_not_finite() -> None:
    program = random_program(CONES["psd"], 6, batch=3, rank=6, shared="A")
    program.A[0, 0] = np.nan
    assert (solve(program).outcome == NUMERICAL_ERROR).all()


def mixed_outcomes() -> ConeProgram:
    """Instances that end otherwise, and at other times, on one structure."""
    parts = []
    for kind in ("infeasible", "unbounded"):
        for seed in range(200):
            program, _ = draw("lp", kind, seed, 6)
            if program.structure.dims == ConeDims(zero=1, nonneg=9):
                parts.append(program)
                break
    structure = parts[0].structure
    fill = random_program(structure.dims, structure.n, batch=12, seed=7, density=1.0)
    same = [fill, *(p for p in parts if p.structure.n == structure.n)]
    values = (np.concatenate([getattr(p, name) for p in same]) for name in "PqAb")
    return ConeProgram(structure, *values, sum(p.batch for p in same))


def test_pieces_and_compaction_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    program = mixed_outcomes()
    expected = solve(program)
    assert len(set(expected.outcome.tolist())) > 1
    check_equal(solve(program, memory=4 * Engine(program.structure).bytes_per_instance), expected)
    check_equal(solve(program, memory=0.0), expected)
    for part in (0.0, 1.0):
        monkeypatch.setitem(iteration.COMPACT, "eager", part)
        check_equal(solve(program), expected)


# ---- devices ----


@contextmanager
def elsewhere() -> Iterator[None]:
    """Tensors are made where nothing can be computed unless it is said where."""
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("cone", CONES)
def test_every_tensor_is_made_on_the_device_of_the_data(cone: str) -> None:
    program = random_program(CONES[cone], 6, batch=3, rank=3 if cone != "zero" else 6)
    values = tensors(program)
    with elsewhere():
        answer = Engine(program.structure).solve(*values, 3)
    assert {v.device.type for v in vars(answer).values()} == {"cpu"}
    assert (answer.outcome == SOLVED).all()


# ---- the cones ----


@pytest.mark.parametrize("cone", [name for name in CONES if name != "zero"])
def test_scaling(cone: str) -> None:
    """WᵀW z = s, and W⁻ᵀ s is the shift of the affine step; by W⁻ᵀ of the identity."""
    dims = CONES[cone]
    rng = np.random.default_rng(3)
    product = Product(dims, torch.device("cpu"))
    points = [interior_points(dims, rng) for _ in range(4)]
    s, z = (torch.from_numpy(np.array(v))[:, product.order] for v in zip(*points, strict=True))
    for dual in (False, True):
        mu = (s * z).sum(1) / max(1, product.degree)
        scaling = product.scale(s, z, mu, torch.full((4,), dual))
        eye = torch.eye(dims.m, dtype=torch.float64)
        M = scaling.inverse_transposed(eye[None])
        np.testing.assert_allclose(
            (M @ s[..., None])[:, dims.zero :, 0],
            scaling.affine_shift()[:, dims.zero :],
            rtol=1e-9,
            atol=1e-12,
        )
        np.testing.assert_allclose((M.mT @ z[..., None])[..., 0], scaling.inverse(z), atol=1e-12)
        if dual and not product.symmetric:
            continue
        H_inverse = M.mT @ M
        own = (H_inverse @ s[..., None])[:, dims.zero :, 0]
        np.testing.assert_allclose(own, z[:, dims.zero :], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("cone", ["exp", "pow"])
def test_barrier_near_the_boundary(cone: str) -> None:
    """∇f*(z)ᵀz = −3, ∇²f*(z) z = −∇f*(z) and ∇f*(−∇f(s)) = −s, where they cancel most."""
    dims = CONES[cone]
    ((_, part),) = Product(dims, torch.device("cpu")).parts
    rng = np.random.default_rng(5)
    points = np.array([interior_points(dims, rng) for _ in range(6)])
    s, z = (torch.from_numpy(points[:, k]).unflatten(1, (3, 3)) for k in (0, 1))
    for distance in (1.0, 1e-3, 1e-6, 1e-9):
        for v in (s, z):
            if cone == "pow":
                alpha = part.alpha if v is z else torch.ones_like(part.alpha)
                height = ((v[..., :2] / alpha) ** part.alpha).prod(-1)
                v[..., 2] = height * (1.0 - distance)
            elif v is s:
                v[..., 2] = v[..., 1] * (v[..., 0] / v[..., 1]).exp() * (1.0 + distance)
            else:
                v[..., 2] = -v[..., 0] * (v[..., 1] / v[..., 0] - 1.0).exp() * (1.0 + distance)
        barrier = part.barrier(z)
        gradient, factor = barrier.gradient(), barrier.factor()
        assert ((gradient * z).sum(-1) + 3.0).abs().max() < 1e-6 / distance**0.5 * 1e-3 + 1e-9
        identity = factor.matrix @ factor.inverse
        scale = factor.matrix.abs() @ factor.inverse.abs()
        error = (identity - torch.eye(3, dtype=torch.float64)).abs() / (1.0 + scale)
        assert error.max() < 1e-13
        along = (factor.inverse @ gradient[..., None])[..., 0]
        same = -(factor.matrix.mT @ z[..., None])[..., 0]
        assert ((along - same).abs().amax(-1) / same.abs().amax(-1)).max() < 1e-5
        shadow = part.shadow(s)
        assert part.is_inside(s, shadow).all()
        back = part.barrier(shadow).gradient() + s
        assert (back.abs().amax(-1) / s.abs().amax(-1)).max() < 1e-5
