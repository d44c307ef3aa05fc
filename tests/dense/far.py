"""A device that is not there: tensors whose numbers lie in the CPU's memory, and that behave like
those of a GPU otherwise.

A `Far` tensor says that it is on another device. An operation on it that also gets a tensor of the
CPU is refused, as it is (or should be) on a GPU, and whatever brings numbers to the host is written
down: copies, and questions that wait for an answer.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

#: A type of device that PyTorch knows, and nobody has.
DEVICE = torch.device("lazy", 0)
# What waits for the device because the size of its result, or a number, is asked for.
_QUESTIONS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal"}


@dataclass
class Record:
    """What came to the host: the number of entries of every copy, and how many questions; the
    number of entries of every copy from there; and the memory taken on the device, in bytes."""

    copies: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    questions: int = 0
    taken: int = 0
    most_taken: int = 0
    _users: Counter[int] = field(default_factory=Counter, repr=False)

    def hold(self, far: Far) -> None:
        """Count the memory of a tensor for as long as it, or a view of it, is alive."""
        if far.inner.layout != torch.strided:
            return
        storage = far.inner.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self._users[key]:
            self.taken += size
            self.most_taken = max(self.most_taken, self.taken)
        self._users[key] += 1
        weakref.finalize(far, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            self.taken -= size


class Far(torch.Tensor):
    """A tensor on the device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Far:
        dense = inner.layout == torch.strided
        strides = inner.stride() if dense else torch.empty(inner.shape, device="meta").stride()
        far: Far = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=strides, dtype=inner.dtype, device=DEVICE
        )
        far.inner = inner
        return far

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Far({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of `pretended`")


class _Mode(TorchDispatchMode):
    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        is_far = any(isinstance(t, Far) for t in given)
        device = kwargs.get("device")
        name = func.name().partition(".")[0]
        goes_far = is_far if device is None else torch.device(device).type == DEVICE.type
        if name in ("aten::_to_copy", "aten::copy_"):
            self._count(is_far, goes_far, given, name)
        elif is_far:
            near = [t.shape for t in given if not isinstance(t, Far) and t.ndim]
            if near:
                raise AssertionError(f"{func}: tensors of the CPU, of shapes {near}")
            # A mask for an index is counted first.
            index = tree_leaves(args[1]) if name.startswith("aten::index") else []
            masked = any(isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in index)
            self.record.questions += name in _QUESTIONS or masked
        if "device" in kwargs and device is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if not goes_far:
            return result
        result = tree_map(_far, result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Far):
                self.record.hold(tensor)
        return result

    def _count(self, is_far: bool, goes_far: bool, given: Sequence[Any], name: str) -> None:
        if name == "aten::copy_":
            assert len({isinstance(t, Far) for t in given}) == 1, "copy_ between devices"
        elif is_far and not goes_far:
            self.record.copies.append(given[0].numel())
        elif goes_far and not is_far:
            self.record.sent.append(given[0].numel())


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Far) else value


def _far(value: Any) -> Any:
    return Far(value) if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def pretended() -> Iterator[Record]:
    """In here there is the device."""
    record = Record()
    with _Mode(record):
        yield record
