"""Extraction of the objective and the constraints in memory proportional to their nonzeros.

CVXPY 1.9.3 extracts P and q together and, to scale each P by its coefficient, makes a dense array
of variables times parameters (`CoeffExtractor.extract_quadratic_coeffs`): 3 GB for qᵀx with 20,000
entries. Here the affine terms of the objective are extracted by themselves, as those of the
constraints are, and only the quadratic ones take that way.

Its backend for many parameters also stacks the entries of a parameter that multiplies elementwise
into a matrix with rows for every pair of a parameter's entry and a row of the product: 3 GB for
multiply(p, x) with 20,000 entries, 8 TB for a million. Here they stay what they are.
"""

from __future__ import annotations

from functools import reduce
from itertools import chain
from operator import add
from typing import Any

from cvxpy import Variable
from cvxpy.atoms.affine.add_expr import AddExpression
from cvxpy.atoms.affine.unary_operators import NegExpression
from cvxpy.lin_ops.backends.coo_backend import CooCanonBackend, CooTensor
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ConeMatrixStuffing
from cvxpy.reductions.matrix_stuffing import extract_mip_idx
from cvxpy.settings import COO_CANON_BACKEND
from cvxpy.utilities.coeff_extractor import CoeffExtractor

__all__ = ["SparseStuffing"]


class SparseStuffing(ConeMatrixStuffing):  # type: ignore[misc]
    """CVXPY's stuffing with the objective's affine terms extracted apart."""

    def stuffed_objective(self, problem: Any, extractor: Any) -> tuple[Any, Any, Any]:
        # This is the first that is done with the extractor, which serves the constraints, too.
        extractor.__class__ = _Extractor
        affine, quadratic = _split(problem.objective.expr)
        if not (self.quad_obj and affine and quadratic):
            return super().stuffed_objective(problem, extractor)
        P, q = extractor.quad_form(reduce(add, quadratic))
        q = q + extractor.affine(reduce(add, affine))
        boolean, integer = extract_mip_idx(problem.variables())
        # xᵀP x = ½ xᵀ(2P) x
        return 2 * P, q, Variable(extractor.x_length, boolean=boolean, integer=integer)


class _Extractor(CoeffExtractor):  # type: ignore[misc]
    """CVXPY's extractor with the backend below in the place of the one that it refines."""

    def affine(self, expr: Any) -> Any:
        expressions = expr if isinstance(expr, list) else [expr]
        if self.canon_backend != COO_CANON_BACKEND or not expressions:
            return super().affine(expr)
        width = sum(self.param_to_size.values())
        backend = _Backend(self.id_map, self.param_to_size, self.param_id_map, width, self.x_length)
        return backend.build_matrix([e.canonical_form[0] for e in expressions])


class _Backend(CooCanonBackend):  # type: ignore[misc]
    """CVXPY's backend without a detour."""

    def _to_coo_tensor(self, matrix: Any, param_id: Any = None) -> Any:
        size = 1 if param_id is None else self.param_to_size[param_id]
        if isinstance(matrix, CooTensor) and matrix.param_size == size:
            return matrix
        return super()._to_coo_tensor(matrix, param_id)


def _split(expression: Any) -> tuple[list[Any], list[Any]]:
    """Terms that add up to an expression: the affine ones, and the others."""
    if expression.is_affine():
        return [expression], []
    if isinstance(expression, NegExpression):
        affine, other = _split(expression.args[0])
        return [-term for term in affine], [-term for term in other]
    if isinstance(expression, AddExpression):
        affine, other = zip(*(_split(term) for term in expression.args), strict=True)
        return list(chain(*affine)), list(chain(*other))
    return [], [expression]
