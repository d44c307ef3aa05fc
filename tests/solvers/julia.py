"""Stand-ins for CuPy and juliacall: they keep what reaches Clarabel.jl, and solve it by Clarabel.

The calls are those of ext/py2jl.jl and src/solver.jl of Clarabel.jl (branch CuClarabel), and those
that CVXPY makes. Device memory is a table of arrays by made-up addresses.
"""

from __future__ import annotations

import itertools
import re
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import clarabel
import numpy as np
import pytest
import scipy.sparse as sp

LARGE_CONE = 5  # soc_threshold in src/settings.jl
STATUS = {
    "Solved": "SOLVED",
    "AlmostSolved": "ALMOST_SOLVED",
    "PrimalInfeasible": "PRIMAL_INFEASIBLE",
    "DualInfeasible": "DUAL_INFEASIBLE",
    "MaxIterations": "MAX_ITERATIONS",
    "MaxTime": "MAX_TIME",
    "NumericalError": "NUMERICAL_ERROR",
    "InsufficientProgress": "INSUFFICIENT_PROGRESS",
}


class JuliaError(Exception):
    """An error in Julia."""


@dataclass
class Arrived:
    """What reached `Clarabel.setup!` for one instance."""

    P: sp.csr_array
    q: np.ndarray
    A: sp.csr_array
    b: np.ndarray
    cones: list[tuple[Any, ...]]
    settings: dict[str, Any]


class DeviceArray:
    """An array of CuPy's: a copy with an address."""

    def __init__(self, host: Any, memory: dict[int, np.ndarray], addresses: Any, dtype: Any = None):
        self.host = np.array(host, dtype=dtype)
        self.size, self.nbytes = self.host.size, self.host.nbytes
        self.data = SimpleNamespace(ptr=next(addresses))
        self.memory = memory
        memory[self.data.ptr] = self.host

    def __del__(self) -> None:
        self.memory.pop(self.data.ptr, None)


class Settings:
    """`Clarabel.Settings`: a mutable struct with these fields of these types."""

    def __init__(self, **given: Any):
        known = [n for n in dir(clarabel.DefaultSettings()) if not n.startswith("_")]
        object.__setattr__(self, "known", {*known, "soc_threshold"})
        object.__setattr__(self, "values", {})
        for name, value in given.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.known:
            raise JuliaError(f"type Settings has no field {name}")
        if name == "direct_solve_method":
            if not (isinstance(value, tuple) and value[0] == "Symbol"):
                raise JuliaError("cannot convert to Symbol")
        elif not isinstance(value, bool | int | float):
            raise JuliaError("cannot convert to Float64")
        self.values[name] = value


class Julia:
    """`juliacall.Main`, as far as it is used."""

    def __init__(self, memory: dict[int, np.ndarray]):
        self._memory = memory
        self.arrived: list[Arrived] = []
        self.Float64 = "Float64"
        self.Base = SimpleNamespace(get_extension=lambda module, name: self._extension)
        self._extension = SimpleNamespace(
            cupy_to_cuvector=self._vector, cupy_to_cucsrmat=self._matrix
        )
        self.Clarabel = SimpleNamespace(
            Solver=lambda settings: SimpleNamespace(settings=settings, solution=None),
            setup_b=self._setup,
            solve_b=self._solve,
            **{
                f"{kind}T": lambda *arguments, kind=kind: (kind, *arguments)
                for kind in (
                    *("ZeroCone", "NonnegativeCone", "SecondOrderCone"),
                    *("PSDTriangleCone", "ExponentialCone", "PowerCone"),
                )
            },
        )

    def Symbol(self, name: str) -> tuple[str, str]:
        return ("Symbol", name)

    def Array(self, values: np.ndarray) -> np.ndarray:
        return values.copy()

    def push_b(self, cones: list[Any], cone: Any) -> None:
        cones.append(cone)

    def seval(self, code: str) -> Any:
        code = code.strip()
        if code.startswith("using "):
            return None
        if code == "Clarabel.SupportedCone[]":
            return []
        if code == "cones = Clarabel.SupportedCone[]":  # CVXPY
            self.cones: list[Any] = []
            return None
        if code == "Clarabel.Settings(direct_solve_method = :cudss)":
            return Settings(direct_solve_method=self.Symbol("cudss"))
        if found := re.fullmatch(r"CuSparseMatrixCSR\(spzeros\((\d+), (\d+)\)\)", code):
            return sp.csr_array((int(found[1]), int(found[2])))
        if code.startswith("P = CuSparseMatrixCSR(sparse(Float64[]"):  # CVXPY
            n = int(re.findall(r"\d+", code)[-1])
            self.P = sp.csr_array((n, n))
            return None
        if "Clarabel.setup!(solver, P,q,A,b,cones)" in code:  # CVXPY
            solver = SimpleNamespace(settings=Settings(), solution=None)
            self._arrive(solver, self.P, self.q, self.A, self.b, self.cones)
            return None
        raise JuliaError(f"what is {code!r}?")

    def _vector(self, kind: str, pointer: int, size: int) -> np.ndarray:
        vector = self._memory[pointer]
        assert vector.dtype == np.float64
        assert vector.size == size
        return vector

    def _matrix(
        self, kind: str, data: int, indices: int, indptr: int, rows: int, cols: int, nnz: int
    ) -> sp.csr_array:
        values, columns, starts = (self._memory[pointer] for pointer in (data, indices, indptr))
        assert values.dtype == np.float64
        assert columns.dtype == starts.dtype == np.int32
        assert (len(values), len(columns), len(starts)) == (nnz, nnz, rows + 1)
        columns += 1  # in place, as in Julia
        starts += 1
        assert starts[0] == 1
        return sp.csr_array((values.copy(), columns - 1, starts - 1), shape=(rows, cols))

    def _arrive(self, solver: Any, P: Any, q: Any, A: Any, b: Any, cones: list[Any]) -> None:
        settings = dict(solver.settings.values)
        self.arrived.append(Arrived(P, q.copy(), A, b.copy(), list(cones), settings))

    def _setup(self, solver: Any, P: Any, q: Any, A: Any, b: Any, cones: list[Any]) -> None:
        ranks = {"ZeroCone": 0, "NonnegativeCone": 0, "ExponentialCone": 3, "PowerCone": 4}
        order = [
            ranks[kind] if kind in ranks else 1 if size[0] > LARGE_CONE else 2
            for kind, *size in cones
        ]
        if order != sorted(order):
            raise JuliaError("The input cones should be ordered!")
        self._arrive(solver, P, q, A, b, cones)
        solver.instance = self.arrived[-1]

    def _solve(self, solver: Any) -> None:
        given = solver.instance
        if abs(given.P - given.P.T).max() > 0.0:
            raise AssertionError("P on a device is taken as it is: it has to be symmetric")
        settings = clarabel.DefaultSettings()
        settings.presolve_enable = False
        for name, value in given.settings.items():
            if name != "direct_solve_method":
                setattr(settings, name, value)
        cones = [getattr(clarabel, f"{kind}T")(*size) for kind, *size in given.cones]
        upper = sp.triu(given.P, format="csc")
        found = clarabel.DefaultSolver(
            upper, given.q, given.A.tocsc(), given.b, cones, settings
        ).solve()
        solver.solution = SimpleNamespace(
            x=np.array(found.x),
            z=np.array(found.z),
            s=np.array(found.s),
            status=STATUS[str(found.status)],
            iterations=found.iterations,
        )


def install(monkeypatch: pytest.MonkeyPatch) -> Julia:
    """Put the stand-ins into sys.modules."""
    memory: dict[int, np.ndarray] = {}
    addresses = itertools.count(1 << 32, 1 << 12)

    def array(host: Any, dtype: Any = None) -> DeviceArray:
        return DeviceArray(host, memory, addresses, dtype)

    def csr_matrix(host: Any) -> SimpleNamespace:  # CVXPY
        host = sp.csr_array(host)
        return SimpleNamespace(
            data=array(host.data),
            indices=array(host.indices, np.int32),
            indptr=array(host.indptr, np.int32),
            shape=host.shape,
            nnz=host.nnz,
        )

    julia = Julia(memory)
    device = SimpleNamespace(synchronize=lambda: None)
    modules = {
        "cupy": {"array": array, "cuda": SimpleNamespace(Device=lambda: device)},
        "cupyx": {},
        "cupyx.scipy": {},
        "cupyx.scipy.sparse": {"csr_matrix": csr_matrix},
        "juliacall": {"Main": julia, "JuliaError": JuliaError},
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    return julia
