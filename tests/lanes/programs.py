"""Random batches of programs whose outcome is known by construction.

An instance is drawn strictly feasible, primal and dual, as in `solvers.random_programs`, or from a
certificate that is strictly inside the cones; then it is spoilt in ways that do not change the
outcome: rows and columns in other units, repeated rows, rows that say nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from cvxlayers.program import ConeDims, ConeProgram, ProblemStructure
from cvxlayers.status import Status
from solvers.random_programs import interior_points, pattern

Array = np.ndarray

#: What cones there are, and what is special. A "contradiction" is one of two equalities, a "line" a
#: direction of descent along which nothing else changes: neither certificate is inside a cone.
FAMILIES = ("lp", "qp", "socp", "sdp", "exp", "pow", "mixed")
KINDS = (
    "feasible",
    "infeasible",
    "unbounded",
    "row units",
    "column units",
    "rank",
    "repeated",
    "free rows",
    "tiny",
    "large",
    "integer",
    "contradiction",
    "line",
)
EXPECTED = {
    "infeasible": Status.PRIMAL_INFEASIBLE,
    "contradiction": Status.PRIMAL_INFEASIBLE,
    "unbounded": Status.DUAL_INFEASIBLE,
    "line": Status.DUAL_INFEASIBLE,
}


def random_dims(family: str, rng: np.random.Generator) -> ConeDims:
    def sizes(low: int, high: int, most: int) -> tuple[int, ...]:
        return tuple(int(k) for k in rng.integers(low, high, rng.integers(1, most + 1)))

    zero, nonneg = int(rng.integers(0, 4)), int(rng.integers(1, 12))
    if family in ("lp", "qp"):
        return ConeDims(zero=zero, nonneg=nonneg + 3)
    few = int(rng.integers(0, 5))
    if family == "socp":
        return ConeDims(zero=zero, nonneg=few, soc=sizes(1, 9, 3))
    if family == "sdp":
        return ConeDims(zero=zero, nonneg=few, psd=sizes(1, 7, 2))
    if family == "exp":
        return ConeDims(zero=zero, nonneg=few, exp=int(rng.integers(1, 4)))
    exponents = tuple(float(a) for a in rng.uniform(0.05, 0.95, rng.integers(1, 4)))
    if family == "pow":
        return ConeDims(zero=zero, nonneg=few, pow=exponents)
    return ConeDims(zero, few, sizes(2, 7, 2), sizes(1, 4, 2), 1, exponents[:1])


def blocks(dims: ConeDims) -> list[slice]:
    """Rows that take one scale: single rows, and those of every curved cone."""
    lengths = [1] * (dims.zero + dims.nonneg) + list(dims.soc)
    lengths += [k * (k + 1) // 2 for k in dims.psd] + [3] * (dims.exp + len(dims.pow))
    ends = np.cumsum([0, *lengths])
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


@dataclass
class Dense:
    """One instance."""

    P: Array
    q: Array
    A: Array
    b: Array


def draw(family: str, kind: str, seed: int, batch: int = 4) -> tuple[ConeProgram, Status]:
    """A batch of one structure, and what should become of every instance."""
    rng = np.random.default_rng([seed, FAMILIES.index(family), KINDS.index(kind)])
    dims = random_dims(family, rng)
    if kind == "contradiction":
        dims = replace(dims, zero=dims.zero + 2)
    if kind == "repeated":
        dims = replace(dims, zero=2 * dims.zero, nonneg=2 * dims.nonneg)
    n = int(rng.integers(max(1, dims.zero + 1), dims.zero + 10))
    quadratic = family == "qp" or (family != "lp" and bool(rng.random() < 0.3))
    mask = rng.random((dims.m, n)) < rng.choice([0.3, 0.7, 1.0])
    if kind in ("infeasible", "unbounded"):
        mask[:] = True
    instances = [_instance(kind, dims, n, quadratic, mask, rng) for _ in range(batch)]
    stored = np.any([i.A != 0 for i in instances], axis=0)
    structure = ProblemStructure(
        dims,
        pattern(np.triu(np.ones((n, n))) if quadratic else np.zeros((n, n))),
        pattern(stored),
    )
    return assemble(structure, instances), EXPECTED.get(kind, Status.SOLVED)


def assemble(structure: ProblemStructure, instances: list[Dense]) -> ConeProgram:
    P, A = structure.P, structure.A
    return ConeProgram(
        structure,
        np.array([i.P[P.rows, P.cols] for i in instances]),
        np.array([i.q for i in instances]),
        np.array([i.A[A.rows, A.cols] for i in instances]),
        np.array([i.b for i in instances]),
        len(instances),
    )


def _instance(
    kind: str, dims: ConeDims, n: int, quadratic: bool, mask: Array, rng: np.random.Generator
) -> Dense:
    m = dims.m
    A = rng.standard_normal((m, n)) * mask
    F = rng.standard_normal((int(rng.integers(1, n + 1)), n)) if quadratic else np.zeros((1, n))
    x = rng.standard_normal(n)
    s, z = interior_points(dims, rng)
    if kind == "integer":
        A, x = np.round(2 * A), np.round(x)
    if kind == "rank" and n > 1:
        # Two columns that are one variable.
        A[:, -1], F[:, -1] = A[:, 0], F[:, 0]
    if kind == "line" and n > 1:
        A[:, -1], F[:, -1] = A[:, 0], F[:, 0]
    if kind == "repeated":
        for first, count in ((0, dims.zero), (dims.zero, dims.nonneg)):
            half = count // 2
            A[first + half : first + count] = A[first : first + half]
            s[first + half : first + count] = s[first : first + half]
    P = F.T @ F
    if kind == "infeasible":
        # Aᵀz = 0 and bᵀz < 0.
        A -= np.outer(z, z @ A) / (z @ z)
        b = rng.standard_normal(m)
        b -= z * ((b @ z + rng.uniform(0.1, 2.0)) / (z @ z))
        # Not unbounded: the dual is strictly feasible.
        return Dense(P, -P @ x - A.T @ interior_points(dims, rng)[1], A, b)
    if kind == "unbounded":
        # P d = 0, A d + s = 0 and qᵀd < 0, beside a feasible point.
        d = rng.standard_normal(n)
        F -= np.outer(F @ d, d) / (d @ d)
        t = interior_points(dims, rng)[0]
        A -= np.outer(A @ d + t, d) / (d @ d)
        b = A @ x + s
        q = rng.standard_normal(n)
        q -= d * ((q @ d + rng.uniform(0.1, 2.0)) / (d @ d))
        return Dense(F.T @ F, q, A, b)
    if kind == "contradiction":
        # The last equality is the one before with another right-hand side.
        A[dims.zero - 1] = A[dims.zero - 2]
        if not A[dims.zero - 1].any():
            A[dims.zero - 2 : dims.zero, 0] = 1.0
    b, q = A @ x + s, -P @ x - A.T @ z
    if kind == "contradiction":
        b[dims.zero - 1] += rng.choice([-1.0, 1.0]) * rng.uniform(0.1, 2.0)
    if kind == "line":
        # Along (1, 0, …, 0, −1) only the objective changes; with one variable, P and A vanish.
        if n == 1:
            A[:], P[:] = 0.0, 0.0
            b = s.copy()
        q[-1] += 1.0
    if kind == "tiny":
        b, q = b * 1e-6, q * 1e-6
    if kind == "large":
        b, q = b * 1e4, q * 1e4
    if kind == "free rows":
        rows = dims.zero + np.flatnonzero(rng.random(dims.nonneg) < 0.5)
        kept = z.copy()
        kept[rows] = 0.0
        # Rows without an entry that hold anyway, and rows that are far from binding.
        A[rows] *= rng.choice([0.0, 1.0], len(rows))[:, None]
        b[rows] = 10.0 ** rng.uniform(1, 8, len(rows))
        b[rows] += np.abs(A[rows] @ x)
        q = -P @ x - A.T @ kept
    if kind == "row units":
        for block in blocks(dims):
            unit = 10.0 ** rng.uniform(-4, 4)
            A[block] *= unit
            b[block] *= unit
    if kind == "column units":
        units = 10.0 ** rng.uniform(-4, 4, n)
        A, P, q = A * units, P * units * units[:, None], q * units
    return Dense(P, q, A, b)
