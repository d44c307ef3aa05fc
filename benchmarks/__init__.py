"""How fast the layer is, relative to a bare loop over the solver and to cvxpylayers.

Run ``python -m benchmarks`` in the root of the repository.
"""

import os

# One BLAS thread each: instances of a batch are what runs in parallel. BLAS reads this when it is
# loaded, so before NumPy.
for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM"):
    os.environ[f"{library}_NUM_THREADS"] = "1"
