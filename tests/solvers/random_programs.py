"""Random conic programs that are strictly feasible, primal and dual, by construction.

Choose x, s inside K and z inside K* at random, then b = A x + s and q = -P x - Aᵀz. Such a
program has a solution (Slater, both ways). Interior points are written down from the
definitions of the cones; no projection of the library takes part.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp

from cvxlayers.program import ConeDims, ConeProgram, Pattern, ProblemStructure

E = np.e


def svec(S: np.ndarray) -> np.ndarray:
    """Upper triangle, column-major, √2 off the diagonal."""
    k = len(S)
    return np.array(
        [S[i, j] * (1.0 if i == j else np.sqrt(2.0)) for j in range(k) for i in range(j + 1)]
    )


def smat(v: np.ndarray) -> np.ndarray:
    k = round((np.sqrt(8 * len(v) + 1) - 1) / 2)
    S = np.zeros((k, k))
    entries = iter(v)
    for j in range(k):
        for i in range(j + 1):
            S[i, j] = S[j, i] = next(entries) / (1.0 if i == j else np.sqrt(2.0))
    return S


def interior_points(dims: ConeDims, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(s, z) with s inside K and z inside K*."""
    s, z = [np.zeros(dims.zero)], [rng.standard_normal(dims.zero)]
    s.append(rng.uniform(0.2, 1.5, dims.nonneg))
    z.append(rng.uniform(0.2, 1.5, dims.nonneg))
    for size in dims.soc:
        for point in (s, z):
            tail = rng.standard_normal(size - 1)
            point.append(np.concatenate([[np.linalg.norm(tail) + rng.uniform(0.2, 1)], tail]))
    for k in dims.psd:
        for point in (s, z):
            G = rng.standard_normal((k, k))
            point.append(svec(G @ G.T / k + 0.2 * np.eye(k)))
    for _ in range(dims.exp):
        x, y = rng.uniform(-1, 1), rng.uniform(0.5, 1.5)
        s.append(np.array([x, y, y * np.exp(x / y) + rng.uniform(0.2, 1)]))
        # The dual cone: u < 0, -u exp(v/u) <= e w.
        u, v = -rng.uniform(0.5, 1.5), rng.uniform(-1, 1)
        z.append(np.array([u, v, -u * np.exp(v / u) / E + rng.uniform(0.2, 1)]))
    for a in dims.pow:
        x, y = rng.uniform(0.5, 1.5, 2)
        s.append(np.array([x, y, rng.uniform(-0.7, 0.7) * x**a * y ** (1 - a)]))
        u, v = rng.uniform(0.5, 1.5, 2)
        # The dual cone: (u/a)^a (v/(1-a))^(1-a) >= |w|.
        w = rng.uniform(-0.7, 0.7) * (u / a) ** a * (v / (1 - a)) ** (1 - a)
        z.append(np.array([u, v, w]))
    return np.concatenate(s), np.concatenate(z)


def pattern(dense: np.ndarray) -> Pattern:
    matrix = sp.csc_array(dense)
    matrix.sort_indices()
    return Pattern(matrix.shape, matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32))


def random_program(
    dims: ConeDims,
    n: int,
    *,
    batch: int = 1,
    rank: int = 0,
    seed: int = 0,
    shared: str = "",
    density: float = 0.7,
) -> ConeProgram:
    """A batch of feasible programs. `rank` is that of P (0: linear); `shared` of "PA" names those
    matrices that are the same for the whole batch."""
    rng = np.random.default_rng(seed)
    m = dims.m
    mask = (rng.random((m, n)) < density) if m else np.zeros((0, n), dtype=bool)
    structure = ProblemStructure(
        dims, pattern(np.triu(np.ones((n, n))) if rank else np.zeros((n, n))), pattern(mask)
    )
    P, q, A, b = [], [], [], []
    for i in range(batch):
        if i == 0 or "P" not in shared:
            F = rng.standard_normal((rank, n))
            P_i = F.T @ F
        if i == 0 or "A" not in shared:
            A_i = rng.standard_normal((m, n)) * mask
        x = rng.standard_normal(n)
        s, z = interior_points(dims, rng)
        P.append(P_i[structure.P.rows, structure.P.cols])
        A.append(A_i[structure.A.rows, structure.A.cols])
        q.append(-P_i @ x - A_i.T @ z)
        b.append(A_i @ x + s)
    return ConeProgram(
        structure,
        np.array(P[:1] if "P" in shared else P),
        np.array(q),
        np.array(A[:1] if "A" in shared else A),
        np.array(b),
        batch,
    )


def dense_data(program: ConeProgram, i: int) -> tuple[np.ndarray, ...]:
    """(P, q, A, b) of instance i; P symmetric."""
    P, q, A, b = (a[i if len(a) > 1 else 0] for a in (program.P, program.q, program.A, program.b))
    upper = program.structure.P.matrix(P).toarray()
    return upper + np.triu(upper, 1).T, q, program.structure.A.matrix(A).toarray(), b


def outside(v: np.ndarray, dims: ConeDims, dual: bool) -> float:
    """How far v violates the inequalities that define K (or K*), the largest of them."""
    worst = [0.0]
    parts = iter(
        np.split(
            v,
            np.cumsum(
                [dims.zero, dims.nonneg, *dims.soc]
                + [k * (k + 1) // 2 for k in dims.psd]
                + [3] * (dims.exp + len(dims.pow))
            ),
        )
    )
    zero = next(parts)
    if not dual:
        worst.append(np.abs(zero).max(initial=0.0))
    worst.append(-next(parts).min(initial=0.0))
    for _ in dims.soc:
        block = next(parts)
        worst.append(np.linalg.norm(block[1:]) - block[0])
    for _ in dims.psd:
        worst.append(-np.linalg.eigvalsh(smat(next(parts)))[0])
    for _ in range(dims.exp):
        x, y, z = next(parts)
        if dual:
            worst += [x, -x * np.exp(np.clip(y / min(x, -1e-12), -50, 50)) - E * z]
        else:
            worst += [-y, y * np.exp(np.clip(x / max(y, 1e-12), -50, 50)) - z]
    for a in dims.pow:
        x, y, z = next(parts)
        if dual:
            x, y = x / a, y / (1 - a)
        worst += [-x, -y, abs(z) - max(x, 0.0) ** a * max(y, 0.0) ** (1 - a)]
    return float(max(worst))


def check_same_minimum(
    program: ConeProgram, x: np.ndarray, other: np.ndarray, rows: Iterable[int]
) -> None:
    """Of solutions at tolerances of 1e-10, a row for each instance: the same objective, and the
    same point as far as the curvature tells. A gap of ε leaves an x that is √ε off."""
    for i, one, two in zip(rows, x, other, strict=True):
        P, q, _, _ = dense_data(program, i)
        value, expected = 0.5 * one @ P @ one + q @ one, 0.5 * two @ P @ two + q @ two
        bound = 1e-8 * (1.0 + abs(expected))
        assert abs(value - expected) < bound and (one - two) @ P @ (one - two) < bound


def kkt_residual(
    program: ConeProgram, i: int, x: np.ndarray, z: np.ndarray, s: np.ndarray
) -> float:
    """The largest violation of the optimality conditions, relative to the size of the data."""
    P, q, A, b = dense_data(program, i)
    dims = program.structure.dims
    primal = np.abs(A @ x + s - b).max(initial=0.0) / (1 + np.abs(b).max(initial=0.0))
    dual = np.abs(P @ x + q + A.T @ z).max(initial=0.0) / (1 + np.abs(q).max(initial=0.0))
    scale = 1 + np.abs(s).max(initial=0.0) + np.abs(z).max(initial=0.0)
    cones = max(outside(s, dims, dual=False), outside(z, dims, dual=True)) / scale
    gap = abs(s @ z) / (1 + abs(q @ x))
    return float(max(primal, dual, cones, gap))


#: One table of cones for all tests: name to dims. The number of variables is `SIZES[name]`.
CONES: dict[str, ConeDims] = {
    "zero": ConeDims(zero=3),
    "nonneg": ConeDims(nonneg=9),
    "soc": ConeDims(soc=(4, 1, 3)),
    "psd": ConeDims(psd=(3, 1, 4)),
    "exp": ConeDims(exp=3),
    "pow": ConeDims(pow=(0.3, 0.5, 0.8)),
    "mixed": ConeDims(zero=2, nonneg=4, soc=(3, 4), psd=(3, 2), exp=2, pow=(0.4, 0.7)),
}
