"""How much memory a problem will take, before it takes it.

What counts are entries: the nonzeros of P, q, A and b as functions of the parameters, one for every
product of a parameter's entry (or a constant) with a variable's. Canonicalization makes them all,
several times over. An expression tells how many without making one: a parameter of m × k in front
of a variable of k × n causes m · k · n. The count assumes that nonzeros are spread evenly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.affine.add_expr import AddExpression
from cvxpy.atoms.affine.affine_atom import AffAtom
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply
from cvxpy.atoms.affine.broadcast_to import broadcast_to
from cvxpy.atoms.affine.conv import conv, convolve
from cvxpy.atoms.affine.cumsum import cumsum
from cvxpy.atoms.affine.diag import diag_mat
from cvxpy.atoms.affine.index import index, special_index
from cvxpy.atoms.affine.kron import kron
from cvxpy.atoms.affine.promote import Promote
from cvxpy.atoms.affine.sum import Sum
from cvxpy.atoms.affine.trace import Trace
from cvxpy.atoms.affine.upper_tri import upper_tri
from cvxpy.atoms.elementwise.power import Power, PowerApprox

from cvxlayers.machine import available_memory
from cvxlayers.warning import warn

__all__ = ["Prediction", "predict", "warn_if_large"]

# Bytes for every entry. Measured with CVXPY 1.9.3, SciPy 1.17 and Clarabel 0.11 on Linux, as the
# growth of a new process, for a million entries each: at the peak of canonicalization, 176 for
# A @ x <= 1 with a parameter A, 184 for ‖A x − b‖², 216 for ‖A x − b‖, 181 for quad_form(x, P),
# 150 for A @ X and X @ A.T, 159 with a sparse A, 158 for p @ x, 127 for multiply(A, X), 101 for a
# parameter that is a number, 140 for a constant A, 107 for a sparse one.
PEAK = 170.0
# The maps and patterns after the first call: 96, 100 (‖A x − b‖²), 56 (quad_form), 84 (a sparse
# A), 102 (p @ x), 68 (multiply), 24 (a constant A).
KEPT = 90.0
# A solution for every instance of a batch of four: 96, 98, 122 (a sparse A), 235 (p @ x), 167
# (multiply), 77 (a constant A); with its derivative 114 to 434. Where a factor fills in it is more.
INSTANCE = 120.0
# For every number of an array that CVXPY makes and copies of 3,000 squares times 3,001: 16 to 24.
DENSE = 20.0
# Of what is available, this much may be taken without a warning.
FRACTION = 0.5

# What an entry is counted for: a parameter (its id), a constant (("constant", id), and in front of
# a variable ("coefficient", id)), or neither. Counts are not changed once they are made.
Source = Hashable
Counts = dict[Source, float]
VARIABLES: Source = None


@dataclass(frozen=True)
class Prediction:
    """What a problem will take.

    Attributes
    ----------
    entries : dict
        Number of entries by their source: the id of a parameter, or ("constant", id of a constant),
        or ("coefficient", id of a constant) for what it multiplies, or None for the variables
        themselves.
    dense : float
        Further numbers that CVXPY makes of the elementwise squares of the objective: one for each
        pair of a square and a parameter's entry.
    culprit : str
        The largest source, in words.
    """

    entries: Counts
    dense: float
    culprit: str

    @property
    def total(self) -> float:
        """Number of entries."""
        return sum(self.entries.values())

    @property
    def peak(self) -> float:
        """Bytes at the peak of canonicalization."""
        return PEAK * self.total + DENSE * self.dense

    @property
    def kept(self) -> float:
        """Bytes of the maps that are kept."""
        return KEPT * self.total

    @property
    def instance(self) -> float:
        """Bytes of one instance while it is solved."""
        return INSTANCE * self.total


def warn_if_large(problem: cp.Problem, gp: bool) -> None:
    """Warn if the problem will hardly fit into memory."""
    available = available_memory()
    if available is None:
        return
    try:
        prediction = predict(problem, gp)
    except Exception:  # whatever it is about the problem, it shall not fail for a prediction
        return
    if prediction.peak <= FRACTION * available:
        return
    warn(
        f"Canonicalization of this problem will take about {_amount(prediction.peak)} of memory, "
        f"of which {_amount(available)} are available. P, q, A and b have {prediction.total:.2g} "
        f"coefficients: the layer will keep about {_amount(prediction.kept)}, and every instance "
        f"of a batch take at least {_amount(prediction.instance)}. {prediction.culprit}",
        UserWarning,
    )


def predict(problem: cp.Problem, gp: bool = False) -> Prediction:
    """Count the entries of a problem. Nothing of their size is made.

    Parameters
    ----------
    problem : cvxpy.Problem
    gp : bool
        Whether it will be canonicalized as a geometric program.
    """
    walk = _Walk(gp)
    total: Counts = {}
    walk.in_objective = True
    for counts in walk(problem.objective.args[0]):
        _add(total, counts)
    walk.in_objective = False
    for constraint in problem.constraints:
        size = constraint.size
        promotes = isinstance(constraint, (cp.constraints.Inequality, cp.constraints.Equality))
        for argument in constraint.args:
            counts, cost = walk(argument)
            _add(total, counts, size / argument.size if promotes and argument.size else 1.0)
            _add(total, cost)
    for variable in problem.variables():
        _add(total, {VARIABLES: _constrained(variable)})
    width = 1 + sum(_free(p) for p in problem.parameters())
    return Prediction(total, walk.squares * width, walk.culprit(problem, total, width))


class _Walk:
    """Entries of an expression (by source), and those of constraints that come with it."""

    def __init__(self, gp: bool):
        self.rules = _GEOMETRIC if gp else _LINEAR
        self.gp = gp
        self.in_objective = False
        self.squares = 0.0
        self.squared: Any = None
        self.leaves: dict[Source, Any] = {}
        # For every source the product with most of its entries.
        self.largest: dict[Source, tuple[float, Any]] = {}
        self._seen: dict[int, tuple[Counts, Counts]] = {}

    def __call__(self, expression: Any) -> tuple[Counts, Counts]:
        """Entries of an expression, and of the constraints that it brings about."""
        key = id(expression)
        if key not in self._seen:
            self._seen[key] = self._count(expression)
        return self._seen[key]

    def _count(self, expression: Any) -> tuple[Counts, Counts]:
        if not expression.args:
            return self._leaf(expression), {}
        parts = [self(argument) for argument in expression.args]
        counts, cost = [own for own, _ in parts], _sum([cost for _, cost in parts if cost])
        rule = self.rules.get(type(expression))
        if rule is None and isinstance(expression, AffAtom) and (not self.gp or _moves(expression)):
            rule = _keep
        if all(_is_constant(own) for own in counts):
            total = _sum(counts)
            largest = max(total.items(), key=lambda item: item[1], default=(VARIABLES, 0.0))
            size = float(expression.size)
            # What stays where it is stays sparse: a transpose, or what CVXPY wraps a matrix in.
            if rule is _keep and _moves(expression) and size == expression.args[0].size:
                size = min(size, sum(total.values()))
            return {largest[0]: size}, {}
        if rule is not None:
            found, more = rule(expression, counts)
            if rule in _PRODUCTS:
                self._note(found, expression)
                self._note(more, expression)
            return found, _sum([part for part in (cost, more) if part])
        more = self._epigraph(expression, counts)
        return {VARIABLES: float(expression.size)}, _sum([cost, more])

    def _leaf(self, leaf: Any) -> Counts:
        if isinstance(leaf, cp.Variable):
            return {VARIABLES: _stored(leaf)}
        source: Source
        if isinstance(leaf, cp.Parameter):
            source, count = leaf.id, _stored(leaf)
        else:
            source, count = ("constant", id(leaf)), _nonzeros(leaf.value)
        self.leaves[source[1:] if isinstance(source, tuple) else source] = leaf
        return {source: count}

    def _epigraph(self, expression: Any, counts: Sequence[Counts]) -> Counts:
        """Entries of what stands for an atom that is not affine."""
        times = _TIMES.get(type(expression), 1.0)
        cost = _sum([_sum(counts, times), {VARIABLES: float(expression.size)}])
        if isinstance(expression, cp.QuadForm):
            self._note(counts[1], expression)
        if self.in_objective and not self.gp and _is_squared(expression):
            self.squares += expression.size
            if self.squared is None or self.squared.size < expression.size:
                self.squared = expression
        return cost

    def _note(self, counts: Counts, expression: Any) -> None:
        for source, count in counts.items():
            if count > self.largest.get(source, (0.0,))[0]:
                self.largest[source] = count, expression

    def culprit(self, problem: cp.Problem, total: Counts, width: float) -> str:
        """What takes most, and what can be done about it."""
        source, count = max(total.items(), key=lambda item: item[1], default=(VARIABLES, 0.0))
        leaf = self.leaves.get(source[1:] if isinstance(source, tuple) else source)
        if DENSE * self.squares * width > PEAK * count:
            return (
                f"Most is for the elementwise squares {_short(self.squared)} in the objective, of "
                f"which CVXPY makes an array of {self.squares:.2g} times {width:.2g} numbers: "
                "write cp.sum_squares(...) in place of the sum of squares; put weights on what is "
                "squared."
            )
        expression = self.largest.get(source, (0.0, None))[1]
        where = "" if expression is None else f", most of them in {_short(expression)}"
        if leaf is None:
            return f"Most are those of the variables themselves, {count:.2g}. Make them fewer."
        if isinstance(leaf, cp.Parameter):
            plain = not (self.gp or leaf._has_dim_reducing_attr)
            sparsity = (
                "Declare where its entries are, cp.Parameter(shape, sparsity=(rows, columns)), if "
                "most of them are zero; or g"
                if plain
                else "G"
            )
            return (
                f"Parameter {leaf.name()!r} of shape {leaf.shape} causes {count:.2g} of them"
                f"{where}. {sparsity}ive it fewer entries, or write an elementwise product in "
                "place of a matrix product where one does."
            )
        return (
            f"A constant of shape {leaf.shape} causes {count:.2g} of them{where}. Make it a sparse "
            "array of SciPy if most of its entries are zero, or a product of smaller factors, each "
            "with a variable of its own (y == B @ x)."
        )


Rule = Callable[[Any, Sequence[Counts]], tuple[Counts, Counts]]


def _keep(_: Any, counts: Sequence[Counts]) -> tuple[Counts, Counts]:
    """Every entry of an argument is one of the result."""
    return _sum(counts), {}


def _select(expression: Any, counts: Sequence[Counts]) -> tuple[Counts, Counts]:
    """Rows of the argument, or copies of them."""
    size = expression.args[0].size
    return _sum(counts, expression.size / size if size else 0.0), {}


def _added(expression: Any, counts: Sequence[Counts]) -> tuple[Counts, Counts]:
    """Terms, of which numbers are promoted."""
    return _promoted(expression, counts), {}


def _trace(expression: Any, counts: Sequence[Counts]) -> tuple[Counts, Counts]:
    return _sum(counts, 1.0 / max(1, expression.args[0].shape[0])), {}


def _cumsum(expression: Any, counts: Sequence[Counts]) -> tuple[Counts, Counts]:
    """A variable whose differences are the argument."""
    size = float(expression.size)
    return {VARIABLES: size}, _sum([*counts, {VARIABLES: 2.0 * size}])


def _elementwise(expression: Any, counts: Sequence[Counts]) -> tuple[Counts, Counts]:
    size = expression.size
    left, right = (
        _sum([own], size / argument.size if argument.size else 0.0)
        for own, argument in zip(counts, expression.args, strict=True)
    )
    return _product(left, right, 1.0 / max(1, size)), {}


def _matrices(expression: Any, counts: Sequence[Counts]) -> tuple[Counts, Counts]:
    """Every entry of a column of the first meets every one of a row of the second."""
    left, right = expression.args
    inner, stack = _inner(left), math.prod(expression.shape[:-2])
    factor = 1 / max(1, inner)
    if len(expression.shape) > 2:
        factor *= stack / (_stack(left) * _stack(right))
    return _product(counts[0], counts[1], factor), {}


def _pairs(_: Any, counts: Sequence[Counts]) -> tuple[Counts, Counts]:
    return _product(counts[0], counts[1], 1.0), {}


def _terms(expression: Any, counts: Sequence[Counts]) -> tuple[Counts, Counts]:
    """The logarithm of a sum of products: an exponential cone for every product."""
    left, right = expression.args
    products = expression.size * _inner(left)
    blamed = min((*counts[0], *counts[1]), key=_rank, default=VARIABLES)
    cost = [
        _sum([counts[0]], products / max(1, left.size)),
        _sum([counts[1]], products / max(1, right.size)),
        {blamed: 3.0 * products},
    ]
    return {VARIABLES: float(expression.size)}, _sum(cost)


_LINEAR: dict[type, Rule] = {
    AddExpression: _added,
    Promote: _select,
    broadcast_to: _select,
    index: _select,
    special_index: _select,
    upper_tri: _select,
    diag_mat: _select,
    Trace: _trace,
    cumsum: _cumsum,
    multiply: _elementwise,
    DivExpression: _elementwise,
    MulExpression: _matrices,
    kron: _pairs,
    conv: _pairs,
    convolve: _pairs,
}

# Of a geometric program, whose products are sums and whose sums are no longer affine.
_GEOMETRIC: dict[type, Rule] = {
    **{kind: _select for kind, rule in _LINEAR.items() if rule is _select},
    multiply: _added,
    DivExpression: _added,
    MulExpression: _terms,
    Power: _keep,
    PowerApprox: _keep,
}

_PRODUCTS = (_elementwise, _matrices, _pairs, _terms)

# How often the argument of an atom stands in the constraints for it.
_TIMES: dict[type, float] = {cp.abs: 2.0, cp.norm1: 2.0, cp.norm_inf: 2.0}


def _moves(expression: Any) -> bool:
    """Whether an affine atom only moves entries about."""
    return not isinstance(expression, (AddExpression, Sum, Trace, cumsum, kron, conv, convolve))


def _is_squared(expression: Any) -> bool:
    """Whether CVXPY makes an array for it, see `Prediction.dense`."""
    if isinstance(expression, Power):
        return bool(expression.p.value == 2)
    return isinstance(expression, cp.huber)


def _promoted(expression: Any, counts: Sequence[Counts]) -> Counts:
    total: Counts = {}
    size = expression.size
    for own, argument in zip(counts, expression.args, strict=True):
        _add(total, own, size / argument.size if argument.size else 0.0)
    return total


def _product(left: Counts, right: Counts, factor: float) -> Counts:
    total: Counts = {}
    for one, a in left.items():
        for other, b in right.items():
            # A parameter is to blame before a constant, and that before a variable.
            blamed = min(one, other, key=_rank)
            if isinstance(blamed, tuple) and not (_is_number(one) and _is_number(other)):
                blamed = ("coefficient", blamed[1])
            total[blamed] = total.get(blamed, 0.0) + factor * a * b
    return total


def _rank(source: Source) -> int:
    return 2 if source is VARIABLES else 1 if isinstance(source, tuple) else 0


def _is_constant(counts: Counts) -> bool:
    return all(_is_number(source) for source in counts)


def _is_number(source: Source) -> bool:
    return isinstance(source, tuple) and source[0] == "constant"


def _add(total: Counts, counts: Counts, factor: float = 1.0) -> None:
    for source, count in counts.items():
        total[source] = total.get(source, 0.0) + factor * count


def _sum(parts: Sequence[Counts], factor: float = 1.0) -> Counts:
    if len(parts) == 1 and factor == 1.0:
        return parts[0]
    total: Counts = {}
    for part in parts:
        _add(total, part, factor)
    return total


def _inner(left: Any) -> int:
    return int(left.shape[-1]) if left.shape else 1


def _stack(factor: Any) -> int:
    return max(1, math.prod(factor.shape[:-2]))


def _stored(leaf: Any) -> float:
    """Entries of a leaf that there are."""
    if leaf.sparse_idx is not None:
        return float(len(leaf.sparse_idx[0]))
    return float(leaf.shape[0] if leaf.attributes["diag"] else leaf.size)


def _free(leaf: Any) -> float:
    """Entries of a leaf that are free."""
    symmetric = any(leaf.attributes[name] for name in ("symmetric", "PSD", "NSD"))
    return 0.5 * leaf.size * (1 + 1 / leaf.shape[-1]) if symmetric and leaf.size else _stored(leaf)


def _constrained(variable: Any) -> float:
    """Entries of the constraints that a variable's attributes are."""
    names = ("nonneg", "nonpos", "pos", "neg", "PSD", "NSD", "bounds")
    return _free(variable) * sum(bool(variable.attributes[name]) for name in names)


def _nonzeros(value: Any) -> float:
    return float(value.nnz if sp.issparse(value) else np.count_nonzero(value))


def _short(expression: Any) -> str:
    text = " ".join(str(expression).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _amount(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
