"""Many instances of one program at once, in the lanes of vector registers.

All instances of a batch share one sparsity pattern. So the order of elimination, the symbolic
factorisation and every index are found once, and each step of the interior-point method, of the
polish and of the derivative is one vector instruction for several instances: numbers are stored
with the instance innermost. The C++ is in ``core/``, compiled for several instruction sets
(`variants`); where it was not compiled, the package does without.
"""

from cvxlayers.lanes.engine import Answer, Engine, Outer, engine_for, why_not
from cvxlayers.lanes.variants import VARIANTS, available, load

__all__ = [
    "VARIANTS",
    "Answer",
    "Engine",
    "Outer",
    "available",
    "engine_for",
    "load",
    "why_not",
]
