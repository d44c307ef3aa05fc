"""Layers where the compiled core is not there, or no more."""

from __future__ import annotations

import pickle
import threading

import cvxpy as cp
import numpy as np
import pytest
import torch

from cvxlayers.lanes import available, engine, engine_for
from cvxlayers.torch import CvxpyLayer

pytestmark = pytest.mark.skipif(not available(), reason="cvxlayers was installed without a core")

VALUE = torch.tensor([[0.2, 0.3], [2.0, 0.5]], dtype=torch.float64)
PROJECTED = [[0.45, 0.55], [1.0, 0.0]]


def simplex() -> CvxpyLayer:
    x, c = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.sum(x) == 1, x >= 0])
    return CvxpyLayer(problem, [c], [x])


def check(layer: CvxpyLayer) -> None:
    """Its projections, and the gradient of x₁: (½, −½) inside, zero at a vertex."""
    value = VALUE.clone().requires_grad_()
    (found,) = layer(value)
    np.testing.assert_allclose(found.detach(), PROJECTED, atol=1e-8)
    found[:, 0].sum().backward()
    np.testing.assert_allclose(value.grad, [[0.5, -0.5], [0.0, 0.0]], atol=1e-8)


def test_switched_off_after_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer keeps the engine that it has, also for what it has not done yet."""
    layer = simplex()
    layer(VALUE)
    monkeypatch.setenv("CVXLAYERS_LANES", "off")
    check(layer)


def test_a_stored_layer_chooses_its_solver_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = simplex()
    assert layer.operations.solution_map.solver.name == "LANES"
    stored = pickle.dumps(layer)
    monkeypatch.setenv("CVXLAYERS_LANES", "off")
    loaded = pickle.loads(stored)
    assert loaded.operations.solution_map.solver.name == "CLARABEL"
    check(loaded)
    monkeypatch.delenv("CVXLAYERS_LANES")
    again = pickle.loads(pickle.dumps(loaded))
    assert again.operations.solution_map.solver.name == "LANES"
    check(again)


def test_nobody_waits_for_the_engine_of_another_structure() -> None:
    layer = simplex()
    structure = layer.operations.canonical.structure
    found = engine_for(structure)
    assert found is not None
    answers = []
    with engine._lock:  # as while another engine is made
        thread = threading.Thread(target=lambda: answers.append(engine_for(structure)))
        thread.start()
        thread.join(timeout=10.0)
    thread.join()
    assert answers == [found]
