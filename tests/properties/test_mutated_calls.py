"""Calls and constructors with something wrong in them: a documented exception that names it."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cvxlayers.numpy
import cvxlayers.torch
from cvxlayers import CvxlayersError

SHAPES = {"A": (3, 2), "b": (3,), "r": ()}
COMMON = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def problem() -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    """Least squares with a bound, and parameters of three ranks."""
    A, b = cp.Parameter((3, 2), name="A"), cp.Parameter(3, name="b")
    r, x = cp.Parameter(name="r", nonneg=True), cp.Variable(2, name="x")
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= -r]), [A, b, r], [x]


LAYERS = {
    "torch": cvxlayers.torch.CvxpyLayer(*problem()),
    "numpy": cvxlayers.numpy.CvxpyLayer(*problem()),
}


def right(name: str) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.5, 1.5, SHAPES[name])


def junk() -> st.SearchStrategy[Any]:
    """Values that are no arrays of real numbers."""
    return st.sampled_from(
        [
            None,
            "1.0",
            "",
            b"ab",
            object(),
            {},
            {"a": 1.0},
            set(),
            lambda: 1.0,
            1j,
            np.array([1j, 2.0]),
            np.array(["a", "b"]),
            np.array([None, 1.0], dtype=object),
            np.array("2020-01-01", dtype="datetime64[D]"),
            [[1.0], [1.0, 2.0]],
            [[1.0, "x"]],
            [None],
            cp.Variable(2),
            float,
            np.float64,
            torch.float32,
            range(3),
            iter([1.0]),
        ]
    )


def wrong_shape(name: str) -> st.SearchStrategy[np.ndarray]:
    """Arrays whose last axes are not the parameter's."""
    shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
    k = len(SHAPES[name])
    return shapes.filter(lambda s: k > 0 and s[len(s) - min(k, len(s)) :] != SHAPES[name]).map(
        np.ones
    )


def not_finite(name: str) -> st.SearchStrategy[np.ndarray]:
    def put(bad: float, place: int) -> np.ndarray:
        value = right(name)
        value.ravel()[place % value.size] = bad
        return value

    return st.builds(put, st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(0, 5))


@settings(COMMON, max_examples=300)
@given(st.data())
def test_a_wrong_value_is_an_error_that_names_its_parameter(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(LAYERS)), label="frontend")
    name = data.draw(st.sampled_from(list(SHAPES)), label="parameter")
    wrong = [junk(), not_finite(name)] + ([wrong_shape(name)] if SHAPES[name] else [])
    bad = data.draw(st.one_of(wrong), label="value")
    values = {n: right(n) for n in SHAPES} | {name: bad}
    if kind == "torch":
        as_tensors = data.draw(st.booleans(), label="tensors")
        if as_tensors:
            values = {n: torch.as_tensor(v) if _is_real(v) else v for n, v in values.items()}
    if data.draw(st.booleans(), label="by position"):
        args: tuple[Any, ...] = tuple(values.values())
        kwargs: dict[str, Any] = {}
    else:
        args, kwargs = (), values
    with pytest.raises(CvxlayersError) as caught:
        LAYERS[kind](*args, **kwargs)
    assert isinstance(caught.value, ValueError | TypeError)
    assert repr(name) in str(caught.value), caught.value


def _is_real(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


@settings(COMMON, max_examples=100)
@given(
    st.sampled_from(list(LAYERS)),
    st.sampled_from(["missing", "extra", "twice", "unknown", "none"]),
    st.sampled_from(list(SHAPES)),
    st.text(min_size=1, max_size=5).filter(lambda t: t not in (*SHAPES, "self")),
)
def test_wrong_arguments_are_an_error(kind: str, how: str, name: str, text: str) -> None:
    values = {n: right(n) for n in SHAPES}
    args: list[Any] = []
    named = ""
    if how == "missing":
        del values[name]
        named = name
    elif how == "extra":
        args, values = [*values.values(), 1.0], {}
    elif how == "twice":
        args, named = [values["A"]], "A"
    elif how == "unknown":
        values[text] = 1.0
        named = text
    else:
        values = {}
    with pytest.raises(CvxlayersError) as caught:
        LAYERS[kind](*args, **values)
    # As text of its own or as a literal, with escapes.
    assert named in str(caught.value) or repr(named) in str(caught.value)


OPTIONS: list[tuple[str, Any]] = [
    *(("eps", v) for v in (0, -1e-8, np.nan, np.inf, "1e-8", True, [1e-8], object())),
    *(("max_iters", v) for v in (0, -1, 1.5, "10", True, np.inf, [3])),
    *(("polish", v) for v in (1, "yes", [], 0.0)),
    *(("verbose", v) for v in (1, "no", [])),
    *(("max_iter", v) for v in ("ten", -3, [], object())),
    *(("tol_feas", v) for v in ("x", [], object())),
    ("tol_faes", 1e-8),
    ("", 1),
    (3, 1),
]


@COMMON
@given(st.sampled_from(list(LAYERS)), st.sampled_from(OPTIONS))
def test_a_wrong_option_is_an_error_that_names_it(kind: str, option: tuple[Any, Any]) -> None:
    name, value = option
    with pytest.raises((ValueError, TypeError), match="solver_args") as caught:
        LAYERS[kind](*(right(n) for n in SHAPES), solver_args={name: value})
    assert str(name) in str(caught.value)


@COMMON
@given(
    st.sampled_from(list(LAYERS)),
    st.sampled_from(["solver_args", "on_failure", "warm_start"]),
    st.sampled_from(["fast", 3, 1.5, object(), ["eps"], True]),
)
def test_a_wrong_keyword_is_an_error_that_names_it(kind: str, name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        LAYERS[kind](*(right(n) for n in SHAPES), **{name: value})


CONSTRUCTORS: list[tuple[str, Any]] = [
    *(("problem", v) for v in (None, "p", 3, cp.Variable(), cp.Minimize(cp.Variable()))),
    *(("parameters", v) for v in (None, "A", [], 3, [None], ["A"], [cp.Variable(2)], {}, set())),
    *(("parameters", v) for v in ([cp.Parameter(name="other")],)),
    *(("variables", v) for v in (None, "x", [], 3, [None], ["x"], [cp.Parameter()], {})),
    *(("variables", v) for v in ([cp.Variable(name="other")],)),
    *(("solver", v) for v in ("NO_SUCH", 3, [], object(), "")),
    *(("solver_args", v) for v in ("eps", 3, ["eps"], {"esp": 1}, {3: 1})),
    *(("on_failure", v) for v in ("ignore", None, 3, [], True)),
    *(("derivative", v) for v in ("smooth", None, 3, [])),
    *(("smoothing", v) for v in (0.1, -1.0, "x")),
]
# CVXPY's own message does not name the argument.
UNNAMED: list[tuple[str, Any]] = [("canon_backend", "NO_SUCH"), ("canon_backend", 3)]


def make(kind: str, name: str, value: Any) -> None:
    made, parameters, variables = problem()
    arguments = {"problem": made, "parameters": parameters, "variables": variables, name: value}
    {"torch": cvxlayers.torch, "numpy": cvxlayers.numpy}[kind].CvxpyLayer(**arguments)


@COMMON
@given(st.sampled_from(list(LAYERS)), st.sampled_from(CONSTRUCTORS))
def test_a_wrong_constructor_argument_is_an_error_that_names_it(
    kind: str, wrong: tuple[str, Any]
) -> None:
    with pytest.raises((ValueError, TypeError), match=f"(?i){wrong[0]}"):
        make(kind, *wrong)


def bad_rows(shapes: list[tuple[int, ...]]) -> list[Any]:
    """Tangents or gradients of which one is wrong."""
    ones: list[Any] = [np.ones(shape) for shape in shapes]
    rows = [[*ones, 1.0], ones[:-1]]
    for bad in ("a", object(), np.ones(7), 1j, {}):
        rows.append([bad, *ones[1:]])
    return rows


CALLS: list[tuple[str, tuple[Any, ...]]] = [
    *(("jvp", (row,)) for row in bad_rows(list(SHAPES.values()))),
    *(("jvp2", (row, [None] * 3)) for row in bad_rows(list(SHAPES.values()))),
    *(("hvp", ([np.ones(2)], row)) for row in bad_rows(list(SHAPES.values()))),
    *(("hvp", (row, [None] * 3)) for row in bad_rows([(2,)])),
]


@COMMON
@given(st.sampled_from(CALLS))
def test_a_wrong_direction_is_an_error(wrong: tuple[str, tuple[Any, ...]]) -> None:
    operation, arguments = wrong
    values = [right(name) for name in SHAPES]
    with pytest.raises(CvxlayersError):
        getattr(LAYERS["numpy"], operation)(values, *arguments)


@pytest.mark.parametrize("wrong", UNNAMED, ids=str)
def test_arguments_that_are_named(wrong: tuple[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=wrong[0]):
        make("numpy", *wrong)


@pytest.mark.parametrize("bad", [None, 3])
def test_rows_that_are_no_rows_are_named(bad: Any) -> None:
    values = [right(name) for name in SHAPES]
    with pytest.raises((ValueError, TypeError), match="tangents"):
        LAYERS["numpy"].jvp(values, bad)
    with pytest.raises((ValueError, TypeError), match="gradients"):
        LAYERS["numpy"].hvp(values, bad, [None] * 3)
