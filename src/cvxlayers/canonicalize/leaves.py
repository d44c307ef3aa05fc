"""The way in: from the user's parameters to the ones that CVXPY's chain ends with.

On the way a geometric program replaces a parameter by its logarithm, and a symmetric, diagonal or
sparse parameter is replaced by a vector of its free entries. Both keep positions, so that the way
in is a (partly repeated) selection of entries. A diagonal or sparse parameter is such a vector
from the start: nothing here is as large as its matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.reductions.cvx_attr2constr import CvxAttr2Constr
from cvxpy.reductions.dgp2dcp.dgp2dcp import Dgp2Dcp
from numpy.typing import NDArray

from cvxlayers.canonicalize.canonical import ParameterSpec, diagonal
from cvxlayers.errors import UnsupportedProblemError

__all__ = ["check_leaves", "parameter_parts", "parameter_spec"]

_HINTS = {
    "parameters": "List the parameter itself and index its value outside the layer.",
    "variables": "List the whole variable and index the layer's output instead; for the dual of a "
    "constraint, list constraint.dual_variables[0].",
}
_SYMMETRIC = ("symmetric", "PSD", "NSD")
_CHECKED = ("nonneg", "nonpos", "pos", "neg", "integer", "boolean", "diag", *_SYMMETRIC)


def check_leaves(
    problem: cp.Problem, parameters: Sequence[cp.Parameter], variables: Sequence[cp.Variable]
) -> None:
    """Raise unless the lists name the problem's parameters, all of them, and its variables."""
    if not isinstance(problem, cp.Problem):
        raise TypeError(f"problem: expected a cvxpy.Problem, got {type(problem).__name__}.")
    for name, leaves, kind in (
        ("parameters", parameters, cp.Parameter),
        ("variables", variables, cp.Variable),
    ):
        if not isinstance(leaves, (list, tuple)):
            raise TypeError(
                f"{name}: expected a list of cvxpy.{kind.__name__}, got "
                f"{type(leaves).__name__}; write {name}=[...]."
            )
        for position, leaf in enumerate(leaves):
            if not isinstance(leaf, kind):
                raise TypeError(
                    f"{name}[{position}]: expected a cvxpy.{kind.__name__}, got "
                    f"{type(leaf).__name__}. {_HINTS[name]}"
                )
    own = {p.id: p for p in problem.parameters()}
    seen: set[int] = set()
    for position, parameter in enumerate(parameters):
        if parameter.id not in own:
            raise ValueError(
                f"parameters[{position}] ({parameter.name()}) is not a parameter of the problem, "
                f"which has {_names(own.values())}. Remove it from the list, or use it."
            )
        if parameter.id in seen:
            raise ValueError(f"parameters[{position}] ({parameter.name()}) is listed twice.")
        seen.add(parameter.id)
    missing = [p for p in own.values() if p.id not in seen]
    if missing:
        raise ValueError(
            f"The list `parameters` must exactly match problem.parameters(); {_names(missing)} "
            "are missing. List them all, in the order of the layer's arguments. A .value that was "
            "set before does not count: to fix a parameter, put a cvxpy.Constant in its place."
        )
    duals = {d.id for con in problem.constraints for d in con.dual_variables}
    primals = {v.id for v in problem.variables()}
    if not variables:
        raise ValueError("variables: the list is empty, so that the layer would return nothing.")
    for position, variable in enumerate(variables):
        if variable.id not in primals | duals:
            raise ValueError(
                "The list `variables` must be a subset of problem.variables() and of the "
                f"constraints' dual variables; variables[{position}] ({variable.name()}) is "
                f"neither a variable of the problem ({_names(problem.variables())}) nor a dual "
                "variable of one of its constraints."
            )


def _names(leaves: Any) -> str:
    return "[" + ", ".join(leaf.name() for leaf in leaves) + "]"


def parameter_spec(parameter: cp.Parameter, position: int) -> ParameterSpec:
    """What is kept of a cvxpy.Parameter after construction."""
    attributes = {name for name in _CHECKED if parameter.attributes[name]}
    stored = None
    if parameter.attributes["diag"]:
        stored = diagonal(parameter.shape[0])
    elif parameter.sparse_idx is not None:
        attributes.add("sparsity")
        # CVXPY has put the indices in order and merged duplicates.
        stored = np.ravel_multi_index(parameter.sparse_idx, parameter.shape)
    bounds = parameter.attributes["bounds"]
    if bounds is not None:
        attributes.add("bounds")
        bounds = (_bound(bounds[0]), _bound(bounds[1]))
    return ParameterSpec(
        parameter.name(), tuple(parameter.shape), position, frozenset(attributes), stored, bounds
    )


def _bound(bound: Any) -> NDArray[np.float64]:
    """A bound as an array; of a sparse one the entries, in the order of those of its parameter."""
    if sp.issparse(bound):
        bound = sp.coo_array(bound, copy=True)
        bound.sum_duplicates()
        bound = bound.data
    return np.asarray(bound, dtype=np.float64)


def parameter_parts(
    chain: Any, cone_program: Any, parameters: Sequence[cp.Parameter]
) -> tuple[tuple[tuple[int, bool], ...], list[sp.csc_array]]:
    """The parts that P, q, A and b depend on, and how their entries fill the chain's columns.

    Returns
    -------
    parts : tuple of (position of the parameter, whether its logarithm is taken)
    columns : list of sparse arrays
        For each part, shape (columns of the chain, entries of the part). The entries are in C
        order; of a diagonal or sparse parameter they are the stored ones.
    """
    # Final parameter id → (user's parameter, logarithm taken?, reduced to free entries?)
    origin: dict[int, tuple[cp.Parameter, bool, bool]] = {
        p.id: (p, False, False) for p in parameters
    }
    for reduction in chain.reductions:
        if isinstance(reduction, Dgp2Dcp):
            for old, new in reduction.canon_methods._parameters.items():
                user, _, reduced = origin[old.id]
                origin[new.id] = (user, True, reduced)
        elif isinstance(reduction, CvxAttr2Constr):
            for old, new in reduction._parameters.items():
                user, logarithm, _ = origin[old.id]
                origin[new.id] = (user, logarithm, True)

    position = {p.id: k for k, p in enumerate(parameters)}
    width = cone_program.total_param_size
    parts: list[tuple[int, bool]] = []
    columns: list[sp.csc_array] = []
    for final in cone_program.parameters:
        if final.id not in origin:
            raise UnsupportedProblemError(
                f"CVXPY replaced a parameter by {final.name()!r} in a way that is not understood "
                "here; please report the problem."
            )
        user, logarithm, reduced = origin[final.id]
        entries = _reduced_entries(user) if reduced else _fortran_entries(user)
        start = cone_program.param_id_to_col[final.id]
        parts.append((position[user.id], logarithm))
        columns.append(_place(entries, start, width))
    return tuple(parts), columns


def _fortran_entries(parameter: cp.Parameter) -> sp.csc_array:
    size = parameter.size
    order = np.arange(size).reshape(parameter.shape).ravel(order="F")
    return sp.csc_array((np.ones(size), (np.arange(size), order)), shape=(size, size))


def _reduced_entries(parameter: cp.Parameter) -> sp.csc_array:
    """The free entries that CvxAttr2Constr keeps, from the entries of the part.

    Of a diagonal or sparse parameter they are the same, in the same order. A free entry of a
    symmetric matrix is read as the mean of its two places, so that the gradient comes out
    symmetric.
    """
    if not any(parameter.attributes[name] for name in _SYMMETRIC):
        count = parameter.shape[0] if parameter.attributes["diag"] else len(parameter.sparse_idx[0])
        return sp.eye_array(count, format="csc")
    number = np.arange(parameter.size).reshape(parameter.shape)
    i, j = np.triu_indices(parameter.shape[-1])
    upper = number[..., i, j].ravel(order="F")
    lower = number[..., j, i].ravel(order="F")
    sources = np.stack([upper, lower])
    count = sources.shape[1]
    target = np.broadcast_to(np.arange(count), sources.shape)
    data = np.full(sources.size, 0.5)
    matrix = sp.coo_array((data, (target.ravel(), sources.ravel())), shape=(count, parameter.size))
    return matrix.tocsc()


def _place(entries: sp.csc_array, start: int, width: int) -> sp.csc_array:
    coo = entries.tocoo()
    return sp.csc_array((coo.data, (coo.row + start, coo.col)), shape=(width, entries.shape[1]))
