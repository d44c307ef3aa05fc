"""Parameter values as a caller gives them → (B or 1, size) arrays, and gradients back.

Leading axes are batch axes and broadcast against each other as in NumPy. A parameter that has
none, or only axes of length one, is shared by the batch and never expanded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvxlayers.canonicalize import ParameterSpec
from cvxlayers.errors import ParameterValueError

__all__ = ["Bound", "bind"]

Array = NDArray[np.float64]

# Rounding that a value computed in single precision may carry.
SYMMETRY = 1e-5
DEFINITENESS = 1e-6


@dataclass(eq=False)
class Bound:
    """Parameter values, checked and flattened.

    Attributes
    ----------
    theta : list of ndarray
        Shape (B, size), or (1, size) where shared.
    batch_shape : tuple of int
        The broadcast leading axes; B is their product.
    leading : sequence of tuple of int
        Leading axes of every value as it was given.
    specs : sequence of ParameterSpec
    """

    theta: list[Array]
    batch_shape: tuple[int, ...]
    leading: Sequence[tuple[int, ...]]
    specs: Sequence[ParameterSpec]

    def unbind(self, gradients: Sequence[Array]) -> list[Array]:
        """Gradients of theta's shapes, summed over broadcast axes to the caller's shapes."""
        return [
            _sum_to(gradient, lead, spec.shape, self.batch_shape)
            for gradient, lead, spec in zip(gradients, self.leading, self.specs, strict=True)
        ]

    def bind_tangents(self, tangents: Sequence[Array]) -> list[Array]:
        """Tangents of the caller's shapes, flattened like theta."""
        return [
            _flatten(tangent, lead, self.batch_shape)
            for tangent, lead in zip(tangents, self.leading, strict=True)
        ]


def bind(values: Sequence[Array], specs: Sequence[ParameterSpec], allow_nan: bool = False) -> Bound:
    """Check values against the parameters and flatten them.

    Parameters
    ----------
    values : sequence of float64 ndarray
        In the order of the layer's parameters, shape (*batch, *parameter shape).
    specs : sequence of ParameterSpec
    allow_nan : bool
        Whether an instance may have values that are not finite. It will not be solved.

    Raises
    ------
    ParameterValueError
        Naming the parameter, what was expected, what came and what to do.
    """
    if len(values) != len(specs):
        raise ParameterValueError(
            f"Expected {len(specs)} parameter values ({', '.join(spec.name for spec in specs)}), "
            f"got {len(values)}. Pass one for every entry of `parameters`, in that order."
        )
    leading = []
    for value, spec in zip(values, specs, strict=True):
        shape = spec.shape
        batch_axes = value.ndim - len(shape)
        if batch_axes < 0 or value.shape[batch_axes:] != shape:
            raise ParameterValueError(
                f"Parameter {spec.label}: expected shape {shape} or "
                f"({', '.join(['*batch', *map(str, shape)])}), got {value.shape}."
            )
        leading.append(value.shape[:batch_axes])
        is_finite = np.isfinite(value).all()
        if not (is_finite or allow_nan):
            raise ParameterValueError(_not_finite(value, spec))
        if spec.attributes:
            _check_attributes(value if is_finite else _finite_part(value, spec), spec)
    batch_shape = _broadcast(leading, specs)
    theta = [
        _flatten(value, lead, batch_shape) for value, lead in zip(values, leading, strict=True)
    ]
    return Bound(theta, batch_shape, leading, specs)


def _broadcast(
    leading: Sequence[tuple[int, ...]], specs: Sequence[ParameterSpec]
) -> tuple[int, ...]:
    first = leading[0] if leading else ()
    if all(lead == first or not lead for lead in leading):
        return first or next((lead for lead in leading if lead), ())
    try:
        return np.broadcast_shapes(*leading)
    except ValueError:
        sizes = ", ".join(
            f"{spec.label} has {lead}" for spec, lead in zip(specs, leading, strict=True)
        )
        raise ParameterValueError(
            f"The batch axes of the parameters do not broadcast against each other: {sizes}. "
            "Give each the same leading axes, axes of length one, or none."
        ) from None


def _flatten(value: Array, lead: tuple[int, ...], batch_shape: tuple[int, ...]) -> Array:
    if not lead:
        return value.reshape(1, value.size)
    size = math.prod(value.shape[len(lead) :])
    if lead == batch_shape:
        return value.reshape(math.prod(lead), size)
    if all(length == 1 for length in lead):
        return value.reshape(1, size)
    expanded = np.broadcast_to(value, batch_shape + value.shape[len(lead) :])
    return expanded.reshape(math.prod(batch_shape), size)


def _sum_to(
    gradient: Array, lead: tuple[int, ...], shape: tuple[int, ...], batch_shape: tuple[int, ...]
) -> Array:
    if lead == batch_shape or len(gradient) == 1:
        return gradient.reshape(lead + shape)
    missing = len(batch_shape) - len(lead)
    padded = (1,) * missing + lead
    axes = tuple(k for k, length in enumerate(padded) if length == 1 != batch_shape[k])
    return gradient.reshape(batch_shape + shape).sum(axis=axes).reshape(lead + shape)


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
