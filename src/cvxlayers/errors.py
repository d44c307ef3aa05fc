"""The exceptions users catch.

Every one of them derives from `CvxlayersError` and from the built-in exception that code
written before would have caught.
"""

from __future__ import annotations

from collections.abc import Mapping

from cvxlayers.status import Status

__all__ = [
    "CvxlayersError",
    "NotDPPError",
    "ParameterTypeError",
    "ParameterValueError",
    "SolverError",
    "SolverWarning",
    "StorageError",
    "UnsupportedProblemError",
]


class CvxlayersError(Exception):
    """Base of all errors raised on purpose by this library."""


class NotDPPError(CvxlayersError, ValueError, AssertionError):
    """The problem is not disciplined parametrized (DPP); the message names the expression.

    It is an `AssertionError` too, because the libraries that users come from assert DPP.
    """


class UnsupportedProblemError(CvxlayersError, ValueError):
    """The problem has a feature without a derivative, such as integer or complex variables."""


class ParameterValueError(CvxlayersError, ValueError):
    """A parameter value has the wrong shape, batch size, device or content, or the number of values
    is wrong."""


class ParameterTypeError(CvxlayersError, TypeError, AttributeError):
    """A parameter value has the wrong type or dtype.

    It is an `AttributeError` too, because in the libraries that users come from a value that is
    no array fails by the attribute that it lacks.
    """


class SolverError(CvxlayersError, RuntimeError):
    """Some instances of the batch were not solved.

    Attributes
    ----------
    statuses : dict[tuple[int, ...], Status]
        The failing instances: batch index to status. An unbatched call has the index ``()``.
    """

    def __init__(self, message: str, statuses: Mapping[tuple[int, ...], Status] | None = None):
        super().__init__(message)
        self.statuses: dict[tuple[int, ...], Status] = dict(statuses or {})


class StorageError(CvxlayersError, ValueError):
    """A file is no saved layer, or is damaged, or has another format; or a setting cannot be
    saved."""


class SolverWarning(UserWarning):
    """Some instances of the batch were not solved, and the layer's policy is to warn."""
