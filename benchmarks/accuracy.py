"""Relative errors of the gradients on the conformance table, at the default settings.

    python -m benchmarks.accuracy

Prints a line for every problem of ``tests/conformance``: the error of this library's gradient and,
where it is installed, of cvxpylayers', against finite differences of polished solutions.
"""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from conformance.oracle import gradient, relative_error, weights
from conformance.problems import CASES, Case

BOUND = 1e-5


def error_of(layer_type: Any, case: Case) -> float | str:
    """Relative error of the gradient, or the name of the exception."""
    problem, parameters, variables = case.build()
    try:
        layer = layer_type(problem, parameters, variables, gp=case.gp)
        values = [torch.tensor(value, requires_grad=True) for value in case.values()]
        outputs = layer(*values)
        sum(
            (torch.as_tensor(c).reshape(x.shape) * x).sum()
            for c, x in zip(weights(case), outputs, strict=True)
        ).backward()
        gradients = [torch.zeros_like(v) if v.grad is None else v.grad for v in values]
        return relative_error([g.numpy() for g in gradients], gradient(case))
    except Exception as error:  # whatever a peer raises is its result
        return type(error).__name__


def main() -> None:
    from cvxlayers.torch import CvxpyLayer

    layers: dict[str, Any] = {"cvxlayers": CvxpyLayer}
    if find_spec("cvxpylayers") is None:
        print("cvxpylayers is not installed; the extra `bench` installs it.")
    else:
        from cvxpylayers.torch import CvxpyLayer as Peer

        layers[f"cvxpylayers {version('cvxpylayers')}"] = Peer
    print(f"{'problem':32s}" + "".join(f"{name:>20s}" for name in layers))
    passed = dict.fromkeys(layers, 0)
    for case in CASES:
        row = f"{case.name:32s}"
        for name, layer_type in layers.items():
            error = error_of(layer_type, case)
            passed[name] += not isinstance(error, str) and error <= BOUND
            row += f"{error:>20s}" if isinstance(error, str) else f"{error:>20.1e}"
        print(row, flush=True)
    total = f"within {BOUND:g}"
    print(f"{total:32s}" + "".join(f"{f'{n} of {len(CASES)}':>20s}" for n in passed.values()))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
