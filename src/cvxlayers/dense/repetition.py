"""A step of a computation that is repeated: compiled, or recorded, or both.

An iteration for a batch of small programs is some 500 kernels, which take less time than Python
needs to start them. `torch.compile` fuses most of them, those of the cones among them; a CUDA graph
starts them all at once. Both take their time before the first step, and neither has been measured
on a GPU, so that they have to be asked for.

Recorded are the addresses of the tensors that a step reads and writes. So its state lies in tensors
of its own, which the step ends with writing to. Nothing in it may ask for a number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["VARIABLE", "Repetition", "Way", "way"]

Step: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Way: TypeAlias = Literal["eager", "recorded", "compiled"]

#: The environment variable that says how iterations are done.
VARIABLE = "CVXLAYERS_ITERATIONS"
WAYS: tuple[Way, ...] = ("eager", "recorded", "compiled")


def way() -> Way:
    """How iterations are to be done: one by one, recorded, or compiled (and recorded, where that is
    possible).

    Raises
    ------
    ValueError
        If the environment variable has another value.
    """
    value = os.environ.get(VARIABLE, "eager")
    for known in WAYS:
        if value == known:
            return known
    raise ValueError(f"{VARIABLE}: expected 'eager', 'recorded' or 'compiled', got {value!r}")


class Repetition:
    """A step that can be repeated.

    Parameters
    ----------
    state : sequence of Tensor
        What the step begins with.
    step : callable
        From tensors like `state` to new ones: what the next step begins with.
    compiled : bool
        Whether it is compiled: that takes seconds to minutes, and is kept by PyTorch for other
        states of the same shapes.
    recorded : bool
        Whether it is recorded, which takes a GPU.

    Raises
    ------
    RuntimeError
        If the step cannot be compiled, or recorded.

    Attributes
    ----------
    state : list of Tensor
        What the step reads and writes: copies of the tensors given, to begin with.

    References
    ----------
    *CUDA semantics*, "CUDA Graphs", in PyTorch's documentation.
    """

    def __init__(self, state: Sequence[Tensor], step: Step, compiled: bool, recorded: bool):
        self.state = [tensor.clone() for tensor in state]
        self._step, self._graph = step, None
        if compiled:
            self._step = torch.compile(step, fullgraph=True)
            self._step(self.state)  # compiles it
        if recorded:
            self._graph = self._recorded()

    def __call__(self) -> None:
        """Do the step."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._write()

    def _write(self) -> None:
        for old, new in zip(self.state, self._step(self.state), strict=True):
            old.copy_(new)

    def _recorded(self) -> torch.cuda.CUDAGraph:
        graph, device = torch.cuda.CUDAGraph(), self.state[0].device
        here, aside = torch.cuda.current_stream(device), _aside(device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._write()
            finally:
                graph.capture_end()
        here.wait_stream(aside)
        return graph


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    # What is recorded must not be on the default stream. One for all: cuBLAS keeps memory for every
    # stream that it has been called on.
    return torch.cuda.Stream(device)
