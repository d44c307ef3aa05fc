"""NumPy frontend.

>>> from cvxlayers.numpy import CvxpyLayer
"""

from cvxlayers.numpy.layer import CvxpyLayer

__all__ = ["CvxpyLayer"]
