"""A step of a computation on a GPU, recorded once and repeated without the host.

An iteration for a batch of small programs is some hundred kernels that take less time than Python
needs to start them. A CUDA graph starts them all at once.

Recorded are the addresses of the tensors that the step reads and writes. So its state lies in
tensors of its own, which the step ends with writing to. Nothing in it may ask for a number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

__all__ = ["Repetition", "is_wanted"]

#: The environment variable that asks for it.
VARIABLE = "CVXLAYERS_CUDA_GRAPHS"


def is_wanted(device: torch.device) -> bool:
    """Whether steps on a device are to be recorded. It has not been measured, nor run, and so has
    to be asked for."""
    return device.type == "cuda" and os.environ.get(VARIABLE, "0") not in ("", "0")


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class Repetition:
    """A step that can be repeated.

    Parameters
    ----------
    state : sequence of Tensor
        What the step begins with.
    step : callable
        From tensors like `state` to new ones: what the next step begins with. It is called once,
        to be recorded, which does not compute anything.

    Raises
    ------
    RuntimeError
        If the step cannot be recorded.

    Attributes
    ----------
    state : list of Tensor
        What the step reads and writes: copies of the tensors given, to begin with.

    References
    ----------
    *CUDA semantics*, "CUDA Graphs", in PyTorch's documentation.
    """

    def __init__(
        self, state: Sequence[Tensor], step: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    ):
        self.state = [tensor.clone() for tensor in state]
        self._graph = torch.cuda.CUDAGraph()
        here = torch.cuda.current_stream(self.state[0].device)
        # What is recorded must not be on the default stream. One for all: cuBLAS keeps memory for
        # every stream that it has been called on.
        aside = _aside(self.state[0].device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                for old, new in zip(self.state, step(self.state), strict=True):
                    old.copy_(new)
            finally:
                self._graph.capture_end()
        here.wait_stream(aside)

    def __call__(self) -> None:
        """Do the step."""
        self._graph.replay()
