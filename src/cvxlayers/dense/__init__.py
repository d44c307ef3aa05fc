"""Many instances of one program at once, dense, in PyTorch: on any device that it computes
float64 on.

Importing this package imports PyTorch.
"""

from cvxlayers.dense.answer import Answer
from cvxlayers.dense.engine import Engine

__all__ = ["Answer", "Engine"]
