from dataclasses import replace

import diffcp
import numpy as np
import pytest
import scipy.sparse as sp

from cvxlayers.errors import SolverError, UnsupportedProblemError
from cvxlayers.program import ConeDims, ConeProgram, ProgramTangent, Wanted
from cvxlayers.solvers.clarabel import Clarabel
from cvxlayers.solvers.diffcp import Diffcp
from cvxlayers.solvers.scs import SCS
from cvxlayers.status import Status

from .random_programs import CONES, kkt_residual, random_program
from .toys import program_of, scalar_batch

TIGHT = Diffcp.common_options(1e-10, 10_000)
TABLE = {name: replace(dims, pow=()) for name, dims in CONES.items() if name != "pow"}
IMPLICIT = ("lsqr", "lsmr", "dense")
LPGD = ("lpgd", "lpgd_left", "lpgd_right")
NAMES = "PqAb"


def options_of(mode: str, **more: object) -> dict:
    return TIGHT | {"mode": mode, "derivative_kwargs": {"tau": 1e-5}} | more


def everything(program: ConeProgram, shared: str = "") -> Wanted:
    return Wanted(*(np.arange(getattr(program, k).shape[1]) for k in NAMES), frozenset(shared))


def random_tangent(program: ConeProgram, rng: np.random.Generator) -> ProgramTangent:
    shapes = ((program.batch, getattr(program, k).shape[1]) for k in NAMES)
    return ProgramTangent(*(rng.standard_normal(shape) for shape in shapes))


def pairing(a: ProgramTangent, b: ProgramTangent) -> float:
    return sum(float((getattr(a, k) * getattr(b, k)).sum()) for k in NAMES)


@pytest.mark.parametrize("method", ["SCS", "Clarabel"])
@pytest.mark.parametrize("rank", [0, 3, 6])
@pytest.mark.parametrize("cone", TABLE)
def test_optimality_conditions(cone: str, rank: int, method: str) -> None:
    dims = replace(TABLE[cone], psd=(3, 1, 2)) if method == "Clarabel" else TABLE[cone]
    dims = dims if TABLE[cone].psd else TABLE[cone]
    program = random_program(dims, 6, batch=3, rank=6 if cone == "zero" else rank, seed=1)
    options = Diffcp.common_options(1e-8, None) | {"solve_method": method}
    solution = Diffcp(program.structure).solve(program, options)
    assert (solution.status == Status.SOLVED).all()
    for i in range(3):
        residual = kkt_residual(program, i, solution.x[i], solution.z[i], solution.s[i])
        assert residual < 1e-6


@pytest.mark.parametrize("cone", TABLE)
def test_agrees_with_clarabel(cone: str) -> None:
    program = random_program(TABLE[cone], 6, batch=3, rank=6, seed=2)
    one = Diffcp(program.structure).solve(program, TIGHT)
    other = Clarabel(program.structure).solve(program, {})
    for name in ("x", "z", "s"):
        assert np.allclose(getattr(one, name), getattr(other, name), atol=2e-3)


@pytest.mark.parametrize("mode", [*IMPLICIT, *LPGD])
@pytest.mark.parametrize("cone", TABLE)
def test_vjp_and_jvp_against_finite_differences(cone: str, mode: str) -> None:
    rng = np.random.default_rng(3)
    program = random_program(TABLE[cone], 6, batch=2, rank=6, seed=2)
    solver, options = Diffcp(program.structure), options_of(mode)
    solution = solver.solve(program, options)
    gx, gz = rng.standard_normal(solution.x.shape), rng.standard_normal(solution.z.shape)
    linearization = solver.linearize(program, solution, options)
    wanted = everything(program)
    gradient = linearization.vjp(gx, gz, wanted)
    oracle, h = SCS(program.structure), 1e-4
    tight = {"eps_abs": 1e-12, "eps_rel": 1e-12, "max_iters": 3000}
    zero = {k: np.zeros((2, getattr(program, k).shape[1])) for k in NAMES}
    for k in NAMES:
        t = rng.standard_normal(zero[k].shape)
        ahead, behind = (
            oracle.solve(replace(program, **{k: getattr(program, k) + step * t}), tight)
            for step in (h, -h)
        )
        dx, dz = (ahead.x - behind.x) / (2 * h), (ahead.z - behind.z) / (2 * h)
        scale = np.abs(gx * dx).sum() + np.abs(gz * dz).sum()
        expected = (gx * dx).sum() + (gz * dz).sum()
        # LSQR and LPGD are approximations themselves.
        tolerance = {"dense": 1e-5, "lsmr": 1e-5, "lsqr": 3e-4}.get(mode, 2e-3)
        assert abs((getattr(gradient, k) * t).sum() - expected) < tolerance * scale
        forward = linearization.jvp(ProgramTangent(**(zero | {k: t})), wanted)
        assert np.abs(forward[0] - dx).max() < tolerance * (1 + np.abs(dx).max())
        assert np.abs(forward[1] - dz).max() < tolerance * (1 + np.abs(dz).max())


@pytest.mark.parametrize("rank", [0, 2, 6])
@pytest.mark.parametrize("mode", IMPLICIT)
def test_vjp_is_the_transpose_of_jvp(mode: str, rank: int) -> None:
    rng = np.random.default_rng(4)
    program = random_program(TABLE["mixed"], 6, batch=2, rank=rank, seed=5)
    solver = Diffcp(program.structure)
    solution = solver.solve(program, options_of(mode))
    linearization = solver.linearize(program, solution, options_of(mode))
    gx, gz = rng.standard_normal(solution.x.shape), rng.standard_normal(solution.z.shape)
    t, wanted = random_tangent(program, rng), everything(program)
    dx, dz = linearization.jvp(t, wanted)
    forward = (gx * dx).sum() + (gz * dz).sum()
    backward = pairing(linearization.vjp(gx, gz, wanted), t)
    assert np.isclose(forward, backward, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode", IMPLICIT)
def test_is_what_diffcp_itself_returns(mode: str) -> None:
    """At diffcp's own solution, its own derivative; here without a permutation of rows."""
    rng = np.random.default_rng(6)
    dims = ConeDims(zero=1, nonneg=5, soc=(3, 3), exp=1)
    program = random_program(dims, 4, seed=7)
    A = sp.csc_matrix(program.structure.A.matrix(program.A[0]))
    cones = {"z": 1, "l": 5, "q": [3, 3], "ep": 1}
    settings = {"eps": 1e-9, "linear_solver": "qdldl"}
    x, y, _, D, DT = diffcp.solve_and_derivative(
        A.copy(), program.b[0], program.q[0], cones, mode=mode, **settings
    )
    options = Diffcp.common_options(1e-9, None) | {"mode": mode}
    solver = Diffcp(program.structure)
    solution = solver.solve(program, options)
    assert (solution.x[0] == x).all()
    assert (solution.z[0] == y).all()
    linearization, wanted = solver.linearize(program, solution, options), everything(program)
    gx, gz = rng.standard_normal(4), rng.standard_normal(dims.m)
    dA, db, dc = DT(gx, gz, np.zeros(dims.m))
    gradient = linearization.vjp(gx[None], gz[None], wanted)
    assert np.allclose(gradient.A[0], dA.data, atol=1e-10)
    assert np.allclose(gradient.b[0], db, atol=1e-10)
    assert np.allclose(gradient.q[0], dc, atol=1e-10)
    t = random_tangent(program, rng)
    dx, dy, _ = D(sp.csc_matrix(program.structure.A.matrix(t.A[0])), t.b[0], t.q[0])
    ours = linearization.jvp(t, wanted)
    assert np.allclose(ours[0][0], dx, atol=1e-10)
    assert np.allclose(ours[1][0], dy, atol=1e-10)


@pytest.mark.parametrize("mode", ["dense", "lpgd"])
def test_wanted_entries_and_shared_sums(mode: str) -> None:
    rng = np.random.default_rng(8)
    program = random_program(TABLE["mixed"], 6, batch=3, rank=6, shared="PA", seed=9)
    solver = Diffcp(program.structure)
    solution = solver.solve(program, options_of(mode))
    linearization = solver.linearize(program, solution, options_of(mode))
    gx = rng.standard_normal(solution.x.shape)
    full = linearization.vjp(gx, None, everything(program))
    some = Wanted(
        np.array([3, 1]), np.array([2]), np.array([0, 7, 4]), np.array([5]), frozenset("PA")
    )
    part = linearization.vjp(gx, None, some)
    assert np.allclose(part.P, full.P[:, some.P].sum(axis=0, keepdims=True))
    assert np.allclose(part.A, full.A[:, some.A].sum(axis=0, keepdims=True))
    assert np.allclose(part.q, full.q[:, some.q])
    assert np.allclose(part.b, full.b[:, some.b])
    # A shared direction is the same direction in every instance.
    shared = [rng.standard_normal((1, len(i))) for i in (some.P, some.q, some.A, some.b)]
    one = linearization.jvp(ProgramTangent(*shared), some)
    each = linearization.jvp(ProgramTangent(*(np.repeat(a, 3, axis=0) for a in shared)), some)
    assert np.array_equal(one[0], each[0])
    assert np.array_equal(one[1], each[1])


@pytest.mark.parametrize("method", ["SCS", "Clarabel"])
@pytest.mark.parametrize("mode", ["lsqr", "dense", "lpgd"])
def test_failing_rows_have_a_status_and_contribute_zero(mode: str, method: str) -> None:
    program, expected = scalar_batch()
    options = {"mode": mode, "solve_method": method, "derivative_kwargs": {"tau": 1e-4}}
    solver = Diffcp(program.structure)
    solution = solver.solve(program, options)
    assert solution.status.tolist() == expected
    failed = ~solution.solved
    assert np.isnan(solution.x[failed]).all()
    gradient = solver.linearize(program, solution, options).vjp(
        np.ones((4, 1)), None, everything(program)
    )
    for k in NAMES:
        assert (getattr(gradient, k)[failed] == 0).all()
    # x = b₁ / a in the rows that are solved.
    assert np.allclose(gradient.b[[0, 3], 0], [1, 0.5], atol=1e-4)
    assert np.allclose(gradient.A[[0, 3], 0], [-1, -0.75], atol=1e-4)


def test_limits() -> None:
    program = random_program(TABLE["mixed"], 6, batch=2)
    few = Diffcp(program.structure).solve(program, Diffcp.common_options(None, 1))
    assert (few.status == Status.MAX_ITERATIONS).all()
    program = random_program(TABLE["nonneg"], 6, batch=2)
    options = Diffcp.common_options(None, 2) | {"solve_method": "Clarabel"}
    few = Diffcp(program.structure).solve(program, options)
    assert (few.status == Status.MAX_ITERATIONS).all()


def test_bad_data_fail_alone() -> None:
    program = random_program(TABLE["nonneg"], 6, batch=3, rank=6)
    program.P[0] *= -1
    program.A[2, 0] = np.nan
    solution = Diffcp(program.structure).solve(program, {})
    expected = [Status.NUMERICAL_ERROR, Status.SOLVED, Status.NUMERICAL_ERROR]
    assert solution.status.tolist() == expected


@pytest.mark.parametrize("mode", ["lsqr", "lpgd"])
def test_without_constraints(mode: str) -> None:
    program = random_program(ConeDims(), 3, rank=3)
    solver = Diffcp(program.structure)
    solution = solver.solve(program, options_of(mode))
    linearization = solver.linearize(program, solution, options_of(mode))
    gradient = linearization.vjp(np.eye(3)[:1], np.zeros((1, 0)), everything(program))
    P = program.structure.P.matrix(program.P[0]).toarray()
    P += np.triu(P, 1).T
    assert np.allclose(gradient.q[0], -np.linalg.inv(P)[0], rtol=1e-4)


@pytest.mark.parametrize("mode", ["lsqr", "dense", "lpgd"])
def test_an_infinite_bound_binds_nothing(mode: str) -> None:
    program = program_of([[1.0], [1.0]], ConeDims(nonneg=2))
    program.q[:] = -1.0
    program.b[:] = [[1.0, np.inf]]
    solver = Diffcp(program.structure)
    solution = solver.solve(program, options_of(mode))
    assert np.allclose(solution.x, 1)
    gradient = solver.linearize(program, solution, options_of(mode)).vjp(
        np.ones((1, 1)), None, everything(program)
    )
    assert np.allclose(gradient.b, [[1, 0]], atol=1e-4)
    assert np.allclose(gradient.A, [[-1, 0]], atol=1e-4)


def test_the_derivative_of_a_small_loss_is_small_not_zero() -> None:
    program = random_program(TABLE["nonneg"], 6, rank=6)
    solver = Diffcp(program.structure)
    solution = solver.solve(program, TIGHT | {"mode": "dense"})
    linearization = solver.linearize(program, solution, TIGHT | {"mode": "dense"})
    large, small = (
        linearization.vjp(g * np.ones((1, 6)), None, everything(program)) for g in (1, 1e-12)
    )
    assert np.allclose(large.q, small.q * 1e12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "newton"}, "expected one of lsqr, lsmr, dense"),
        ({"solve_method": "MOSEK"}, "expected one of SCS, Clarabel, ECOS"),
        ({"mode": "lpgd"}, "needs tau > 0"),
        ({"mode": "lpgd", "derivative_kwargs": {"sigma": 1}}, "got .'sigma'."),
        ({"solve_method": "Clarabel", "alpha": 1.5}, "Clarabel has no option 'alpha'"),
        ({"solve_method": "Clarabel", "max_iter": "many"}, "does not take 'many'"),
        ({"alpha": 7.0}, "SCS does not take"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    program = random_program(TABLE["nonneg"], 6)
    with pytest.raises(ValueError, match=message):
        Diffcp(program.structure).solve(program, options)


def test_what_diffcp_cannot_do_is_refused() -> None:
    assert "pow" not in Diffcp.cones
    program = random_program(TABLE["psd"], 6)
    solver = Diffcp(program.structure)
    for method in ("Clarabel", "ECOS"):
        with pytest.raises(UnsupportedProblemError, match="'solve_method': 'SCS'"):
            solver.solve(program, {"solve_method": method})


def test_a_perturbed_program_without_solution_is_named() -> None:
    # x >= 0 and x <= 1e-3: the perturbation by tau makes it infeasible.
    program = program_of([[1.0], [-1.0]], ConeDims(nonneg=2))
    program.q[:], program.b[:] = -1.0, [[1e-3, 0.0]]
    solver = Diffcp(program.structure)
    options = {"mode": "lpgd", "derivative_kwargs": {"tau": 1.0}}
    solution = solver.solve(program, options)
    linearization = solver.linearize(program, solution, options)
    with pytest.raises(SolverError, match="decrease tau") as error:
        linearization.vjp(np.zeros((1, 1)), np.ones((1, 2)), everything(program))
    assert error.value.statuses == {(0,): Status.PRIMAL_INFEASIBLE}


@pytest.mark.parametrize("mode", ["dense", "lpgd"])
def test_ecos(mode: str) -> None:
    pytest.importorskip("ecos")
    dims = ConeDims(zero=2, nonneg=4, soc=(3, 4), exp=2)
    program = random_program(dims, 6, batch=2, rank=6 if mode == "dense" else 0, seed=2)
    solver = Diffcp(program.structure)
    # ECOS's error, about 1e-8 here, is divided by tau.
    ecos = options_of(mode, solve_method="ECOS") | {"derivative_kwargs": {"tau": 1e-3}}
    one, other = solver.solve(program, ecos), solver.solve(program, options_of("dense"))
    assert one.solved.all()
    assert np.allclose(one.x, other.x, atol=1e-4)
    assert np.allclose(one.z, other.z, atol=1e-4)
    gx, wanted = np.ones((2, 6)), everything(program)
    gradient = solver.linearize(program, one, ecos).vjp(gx, None, wanted)
    expected = solver.linearize(program, other, options_of("dense")).vjp(gx, None, wanted)
    for k in NAMES:
        assert np.allclose(getattr(gradient, k), getattr(expected, k), atol=1e-3)
    program, statuses = scalar_batch()
    assert Diffcp(program.structure).solve(program, ecos).status.tolist() == statuses
