"""Random problems, values and calls: always a right answer, or one of the library's statuses or
exceptions, in time.

A failure prints the recipe; ``judge.check(Recipe(...))`` does it again.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from . import judge
from .found import FOUND
from .recipes import Recipe
from .strategies import recipes

# Cases compile problems, which is slow; and shrinking one takes longer than all others together.
COMMON = settings(
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
# Chunks have a seed each, so that one that fails does not hide what the others find.
CHUNKS, EACH = 10, 250
# Of the well-scaled instances that have a solution: the share that may be called not solved.
UNSOLVED = 0.01


@settings(COMMON, max_examples=400, derandomize=True)
@given(recipes())
def test_random_problems(recipe: Recipe) -> None:
    judge.check(recipe)


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_before(name: str) -> None:
    judge.check(FOUND[name])


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_many_random_problems(chunk: int) -> None:
    failures: list[str] = []
    tally: Counter[str] = Counter()

    @seed(chunk)
    @settings(COMMON, max_examples=EACH)
    @given(recipes())
    def run(recipe: Recipe) -> None:
        try:
            tally.update(judge.check(recipe))
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}\n    {recipe!r}")

    run()
    print(*tally.most_common(), sep="\n")
    assert not failures, "\n".join([f"{len(failures)} failures:", *failures])
    solved = sum(count for label, count in tally.items() if label.startswith("solved"))
    unsolved = sum(count for label, count in tally.items() if label.endswith("has a solution"))
    assert unsolved <= UNSOLVED * solved
