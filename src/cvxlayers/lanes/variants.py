"""The compiled modules, and which of them this processor is given.

The same C++ is compiled once for every instruction set, into modules beside this file: `_avx512`,
`_avx2` and `_baseline`. A package that was installed without a compiler has none of them.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from types import ModuleType

__all__ = ["VARIANTS", "available", "load"]

#: Names of the compiled modules, the best first. Every one of them runs where the last one does.
VARIANTS: tuple[str, ...] = ("avx512", "avx2", "baseline")


def load() -> ModuleType | None:
    """The best compiled module that this processor can run.

    The environment variable CVXLAYERS_LANES chooses another: one of `VARIANTS`, or ``off`` for
    none.

    Returns
    -------
    module or None
        None if no module was compiled, or CVXLAYERS_LANES is ``off``.

    Raises
    ------
    ValueError
        CVXLAYERS_LANES is something else, or a module that was not compiled or that this processor
        cannot run.
    """
    chosen = os.environ.get("CVXLAYERS_LANES")
    if chosen is None:
        return next((m for name in _supported() if (m := _module(name)) is not None), None)
    if chosen == "off":
        return None
    if chosen not in VARIANTS:
        message = f"CVXLAYERS_LANES: expected one of {', '.join(VARIANTS)} or off, got {chosen!r}"
        raise ValueError(message)
    module = _module(chosen) if chosen in _supported() else None
    if module is None:
        message = (
            f"CVXLAYERS_LANES: {chosen!r} is not available here, because it was not compiled or "
            f"the processor cannot run it; available: {', '.join((*available(), 'off'))}"
        )
        raise ValueError(message)
    return module


def available() -> tuple[str, ...]:
    """Those of `VARIANTS` that were compiled and that this processor can run, the best first."""
    return tuple(name for name in _supported() if _module(name) is not None)


def _supported() -> tuple[str, ...]:
    """What the processor can run, compiled or not; nothing if there is no module to ask."""
    baseline = _module("baseline")
    named = () if baseline is None else baseline.supported()
    return tuple(name for name in VARIANTS if name in named)


def _module(name: str) -> ModuleType | None:
    # A file that the system cannot load, built elsewhere for instance, is as good as none.
    with suppress(ImportError):
        return import_module(f"cvxlayers.lanes._{name}")
    return None
