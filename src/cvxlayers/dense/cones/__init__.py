"""The cones of the dense engine: their scalings, shifts and steps, for all blocks of equal size at
once."""

from cvxlayers.dense.cones.product import Product, ProductScaling

__all__ = ["Product", "ProductScaling"]
