"""What is said of the instances that were not solved, or not well."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cvxlayers.errors import SolverError
from cvxlayers.status import Status
from cvxlayers.warning import warn

__all__ = ["failure", "warn_of_gradients", "warn_of_path"]


def failure(solver: str, statuses: NDArray[np.int64], batch_shape: tuple[int, ...]) -> SolverError:
    """The error that names the instances, and why."""
    failed = np.flatnonzero(statuses != Status.SOLVED)
    by_index = {
        tuple(int(k) for k in np.unravel_index(i, batch_shape)) if batch_shape else (): Status(
            int(statuses[i])
        )
        for i in failed
    }
    groups: dict[Status, list[tuple[int, ...]]] = {}
    for index, status in by_index.items():
        groups.setdefault(status, []).append(index)
    reasons = [
        f"{_rows(indices)}{status.name}: {status.sentence}" for status, indices in groups.items()
    ]
    of = f"{len(failed)} of {len(statuses)} instances were" if batch_shape else "The problem was"
    rest = "such rows" if batch_shape else "it"
    advice = f"With on_failure='nan' the answer is NaN, with zero gradients, for {rest}."
    return SolverError(f"{of} not solved by {solver}. {'; '.join(reasons)}. {advice}", by_index)


def _rows(indices: list[tuple[int, ...]]) -> str:
    if indices == [()]:
        return ""
    shown = [str(i[0]) if len(i) == 1 else str(i) for i in indices[:10]]
    more = f", … ({len(indices) - 10} more)" if len(indices) > 10 else ""
    return f"{'row' if len(indices) == 1 else 'rows'} {', '.join(shown)}{more} "


def warn_of_gradients(rows: NDArray[np.intp], batch: int, residual: float) -> None:
    """Warn of instances whose optimality conditions are not met accurately."""
    shown = _listed(rows)
    warn(
        f"The solutions of {len(rows)} of {batch} instances ({shown}) could not be polished: "
        f"their optimality conditions hold to {residual:.1e} only, relative to their terms. They "
        "are as good as the solver's tolerance, but their gradients may be inaccurate. Rescale "
        "the data, so that the parameters are of similar size.",
        UserWarning,
    )


def warn_of_path(rows: NDArray[np.intp], batch: int, smoothing: float) -> None:
    """Warn of instances for which there is no point of the central path."""
    shown = _listed(rows)
    warn(
        f"The point of the central path at smoothing={smoothing:g} was not found for {len(rows)} "
        f"of {batch} instances ({shown}), so that their smoothed gradients may be inaccurate. The "
        "path exists where the constraints have an interior and the set of optima is bounded; with "
        "a larger smoothing it is easier to find.",
        UserWarning,
    )


def _listed(rows: NDArray[np.intp]) -> str:
    return ", ".join(map(str, rows[:10])) + (", …" if len(rows) > 10 else "")
