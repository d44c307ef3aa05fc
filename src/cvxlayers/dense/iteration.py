"""The homogeneous embedding of

    minimize ½ xᵀP x + qᵀx   subject to   A x + s = b,  s ∈ K

by a predictor–corrector interior-point method (Goulart & Chen 2024, arXiv 2405.12762): with
unknowns (x, z, s, τ, κ) and residuals

    r_x = −P x − Aᵀz − q τ,   r_z = A x + s − b τ,   r_τ = qᵀx + bᵀz + κ + xᵀP x/τ

a step is (dx, dz) = (x₁, z₁) + dτ (x₂, z₂), where K (x₂, z₂) = (−q, b), and
K (x₁, z₁) = (ρ r_x, shift − ρ r_z), ds = −(H dz + shift), with ρ = 1 − σ, H = WᵀW and
K = [P Aᵀ; A −H] (`scaled_system`, `direction`).

All instances of a batch take their steps together. One that has ended keeps its place, without a
step, until enough of them have.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cvxlayers.dense.answer import Answer
from cvxlayers.dense.cones import Product, ProductScaling
from cvxlayers.dense.contradiction import contradiction
from cvxlayers.dense.data import Data, take
from cvxlayers.dense.direction import Directions, Residuals, Step
from cvxlayers.dense.judgement import (
    RUNNING,
    Measures,
    Progress,
    Tolerances,
    judge,
    outcome,
)
from cvxlayers.dense.products import columns, product
from cvxlayers.dense.repetition import VARIABLE, Repetition, Way, way
from cvxlayers.dense.scaled_system import ScaledSystem
from cvxlayers.warning import warn

__all__ = ["Solve", "is_over"]

STEP_FRACTION, LEAST_STEP, SWITCH_STEP = 0.99, 1e-4, 0.1
# Of refinement in each solve, for the scalings of curved cones, which cancel more, and else; more
# where the start is the end, because there is no inequality. With one round for all of them 1e-11
# is out of reach of 18 % of programs with second-order cones, with two of 10 %.
ROUNDS, ROUNDS_OF_FLAT, ROUNDS_OF_ONE_STEP = 2, 1, 10
# A factorisation that fails is made again with this many times the regularisation, so many times.
BOOST, MOST_BOOST = 100.0, 1e8
# Ended instances leave the batch once no more than this part of it goes on. Iterations that were
# recorded have to be recorded anew then, and those that were compiled have their size.
COMPACT = {"eager": 0.75, "recorded": 0.25, "compiled": 0.0}
# So many iterations of a device pass until the host asks how many instances go on: it waits then.
EVERY = 3


@dataclass
class Iterate:
    """The instances under way, and those among them that have ended."""

    x: Tensor
    z: Tensor
    s: Tensor
    tau: Tensor
    kappa: Tensor
    #: Positions in the answer, shape (B,).
    place: Tensor
    outcome: Tensor
    iterations: Tensor
    #: Which use the dual scaling.
    dual: Tensor
    #: Which could not take a step.
    stuck: Tensor
    #: By how much more than usual their system is regularised.
    boost: Tensor


# Read by name: what is compiled does not take `fields`.
OF_ITERATE = tuple(f.name for f in fields(Iterate))
OF_RESIDUALS = tuple(f.name for f in fields(Residuals))


class Solve:
    """One batch on its way.

    Parameters
    ----------
    data : Data
    cones : Product
    usable : Tensor of bool
        Shape (B,): which instances there are to solve.
    tolerances : Tolerances
    linear : bool
        Whether there is no P.
    """

    def __init__(
        self, data: Data, cones: Product, usable: Tensor, tolerances: Tolerances, linear: bool
    ):
        self.data, self.cones, self.tolerances, self.linear = data, cones, tolerances, linear
        self.rounds = ROUNDS_OF_FLAT if cones.is_flat else ROUNDS
        if not cones.degree:
            self.rounds = ROUNDS_OF_ONE_STEP
        self.residuals: Residuals
        self.previous: Progress
        batch, device = len(usable), usable.device
        ones, false = data.q.new_ones(batch), torch.zeros_like(usable)
        unit = cones.unit().expand(batch, -1)
        self.at = Iterate(
            torch.zeros_like(data.q),
            unit,
            unit,
            ones,
            ones,
            torch.arange(batch, device=device),
            torch.where(usable, RUNNING, outcome("numerical error")).to(torch.int8),
            torch.zeros(batch, dtype=torch.long, device=device),
            false,
            false,
            ones,
        )

    def run(self, iterations: int, deadline: float | None, answer: Answer) -> None:
        """Iterate until every instance has ended; write what became of them."""
        if self.cones.symmetric:
            self._start()
        if self.cones.zero:
            self._refute()
        device = self.at.x.device
        every, how = 1 if device.type == "cpu" else EVERY, way()
        repeats = how != "eager"
        self._look(0, is_last=iterations == 0)
        repetition: Repetition | None = None
        for iteration in range(1, iterations + 1):
            if iteration % every == 0:
                # The one time that the host waits for the device.
                running = int((self.at.outcome == RUNNING).sum())
                if not running:
                    break
                if is_over(deadline):
                    over = self.at.outcome == RUNNING
                    self.at.outcome = torch.where(over, outcome("stopped"), self.at.outcome)
                    break
                if running <= COMPACT[how] * len(self.at.place):
                    self._compact(answer)
                    repetition = None
            # The first differs, and so does the last.
            if repeats and 1 < iteration < iterations:
                repetition = repetition or self._repetition(how)
                repeats = repetition is not None
            if repetition is not None and iteration < iterations:
                repetition()
                self._enter(repetition.state)
            else:
                self._iterate(iteration, is_last=iteration == iterations)
        self._write(torch.arange(len(self.at.place), device=device), answer)

    def _iterate(self, iteration: int, is_last: bool) -> None:
        self._advance(self.residuals, is_first=iteration == 1)
        self._look(iteration, is_last)

    def _look(self, iteration: int, is_last: bool) -> None:
        """Where the iterates are, and what becomes of them."""
        self.residuals, measures = self._residuals()
        self._judge(measures, iteration, is_last)

    def _state(self) -> list[Tensor]:
        """All that an iteration changes."""
        at = [getattr(self.at, name) for name in OF_ITERATE]
        return [*at, *(getattr(self.residuals, name) for name in OF_RESIDUALS), *self.previous]

    def _enter(self, state: Sequence[Tensor]) -> None:
        first = len(OF_ITERATE)
        second = first + len(OF_RESIDUALS)
        self.at, self.residuals = Iterate(*state[:first]), Residuals(*state[first:second])
        self.previous = Progress(*state[second:])

    def _repetition(self, how: Way) -> Repetition | None:
        """An iteration that can be repeated, or None, with a warning, where that fails."""
        state, on_gpu = self._state(), self.at.x.device.type == "cuda"
        recorded = on_gpu and self.cones.never_asks
        try:
            return Repetition(state, self._again, how == "compiled", recorded)
        except RuntimeError as error:
            warn(f"{VARIABLE}={how}: an iteration could not be: {error}", UserWarning)
            self._enter(state)
            return None

    def _again(self, state: Sequence[Tensor]) -> list[Tensor]:
        """What an iteration makes of a state, if it is not the first and not the last."""
        self._enter(state)
        self._iterate(2, is_last=False)
        return self._state()

    # ---- instances that have ended ----

    def _compact(self, answer: Answer) -> None:
        running = self.at.outcome == RUNNING
        self._write(torch.nonzero(~running)[:, 0], answer)
        kept = torch.nonzero(running)[:, 0]
        self.at, self.data = take(self.at, kept), take(self.data, kept)
        self.residuals = take(self.residuals, kept)
        self.previous = Progress(*(v[kept] for v in self.previous))

    def _write(self, rows: Tensor, answer: Answer) -> None:
        at, data = take(self.at, rows), take(self.data, rows)
        certificate = at.outcome == outcome("primal infeasible")
        certificate |= at.outcome == outcome("dual infeasible")
        over = 1.0 / torch.where(certificate, at.kappa, at.tau)
        over *= torch.where(certificate, 1.0, data.unit)
        # What was not begun with has zeros for data.
        unusable = (at.outcome == outcome("numerical error")) & (at.iterations == 0)
        over = torch.where(unusable, torch.nan, over)[:, None]
        answer.x[at.place] = at.x * data.d * over
        answer.z[at.place] = at.z * data.e * (over / data.c[:, None])
        answer.s[at.place] = at.s / data.e * over
        answer.outcome[at.place] = at.outcome
        answer.iterations[at.place] = at.iterations

    # ---- one iteration ----

    def _start(self) -> None:
        """(x, s, z) from the solution of the system at H = I, moved into the cones. Without P it
        takes two systems: (0, b) for x and s, (−q, 0) for z."""
        at, data = self.at, self.data
        scaling = self.cones.scale(at.s, at.z, torch.ones_like(at.tau), at.dual)
        system = self._system(scaling)
        if self.linear:
            zero_x, zero_z = torch.zeros_like(data.q), torch.zeros_like(data.b)
            r1, r2 = columns(zero_x, -data.q), columns(data.b, zero_z)
        else:
            r1, r2 = columns(-data.q), columns(data.b)
        x, z = system.solve(r1, r2, self.rounds)
        s = -z[..., 0]
        s[:, : self.cones.zero] = 0.0
        at.x, at.s = x[..., 0], self.cones.move_inside(s)
        at.z = self.cones.move_inside(z[..., -1])
        # An instance whose system fails has the middle of the cones to begin with.
        known = system.is_factored & torch.isfinite(x).all((1, 2)) & torch.isfinite(z).all((1, 2))
        unit = self.cones.unit()
        at.x = torch.where(known[:, None], at.x, 0.0)
        at.s = torch.where(known[:, None], at.s, unit)
        at.z = torch.where(known[:, None], at.z, unit)

    def _refute(self) -> None:
        """End the instances whose equalities contradict each other."""
        at, zero = self.at, self.cones.zero
        z, refuted = contradiction(self.data.A[:, :zero], self.data.b[:, :zero], self.data.d)
        refuted &= at.outcome == RUNNING
        certificate = torch.cat([z, torch.zeros_like(at.z[:, zero:])], dim=1)
        at.z = torch.where(refuted[:, None], certificate, at.z)
        at.outcome = torch.where(refuted, outcome("primal infeasible"), at.outcome).to(torch.int8)

    def _residuals(self) -> tuple[Residuals, Measures]:
        at, data = self.at, self.data
        tau = at.tau[:, None]
        Px = data.c[:, None] * product(data.P, at.x)
        Az, Axs = product(data.A.mT, at.z), product(data.A, at.x) + at.s
        rx, rz = -Az - Px - tau * data.q, Axs - tau * data.b
        qx, bz, xPx = (data.q * at.x).sum(1), (data.b * at.z).sum(1), (Px * at.x).sum(1)
        mu = ((at.s * at.z).sum(1) + at.tau * at.kappa) / (self.cones.degree + 1)
        norm = torch.linalg.vector_norm
        norm_z, norm_x, norm_Px, beside = self._sizes(Px)
        measures = Measures(
            at.tau,
            at.kappa,
            data.c,
            data.norm_q,
            data.norm_b,
            qx,
            bz,
            xPx,
            norm_x,
            norm_z,
            norm(at.s / data.e, dim=1),
            norm(rx / data.d, dim=1),
            norm(rz / data.e, dim=1),
            norm(Az / data.d, dim=1),
            norm(Axs / data.e, dim=1),
            norm_Px,
            beside,
            None if data.defined is None else data.defined.constant,
        )
        return Residuals(Px, rx, rz, qx + bz + at.kappa + xPx / at.tau, xPx, mu), measures

    def _sizes(self, Px: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """‖z‖; and with what was replaced ‖x‖, ‖P x‖, and that with ‖z‖; shapes (B,)."""
        at, data, of_y, norm = self.at, self.data, self.data.defined, torch.linalg.vector_norm
        norm_z = norm(at.z * data.e, dim=1)
        if of_y is None:
            norm_Px = norm(Px / data.d, dim=1)
            return norm_z, norm(at.x * data.d, dim=1), norm_Px, norm_Px + norm_z
        x, y = at.x + at.tau[:, None] * of_y.x0, of_y.y(at.x, at.tau)
        norm_x = norm(torch.cat([x * data.d, y * of_y.d], dim=1), dim=1)
        v, Px = of_y.multipliers(y, at.tau, data.c), of_y.p * y / of_y.d
        if of_y.P is not None:
            Px = torch.cat([product(of_y.P, x) / data.d, Px], dim=1)
        norm_Px = data.c * norm(Px, dim=1)
        return norm_z, norm_x, norm_Px, norm_Px + torch.hypot(norm_z, norm(v * of_y.e, dim=1))

    def _judge(self, measures: Measures, iteration: int, is_last: bool) -> None:
        at = self.at
        before = self.previous if iteration > 1 else None
        verdict, self.previous = judge(measures, before, at.stuck, self.tolerances, is_last)
        running = at.outcome == RUNNING
        at.outcome = torch.where(running, verdict, at.outcome)
        # Counted, so that an iteration does the same each time.
        at.iterations = at.iterations + running * int(iteration > 0)

    def _system(self, scaling: ProductScaling) -> ScaledSystem:
        G = scaling.inverse_transposed(self.data.A)
        return ScaledSystem(self.data.P, self.data.c, G, self.cones.zero, self.at.boost)

    def _advance(self, r: Residuals, is_first: bool) -> None:
        """The predictor and the corrector, and the step."""
        at, data = self.at, self.data
        scaling = self.cones.scale(at.s, at.z, r.mu, at.dual)
        system = self._system(scaling)
        scaled = scaling.inverse_transposed(columns(data.b, r.rz))
        scaled_b, scaled_rz = scaled.unbind(-1)
        shift = scaling.affine_shift()
        x, z = system.solve(
            columns(-data.q, r.rx), columns(scaled_b, shift - scaled_rz), self.rounds
        )
        constant = x[..., 0], z[..., 0]
        directions = Directions(data, scaling, r, at.tau, at.kappa, constant)
        whole, product = torch.ones_like(r.mu), at.tau * at.kappa
        affine = directions.step((x[..., 1], z[..., 1]), shift, whole, product)
        reach = self._step_length(scaling, affine)
        sigma = (1.0 - reach) ** 3
        damp, sigma_mu = 1.0 - sigma, sigma * r.mu
        # Of the first iteration the second-order correction is weighed by the step.
        second = reach if is_first else whole
        shift = scaling.combined_shift(affine.s, affine.z, sigma_mu, second)
        of_kappa = second * affine.tau * affine.kappa + product - sigma_mu
        x, z = system.solve(
            columns(damp[:, None] * r.rx), columns(shift - damp[:, None] * scaled_rz), self.rounds
        )
        combined = directions.step((x[..., 0], z[..., 0]), shift, damp, of_kappa)
        reach = self._step_length(scaling, combined)
        total = combined.tau + combined.kappa
        total = total + (combined.x.sum(1) + combined.z.sum(1) + combined.s.sum(1))
        # Less than infinity is what is not NaN, either.
        usable = (total.abs() < torch.inf) & (reach > 0.0)
        self._move(combined, (STEP_FRACTION * reach).masked_fill_(~usable, 0.0), system)

    def _step_length(self, scaling: ProductScaling, step: Step) -> Tensor:
        """Shape (B,): how far the step may go, at most one; anything where it is not finite."""
        slope = torch.minimum(step.tau / self.at.tau, step.kappa / self.at.kappa)
        return scaling.longest_step(step.s, step.z, (-slope).clamp_min(1.0).reciprocal())

    def _move(self, step: Step, alpha: Tensor, system: ScaledSystem) -> None:
        at = self.at
        running = at.outcome == RUNNING
        again = running & ~system.is_factored & (at.boost < MOST_BOOST)
        at.boost = torch.where(again, BOOST * at.boost, at.boost)
        takes = running & ~again
        if not self.cones.symmetric:
            # Where the primal–dual scaling leads to short steps, the dual one takes over.
            switched = takes & ~at.dual & (alpha < SWITCH_STEP)
            at.dual = at.dual | switched
            takes = takes & ~switched
        at.stuck = takes & ~(alpha > LEAST_STEP)
        moves = takes & (alpha > 0.0)
        alpha = alpha.masked_fill_(~moves, 0.0)

        def moved(value: Tensor, change: Tensor) -> Tensor:
            shaped = alpha if value.ndim == 1 else alpha[:, None]
            mask = moves if value.ndim == 1 else moves[:, None]
            return torch.where(mask, torch.addcmul(value, shaped, change), value)

        at.x, at.z, at.s = moved(at.x, step.x), moved(at.z, step.z), moved(at.s, step.s)
        at.tau, at.kappa = moved(at.tau, step.tau), moved(at.kappa, step.kappa)


def is_over(deadline: float | None) -> bool:
    """Whether a value of `time.monotonic` has passed."""
    return deadline is not None and time.monotonic() >= deadline
