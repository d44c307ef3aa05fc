"""Whether parameter values are what their `cvxpy.Parameter` promised."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cvxlayers.arrays import Array, all_finite, fetched, is_host, largest, namespace, sent
from cvxlayers.canonicalize import ParameterSpec
from cvxlayers.errors import ParameterValueError

__all__ = ["check_values"]

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
    values : sequence of array
        float64, shape (*batch, *form).
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
    all_are = all_finite(values)
    for value, spec, form in zip(values, specs, forms, strict=True):
        is_finite = all_are or bool(namespace(value).isfinite(value).all())
        if not (is_finite or allow_nan):
            raise ParameterValueError(_not_finite(value, spec))
        if spec.attributes:
            _check_attributes(value if is_finite else _finite_part(value, form), spec, form)


def _finite_part(value: Array, form: tuple[int, ...]) -> Array:
    """The instances that are finite."""
    flat, xp = value.reshape(-1, *form), namespace(value)
    return flat[xp.all(xp.isfinite(flat), axis=tuple(range(1, flat.ndim)))]


def _not_finite(value: Array, spec: ParameterSpec) -> str:
    place = np.argwhere(~fetched(namespace(value).isfinite(value)))
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
            if bool(broken.any()):
                index = tuple(int(k) for k in np.argwhere(fetched(broken))[0])
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


def _within(value: Array, spec: ParameterSpec, is_whole: bool) -> Array:
    assert spec.bounds is not None
    lower, upper = (_placed(b, spec) if is_whole and b.ndim else b for b in spec.bounds)
    return (value >= sent(lower, value)) & (value <= sent(upper, value))


def _placed(bound: NDArray[np.float64], spec: ParameterSpec) -> NDArray[np.float64]:
    """A bound on the stored entries, if it is one, on all: zero is the value of the others."""
    if "sparsity" not in spec.attributes:
        return bound
    whole = np.zeros(math.prod(spec.shape))
    whole[spec.stored] = bound
    return whole.reshape(spec.shape)


def _vanishes(value: Array, spec: ParameterSpec, is_whole: bool) -> Array:
    if not is_whole:
        return namespace(value).isfinite(value)
    pattern = np.zeros(math.prod(spec.shape), dtype=bool)
    pattern[spec.stored] = True
    return sent(pattern.reshape(spec.shape), value) | (value == 0)


# Whether entries have an attribute, from a value, its parameter, and whether it is whole or the
# stored entries. What is elementwise holds of the entries that are not stored, which are zero:
# CVXPY allows no other attribute beside a pattern.
_ELEMENTWISE: dict[str, Callable[[Array, ParameterSpec, bool], Array]] = {
    "nonneg": lambda value, *_: value >= 0,
    "nonpos": lambda value, *_: value <= 0,
    "pos": lambda value, *_: value > 0,
    "neg": lambda value, *_: value < 0,
    "integer": lambda value, *_: value == namespace(value).round(value),
    "boolean": lambda value, *_: (value == 0) | (value == 1),
    "bounds": _within,
    "diag": _vanishes,
    "sparsity": _vanishes,
}


def _check_symmetric(value: Array, spec: ParameterSpec, attribute: str) -> None:
    skew = _size(value - value.mT)
    broken = skew > SYMMETRY * _size(value)
    if bool(broken.any()):
        raise ParameterValueError(
            f"Parameter {spec.label} was declared {attribute}, but the value differs from its "
            f"transpose by {float(skew[broken].max()):.2g}. Pass (S + S.mT) / 2."
        )


def _check_definite(value: Array, spec: ParameterSpec, attribute: str) -> None:
    # A Cholesky factor of the slightly shifted matrix exists just if it is semidefinite, and costs
    # a tenth of its eigenvalues.
    size = _size(value)[..., None, None]
    shifted = value + (DEFINITENESS * size + 1e-300) * sent(np.eye(spec.shape[-1]), value)
    if not _has_factor(shifted):
        lowest = float(namespace(value).linalg.eigvalsh(value)[..., 0].min())
        raise ParameterValueError(
            f"Parameter {spec.label} was declared {attribute}, but the value has the eigenvalue "
            f"{lowest:.2g} < 0. Pass L @ L.mT of some factor L."
            if attribute == "PSD"
            else f"Parameter {spec.label} was declared NSD, but the value has the eigenvalue "
            f"{-lowest:.2g} > 0. Pass -L @ L.mT of some factor L."
        )


def _has_factor(matrices: Array) -> bool:
    """Whether Cholesky's factorisation of all of them succeeds."""
    if not is_host(matrices):
        return not bool(namespace(matrices).linalg.cholesky_ex(matrices)[1].any())
    try:
        np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        return False
    return True


def _size(matrices: Array) -> Array:
    """The largest entry of every matrix."""
    *lead, rows, columns = matrices.shape
    return largest(matrices.reshape(*lead, rows * columns))
