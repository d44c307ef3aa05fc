"""DENSE against Clarabel, and against what is known of random programs by construction."""

from __future__ import annotations

import pytest

from cvxlayers.solvers.dense import Dense
from lanes.programs import FAMILIES, KINDS
from solvers.agreement import Tally, examine, iterations_over_clarabel, share_left

# Of a family, what the engine may leave to Clarabel; for the WEAK kinds there is no limit.
LEFT = 0.03


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_agreement(family: str, kind: str) -> None:
    tally = Tally()
    examine(Dense, family, kind, 0, tally)
    assert not tally.wrong, "\n".join(tally.wrong)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_agreement_at_length(family: str, kind: str) -> None:
    """Of 3 600 programs."""
    tally = Tally()
    for seed in range(1, 11):
        examine(Dense, family, kind, seed, tally)
    print(f"{family}, {kind}: {tally.left} of {tally.count} left;", dict(tally.better))
    assert not tally.wrong, "\n".join(tally.wrong)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_little_is_left_to_clarabel(family: str) -> None:
    assert share_left(Dense, family) <= LEFT


@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_iterations_as_clarabel(family: str) -> None:
    assert 0.0 < iterations_over_clarabel(Dense, family) <= 1.15
