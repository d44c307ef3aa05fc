"""What a compiled graph cannot hold: it says so, or that part runs uncompiled."""

from __future__ import annotations

import warnings
from ast import literal_eval
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch_checks import softmax

from cvxlayers import Info
from cvxlayers.torch.tracing import options_of

B = torch.tensor([[1.0, -1.0, 0.3], [0.2, 0.7, -0.1]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], fullgraph: bool = True) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=fullgraph, backend="aot_eager")


# PyTorch's own, where a graph breaks behind a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_solve_runs_uncompiled_between_two_graphs() -> None:
    """Its info is an object; what comes from before and after it is compiled all the same."""
    layer, b = softmax(), B.clone().requires_grad_()

    def function(b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        (x,), info = layer.solve(2 * b)
        return x.square().sum(), info

    with pytest.raises(torch._dynamo.exc.Unsupported, match="no graph can hold"):
        compiled(function)(b)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # Dynamo tells that it does not look into functions of torch's own.
        warnings.filterwarnings("ignore", "Dynamo does not know how to trace", UserWarning)
        value, info = compiled(function, fullgraph=False)(b)
    true, expected = function(b)
    assert torch.equal(value, true)
    assert info.summary() == expected.summary() and info.times["solver"] < 60
    (found,) = torch.autograd.grad(value, b)
    torch.testing.assert_close(found, torch.autograd.grad(true, b)[0], rtol=1e-12, atol=1e-12)
    assert (info.adjoint_residual < 1e-12).all()


def test_options_are_what_a_graph_can_keep() -> None:
    options = {"eps": np.float64(1e-3)}
    assert literal_eval(options_of(options, False, None, False, B.dtype))[0] == {"eps": 1e-3}
    with pytest.raises(
        ValueError, match=r"solver_args\['method'\]: a compiled graph keeps options"
    ):
        options_of({"method": object}, False, None, False, B.dtype)
