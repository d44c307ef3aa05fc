"""CVXPY problem → CanonicalProblem.

CVXPY's own chain of reductions does the modelling. It ends in tensors that give every entry of P,
q, A and b as an affine function of the (reduced) parameters. Here they are brought onto fixed
sparsity patterns and composed with the way in (from the user's parameters) and the way out (to
the user's variables), so that every convention (Fortran order, symmetric packing, svec, the
interleaving of vector cones, signs of duals) ends up in a few sparse matrices.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from types import SimpleNamespace
from typing import Any

import cvxpy as cp
import cvxpy.settings as cvxpy_settings
import numpy as np
import scipy.sparse as sp
from cvxpy.constraints import PowConeND
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ConeMatrixStuffing
from cvxpy.reductions.solvers.conic_solvers.clarabel_conif import CLARABEL
from cvxpy.reductions.solvers.solving_chain import resolve_and_build_chain
from numpy.typing import NDArray

from cvxlayers.affine import AffineMap
from cvxlayers.canonicalize.canonical import CanonicalProblem
from cvxlayers.canonicalize.dpp import check_problem
from cvxlayers.canonicalize.leaves import check_leaves, parameter_parts, parameter_spec
from cvxlayers.canonicalize.memory import warn_if_large
from cvxlayers.canonicalize.recovery import outputs
from cvxlayers.canonicalize.stuffing import SparseStuffing
from cvxlayers.errors import UnsupportedProblemError
from cvxlayers.program import ConeDims, Pattern, ProblemStructure

__all__ = ["canonicalize"]


class _Canonicalizer(CLARABEL):  # type: ignore[misc]
    """The end of CVXPY's chain: formats rows as Clarabel does, but needs no parameter values.

    Power cones of higher dimension are left to CVXPY, which splits them into 3D ones.
    """

    SUPPORTED_CONSTRAINTS = [c for c in CLARABEL.SUPPORTED_CONSTRAINTS if c is not PowConeND]  # noqa: RUF012

    def name(self) -> str:
        return "CVXLAYERS"

    def apply(self, problem: Any) -> tuple[Any, Any]:
        _, data, inverse_data = self._prepare_data_and_inv_data(problem)
        inverse_data[cvxpy_settings.OFFSET] = 0.0
        return data[cvxpy_settings.PARAM_PROB], inverse_data

    @classmethod
    def format_constraints(cls, problem: Any, exp_cone_order: Any) -> Any:
        """The rows in the order of their cones, in memory proportional to the nonzeros.

        CVXPY multiplies with matrices that permute rows, for which SciPy takes an array as long as
        the product of variables and parameters: 16 GB for ‖A x − b‖ with 1000 × 1000 parameters.
        Here they are multiplied with the identity, which tells where every row goes.
        """
        m = problem.constr_size
        if m == 0:
            return super().format_constraints(problem, exp_cone_order)
        rows = copy(problem)
        rows.x = SimpleNamespace(size=m - 1)
        rows.A = sp.eye_array(m, format="coo").reshape((m * m, 1), order="F")
        moved = super().format_constraints(rows, exp_cone_order).A
        order = sp.csc_array(sp.coo_array(moved).reshape((m, m), order="F"))
        if (np.diff(order.indptr) != 1).any():
            return super().format_constraints(problem, exp_cone_order)
        coo = sp.coo_array(problem.A)
        column, row = np.divmod(coo.row.astype(np.int64), m)
        place = (order.indices[row] + column * m, coo.col)
        formatted = copy(problem)
        formatted.A = sp.coo_array((coo.data * order.data[row], place), shape=coo.shape)
        formatted.formatted = True
        return formatted


def canonicalize(
    problem: cp.Problem,
    parameters: Sequence[cp.Parameter],
    variables: Sequence[cp.Variable],
    gp: bool = False,
    canon_backend: str | None = None,
) -> CanonicalProblem:
    """Compile a DPP problem.

    Parameters
    ----------
    problem : cvxpy.Problem
    parameters : sequence of cvxpy.Parameter
        All parameters of the problem, in the order of the layer's arguments.
    variables : sequence of cvxpy.Variable
        Variables of the problem, or dual variables of its constraints, in the order of the
        layer's outputs.
    gp : bool
        Whether the problem is a geometric program.
    canon_backend : str, optional
        CVXPY's canonicalization backend.

    Raises
    ------
    NotDPPError
        If the problem is not DPP; the message names the expression.
    UnsupportedProblemError
        If it has integer or complex variables, or a feature without a derivative.
    ValueError
        If parameters or variables are not the problem's.
    """
    check_leaves(problem, parameters, variables)
    _check_backend(canon_backend)
    check_problem(problem, gp)
    warn_if_large(problem, gp)
    with warnings.catch_warnings():
        # CVXPY warns about its own reading of leaves with a sparsity pattern.
        warnings.filterwarnings("ignore", "Reading from a sparse CVXPY", RuntimeWarning)
        chain = resolve_and_build_chain(
            problem,
            solver=_Canonicalizer(),
            gp=gp,
            enforce_dpp=True,
            canon_backend=canon_backend,
            solver_opts={"use_quad_obj": True},
        )
        chain.reductions = [
            SparseStuffing(r.quad_obj, r.canon_backend) if type(r) is ConeMatrixStuffing else r
            for r in chain.reductions
        ]
        cone_program, inverse_data = chain.apply(problem)

    n, m = cone_program.x.size, cone_program.constr_size
    parts, columns = parameter_parts(chain, cone_program, parameters)
    width = cone_program.total_param_size + 1
    P_pattern, P_tensor = _quadratic(cone_program.P, n, width)
    A_pattern, A_tensor, b_tensor = _constraints(cone_program.A, m, n, width)
    dims = _cone_dims(cone_program.cone_dims)

    b_map = _affine_map(b_tensor, columns)
    kept = _finite_rows(b_map, dims)
    if not kept.all():
        A_pattern, A_tensor = _keep_rows(A_pattern, A_tensor, kept)
        b_map = _affine_map(b_tensor[kept], columns)
        dims = ConeDims(
            dims.zero, int(kept[dims.zero : dims.zero + dims.nonneg].sum()), *_tail(dims)
        )
    A_map = _affine_map(A_tensor, columns)
    return CanonicalProblem(
        structure=ProblemStructure(dims, P_pattern, A_pattern, A_map.fixed),
        parameters=tuple(parameter_spec(p, k) for k, p in enumerate(parameters)),
        outputs=outputs(problem, chain, cone_program, inverse_data, variables, kept),
        parts=parts,
        P=_affine_map(P_tensor, columns),
        q=_affine_map(sp.csr_array(cone_program.q)[:n], columns),
        A=A_map,
        b=b_map,
    )


def _check_backend(backend: Any) -> None:
    names = {v for k, v in vars(cvxpy_settings).items() if k.endswith("_CANON_BACKEND")}
    if backend is not None and backend not in names:
        raise ValueError(
            f"canon_backend: expected None for CVXPY's choice, or one of {sorted(names)}, got "
            f"{backend!r}."
        )


def _cone_dims(dims: Any) -> ConeDims:
    return ConeDims(
        zero=int(dims.zero),
        nonneg=int(dims.nonneg),
        soc=tuple(int(q) for q in dims.soc),
        psd=tuple(int(k) for k in dims.psd),
        exp=int(dims.exp),
        pow=tuple(float(alpha) for alpha in dims.p3d),
    )


def _tail(dims: ConeDims) -> tuple[Any, ...]:
    return dims.soc, dims.psd, dims.exp, dims.pow


def _affine_map(tensor: sp.csr_array, columns: Sequence[sp.csc_array]) -> AffineMap:
    """A tensor's rows as a map of the user's parameters; its last column is the constant."""
    blocks = [sp.csr_array(tensor[:, :-1] @ column) for column in columns]
    for block in blocks:
        block.sum_duplicates()
        block.eliminate_zeros()
    return AffineMap(blocks, tensor[:, [-1]].toarray()[:, 0])


def _quadratic(tensor: Any, n: int, width: int) -> tuple[Pattern, sp.csr_array]:
    """Pattern of P's upper triangle, and its entries as rows of a tensor.

    xᵀP x sees the mean of P_ij and P_ji only, which is what the upper triangle gets.
    """
    if tensor is None:
        empty = Pattern((n, n), np.zeros(0, np.int32), np.zeros(n + 1, np.int32))
        return empty, sp.csr_array((0, width))
    coo = sp.coo_array(tensor)
    first, second = coo.row.astype(np.int64) % n, coo.row.astype(np.int64) // n
    i, j = np.minimum(first, second), np.maximum(first, second)
    data = np.where(i == j, coo.data, 0.5 * coo.data)
    return _on_pattern(i, j, coo.col, data, (n, n), width)


def _constraints(
    tensor: Any, m: int, n: int, width: int
) -> tuple[Pattern, sp.csr_array, sp.csr_array]:
    """Pattern and entries of A, and b, for A x + s = b.

    CVXPY's tensor holds the columns of [−A b] one below the other.
    """
    coo = sp.coo_array(tensor)
    if m == 0:
        empty = Pattern((0, n), np.zeros(0, np.int32), np.zeros(n + 1, np.int32))
        return empty, sp.csr_array((0, width)), sp.csr_array((0, width))
    position = coo.row.astype(np.int64)
    i, j = position % m, position // m
    in_A = j < n
    pattern, A = _on_pattern(i[in_A], j[in_A], coo.col[in_A], -coo.data[in_A], (m, n), width)
    b = sp.csr_array((coo.data[~in_A], (i[~in_A], coo.col[~in_A])), shape=(m, width))
    return pattern, A, b


def _on_pattern(
    i: NDArray[Any],
    j: NDArray[Any],
    parameter: NDArray[Any],
    data: NDArray[Any],
    shape: tuple[int, int],
    width: int,
) -> tuple[Pattern, sp.csr_array]:
    """Pattern of the entries (i, j) that occur, and a matrix with a row for each of them.

    An entry belongs to the pattern because some parameter reaches it, whatever its value: its
    gradient does not vanish where its value does.
    """
    stored = data != 0
    i, j, parameter, data = i[stored], j[stored], parameter[stored], data[stored]
    keys, entry = np.unique(j * shape[0] + i, return_inverse=True)
    indptr = np.searchsorted(keys, np.arange(shape[1] + 1, dtype=np.int64) * shape[0])
    pattern = Pattern(shape, (keys % shape[0]).astype(np.int32), indptr.astype(np.int32))
    tensor = sp.csr_array((data, (entry, parameter)), shape=(len(keys), width))
    return pattern, tensor


def _finite_rows(b: AffineMap, dims: ConeDims) -> NDArray[np.bool_]:
    """Which rows constrain anything: an inequality with a constant infinite bound does not."""
    if np.isnan(b.offset).any():
        raise UnsupportedProblemError("A constant of the problem is NaN.")
    infinite = np.isinf(b.offset)
    vacuous = np.zeros(len(b.offset), dtype=bool)
    inequalities = slice(dims.zero, dims.zero + dims.nonneg)
    vacuous[inequalities] = b.offset[inequalities] == np.inf
    if (infinite & ~vacuous).any():
        raise UnsupportedProblemError(
            "A constant of the problem is infinite where it cannot be dropped: an infinite bound "
            "on the wrong side of an inequality, or an infinite value in an equality or a cone."
        )
    return ~vacuous


def _keep_rows(
    pattern: Pattern, tensor: sp.csr_array, kept: NDArray[np.bool_]
) -> tuple[Pattern, sp.csr_array]:
    entries = kept[pattern.rows]
    new_row = np.cumsum(kept) - 1
    indptr = np.concatenate([[0], np.cumsum(entries)])[pattern.indptr]
    shape = (int(kept.sum()), pattern.shape[1])
    rows = new_row[pattern.rows[entries]].astype(np.int32)
    return Pattern(shape, rows, indptr.astype(np.int32)), tensor[entries]
