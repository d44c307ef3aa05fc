"""Operations on arrays of a GPU, where they are: PyTorch does them, and DLPack hands them over.

PyTorch is imported once there is something for it to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cvxlayers.arrays import sent
from cvxlayers.jax.task import BITS, Task, to_numbers

__all__ = ["has_torch", "is_on_gpu", "run", "takes"]

# What JAX calls GPUs, and might.
PLATFORMS = ("gpu", "cuda", "rocm")
# What both JAX and PyTorch hand over by DLPack.
DTYPES = ("float16", "bfloat16", "float32", "float64", BITS.name)


def takes(task: Task, operands: Sequence[Any]) -> bool:
    """Whether an operation is done on the GPU where its operands are.

    Arrays of NumPy, which have no place of their own, are taken there.
    """
    placed = [x for x in operands if isinstance(x, jax.Array)]
    return (
        all(map(is_on_gpu, placed))
        and task.origin.operations.solution_map.choice.stays_on_devices
        and len({device for x in placed for device in x.devices()}) == 1
        and all(x.dtype.name in DTYPES for x in placed)
        and has_torch()
    )


def is_on_gpu(array: jax.Array) -> bool:
    """Whether an array lives on GPUs only."""
    return all(device.platform in PLATFORMS for device in array.devices())


@cache
def has_torch() -> bool:
    """Whether there is a PyTorch that reaches GPUs."""
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def run(task: Task, operands: Sequence[Any]) -> list[jax.Array]:
    """The results of an operation, on the operands' device.

    They are committed to that device, as all that JAX takes over by DLPack is.
    """
    import torch
    from torch.utils.dlpack import from_dlpack

    operands = [x if isinstance(x, jax.Array) else np.asarray(x) for x in operands]
    like = from_dlpack(next(x for x in operands if isinstance(x, jax.Array)))
    # PyTorch hands over tensors of its current device only.
    with torch.no_grad(), torch.cuda.device_of(like):
        tensors = task.run(operands, partial(_tensor, like=like), _typed)
        # The results become JAX's own: memory that it shares it gives back when what reads it has
        # been queued, and PyTorch might write to it before that has run. To wait keeps the memory
        # on both sides until PyTorch has read the operands and JAX has the results.
        copies = [jnp.array(jax.dlpack.from_dlpack(t), copy=True) for t in tensors]
        return jax.block_until_ready(copies)


def _tensor(array: Any, like: Any) -> Any:
    """The numbers of an operand as a tensor in float64, beside another one."""
    import torch
    from torch.utils.dlpack import from_dlpack

    if not isinstance(array, jax.Array):
        return sent(to_numbers(array), like)
    tensor = from_dlpack(array)
    if array.dtype == BITS:
        return tensor.contiguous().view(torch.float64)[..., 0]
    return tensor.to(torch.float64)


def _typed(tensor: Any, dtype: np.dtype[Any]) -> Any:
    """A result as a tensor of a dtype of NumPy's, contiguous: JAX takes no other."""
    import torch

    tensor = tensor.contiguous()
    if dtype == BITS:
        return tensor.unsqueeze(-1).view(torch.uint32)
    return tensor.to(getattr(torch, dtype.name))
