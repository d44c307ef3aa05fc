"""How fast the layer is, relative to a bare loop over the solver and to cvxpylayers.

Run ``python -m benchmarks`` in the root of the repository.
"""
