"""`cvxlayers.CvxpyLayer`: the answer comes in the framework of the arguments."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from cvxlayers.errors import ParameterTypeError
from cvxlayers.frontend import documented
from cvxlayers.info import Info
from cvxlayers.numpy import CvxpyLayer as NumpyLayer

__all__ = ["CvxpyLayer"]

# The package that an array's class comes from, and the frontend for it.
_FRONTENDS = {"torch": "torch", "jax": "jax", "jaxlib": "jax", "mlx": "mlx"}


@documented
class CvxpyLayer(NumpyLayer):
    """A parametrized convex problem as a differentiable function, in any framework.

    The problem is canonicalized once, here; every call solves it at the given parameter values.
    A call looks at the arguments' own type: with PyTorch tensors, JAX arrays or MLX arrays it does
    what the layer of that framework does (`cvxlayers.torch.CvxpyLayer`,
    `cvxlayers.jax.CvxpyLayer`, `cvxlayers.mlx.CvxpyLayer`), and the answer takes part in its
    automatic differentiation. With NumPy arrays, lists and numbers alone the answer is in NumPy
    arrays, and the derivatives are the methods `vjp`, `jvp`, `hvp` and `jvp2`.

    {constructor}

    See Also
    --------
    cvxlayers.torch.CvxpyLayer : The same as an `nn.Module`, for use inside PyTorch models.

    Examples
    --------
    >>> import cvxpy as cp, numpy as np
    >>> from cvxlayers import CvxpyLayer
    >>> x, b = cp.Variable(2), cp.Parameter(2, name="b")
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
    >>> layer = CvxpyLayer(problem, parameters=[b], variables=[x])
    >>> (x_star,) = layer(np.array([[1.0, -2.0], [3.0, 4.0]]))
    >>> x_star.round(6) + 0
    array([[1., 0.],
           [3., 4.]])
    """

    _frontends: dict[str, Any]

    def __call__(self, *params: Any, **options: Any) -> tuple[Any, ...]:
        """Solve at the given parameter values.

        Parameters
        ----------
        *params : array_like
            Values of the parameters in the order of the constructor, shape
            ``(*batch, *parameter.shape)``. Batch axes are optional and broadcast against each
            other. Arrays of one framework; NumPy arrays, lists and numbers beside them are
            constants.
        **options
            Values by the names of their `cvxpy.Parameter`, for those not given by position; and
            ``solver_args``, ``warm_start``, ``on_failure`` as in the framework's layer.

        Returns
        -------
        tuple of arrays
            One for each variable, shape ``(*batch, *variable.shape)``, in the framework of the
            arguments.

        Raises
        ------
        TypeError
            If the arguments are of two frameworks. The message names both.
        """
        frontend = self._frontend([*params, *options.values()])
        call = super().__call__ if frontend is None else frontend
        return call(*params, **options)

    def solve(self, *params: Any, **options: Any) -> tuple[tuple[Any, ...], Info]:
        """Solve, and say what became of every instance.

        Parameters
        ----------
        *params, **options
            As for a call.

        Returns
        -------
        outputs : tuple of arrays
            As from a call.
        info : cvxlayers.Info
            Status, iterations, residuals of every instance, as NumPy arrays.

        Examples
        --------
        >>> import cvxpy as cp, numpy as np
        >>> from cvxlayers import CvxpyLayer
        >>> x, b = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x)), [x >= b, x <= 1])
        >>> layer = CvxpyLayer(problem, parameters=[b], variables=[x], on_failure="nan")
        >>> _, info = layer.solve(np.array([[0.5, 0.5], [2.0, 0.5]]))
        >>> info.status
        array([0, 2])
        """
        frontend = self._frontend([*params, *options.values()])
        solve = super().solve if frontend is None else frontend.solve
        return solve(*params, **options)

    def _frontend(self, values: Iterable[Any]) -> Any:
        """The layer of the arguments' framework; None for NumPy."""
        name = self._framework(values)
        if name is None:
            return None
        frontends = vars(self).setdefault("_frontends", {})
        if name not in frontends:
            layer = importlib.import_module(f"cvxlayers.{name}").CvxpyLayer
            frontends[name] = layer.of(self.operations)
        return frontends[name]

    def _solve(self, values: Any, *settings: Any) -> Any:
        name = self._framework(values)
        if name is not None:
            raise ParameterTypeError(
                f"vjp, jvp, hvp and jvp2 take NumPy arrays, got one of {name}. Call the layer and "
                f"differentiate with {name} itself."
            )
        return super()._solve(values, *settings)

    def _framework(self, values: Iterable[Any]) -> str | None:
        """The frontend that arguments need; None for NumPy."""
        found: dict[str, Any] = {}
        for value in values:
            for base in type(value).__mro__:
                name = _FRONTENDS.get(base.__module__.partition(".")[0])
                if name is not None:
                    found.setdefault(name, value)
                    break
        if len(found) > 1:
            kinds = " and ".join(f"{name} ({type(v).__name__})" for name, v in found.items())
            raise ParameterTypeError(
                f"The arguments are of {kinds}. Pass arrays of one framework; convert the others, "
                "to NumPy arrays if they are constants."
            )
        return next(iter(found), None)

    def __getstate__(self) -> dict[str, Any]:
        return {"operations": self.operations}
