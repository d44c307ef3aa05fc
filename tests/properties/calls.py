"""One call of the layer for a recipe: what came back, whichever frontend gave it."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import cvxlayers.numpy
import cvxlayers.torch
from cvxlayers import CvxlayersError

from .menu import Built
from .recipes import Array, Recipe

# Long for problems of this size, of which at most six are solved, with every second try.
TIME_LIMIT = 30.0
# The library says that it could not reach full accuracy.
EXPECTED_WARNINGS = ("could not be polished",)


@dataclass
class Answer:
    """What a call of the layer gave.

    Parameters
    ----------
    error
        The library's exception, if there was one; then there is nothing else.
    outputs
        Arrays, batch axes first.
    status, degenerate
        Of the shape of the batch. Degeneracy is known of PyTorch alone.
    upstream, gradients
        Gradients for the outputs, drawn, and what came back for the parameters.
    rough
        Whether the library warned that gradients may be inaccurate.
    warnings
        All other warnings: none is expected.
    seconds
        That the call took, the making of the layer included.
    layer
        For further calls.
    """

    values: list[Array]
    error: CvxlayersError | None = None
    outputs: list[Array] = field(default_factory=list)
    status: Array = field(default_factory=lambda: np.zeros(0, int))
    degenerate: Array | None = None
    upstream: list[Array] = field(default_factory=list)
    gradients: list[Array] = field(default_factory=list)
    rough: bool = False
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    layer: object = None


def call(recipe: Recipe, built: Built, values: list[Array]) -> Answer:
    """Make the layer, solve, and take a random gradient back.

    Raises
    ------
    AssertionError
        If it takes too long.
    Exception
        Whatever is no exception of the library.
    """
    answer = Answer(values)
    run = {"torch": _torch, "numpy": _numpy}[recipe.frontend]
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run(recipe, built, answer)
        except CvxlayersError as error:
            answer.error = error
    answer.seconds = time.perf_counter() - start
    for warning in caught:
        if any(text in str(warning.message) for text in EXPECTED_WARNINGS):
            answer.rough = True
        else:
            place = f"{Path(warning.filename).name}:{warning.lineno}"
            answer.warnings.append(f"{place}: {warning.message}")
    assert answer.seconds < TIME_LIMIT, f"took {answer.seconds:.1f} s"
    return answer


def _upstream(recipe: Recipe, outputs: list[Array]) -> list[Array]:
    rng = np.random.default_rng([recipe.seed, 2])
    return [rng.standard_normal(y.shape).astype(y.dtype) for y in outputs]


def _torch(recipe: Recipe, built: Built, answer: Answer) -> None:
    layer = cvxlayers.torch.CvxpyLayer(
        built.problem, built.parameters, built.outputs, on_failure="nan"
    )
    answer.layer = layer
    leaves = [torch.tensor(v, requires_grad=True) for v in answer.values]
    outputs, info = layer.solve(*leaves)
    answer.outputs = [y.detach().numpy() for y in outputs]
    answer.status, answer.degenerate = np.asarray(info.status), np.asarray(info.degenerate)
    answer.upstream = _upstream(recipe, answer.outputs)
    found = torch.autograd.grad(outputs, leaves, [torch.as_tensor(g) for g in answer.upstream])
    answer.gradients = [g.numpy() for g in found]


def _numpy(recipe: Recipe, built: Built, answer: Answer) -> None:
    layer = cvxlayers.numpy.CvxpyLayer(
        built.problem, built.parameters, built.outputs, on_failure="nan"
    )
    answer.layer = layer
    plain, info = layer.solve(*answer.values)
    answer.outputs, answer.status = list(plain), np.asarray(info.status)
    # By name where a call by position would do as well; polished, and otherwise the same.
    names = [p.name() for p in built.parameters]
    polished, pullback = layer.vjp(**dict(zip(names, answer.values, strict=True)))
    for one, other in zip(plain, polished, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert np.array_equal(np.isnan(one), np.isnan(other)), "polishing changed who is solved"
    answer.outputs = list(polished)
    answer.upstream = _upstream(recipe, answer.outputs)
    answer.gradients = list(pullback(*answer.upstream))
