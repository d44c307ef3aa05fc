"""Gradients of a call: finite, zero for what failed, and right where there is a derivative.

The truth are central differences of tight solves, which take the Newton iteration of
``conformance.tight`` on optimality conditions without projections.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from conformance.tight import TightSolver
from cvxlayers import Status

from .calls import Answer
from .menu import Built
from .recipes import Array, Recipe, project

STEP = 1e-3
# Tight solves that are good enough for differences, and regular enough to have them.
RESIDUAL, REGULAR = 1e-11, 1e-4
# Relative to the sum of the absolute terms of the directional derivative.
GRADIENT = 1e-4
# Of outputs, where the solution is unique. Tight solves are no better where a multiplier and its
# slack both vanish, and then there is no derivative either.
UNIQUE, SHARP = 3e-5, {False: 1e-8, True: 1e-6}


def check(recipe: Recipe, built: Built, answer: Answer, batch: tuple[int, ...]) -> list[str]:
    """Raise AssertionError if gradients are wrong; say what has been compared."""
    failed = answer.status != Status.SOLVED
    for gradient, value, parameter in zip(
        answer.gradients, answer.values, built.parameters, strict=True
    ):
        assert gradient.shape == value.shape and gradient.dtype == value.dtype
        assert not np.isnan(gradient).any(), f"a gradient for {parameter.name()} is NaN"
        # float32 overflows where float64 does not.
        assert recipe.single or np.isfinite(gradient).all(), f"infinite: {parameter.name()}"
        lead = value.shape[: value.ndim - parameter.ndim]
        if lead == batch:
            assert (gradient[failed] == 0).all(), f"{parameter.name()}: a failed row contributes"
        elif failed.all():
            assert (gradient == 0).all(), f"{parameter.name()}: failed rows contribute"
    if not recipe.well_scaled or failed.any() or answer.rough:
        return []
    if answer.degenerate is not None and answer.degenerate.any():
        return ["gradient: degenerate"]
    return [f"gradient: {_differences(recipe, built, answer, batch)}"]


class _Irregular(Exception):
    """Here the solution has no derivative, or none that differences of solves can tell."""


def _differences(recipe: Recipe, built: Built, answer: Answer, batch: tuple[int, ...]) -> str:
    rng = np.random.default_rng([recipe.seed, 3])
    values = [v.astype(float) for v in answer.values]
    directions = [
        _direction(v, p.ndim, kind, rng)
        for v, p, kind in zip(values, built.parameters, built.pool.kinds, strict=True)
    ]
    spec = SimpleNamespace(
        build=lambda: (built.problem, built.parameters, built.outputs),
        gp=False,
        regular=True,
        name="random",
    )
    solver = TightSolver(spec)

    def loss(h: float) -> float:
        total = 0.0
        for index in np.ndindex(batch):
            rows = []
            for v, d, p in zip(values, directions, built.parameters, strict=True):
                moved = v + h * d
                shape = moved.shape[moved.ndim - p.ndim :]
                rows.append(np.broadcast_to(moved, batch + shape)[index])
            try:
                found = solver.solve(rows)
                regular = solver.residual < RESIDUAL and (h != 0 or solver.regularity() > REGULAR)
            except Exception:  # CVXPY and Clarabel have errors of many types
                regular = False
            if not regular:
                raise _Irregular
            if h == 0:
                gap = _distance(built, found, [y[index] for y in answer.outputs])
                if gap > SHARP[recipe.single]:
                    raise _Irregular
            total += sum(
                float(np.vdot(g[index].astype(float), y))
                for g, y in zip(answer.upstream, found, strict=True)
            )
        return total

    try:
        center, far, near = loss(0.0), [loss(STEP), loss(-STEP)], [loss(STEP / 4), loss(-STEP / 4)]
    except _Irregular:
        return "irregular"
    coarse = (far[0] - far[1]) / (2 * STEP)
    fine = (near[0] - near[1]) / (STEP / 2)
    terms = [g.astype(float) * d for g, d in zip(answer.gradients, directions, strict=True)]
    scale = abs(fine) + sum(np.abs(t).sum() for t in terms)
    # At a kink the one-sided derivatives differ however small the step.
    jump = abs(near[0] - 2 * center + near[1]) / (STEP / 4)
    error = abs(coarse - fine)
    if max(error, jump) > 1e-2 * scale:
        return "not smooth"
    ours = sum(t.sum() for t in terms)
    allowed = GRADIENT * scale + error + 1e-8 / STEP
    assert abs(ours - fine) <= allowed, (
        f"the gradient along a direction is {ours:.8g}, differences say {fine:.8g} and "
        f"{coarse:.8g} (allowed {allowed:.1e})"
    )
    return "compared"


def _distance(built: Built, found: list[Array], outputs: list[Array]) -> float:
    """From the outputs to the truth. At a regular point primal and dual solution are unique."""
    size = 1 + max(np.abs(y).max(initial=0) for y in found)
    gaps = [
        np.abs(ours - theirs).max(initial=0) / size
        for ours, theirs in zip(outputs, found, strict=True)
    ]
    for variable, gap in zip(built.outputs, gaps, strict=True):
        assert gap <= UNIQUE, f"{variable.name()} is off by {gap:.2e}"
    return max(gaps)


def _direction(value: Array, ndim: int, kind: str, rng: np.random.Generator) -> Array:
    direction = rng.standard_normal(value.shape)
    if kind == "nonneg":
        return direction * np.abs(value)
    if kind:
        plain = "symmetric" if kind == "PSD" else kind
        for index in np.ndindex(value.shape[: value.ndim - ndim]):
            direction[index] = project(direction[index], plain)
    return direction
