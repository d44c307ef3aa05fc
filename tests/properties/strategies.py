"""Random recipes. The weights favour problems that have a solution: only those test numbers."""

from __future__ import annotations

from hypothesis import strategies as st

from .menu import CONSTRAINTS, INFEASIBLE, OBJECTIVES
from .recipes import BATCHES, Recipe

SHAPES = [(), (1,), (2,), (3,), (4,), (1, 1), (1, 3), (2, 1), (2, 2), (3, 2)]
REGIMES = ["zero", "huge", "tiny", "large", "small", "rows", "repeated", "nan", "inf"]


def _variables() -> st.SearchStrategy:
    plain = st.tuples(st.sampled_from(SHAPES), st.sampled_from(["", "", "", "nonneg", "bounds"]))
    square = st.tuples(
        st.sampled_from([(1, 1), (2, 2), (3, 3)]), st.sampled_from(["symmetric", "PSD"])
    )
    one = st.one_of(plain, plain, plain, square)
    return st.lists(one, min_size=1, max_size=3).map(tuple)


def _numbered(names: list[str], least: int, most: int) -> st.SearchStrategy:
    pair = st.tuples(st.sampled_from(names), st.integers(0, 2))
    return st.lists(pair, min_size=least, max_size=most).map(tuple)


def _constraints() -> st.SearchStrategy:
    feasible = [name for name in CONSTRAINTS if name not in INFEASIBLE]
    usual = _numbered([*feasible, "box", "box", "inequality"], 0, 3)
    any_ = _numbered(list(CONSTRAINTS), 1, 3)
    return st.one_of(usual, usual, usual, usual, any_)


def recipes() -> st.SearchStrategy:
    """A recipe of any kind."""
    ordinary = st.just(("normal",))
    spoilt = st.lists(st.sampled_from(["normal", *REGIMES]), min_size=1, max_size=3).map(tuple)
    return st.builds(
        Recipe,
        variables=_variables(),
        objective=_numbered(list(OBJECTIVES), 1, 3),
        constraints=_constraints(),
        strict=st.booleans(),
        maximize=st.booleans(),
        parametric=st.lists(st.sampled_from([0, 1, 1, 2]), min_size=1, max_size=6).map(tuple),
        regimes=st.one_of(ordinary, spoilt),
        batch=st.sampled_from(["none", "none", *BATCHES]),
        single=st.sampled_from([False, False, False, True]),
        frontend=st.sampled_from(["torch", "torch", "numpy"]),
        dual=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )
