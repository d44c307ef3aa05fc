"""Whether parameter values are what their `cvxpy.Parameter` promised."""

from __future__ import annotations

import math
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
    values: Sequence[Array],
    specs: Sequence[ParameterSpec],
    forms: Sequence[tuple[int, ...]],
    allow_nan: bool = False,
) -> None:
    """Raise unless values are finite and have their parameters' attributes.

    Parameters
    ----------
    values : sequence of float64 ndarray
        Shape (*batch, *form).
    specs : sequence of ParameterSpec
    forms : sequence of tuple of int
        For every value one of its parameter's forms. The shape alone may be that of either.
    allow_nan : bool
        Whether an instance may have values that are not finite. It will not be solved.

    Raises
    ------
    ParameterValueError
        Naming the parameter, what was expected, what came and what to do.
    """
    for value, spec, form in zip(values, specs, forms, strict=True):
        is_finite = np.isfinite(value).all()
        if not (is_finite or allow_nan):
            raise ParameterValueError(_not_finite(value, spec))
        if spec.attributes:
            _check_attributes(value if is_finite else _finite_part(value, form), spec, form)


def _finite_part(value: Array, form: tuple[int, ...]) -> Array:
    """The instances that are finite."""
    flat = value.reshape(-1, *form)
    return flat[np.isfinite(flat).all(axis=tuple(range(1, flat.ndim)))]


def _not_finite(value: Array, spec: ParameterSpec) -> str:
    place = np.argwhere(~np.isfinite(value))
    index = tuple(int(k) for k in place[0])
    return (
        f"Parameter {spec.label}: expected finite numbers, got {len(place)} NaN or infinite "
        f"entries, the first at index {index}. Check what computed them, or pass on_failure='nan' "
        "to get NaN and zero gradients for such rows."
    )


def _check_attributes(value: Array, spec: ParameterSpec, form: tuple[int, ...]) -> None:
    """Raise unless a value has the properties that its cvxpy.Parameter promised."""
    is_whole = form == spec.shape
    for attribute, holds in _ELEMENTWISE.items():
        if attribute in spec.attributes:
            broken = ~holds(value, spec, is_whole)
            if broken.any():
                index = tuple(int(k) for k in np.argwhere(broken)[0])
                raise ParameterValueError(
                    f"Parameter {spec.label} was declared {attribute}, but entry {index} of the "
                    f"{'value' if is_whole else 'entries in the order of sparse_idx'} is "
                    f"{value[index]:.6g}. Clamp, round or mask the value, or declare the parameter "
                    "without that attribute."
                )
    for attribute, sign in (("symmetric", 0), ("PSD", 1), ("NSD", -1)):
        if attribute in spec.attributes:
            _check_symmetric(value, spec, attribute)
            if sign:
                _check_definite(sign * value, spec, attribute)


def _within(value: Array, spec: ParameterSpec, is_whole: bool) -> NDArray[np.bool_]:
    assert spec.bounds is not None
    lower, upper = (_placed(b, spec) if is_whole and b.ndim else b for b in spec.bounds)
    return (value >= lower) & (value <= upper)


def _placed(bound: Array, spec: ParameterSpec) -> Array:
    """A bound on the stored entries, if it is one, on all: zero is the value of the others."""
    if "sparsity" not in spec.attributes:
        return bound
    whole = np.zeros(math.prod(spec.shape))
    whole[spec.stored] = bound
    return whole.reshape(spec.shape)


def _vanishes(value: Array, spec: ParameterSpec, is_whole: bool) -> NDArray[np.bool_]:
    if not is_whole:
        return np.ones(value.shape, dtype=bool)
    pattern = np.zeros(math.prod(spec.shape), dtype=bool)
    pattern[spec.stored] = True
    return pattern.reshape(spec.shape) | (value == 0)


# Whether entries have an attribute, from a value, its parameter, and whether it is whole or the
# stored entries. What is elementwise holds of the entries that are not stored, which are zero:
# CVXPY allows no other attribute beside a pattern.
_ELEMENTWISE: dict[str, Callable[[Array, ParameterSpec, bool], NDArray[np.bool_]]] = {
    "nonneg": lambda value, *_: value >= 0,
    "nonpos": lambda value, *_: value <= 0,
    "pos": lambda value, *_: value > 0,
    "neg": lambda value, *_: value < 0,
    "integer": lambda value, *_: value == np.round(value),
    "boolean": lambda value, *_: (value == 0) | (value == 1),
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
