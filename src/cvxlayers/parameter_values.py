"""Whether parameter values are what their `cvxpy.Parameter` promised."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cvxlayers.canonicalize import ParameterSpec
from cvxlayers.errors import ParameterValueError

__all__ = ["check_values"]

Array = NDArray[np.float64]

# Rounding that a value computed in half precision may carry. What counts of a symmetric
# parameter's value is its mean with its transpose.
SYMMETRY = 1e-3
DEFINITENESS = 1e-6


def check_values(
    values: Sequence[Array], specs: Sequence[ParameterSpec], allow_nan: bool = False
) -> None:
    """Raise unless values are finite and have their parameters' attributes.

    Parameters
    ----------
    values : sequence of float64 ndarray
        Shape (*batch, *parameter shape).
    specs : sequence of ParameterSpec
    allow_nan : bool
        Whether an instance may have values that are not finite. It will not be solved.

    Raises
    ------
    ParameterValueError
        Naming the parameter, what was expected, what came and what to do.
    """
    for value, spec in zip(values, specs, strict=True):
        is_finite = np.isfinite(value).all()
        if not (is_finite or allow_nan):
            raise ParameterValueError(_not_finite(value, spec))
        if spec.attributes:
            _check_attributes(value if is_finite else _finite_part(value, spec), spec)


def _finite_part(value: Array, spec: ParameterSpec) -> Array:
    """The instances that are finite."""
    flat = value.reshape(-1, *spec.shape)
    return flat[np.isfinite(flat).all(axis=tuple(range(1, flat.ndim)))]


def _not_finite(value: Array, spec: ParameterSpec) -> str:
    place = np.argwhere(~np.isfinite(value))
    index = tuple(int(k) for k in place[0])
    return (
        f"Parameter {spec.label}: expected finite numbers, got {len(place)} NaN or infinite "
        f"entries, the first at index {index}. Check what computed them, or pass on_failure='nan' "
        "to get NaN and zero gradients for such rows."
    )


def _check_attributes(value: Array, spec: ParameterSpec) -> None:
    """Raise unless a value has the properties that its cvxpy.Parameter promised."""
    for attribute, holds in _ELEMENTWISE.items():
        if attribute in spec.attributes:
            broken = ~holds(value, spec)
            if broken.any():
                index = tuple(int(k) for k in np.argwhere(broken)[0])
                raise ParameterValueError(
                    f"Parameter {spec.label} was declared {attribute}, but entry {index} of the "
                    f"value is {value[index]:.6g}. Clamp, round or mask the value, or declare the "
                    "parameter without that attribute."
                )
    for attribute, sign in (("symmetric", 0), ("PSD", 1), ("NSD", -1)):
        if attribute in spec.attributes:
            _check_symmetric(value, spec, attribute)
            if sign:
                _check_definite(sign * value, spec, attribute)


def _within(value: Array, spec: ParameterSpec) -> NDArray[np.bool_]:
    assert spec.bounds is not None
    lower, upper = spec.bounds
    return (value >= lower) & (value <= upper)


def _vanishes(value: Array, spec: ParameterSpec) -> NDArray[np.bool_]:
    assert spec.zeros is not None
    pattern = np.ones(spec.size, dtype=bool)
    pattern[spec.zeros] = False
    return pattern.reshape(spec.shape) | (value == 0)


_ELEMENTWISE: dict[str, Callable[[Array, ParameterSpec], NDArray[np.bool_]]] = {
    "nonneg": lambda value, _: value >= 0,
    "nonpos": lambda value, _: value <= 0,
    "pos": lambda value, _: value > 0,
    "neg": lambda value, _: value < 0,
    "integer": lambda value, _: value == np.round(value),
    "boolean": lambda value, _: (value == 0) | (value == 1),
    "bounds": _within,
    "diag": _vanishes,
    "sparsity": _vanishes,
}


def _check_symmetric(value: Array, spec: ParameterSpec, attribute: str) -> None:
    skew = np.abs(value - np.swapaxes(value, -1, -2)).max(axis=(-1, -2), initial=0.0)
    broken = skew > SYMMETRY * np.abs(value).max(axis=(-1, -2), initial=0.0)
    if broken.any():
        raise ParameterValueError(
            f"Parameter {spec.label} was declared {attribute}, but the value differs from its "
            f"transpose by {skew[broken].max():.2g}. Pass (S + S.mT) / 2."
        )


def _check_definite(value: Array, spec: ParameterSpec, attribute: str) -> None:
    # A Cholesky factor of the slightly shifted matrix exists just if it is semidefinite, and costs
    # a tenth of its eigenvalues.
    size = np.abs(value).max(axis=(-1, -2), initial=0.0, keepdims=True)
    shifted = value + (DEFINITENESS * size + 1e-300) * np.eye(spec.shape[-1])
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        lowest = np.linalg.eigvalsh(value)[..., 0].min()
        raise ParameterValueError(
            f"Parameter {spec.label} was declared {attribute}, but the value has the eigenvalue "
            f"{lowest:.2g} < 0. Pass L @ L.mT of some factor L."
            if attribute == "PSD"
            else f"Parameter {spec.label} was declared NSD, but the value has the eigenvalue "
            f"{-lowest:.2g} > 0. Pass -L @ L.mT of some factor L."
        ) from None
