"""Recipes whose answers were wrong when they were first drawn."""

from __future__ import annotations

from .recipes import Recipe

FOUND = {
    # minimize c x, ‖a x‖ <= r: gradients of 1e11 in place of zero. Of a column of rounding errors
    # the equilibration of the derivative's system took the size for the objective's.
    "gradient_from_rounding": Recipe(
        variables=(((), ""),),
        objective=(("linear", 0),),
        constraints=(("vector_cones", 0),),
        maximize=True,
        parametric=(0,),
        batch="grid",
    ),
    # The same, with overflow.
    "overflow_from_rounding": Recipe(
        variables=(((2, 2), "symmetric"), ((3, 3), "symmetric"), ((3, 3), "PSD")),
        objective=(("power1.5", 2), ("logistic", 1)),
        constraints=(("power", 2),),
        maximize=True,
        parametric=(2,),
        regimes=("huge",),
        batch="grid",
        dual=True,
        seed=10975705,
    ),
    # Called infeasible: solutions of cubes are larger than what certificates were checked for.
    "large_cubes": Recipe(
        variables=(((4,), "nonneg"),),
        objective=(("power3", 0),),
        constraints=(("inequality", 0),),
        strict=True,
        maximize=True,
        regimes=("large",),
        batch="three",
        frontend="numpy",
    ),
    # The same with squares, of which one has coefficients of 1e10.
    "huge_squares": Recipe(
        variables=(((1,), "bounds"), ((2, 2), "nonneg"), ((3, 2), "")),
        objective=(("sum_squares", 1), ("sum_squares", 0), ("inverse", 0)),
        constraints=(("zero_equality", 1),),
        maximize=True,
        parametric=(1, 2),
        regimes=("huge", "normal"),
        batch="grid",
        dual=True,
        seed=45084,
    ),
    # Infeasible, and called solved: tolerances were relative to a huge value in another constraint.
    "infeasible_beside_a_huge_value": Recipe(
        variables=(((2, 2), ""),),
        objective=(("norm2", 2), ("norm2", 2), ("norm2", 2)),
        constraints=(("box", 0), ("absurd", 0), ("absurd", 2)),
        parametric=(1, 1, 1),
        regimes=("small", "huge"),
        batch="grid",
        seed=294,
    ),
    # The same without a huge value: along a free direction of a logarithm x goes to 1e14.
    "unbounded_logarithm": Recipe(
        variables=(((3, 3), "symmetric"), ((3, 3), "symmetric"), ((3, 3), "symmetric")),
        objective=(("log", 1), ("power4", 2)),
        constraints=(("zero_equality", 1), ("equality", 2)),
        maximize=True,
        parametric=(0, 2, 2, 1, 1, 0),
        batch="grid",
        dual=True,
        seed=10629,
    ),
    # Unbounded, and called solved, beside a multiplier of 2e6.
    "unbounded_beside_a_huge_multiplier": Recipe(
        variables=(((2,), ""), ((1, 1), "symmetric"), ((1, 1), "symmetric")),
        objective=(("geo_mean", 2), ("trace", 1), ("trace", 1)),
        constraints=(("zero_equality", 2), ("coupling", 0), ("zero_equality", 2)),
        maximize=True,
        regimes=("rows", "zero", "zero"),
        batch="mixed",
        single=True,
        frontend="numpy",
        dual=True,
        seed=373548018,
    ),
    # Polishing took a point that held to 4e-13 to one that broke a constraint by 1e-4.
    "polished_to_a_worse_point": Recipe(
        variables=(((2, 2), "nonneg"), ((2, 2), "PSD"), ((3, 3), "PSD")),
        objective=(("max", 0), ("max", 0)),
        constraints=(("zero_row", 2), ("box", 2)),
        strict=True,
        regimes=("rows",),
        batch="one",
        frontend="numpy",
        dual=True,
        seed=45215364,
    ),
    # NaN in a parameter without influence: solved with on_failure="nan", refused with "raise".
    "nan_without_influence": Recipe(
        variables=(((1, 1), "PSD"), ((1, 1), "PSD"), ((1, 1), "nonneg")),
        objective=(("log_sum_exp", 2), ("zero", 1)),
        constraints=(("inequality", 1), ("exponential", 2), ("box", 0)),
        maximize=True,
        parametric=(1, 2, 1, 1),
        regimes=("rows", "zero", "nan"),
        batch="one",
        single=True,
        seed=1,
    ),
    # An infinite cost without constraints: a warning of NumPy's from the residuals.
    "infinite_cost": Recipe(
        variables=(((), ""),), objective=(("linear", 0),), constraints=(), regimes=("inf",)
    ),
    # Rows of size 1e-7: infeasible, though points of size 1e8 satisfy them.
    "tiny_rows": Recipe(
        variables=(((2, 2), "PSD"), ((2, 2), "PSD")),
        objective=(("geo_mean", 0), ("sum_squares", 0), ("geo_mean", 2)),
        constraints=(("inequality", 0), ("inequality", 1)),
        parametric=(0, 2, 1),
        regimes=("repeated", "tiny", "tiny"),
        seed=2,
    ),
}
