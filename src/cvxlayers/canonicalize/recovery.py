"""The way out: from the solver's (x, z) to the user's variables and dual variables.

Every entry of an output is one entry of x or z times a constant (√½ for an off-diagonal entry of
a PSD dual, say). So CVXPY's own inversion, whatever it does inside, is known once it was watched
on two inputs: all ones gives the constants, the numbers 1, 2, 3, … the positions. A third, random
one confirms it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.reductions.dgp2dcp.dgp2dcp import Dgp2Dcp
from numpy.typing import NDArray

from cvxlayers.affine import AffineMap
from cvxlayers.canonicalize.canonical import OutputSpec
from cvxlayers.errors import UnsupportedProblemError

__all__ = ["outputs"]

Array = NDArray[np.float64]


def outputs(
    problem: cp.Problem,
    chain: Any,
    cone_program: Any,
    inverse_data: Any,
    variables: Sequence[cp.Variable],
    kept: NDArray[np.bool_],
) -> tuple[OutputSpec, ...]:
    """An `OutputSpec` for every variable asked for.

    `kept` tells which rows of CVXPY's cone program were kept (see `canonicalize`).
    """
    n, m = cone_program.x.size, cone_program.constr_size
    gp = any(isinstance(r, Dgp2Dcp) for r in chain.reductions)
    primal_ids = {v.id for v in problem.variables()}
    wanted = {v.id: v for v in variables}

    primal = _watch(
        lambda x: _primal_values(x, chain, cone_program),
        n,
        [v for v in wanted.values() if v.id in primal_ids],
    )
    dual = _watch(
        lambda z: _dual_values(z, n, problem, chain, inverse_data),
        m,
        [v for v in wanted.values() if v.id not in primal_ids],
    )
    specs = []
    for variable in variables:
        shape = tuple(variable.shape)
        if variable.id in primal_ids:
            blocks = [primal[variable.id], sp.csr_array((variable.size, int(kept.sum())))]
        else:
            # A dropped row never binds: its dual is zero.
            matrix = sp.csr_array(dual[variable.id].tocsc()[:, np.flatnonzero(kept)])
            blocks = [sp.csr_array((variable.size, n)), matrix]
        recovery = AffineMap(blocks, np.zeros(variable.size))
        specs.append(OutputSpec(variable.name(), shape, recovery, gp and variable.id in primal_ids))
    return tuple(specs)


def _watch(
    invert: Callable[[Array], dict[int, Array]], size: int, variables: Sequence[cp.Variable]
) -> dict[int, sp.csr_array]:
    """The matrix of an inversion whose outputs are multiples of single inputs."""
    if not variables:
        return {}
    ramp = np.arange(1.0, size + 1.0)
    trial = np.random.default_rng(0).uniform(1.0, 2.0, size)
    factors, products, values = invert(np.ones(size)), invert(ramp), invert(trial)
    matrices = {}
    for variable in variables:
        # A variable that CVXPY eliminated because nothing depends on it counts as zero.
        nothing = np.zeros(variable.shape)
        factor, product, value = (
            np.ravel(_dense(found.get(variable.id, nothing)))
            for found in (factors, products, values)
        )
        targets = np.flatnonzero(factor)
        source = np.rint(product[targets] / factor[targets]).astype(np.intp) - 1
        shape = (variable.size, size)
        matrix = sp.csr_array((factor[targets], (targets, source % max(size, 1))), shape=shape)
        if not np.allclose(matrix @ trial, value, rtol=1e-12, atol=0):
            raise UnsupportedProblemError(
                f"The way from the solver's solution back to {variable.name()!r} is not understood "
                "here; please report the problem."
            )
        matrices[variable.id] = matrix
    return matrices


def _dense(value: Any) -> Array:
    return np.asarray(value.toarray() if sp.issparse(value) else value, dtype=np.float64)


def _primal_values(x: Array, chain: Any, cone_program: Any) -> dict[int, Array]:
    """Values of the user's variables, before the exponential of a geometric program."""
    values = {
        key: np.reshape(x[column : column + variable.size], variable.shape, order="F")
        for key, column in cone_program.var_id_to_col.items()
        for variable in [cone_program.id_to_var[key]]
    }
    for reduction in reversed(chain.reductions):
        if isinstance(reduction, Dgp2Dcp):
            for old, new in reduction.canon_methods._variables.items():
                if new.id in values:
                    values[old.id] = values.pop(new.id)
        else:
            # Not `invert`, which projects onto the variable's attributes and is not linear.
            values = reduction.var_forward(values)
    return values


def _dual_values(
    z: Array, n: int, problem: cp.Problem, chain: Any, inverse_data: Any
) -> dict[int, Array]:
    solver_result = SimpleNamespace(
        status="Solved", x=np.zeros(n), z=z, obj_val=0.0, solve_time=0.0, iterations=0
    )
    solution = chain.invert(solver_result, inverse_data)
    values: dict[int, Array] = {}
    for constraint in problem.constraints:
        if constraint.id not in solution.dual_vars:
            continue
        before = [dual._value for dual in constraint.dual_variables]
        # CVXPY splits the dual of a cone over its arguments while saving it.
        constraint.save_dual_value(solution.dual_vars[constraint.id])
        for dual, old in zip(constraint.dual_variables, before, strict=True):
            values[dual.id] = np.array(_dense(dual.value), copy=True)
            dual._value = old
    return values
