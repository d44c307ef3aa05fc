"""Arrays of NumPy, and of PyTorch on the device where the data live.

Everything between a frontend and a solver is written once, for both. Values are arrays of the
caller's namespace, on its device. What steers the computation (statuses, which instances are
concerned) and what is the same for every batch (index arrays, sparse matrices) is NumPy's, on the
host; constants are copied to a device once.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from array_api_compat import array_namespace
from numpy.typing import NDArray

from cvxlayers.machine import total_memory

__all__ = [
    "Array",
    "all_finite",
    "copied",
    "counting",
    "fetched",
    "full",
    "held",
    "held_matrix",
    "is_host",
    "largest",
    "memory_beside",
    "namespace",
    "put",
    "repeated",
    "sent",
    "take",
    "zeros",
]

# A float64 array of NumPy or PyTorch; there is no common static type.
Array = Any
Rows = NDArray[Any] | slice

# Copies of constants by identity, on every device where they were asked for.
_copies: dict[int, tuple[weakref.ref[Any], dict[Any, Any]]] = {}


def memory_beside(x: Array) -> float:
    """Bytes of memory where an array lives: of the host all, of a GPU, which others use, too, those
    that can be had."""
    if isinstance(x, np.ndarray) or x.device.type != "cuda":
        return total_memory()
    from torch import cuda

    kept = cuda.memory_reserved(x.device) - cuda.memory_allocated(x.device)
    return float(cuda.mem_get_info(x.device)[0] + kept)


def is_host(x: Array) -> bool:
    """Whether an array is NumPy's."""
    return isinstance(x, np.ndarray)


def namespace(x: Array) -> Any:
    """The functions for arrays like this one. NumPy's own is up to the array API standard, and
    spares small problems a wrapper around each of its functions."""
    return np if isinstance(x, np.ndarray) else array_namespace(x)


def held(constant: NDArray[Any], like: Array) -> Any:
    """A constant, such as an index array, beside another array: itself, or its copy there. It must
    not be changed afterwards."""
    if isinstance(like, np.ndarray):
        return constant
    copies = _copies_of(constant)
    if like.device not in copies:
        copies[like.device] = _own(constant, like)
    return copies[like.device]


def held_matrix(matrix: sp.csr_array, like: Array) -> Any:
    """As `held`, of a sparse matrix: something that can be multiplied with arrays."""
    if isinstance(like, np.ndarray):
        return matrix
    copies = _copies_of(matrix)
    if like.device not in copies:
        import torch

        arrays = (matrix.indptr, matrix.indices, matrix.data)
        parts = (_own(array, like) for array in arrays)
        with warnings.catch_warnings():
            # PyTorch says once that this is in beta, whatever one does with it.
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            make: Any = torch.sparse_csr_tensor
            copies[like.device] = make(
                *parts, size=matrix.shape, device=like.device, check_invariants=False
            )
    return copies[like.device]


def _own(constant: NDArray[Any], like: Array) -> Any:
    """A copy beside another array that is there once this returns, whatever stream reads it."""
    copy = sent(constant, like)
    # On the host not the same memory, which would keep the constant alive.
    return copy.clone() if like.device.type == "cpu" else copy


def _copies_of(constant: Any) -> dict[Any, Any]:
    key = id(constant)
    found = _copies.get(key)
    if found is None or found[0]() is not constant:
        found = _copies[key] = weakref.ref(constant, partial(_forget, _copies, key)), {}
    return found[1]


def _forget(copies: dict[int, Any], key: int, _: object) -> None:
    # Without a global: when the interpreter ends, modules may be gone before their arrays.
    copies.pop(key, None)


def sent(array: Any, like: Array) -> Any:
    """An array of NumPy beside another one: itself, or a copy there."""
    if isinstance(like, np.ndarray):
        return array
    import torch

    array = np.asarray(array, order="C")
    if array.dtype.kind == "i":
        array = array.astype(np.int64, copy=False)
    # Arrays that are not to be written to make PyTorch warn, as if it did.
    array = array if array.flags.writeable else array.copy()
    return torch.from_numpy(array).to(like.device)


def fetched(x: Any) -> Any:
    """An array on the host, as NumPy's."""
    return x if isinstance(x, np.ndarray | np.generic) else x.cpu().numpy()


def take(x: Array, rows: Rows) -> Any:
    """x[rows], for rows on the host."""
    if isinstance(x, np.ndarray) or isinstance(rows, slice):
        return x[rows]
    return x[_index(rows, x)]


def put(x: Array, rows: Rows, values: Any) -> None:
    """x[rows] = values, for rows on the host."""
    if not isinstance(x, np.ndarray) and not isinstance(rows, slice):
        rows = _index(rows, x)
    x[rows] = values


def _index(rows: NDArray[Any], x: Array) -> Any:
    # A mask on a device would have to be counted there first.
    return sent(np.flatnonzero(rows) if rows.dtype == bool else rows, x)


def counting(count: int, like: Array) -> Any:
    """0, 1, …, beside another array."""
    if isinstance(like, np.ndarray):
        return np.arange(count)
    return namespace(like).arange(count, device=like.device)


def zeros(shape: tuple[int, ...], like: Array) -> Any:
    """Zeros beside another array, in its dtype."""
    if isinstance(like, np.ndarray):
        return np.zeros(shape, like.dtype)
    return like.new_zeros(shape)


def full(shape: tuple[int, ...], value: float, like: Array) -> Any:
    """An array of one value beside another array, in its dtype."""
    if isinstance(like, np.ndarray):
        return np.full(shape, value, like.dtype)
    return like.new_full(shape, value)


def copied(x: Array) -> Any:
    """A copy that may be written to."""
    return x.copy() if isinstance(x, np.ndarray) else x.clone()


def repeated(row: Array, count: int) -> Any:
    """A row, shape (1, n), so many times: an array of its own."""
    if isinstance(row, np.ndarray):
        return np.repeat(row, count, axis=0)
    return row.expand(count, -1).clone()


def all_finite(arrays: Iterable[Array]) -> bool:
    """Whether there is no NaN and no infinity in any of them."""
    checks = [namespace(x).isfinite(x).all() for x in arrays]
    if not checks or is_host(checks[0]) or isinstance(checks[0], np.generic):
        return all(checks)
    return bool(namespace(checks[0]).stack(checks).all())  # a device is asked once


def largest(x: Array) -> Any:
    """The largest |x| along the last axis; 0 where there is none."""
    if isinstance(x, np.ndarray):
        return np.abs(x).max(axis=-1, initial=0.0)
    return x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
