"""Forward and backward against cvxpylayers. A time says nothing without its accuracy, so the
answers are compared first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.measure import Stopwatch, interleaved
from benchmarks.peers import PEERS, cvxpylayers_of, gradient_steps
from benchmarks.report import Row
from benchmarks.setup import Setup

__all__ = ["AGREEMENT", "COLUMNS", "agreement", "duel"]

# With Moreau, farther from ours than this an answer is another problem's. The defaults of
# cvxpylayers do not promise as much.
AGREEMENT = {"cvxpylayers": float("inf"), "Moreau": 1e-4}
COLUMNS = (
    "backward / forward",
    *(column for peer in PEERS for column in (peer, f"{peer}: x", f"{peer}: gradient")),
)

Answer = tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]


def duel(setup: Setup, rounds: int) -> Row:
    """Time of every peer over ours, and how far it is from our answer and our gradient."""
    ours = setup.layer(*setup.inputs)
    weights = [torch.randn_like(output) for output in ours]
    gradient = torch.autograd.grad(ours, setup.inputs, weights)
    competitors: dict[str, Callable[[Stopwatch], None]] = {
        "ours": gradient_steps(setup.layer, setup.inputs, weights)
    }
    row: Row = {}
    notes: list[str] = []
    for peer in PEERS:
        layer = cvxpylayers_of(setup.make(**setup.sizes), peer)
        if layer is None:
            continue
        try:
            theirs = answer(layer, setup, weights)
        except Exception as error:  # what a peer raises is its result, and Moreau raises Exception
            row[peer] = "fails"
            notes.append(f"{peer}, {setup.make.__name__}: {type(error).__name__}: {error}")
            continue
        try:
            row |= agreement(peer, setup, theirs, (ours, gradient))
        except ArithmeticError as error:
            row[peer] = "fails"
            notes.append(f"{peer}, {setup.make.__name__}: {error}")
            continue
        competitors[peer] = gradient_steps(layer, setup.inputs, weights, peer)
    row["note"] = "; ".join(notes)
    times = interleaved(competitors, rounds)
    row["backward / forward"] = times.ratio("backward", "forward")
    for peer in competitors:
        if peer in PEERS:
            row[peer] = times.ratio(f"{peer}forward+{peer}backward", "forward+backward")
    return row


def answer(
    layer: Callable[..., Sequence[Any]], setup: Setup, weights: Sequence[torch.Tensor]
) -> Answer:
    """The outputs of a layer, and its gradient."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Moreau's, of its choice of a method
        outputs = layer(*setup.inputs)
        return outputs, torch.autograd.grad(outputs, setup.inputs, weights)


def agreement(peer: str, setup: Setup, theirs: Answer, ours: Answer) -> Mapping[str, str]:
    """Relative distances from our answer and our gradient, over the whole batch.

    Raises
    ------
    ArithmeticError
        If the answers are farther apart than `AGREEMENT` allows.
    """
    distances = {"x": distance(theirs[0], ours[0])}
    if not distances["x"] <= AGREEMENT[peer]:
        raise ArithmeticError(f"the answers are {distances['x']:.0e} apart")
    # The gradient of a symmetric parameter is settled up to its antisymmetric part.
    symmetric = [p.ndim == 2 and p.is_symmetric() for p in setup.benchmark.parameters]
    pairs = [
        (a + a.mT, b + b.mT) if both else (a, b)
        for a, b, both in zip(theirs[1], ours[1], symmetric, strict=True)
    ]
    distances["gradient"] = distance([a for a, _ in pairs], [b for _, b in pairs])
    return {f"{peer}: {name}": f"{value:.0e}" for name, value in distances.items()}


def distance(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """In the Euclidean norm, relative to what was expected or, where that is smaller, to one."""
    with torch.no_grad():
        off = sum(float(((a - b) ** 2).sum()) for a, b in zip(found, expected, strict=True))
        size = sum(float((b**2).sum()) for b in expected)
    return (off / max(1.0, size)) ** 0.5
