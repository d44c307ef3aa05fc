"""What becomes of an instance: as Clarabel judges an iterate (Goulart & Chen 2024, arXiv
2405.12762, section 6), with certificates that are tested more strictly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cvxlayers.program import OUTCOMES

__all__ = ["RUNNING", "Measures", "Progress", "Tolerances", "judge", "outcome"]

RUNNING = -1

# An answer of this accuracy is almost solved.
REDUCED_GAP, REDUCED_FEASIBLE = 5e-5, 1e-4
# Certificates are looked at from this κ/τ on, and hold to this tolerance. Clarabel's test is
# relative to z and x, and so is passed by any that grow fast enough: what is left has to be small
# beside the gain, too.
CERTAIN, INFEASIBLE, GAIN = 1e9, 1e-9, 1e-6
# A point of this size beside q and b is on its way to infinity, however small its residuals are
# beside it.
ABSURD = 1e10
# κ/τ below which there is no certificate to be had any more.
ROUNDING = 100.0 * torch.finfo(torch.float64).eps
WORSE = 100.0


def outcome(name: str) -> int:
    """The number of an outcome."""
    return OUTCOMES.index(name)


class Tolerances(NamedTuple):
    """Of the gap, absolute and relative, and of both residuals."""

    gap_absolute: float
    gap_relative: float
    feasible: float


class Measures(NamedTuple):
    """What the judgement of an iterate needs, each of shape (B,). Norms are Euclidean, but of q and
    b the largest entry, in the units of the data but for c. Those of q, b, x and P x are of the
    program before anything was replaced."""

    tau: Tensor
    kappa: Tensor
    c: Tensor
    norm_q: Tensor
    norm_b: Tensor
    qx: Tensor
    bz: Tensor
    xPx: Tensor
    norm_x: Tensor
    norm_z: Tensor
    norm_s: Tensor
    residual_x: Tensor  # −P x − Aᵀz − q τ
    residual_z: Tensor  # A x + s − b τ
    norm_Az: Tensor
    norm_Axs: Tensor  # A x + s
    norm_Px: Tensor
    beside: Tensor  # ‖P x‖ + ‖z‖ before anything was replaced
    constant: Tensor | None  # of the objective


class Progress(NamedTuple):
    """How far an iterate has come, each of shape (B,)."""

    dual: Tensor
    primal: Tensor
    gap: Tensor
    relative_gap: Tensor


def judge(
    f: Measures,
    previous: Progress | None,
    stuck: Tensor,
    tolerances: Tolerances,
    is_last: bool,
) -> tuple[Tensor, Progress]:
    """The outcome of every instance, or `RUNNING`, and its progress.

    Parameters
    ----------
    f : Measures
    previous : Progress, optional
        That of the iterate before; None where no comparison is made.
    stuck : Tensor of bool
        Which instances could not take a step.
    tolerances : Tolerances
    is_last : bool
        Whether no more iterations are left.
    """
    over, over_c = 1.0 / f.tau, 1.0 / f.c
    half = 0.5 * f.xPx * over * over
    primal_cost, dual_cost = (f.qx * over + half) * over_c, (-f.bz * over - half) * over_c
    norm_x, norm_z = f.norm_x, f.norm_z * over_c
    gap = (primal_cost - dual_cost).abs()
    if f.constant is not None:
        primal_cost, dual_cost = (
            primal_cost + f.constant * over_c,
            dual_cost + f.constant * over_c,
        )
    now = Progress(
        # Beside P x, not x: an x of 1e8 would excuse the dual residual of a linear program.
        f.residual_x * over * over_c / (f.norm_q + f.beside * over_c * over).clamp_min(1.0),
        f.residual_z * over / (f.norm_b + (norm_x + f.norm_s) * over).clamp_min(1.0),
        gap,
        gap / torch.minimum(primal_cost.abs(), dual_cost.abs()).clamp_min(1.0),
    )
    ratio = f.kappa * over
    size = torch.maximum(f.norm_q, f.norm_b).clamp_min(1.0)
    absurd = torch.maximum(norm_x, norm_z) * over > ABSURD * size
    closed = _is_closed(now, tolerances.gap_absolute, tolerances.gap_relative)
    feasible = torch.maximum(now.primal, now.dual)
    at_end = (ratio <= 1.0) & ~absurd
    solved = at_end & closed & (feasible < tolerances.feasible)

    certain = ratio > CERTAIN
    Az = f.norm_Az * over_c / norm_z.clamp_min(1.0)
    infeasible = (f.bz < -INFEASIBLE) & (Az < -INFEASIBLE * f.bz) & (f.norm_Az < -GAIN * f.bz)
    Px, Axs = f.norm_Px / norm_x.clamp_min(1.0), f.norm_Axs / (norm_x + f.norm_s).clamp_min(1.0)
    unbounded = (f.qx < -INFEASIBLE) & (torch.maximum(Px, Axs) < -INFEASIBLE * f.qx)
    unbounded &= torch.maximum(f.norm_Px, f.c * f.norm_Axs) < -GAIN * f.qx

    lost = stuck
    if previous is not None:
        was_closed = _is_closed(previous, tolerances.gap_absolute, tolerances.gap_relative)
        farther = (now.dual > previous.dual) | (now.primal > previous.primal)
        far = WORSE * tolerances.feasible
        astray = (now.dual > far) & (now.dual > WORSE * previous.dual)
        astray |= (now.primal > far) & (now.primal > WORSE * previous.primal)
        rounded = (ratio < ROUNDING) & was_closed
        lost = lost | (farther & (rounded | ((ratio < 1.0) & astray)))
    nearly = at_end & _is_closed(now, REDUCED_GAP, REDUCED_GAP) & (feasible < REDUCED_FEASIBLE)

    verdict = torch.full_like(stuck, RUNNING, dtype=torch.int8)
    # What comes later wins.
    if is_last:
        verdict.fill_(outcome("iteration limit"))
    verdict.masked_fill_(lost, outcome("insufficient progress"))
    verdict.masked_fill_((verdict != RUNNING) & nearly, outcome("almost solved"))
    verdict.masked_fill_(certain & unbounded, outcome("dual infeasible"))
    verdict.masked_fill_(certain & infeasible, outcome("primal infeasible"))
    verdict.masked_fill_(solved, outcome("solved"))
    # Neither NaN nor infinite: their sizes do not cancel each other.
    known = f.tau.abs() + now.primal + now.dual < torch.inf
    return verdict.masked_fill_(~known, outcome("numerical error")), now


def _is_closed(progress: Progress, absolute: float, relative: float) -> Tensor:
    return (progress.gap < absolute) | (progress.relative_gap < relative)
