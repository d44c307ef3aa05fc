"""Extraction of a quadratic objective in memory proportional to its nonzeros.

CVXPY 1.9.3 extracts P and q together and, to scale each P by its coefficient, makes a dense array
of variables times parameters (`CoeffExtractor.extract_quadratic_coeffs`): 3 GB for qᵀx with 20,000
entries. Here the affine terms of the objective are extracted by themselves, as those of the
constraints are, and only the quadratic ones take that way.
"""

from __future__ import annotations

from functools import reduce
from itertools import chain
from operator import add
from typing import Any

from cvxpy import Variable
from cvxpy.atoms.affine.add_expr import AddExpression
from cvxpy.atoms.affine.unary_operators import NegExpression
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ConeMatrixStuffing
from cvxpy.reductions.matrix_stuffing import extract_mip_idx

__all__ = ["SparseStuffing"]


class SparseStuffing(ConeMatrixStuffing):  # type: ignore[misc]
    """CVXPY's stuffing with the objective's affine terms extracted apart."""

    def stuffed_objective(self, problem: Any, extractor: Any) -> tuple[Any, Any, Any]:
        affine, quadratic = _split(problem.objective.expr)
        if not (self.quad_obj and affine and quadratic):
            return super().stuffed_objective(problem, extractor)
        P, q = extractor.quad_form(reduce(add, quadratic))
        q = q + extractor.affine(reduce(add, affine))
        boolean, integer = extract_mip_idx(problem.variables())
        # xᵀP x = ½ xᵀ(2P) x
        return 2 * P, q, Variable(extractor.x_length, boolean=boolean, integer=integer)


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
