"""From a CVXPY problem to two affine maps: the only package that touches CVXPY's internals."""

from cvxlayers.canonicalize.canonical import CanonicalProblem, OutputSpec, ParameterSpec
from cvxlayers.canonicalize.compile import canonicalize
from cvxlayers.canonicalize.storage import read, write

__all__ = ["CanonicalProblem", "OutputSpec", "ParameterSpec", "canonicalize", "read", "write"]
