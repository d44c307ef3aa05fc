"""The table of problems, one module per family of cones."""

from . import (
    attributes,
    exponential,
    geometric,
    mixed,
    polyhedral,
    power,
    quadratic,
    second_order,
    semidefinite,
)
from .case import Case

CASES: list[Case] = [
    *quadratic.CASES,
    *polyhedral.CASES,
    *attributes.CASES,
    *second_order.CASES,
    *semidefinite.CASES,
    *exponential.CASES,
    *power.CASES,
    *geometric.CASES,
    *mixed.CASES,
]

__all__ = ["CASES", "Case"]
