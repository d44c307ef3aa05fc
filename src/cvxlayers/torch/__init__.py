"""PyTorch frontend.

>>> from cvxlayers.torch import CvxpyLayer
"""

from cvxlayers.torch.layer import CvxpyLayer

__all__ = ["CvxpyLayer"]
