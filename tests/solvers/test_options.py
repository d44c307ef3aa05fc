import warnings
from types import MappingProxyType

import numpy as np
import pytest

from cvxlayers.solvers import SOLVERS, get_solver
from cvxlayers.solvers.options import Options, resolve_options

CLARABEL, SCS, DIFFCP = (get_solver(name) for name in ("CLARABEL", "SCS", "DIFFCP"))


def test_nothing_given() -> None:
    assert resolve_options(CLARABEL) == Options(CLARABEL, {}, None, None)
    assert resolve_options(CLARABEL, None, {}, None) == Options(CLARABEL, {}, None, None)


def test_common_options_take_the_solvers_own_names() -> None:
    given = {"eps": 1e-5, "max_iters": 7}
    assert resolve_options(CLARABEL, given).solver == {
        "tol_gap_abs": 1e-5,
        "tol_gap_rel": 1e-5,
        "tol_feas": 1e-5,
        "max_iter": 7,
    }
    assert resolve_options(SCS, given).solver == {"eps_abs": 1e-5, "eps_rel": 1e-5, "max_iters": 7}


@pytest.mark.parametrize("name", SOLVERS)
def test_common_options_are_options_of_the_solver(name: str) -> None:
    solver = get_solver(name)
    assert solver.common_options(1e-5, 7).keys() <= solver.options
    assert solver.common_options(None, None) == {}


def test_a_native_name_wins_over_eps_in_its_layer_in_any_order() -> None:
    for given in ({"eps": 1e-5, "eps_rel": 1e-3}, {"eps_rel": 1e-3, "eps": 1e-5}):
        assert resolve_options(SCS, given).solver == {"eps_abs": 1e-5, "eps_rel": 1e-3}


def test_later_layers_win() -> None:
    native, common = {"eps_rel": 1e-3}, {"eps": 1e-5}
    assert resolve_options(SCS, native, common).solver == {"eps_abs": 1e-5, "eps_rel": 1e-5}
    assert resolve_options(SCS, common, native).solver == {"eps_abs": 1e-5, "eps_rel": 1e-3}
    assert resolve_options(SCS, {"max_iters": 3}, {"max_iters": 4}).solver == {"max_iters": 4}
    assert resolve_options(SCS, {"polish": True}, {"polish": False}).polish is False


def test_no_layer_is_changed_or_returned() -> None:
    layer = {"eps": 1e-5, "alpha": 1.5}
    first = resolve_options(SCS, MappingProxyType(layer), MappingProxyType({"scale": 1.0}))
    first.solver["normalize"] = False
    assert layer == {"eps": 1e-5, "alpha": 1.5}
    assert resolve_options(SCS, layer).solver is not resolve_options(SCS, layer).solver
    assert "normalize" not in resolve_options(SCS, layer).solver


def test_flags_are_kept_apart() -> None:
    assert resolve_options(SCS, {"polish": False, "verbose": True}) == Options(SCS, {}, False, True)


@pytest.mark.parametrize("name", ["eps", "max_iters", "polish", "verbose"])
def test_none_is_not_given(name: str) -> None:
    assert resolve_options(SCS, {name: None}) == Options(SCS, {})


@pytest.mark.parametrize("eps", [0, -1e-8, np.inf, np.nan, "1e-8", True, [1e-8]])
def test_eps_is_a_positive_finite_number(eps: object) -> None:
    with pytest.raises(ValueError, match=r"solver_args\['eps'\]: expected a positive finite"):
        resolve_options(CLARABEL, {"eps": eps})


@pytest.mark.parametrize("count", [0, -3, 10.0, "10", True])
def test_max_iters_is_a_positive_integer(count: object) -> None:
    with pytest.raises(ValueError, match=r"solver_args\['max_iters'\]: expected a positive int"):
        resolve_options(SCS, {"max_iters": count})


def test_numpy_numbers_are_numbers() -> None:
    given = {"eps": np.float32(0.5), "max_iters": np.int32(9)}
    assert resolve_options(SCS, given).solver == {"eps_abs": 0.5, "eps_rel": 0.5, "max_iters": 9}


def test_polish_is_true_or_false() -> None:
    with pytest.raises(ValueError, match="expected True or False, got 1"):
        resolve_options(CLARABEL, {"polish": 1})


def test_an_unknown_option_is_named_with_what_there_is() -> None:
    with pytest.raises(
        ValueError, match=r"'tol_fea'. Did you mean 'tol_feas'\? CLARABEL has: "
    ) as e:
        resolve_options(CLARABEL, {"tol_fea": 1e-8})
    assert "max_iters" in str(e.value)
    assert "max_iter," in str(e.value)


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="expected a dict of options"):
        resolve_options(CLARABEL, [("eps", 1e-8)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name of an option is a string"):
        resolve_options(CLARABEL, {1: 2})  # type: ignore[dict-item]


def test_an_option_of_another_solver_is_dropped_with_one_warning() -> None:
    with pytest.warns(UserWarning, match=r"CLARABEL has no option 'alpha' \(of SCS") as caught:
        options = resolve_options(CLARABEL, {"alpha": 1.5, "max_iter": 3})
    assert options.solver == {"max_iter": 3}
    assert len(caught) == 1
    assert "solver='SCS'" in str(caught[0].message)


def test_the_arguments_of_cvxpylayers_run_with_every_solver() -> None:
    given = {
        "solve_method": "SCS",
        "eps": 1e-10,
        "max_iters": 1000,
        "mode": "lsqr",
        "n_jobs_forward": 1,
        "acceleration_lookback": 0,
    }
    with pytest.warns(UserWarning, match="'solve_method' .of DIFFCP.") as caught:
        assert resolve_options(CLARABEL, given).solver["max_iter"] == 1000
    assert len(caught) == 1
    assert "'acceleration_lookback' (of SCS and DIFFCP)" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = resolve_options(DIFFCP, given).solver
    assert options["eps_abs"] == 1e-10
    assert options["mode"] == "lsqr"
