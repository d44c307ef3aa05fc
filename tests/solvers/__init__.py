"""The solvers, against the optimality conditions, each other, and finite differences."""
