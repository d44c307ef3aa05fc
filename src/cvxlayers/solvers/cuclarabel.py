"""CUCLARABEL: Clarabel on a CUDA device, one instance at a time, in Julia. Optional.

Untested on a machine with CUDA: the arrays that reach Julia are tested, by stand-ins, and what
Julia makes of them is not. Every answer is therefore checked here before it counts as one.

The way into Julia is CVXPY's (cvxpy/reductions/solvers/conic_solvers/cuclarabel_conif.py):
juliacall, arrays of CuPy, whose device pointers Clarabel.jl wraps. Four things follow from the
source of Clarabel.jl, branch CuClarabel, at commit ffa325c of February 2026:

* P on a device has to be the whole matrix (`gpu_data_copy!` in src/solver.jl: "should be in the
  full form"), and the residuals multiply by it as it is. CVXPY 1.9.3 hands over the upper
  triangle. Only where P is diagonal are both the same.
* The cones have to be sorted, with second-order cones of more than five rows before the smaller
  ones (`orders` in src/cones/cone_api.jl); otherwise it is an error.
* `cupy_to_cucsrmat` (ext/py2jl.jl) adds one to the indices where they lie, so that every instance
  needs indices of its own, and nothing in Julia keeps CuPy's arrays alive.
* Nothing is presolved: a bound of 1e20 is a number there (see `csr_form.bounded`).

PSD cones are not taken: Clarabel.jl wants all of one size, and CVXPY offers none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.program import CONES, ConeDims, ConeProgram, ConeSolution, ProblemStructure
from cvxlayers.solvers.base import Solver, seconds_left
from cvxlayers.solvers.certificates import demand_proof
from cvxlayers.solvers.clarabel import Clarabel
from cvxlayers.solvers.csr_form import CsrForm, CsrPattern, bounded, restore_bounds
from cvxlayers.status import Status

__all__ = ["CuClarabel"]

Array = NDArray[np.float64]

_STATUSES = {
    "SOLVED": Status.SOLVED,
    "ALMOST_SOLVED": Status.ALMOST_SOLVED,
    "PRIMAL_INFEASIBLE": Status.PRIMAL_INFEASIBLE,
    "DUAL_INFEASIBLE": Status.DUAL_INFEASIBLE,
    # A certificate at reduced accuracy proves nothing: the instance counts as not solved.
    "ALMOST_PRIMAL_INFEASIBLE": Status.NUMERICAL_ERROR,
    "ALMOST_DUAL_INFEASIBLE": Status.NUMERICAL_ERROR,
    "MAX_ITERATIONS": Status.MAX_ITERATIONS,
    "MAX_TIME": Status.TIME_LIMIT,
    "NUMERICAL_ERROR": Status.NUMERICAL_ERROR,
    "INSUFFICIENT_PROGRESS": Status.INSUFFICIENT_PROGRESS,
}
_HAS_POINT = (int(Status.SOLVED), int(Status.ALMOST_SOLVED))

# Second-order cones of more rows are "sparse": `soc_threshold` in src/settings.jl.
LARGE_CONE = 5
# Residuals up to this, relative to what they are sums of, are those of an almost solved instance:
# Clarabel's reduced tolerance. What is called solved and is worse is none.
REDUCED = 1e-4

_INSTALL = """install it, on a machine with CUDA, with
    pip install juliacall==0.9.31 cupy-cuda12x
    python -c "from juliacall import Main as jl; jl.seval('import Pkg; Pkg.add(url=\\"https://github.com/oxfordcontrol/Clarabel.jl\\", rev=\\"CuClarabel\\"); Pkg.add(\\"CUDA\\")')"
or leave solver=None"""  # noqa: E501 (a line to be pasted)


class CuClarabel(Solver):
    """Chen, Tse, Nobel, Goulart & Boyd, *CuClarabel: GPU acceleration for a conic optimization
    solver*, arXiv 2412.19027.

    Notes
    -----
    Julia is called from the caller's own thread, which has to be the main one. Options go to
    `Clarabel.Settings`; `direct_solve_method` is ``"cudss"`` or ``"cudssmixed"``.

    Raises
    ------
    ImportError
        juliacall or CuPy is not installed.
    """

    name = "CUCLARABEL"
    is_for_devices = True
    cones = CONES - {"psd"}
    tolerances, iteration_limit = Clarabel.tolerances, Clarabel.iteration_limit
    # Clarabel.jl has no presolve on a device, and other names for its linear solvers there.
    options = Clarabel.options - {
        "max_threads",
        "direct_kkt_solver",
        "presolve_enable",
        "input_sparse_dropzeros",
        "chordal_decomposition_enable",
        "chordal_decomposition_merge_method",
        "chordal_decomposition_compact",
        "chordal_decomposition_complete_dual",
        "pardiso_iparm",
        "pardiso_verbose",
    }

    def __init__(self, structure: ProblemStructure):
        super().__init__(structure)
        _packages()
        self._form = CsrForm(structure, large=LARGE_CONE)

    @classmethod
    def refusal(cls, structure: ProblemStructure) -> str | None:
        if structure.n == 0 or structure.m == 0:
            return "CUCLARABEL does not take a problem without variables or without constraints"
        return super().refusal(structure)

    def solve(
        self,
        program: ConeProgram,
        options: Mapping[str, Any],
        verbose: bool = False,
        deadline: float | None = None,
    ) -> ConeSolution:
        julia = _Julia()
        settings = julia.settings(options, verbose)
        program, infinite = bounded(program)
        solution = ConeSolution.empty(program.batch, self.structure)
        finite = program.is_finite()
        for i in range(program.batch):
            start, left = time.perf_counter(), seconds_left(deadline)
            if not finite[i]:
                solution.status[i] = Status.NUMERICAL_ERROR
                continue
            if left is not None:
                if left <= 0.0:
                    solution.status[i] = Status.TIME_LIMIT
                    continue
                settings.time_limit = left
            self._solve(julia, settings, program, i, solution)
            solution.seconds[i] = time.perf_counter() - start
        demand_proof(program, solution)
        without = ~np.isin(solution.status, _HAS_POINT)
        for point in (solution.x, solution.z, solution.s):
            point[without] = np.nan
        restore_bounds(solution, infinite)
        return solution

    def _solve(
        self, julia: _Julia, settings: Any, program: ConeProgram, i: int, solution: ConeSolution
    ) -> None:
        """Solve instance i; a certificate is left in place of a point."""
        form = self._form
        P, q, A, b = (
            v[i if len(v) > 1 else 0] for v in (program.P, program.q, program.A, program.b)
        )
        n, m = self.structure.n, self.structure.m
        answer = julia.solve(
            (form.P, P[form.P.source], (n, n)),
            q,
            (form.A, A[form.A.source], (m, n)),
            b[form.order],
            form.dims,
            settings,
        )
        if answer is None:
            solution.status[i] = Status.NUMERICAL_ERROR
            return
        x, z, s = (julia.to_host(part) for part in (answer.x, answer.z, answer.s))
        z, s = z[form.position], s[form.position]
        status = _STATUSES.get(str(answer.status), Status.NUMERICAL_ERROR)
        if status in _HAS_POINT:
            upper, rows = self.structure.P.matrix(P), self.structure.A.matrix(A)
            Px = upper @ x + upper.T @ x - upper.diagonal() * x
            terms = ((Px, q, rows.T @ z), (rows @ x, s, -b))
            # Not "above": NaN is none either.
            if not all(_missed(*parts) <= REDUCED for parts in terms):
                status = Status.NUMERICAL_ERROR
        solution.status[i] = status
        solution.iterations[i] = int(answer.iterations)
        solution.x[i], solution.z[i], solution.s[i] = x, z, s


class _Julia:
    """Julia, with Clarabel and CUDA loaded."""

    def __init__(self) -> None:
        self.cupy, juliacall = _packages()
        self.error = juliacall.JuliaError
        self.main = juliacall.Main
        try:
            self.main.seval("using Clarabel, LinearAlgebra, SparseArrays")
            self.main.seval("using CUDA, CUDA.CUSPARSE")
        except self.error as error:
            message = f"solver='CUCLARABEL': Julia has no Clarabel with CUDA ({error}); {_INSTALL}"
            raise ImportError(message) from error
        extension = self.main.Symbol("PythonExt")
        self.wrap = self.main.Base.get_extension(self.main.Clarabel, extension)

    def settings(self, options: Mapping[str, Any], verbose: bool) -> Any:
        """`Clarabel.Settings` with these options.

        Raises
        ------
        ValueError
            Clarabel does not take one of them.
        """
        settings = self.main.seval("Clarabel.Settings(direct_solve_method = :cudss)")
        for name, value in {"verbose": verbose, **options}.items():
            try:
                symbol = isinstance(value, str)
                setattr(settings, name, self.main.Symbol(value) if symbol else value)
            except (self.error, TypeError) as error:
                message = f"solver_args[{name!r}]: Clarabel does not take {value!r} here ({error})"
                raise ValueError(message) from error
        return settings

    def solve(
        self,
        P: tuple[CsrPattern, Array, tuple[int, int]],
        q: Array,
        A: tuple[CsrPattern, Array, tuple[int, int]],
        b: Array,
        dims: ConeDims,
        settings: Any,
    ) -> Any:
        """The solution of one instance, None where the solve was an error in Julia."""
        # CuPy's arrays live until the solve has ended.
        alive: list[Any] = []
        matrices = [self._matrix(*parts, alive) for parts in (P, A)]
        vectors = [self._vector(values, alive) for values in (q, b)]
        # CuPy copies in a stream of its own.
        self.cupy.cuda.Device().synchronize()
        solver = self.main.Clarabel.Solver(settings)
        # A trailing _b is Julia's exclamation mark.
        self.main.Clarabel.setup_b(
            solver, matrices[0], vectors[0], matrices[1], vectors[1], self._cones(dims)
        )
        try:
            self.main.Clarabel.solve_b(solver)
        except self.error:
            return None
        return solver.solution

    def to_host(self, values: Any) -> Array:
        """A copy of a vector in Julia, on a device or not."""
        return np.array(self.main.Array(values), dtype=np.float64)

    def _matrix(
        self, pattern: CsrPattern, values: Array, shape: tuple[int, int], alive: list[Any]
    ) -> Any:
        if not len(values):
            return self.main.seval(f"CuSparseMatrixCSR(spzeros({shape[0]}, {shape[1]}))")
        parts = (
            self.cupy.array(values),
            self.cupy.array(pattern.indices, dtype=np.int32),
            self.cupy.array(pattern.indptr, dtype=np.int32),
        )
        alive += parts
        pointers = (int(part.data.ptr) for part in parts)
        return self.wrap.cupy_to_cucsrmat(self.main.Float64, *pointers, *shape, len(values))

    def _vector(self, values: Array, alive: list[Any]) -> Any:
        vector = self.cupy.array(values)
        alive.append(vector)
        return self.wrap.cupy_to_cuvector(self.main.Float64, int(vector.data.ptr), len(values))

    def _cones(self, dims: ConeDims) -> Any:
        clarabel = self.main.Clarabel
        cones = self.main.seval("Clarabel.SupportedCone[]")
        kinds = [clarabel.ZeroConeT(dims.zero)] if dims.zero else []
        kinds += [clarabel.NonnegativeConeT(dims.nonneg)] if dims.nonneg else []
        kinds += [clarabel.SecondOrderConeT(size) for size in dims.soc]
        kinds += [clarabel.ExponentialConeT() for _ in range(dims.exp)]
        kinds += [clarabel.PowerConeT(float(np.asarray(alpha))) for alpha in dims.pow]
        for cone in kinds:
            self.main.push_b(cones, cone)
        return cones


def _missed(*terms: Array) -> float:
    """By how much terms that should cancel do not, relative to the largest of them."""
    size = max(float(np.abs(term).max(initial=0.0)) for term in terms)
    missed = np.abs(sum(terms, start=np.zeros_like(terms[0])))
    return float(missed.max(initial=0.0)) / max(1.0, size)


def _packages() -> tuple[Any, Any]:
    """CuPy and juliacall."""
    try:
        import cupy
        import juliacall
    except ImportError as error:
        message = (
            "solver='CUCLARABEL': CuPy or juliacall, which calls Julia, cannot be imported "
            f"({error}); {_INSTALL}"
        )
        raise ImportError(message) from error
    return cupy, juliacall
