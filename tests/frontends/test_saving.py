"""A saved layer is the layer: the same numbers to the last bit, from arrays and JSON alone.

The oracle is the layer that was saved, and what is damaged must be noticed: every entry and every
key of the file is taken away, exchanged and distorted once.
"""

from __future__ import annotations

import copy
import io
import json
import os
import stat
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import cvxpy as cp
import numpy as np
import pytest

import cvxlayers
from conformance.problems import CASES, Case
from cvxlayers.affine import AffineMap
from cvxlayers.canonicalize import CanonicalProblem, canonicalize, storage
from cvxlayers.canonicalize.leaves import _CHECKED
from cvxlayers.canonicalize.storage import from_arrays, read, to_arrays, write
from cvxlayers.errors import StorageError
from cvxlayers.numpy import CvxpyLayer
from cvxlayers.settings import FailurePolicy

SETTINGS: dict[str, Any] = {
    "solver": "CLARABEL",
    "solver_args": {},
    "on_failure": "raise",
    "verbose": False,
    "derivative": "exact",
    "smoothing": 0.0,
    "max_batch_memory": 0.0,
}


def save(layer: CvxpyLayer, path: Any) -> None:
    layer.save(path)


def load(path: Any) -> CvxpyLayer:
    return CvxpyLayer.load(path)


# Problems that the table of conformance lacks.


def structured() -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    """Parameters of every structure, and attributes that are only checked."""
    S = cp.Parameter((3, 3), name="S", sparsity=[(0, 1, 2), (1, 2, 0)])
    D = cp.Parameter((3, 3), name="D", diag=True)
    N = cp.Parameter((3, 3), name="N", NSD=True)
    low = cp.Parameter(3, name="low", bounds=[-2, np.array([1.0, 2.0, np.inf])])
    whole = cp.Parameter(name="ganz, «à la lettre» \U0001d717", integer=True)
    x = cp.Variable(3, name="x")
    y = cp.Variable((2, 3), name="y", nonneg=True)
    cost = cp.sum_squares(x - D @ np.ones(3)) - cp.quad_form(x, N) + cp.sum_squares(y - whole)
    bound = S @ np.ones(3) + x >= low
    constraints = [bound, cp.sum(y, axis=0) == x]
    return (
        cp.Problem(cp.Minimize(cost), constraints),
        [S, D, N, low, whole],
        [
            x,
            y,
            bound.dual_variables[0],
        ],
    )


def structured_values(rng: np.random.Generator) -> list[np.ndarray]:
    S = np.zeros((3, 3))
    S[[0, 1, 2], [1, 2, 0]] = rng.standard_normal(3)
    root = rng.standard_normal((3, 3))
    N = -(root @ root.T)
    return [S, np.diag(rng.standard_normal(3)), (N + N.T) / 2, rng.uniform(-2, 1, 3), np.array(2.0)]


def unparametrized() -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    x = cp.Variable(2)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - np.array([1.0, -1.0]))), [x >= 0]), [], [x]


TABLE = {
    **{case.name: case for case in CASES},
    "structured": Case("structured", structured, structured_values, frozenset()),
    "unparametrized": Case("unparametrized", unparametrized, lambda _: [], frozenset()),
}
SOLVED = [
    "structured",
    "unparametrized",
    "qp_dense_duals",
    "qp_quad_form_mixed",
    "qp_no_constraints",
    "lp_vertex",
    "variable_bounds",
    "variable_diag",
    "variable_symmetric",
    "soc_dual_columns",
    "psd_dual",
    "sparse_inverse_covariance",
    "exp_cone_dual",
    "power_cone_dual",
    "p_norm_power",
    "gp_box",
    "gp_exponent",
    "all_cones",
]


def build(name: str, **settings: Any) -> CvxpyLayer:
    return CvxpyLayer(*TABLE[name].build(), gp=TABLE[name].gp, **settings)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Two canonical problems, or parts of them, agree to the last bit of every array."""
    assert type(a) is type(b), where
    if isinstance(a, np.ndarray):
        # SciPy is free in how wide indices are; nothing else is.
        assert a.dtype == b.dtype or (a.dtype.kind, b.dtype.kind) == ("i", "i"), where
        assert a.shape == b.shape, where
        b = b.astype(a.dtype)
        assert a.tobytes() == b.tobytes(), where
    elif isinstance(a, tuple | list):
        assert len(a) == len(b), where
        for k, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same(left, right, f"{where}[{k}]")
    elif isinstance(a, AffineMap):
        for name in ("rows", "offset", "depends_on", "covers_all", "size", "_has_offset", "_parts"):
            assert_same(getattr(a, name), getattr(b, name), f"{where}.{name}")
        assert len(a.blocks) == len(b.blocks), where
        for left, right in zip(a.blocks, b.blocks, strict=True):
            assert left.shape == right.shape, where
            for name in ("data", "indices", "indptr"):
                assert_same(getattr(left, name), getattr(right, name), f"{where}.{name}")
    elif hasattr(a, "__dataclass_fields__"):
        for name in a.__dataclass_fields__:
            assert_same(getattr(a, name), getattr(b, name), f"{where}.{name}")
    else:
        assert a == b, where


def equal(a: CanonicalProblem, b: CanonicalProblem) -> bool:
    try:
        assert_same(a, b)
    except AssertionError:
        return False
    return True


# What comes back.


@pytest.mark.parametrize("name", list(TABLE))
def test_round_trip(name: str, tmp_path: Path) -> None:
    """Every problem of the table; through JSON and files, and once more."""
    canonical = canonicalize(*TABLE[name].build(), gp=TABLE[name].gp)
    write(tmp_path / "a", canonical, SETTINGS)
    found, settings = read(tmp_path / "a")
    assert_same(canonical, found)
    assert settings == SETTINGS
    write(tmp_path / "b", found, settings)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", SOLVED)
def test_same_numbers(name: str, tmp_path: Path) -> None:
    """Outputs and derivatives of both orders, alone and in a batch."""
    case = TABLE[name]
    layer = build(name)
    save(layer, tmp_path / "layer")
    again = load(tmp_path / "layer")
    assert repr(again) == repr(layer)
    values = case.values()
    batched = [np.stack([value, value]) if k % 2 else value for k, value in enumerate(values)]
    for theta in (values, batched):
        rng = np.random.default_rng(1)
        directions = [rng.standard_normal(value.shape) for value in theta]
        other = [rng.standard_normal(value.shape) for value in theta]
        results = []
        for one in (layer, again):
            outputs, pullback = one.vjp(*theta)
            weights = [np.cos(np.arange(y.size)).reshape(y.shape) for y in outputs]
            results.append(
                [
                    *one(*theta),
                    *outputs,
                    *pullback(*weights),
                    *one.jvp(theta, directions)[1],
                    *one.hvp(theta, weights, directions),
                    *one.jvp2(theta, directions, other),
                ]
            )
        assert_same(results[0], results[1])


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS", "DIFFCP"])
def test_settings(solver: str, tmp_path: Path) -> None:
    arguments = {"eps": np.float64(1e-5), "max_iters": np.int64(1234), "polish": True}
    layer = build("lasso", solver=solver, solver_args=arguments, on_failure="nan", verbose=True)
    save(layer, tmp_path / "layer")
    again = load(tmp_path / "layer")
    assert again.operations.settings.on_failure == "nan"
    found, expected = again.operations.solution_map, layer.operations.solution_map
    assert found.settings == expected.settings and found.choice.default == expected.choice.default
    assert found.settings.verbose and found.settings.solver == solver
    assert [type(v) for v in found.settings.solver_args.values()] == [float, int, bool]


@pytest.mark.parametrize("derivative", ["smoothed", "lpgd"])
def test_the_kind_of_derivative_is_kept(derivative: Any, tmp_path: Path) -> None:
    numbers = {"smoothing": 0.5, "max_batch_memory": 10**9}
    save(build("lasso", derivative=derivative, **numbers), tmp_path / "layer")
    settings = load(tmp_path / "layer").operations.settings
    assert (settings.derivative, settings.smoothing) == (derivative, 0.5)
    assert settings.max_batch_memory == 1e9


@pytest.mark.parametrize(
    "change", [{"on_failure": "ignore"}, {"derivative": "other"}, {"smoothing": -1.0}], ids=str
)
def test_settings_that_mean_nothing(change: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "layer", small(), {**SETTINGS, **change})
    name = next(iter(change))
    with pytest.raises(StorageError, match=f"settings in the file do not fit: {name}"):
        load(tmp_path / "layer")


@pytest.mark.parametrize("policy", get_args(FailurePolicy))
def test_every_policy_can_be_saved(policy: str, tmp_path: Path) -> None:
    save(build("lasso", on_failure=policy), tmp_path / "layer")
    assert load(tmp_path / "layer").operations.settings.on_failure == policy


def test_every_attribute_can_be_saved() -> None:
    assert {*_CHECKED, "sparsity", "bounds"} == storage._ATTRIBUTES


def test_options_of_every_kind_come_back(tmp_path: Path) -> None:
    arguments = {
        "a": None,
        "b": [1, 2.5, "text", {"c": [True]}],
        "d": float("inf"),
        "e": -0.0,
        "f": 10**20,
        "g": 5e-324,
    }
    write(tmp_path / "layer", small(), {**SETTINGS, "solver_args": arguments})
    assert repr(read(tmp_path / "layer")[1]["solver_args"]) == repr(arguments)


@pytest.mark.parametrize("value", [object(), (1, 2), {3: 4}, [{5}], 1j, np.zeros(2), b"6", len])
def test_option_that_cannot_be_saved(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "layer"
    settings = {**SETTINGS, "solver_args": {"eps": 1e-8, "trouble": value}}
    with pytest.raises(StorageError, match=r"solver_args\['trouble'\].*pass it to every call"):
        write(path, small(), settings)
    assert list(tmp_path.iterdir()) == []


# The file.


@cache
def small() -> CanonicalProblem:
    return canonicalize(*structured())


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "layer"
    write(path, small(), SETTINGS)
    return path.read_bytes()


def unpacked(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays, json.loads(str(arrays.pop("layer")))


def packed(arrays: dict[str, np.ndarray], text: Any) -> bytes:
    stream = io.BytesIO()
    entries: dict[str, Any] = {"layer": np.array(json.dumps(text)), **arrays}
    np.savez(stream, **entries)
    return stream.getvalue()


def read_bytes(content: bytes, tmp_path: Path) -> tuple[CanonicalProblem, dict[str, Any]]:
    path = tmp_path / "file"
    path.write_bytes(content)
    return read(path)


def test_arrays_and_json_alone(tmp_path: Path) -> None:
    for name in ("all_cones", "gp_box", "structured"):
        path = tmp_path / name
        save(build(name), path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        kinds = {key: array.dtype.kind for key, array in arrays.items()}
        assert kinds.pop("layer") == "U"
        assert set(kinds.values()) <= {"f", "i"}
        text = json.loads(str(arrays["layer"]))
        assert (text["format_version"], text["cvxlayers"]) == (2, cvxlayers.__version__)
        # The first byte of what pickle writes since protocol 2.
        assert not any(array.tobytes().startswith(b"\x80\x04") for array in arrays.values())


def test_no_canonicalization(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layer = build("structured")
    save(layer, tmp_path / "layer")
    values = TABLE["structured"].values()
    expected = layer(*values)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("canonicalized")

    monkeypatch.setattr("cvxlayers.operations.canonicalize", never)
    monkeypatch.setattr("cvxlayers.canonicalize.compile.canonicalize", never)
    monkeypatch.setattr("cvxlayers.canonicalize.compile.resolve_and_build_chain", never)
    monkeypatch.setattr(cp.Problem, "get_problem_data", never)
    monkeypatch.setattr("pickle.loads", never)
    monkeypatch.setattr("pickle.load", never)
    assert_same(load(tmp_path / "layer")(*values), expected)


def test_equal_layers_give_equal_files(tmp_path: Path) -> None:
    for name in ("structured", "all_cones"):
        # Names of CVXPY's making count up.
        problem, parameters, variables = TABLE[name].build()
        for path in ("a", "b"):
            save(CvxpyLayer(problem, parameters, variables), tmp_path / path)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class Place(os.PathLike[str]):
    def __init__(self, path: Path):
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Path, Place])
@pytest.mark.parametrize("name", ["layer", "layer.npz", "layer.tar.gz", "a layer ü"])
def test_path(kind: Callable[[Any], Any], name: str, tmp_path: Path) -> None:
    write(kind(tmp_path / name), small(), SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    read(kind(tmp_path / name))


def test_path_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "nowhere" / "layer", small(), SETTINGS)
    with pytest.raises(OSError, match="directory"):
        read(tmp_path)
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match="directory"):
        write(tmp_path / "directory", small(), SETTINGS)
    for wrong in (3, None, b"layer"):
        with pytest.raises(TypeError):
            write(wrong, small(), SETTINGS)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            read(wrong)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def test_written_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When writing fails, the older file is as it was, and nothing else is left."""
    path = tmp_path / "layer"
    path.write_bytes(b"before")
    for broken in ("numpy.savez", "os.fsync", "os.replace"):
        with monkeypatch.context() as patch:

            def full(file: Any, *_: Any, **__: Any) -> None:
                raise OSError("no space left")

            patch.setattr(broken, full)
            with pytest.raises(OSError, match="no space left"):
                write(path, small(), SETTINGS)
        assert [p.name for p in tmp_path.iterdir()] == ["layer"]
        assert path.read_bytes() == b"before"
    write(path, small(), SETTINGS)
    read(path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and permissions of POSIX")
def test_links_and_permissions(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    write(link, small(), SETTINGS)
    assert link.is_symlink()
    assert read(target)
    other = tmp_path / "other"
    other.write_bytes(b"")
    # What any new file gets, not what temporary files get.
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


# What is not ours, not whole, or not of this version.


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"hello", b"\x80\x04N.", bytes(10_000), b"PK\x05\x06" + bytes(18)],
    ids=["empty", "cut", "text", "pickle", "zeros", "empty zip"],
)
def test_other_files(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"file is not a saved layer.*Pass a file"):
        read_bytes(content, tmp_path)


def test_other_archives(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(StorageError, match="no entry 'layer'"):
        read(path)
    with open(path, "wb") as file:
        np.savez_compressed(file, layer=np.array("{}"))
    with pytest.raises(StorageError, match=r"not a saved layer.*compressed"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("layer.npy", b"no array")
        archive.writestr("README", b"text")
    with pytest.raises(StorageError, match="not a saved layer"):
        read(path)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(StorageError, match="not a saved layer"):
        read(path)
    for layer in (np.zeros(3), np.array(["{}"]), np.array("{"), np.array("[" * 5000)):
        with open(path, "wb") as file:
            np.savez(file, layer=layer)
        with pytest.raises(StorageError, match="damaged"):
            read(path)


def test_pickled_objects_are_not_loaded(content: bytes, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return pytest.fail, ("unpickled",)

    arrays, text = unpacked(content)
    trap = np.array([Trap()], dtype=object)
    for changed in ({**arrays, "map.P.data": trap}, {**arrays, "extra": trap}):
        with pytest.raises(StorageError):
            read_bytes(packed(changed, text), tmp_path)


def test_other_format_version(content: bytes, tmp_path: Path) -> None:
    """Recognized whatever else is in the file: its text keeps three keys."""
    _, text = unpacked(content)
    header = {"format": text["format"], "format_version": 7, "cvxlayers": "9.8.7", "more": [1]}
    version = cvxlayers.__version__.replace(".", r"\.")
    with pytest.raises(
        StorageError,
        match=r"version 7 of the format of saved layers, written by cvxlayers 9\.8\.7; this is "
        rf"cvxlayers {version}, which reads version 2\. Build the layer again.*install cvxlayers "
        r"9\.8\.7\.$",
    ):
        read_bytes(packed({"strange": np.zeros((2, 2))}, header), tmp_path)


def test_other_library_version_of_the_same_format(content: bytes, tmp_path: Path) -> None:
    arrays, text = unpacked(content)
    assert_same(read_bytes(packed(arrays, {**text, "cvxlayers": "9.8.7"}), tmp_path)[0], small())


# What is damaged: every entry, every key.

EVERY_ENTRY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "complex": lambda a: a.astype(complex),
    "bool": lambda a: a.astype(bool),
    "half": lambda a: a.astype(np.float16),
    "unsigned": lambda a: np.abs(np.nan_to_num(a, posinf=0)).astype(np.uint32),
    "text": lambda a: np.array("text"),
    "other kind": lambda a: a.astype(np.float64) if a.dtype.kind == "i" else a.astype(np.float32),
    "one more axis": lambda a: a[None, None, None],
    "longer": lambda a: np.concatenate([a.ravel(), np.zeros(1, a.dtype)]),
    "much longer": lambda a: np.concatenate([a.ravel(), np.zeros(1000, a.dtype)]),
}
EVERY_INDEX: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "negative": lambda a: a - a.max(initial=0) - 1,
    "large": lambda a: a + 10_000,
    "largest": lambda a: np.full_like(a, np.iinfo(a.dtype).max),
    "smallest": lambda a: np.full_like(a, np.iinfo(a.dtype).min),
    "far apart": lambda a: np.where(
        np.arange(len(a)) % 2, np.iinfo(a.dtype).max, np.iinfo(a.dtype).min
    ).astype(a.dtype),
}


def entries() -> list[str]:
    return sorted(to_arrays(small())[0])


def test_the_same_entries_as_here(content: bytes) -> None:
    arrays, _ = unpacked(content)
    assert sorted(arrays) == entries()
    assert {"parameter.0.stored", "parameter.1.stored", "parameter.3.lower"} <= arrays.keys()


@pytest.mark.parametrize("name", entries())
def test_damaged_entry(name: str, content: bytes, tmp_path: Path) -> None:
    arrays, text = unpacked(content)
    array = arrays[name]
    changes = dict(EVERY_ENTRY)
    if array.dtype.kind == "i" and len(array):
        changes |= EVERY_INDEX
        if name.endswith("indptr") and len(np.unique(array)) > 1:
            changes["reversed"] = lambda a: a[::-1]
        if name.endswith("stored"):
            changes["repeated"] = lambda a: np.repeat(a, 2)
    if array.ndim:
        if len(array) > 1:
            changes["shorter"] = lambda a: a[:-1]
            changes["every other"] = lambda a: a[::2]
        if len(array) and not name.startswith("parameter"):
            changes["empty"] = lambda a: a[:0]
    for change in changes.values():
        changed = {**arrays, name: change(array)}
        with pytest.raises(StorageError, match=r"file is damaged.*good copy of the file"):
            read_bytes(packed(changed, text), tmp_path)
    del arrays[name]
    with pytest.raises(StorageError, match=f"There is no entry '{name}'"):
        read_bytes(packed(arrays, text), tmp_path)


def test_unexpected_entry(content: bytes, tmp_path: Path) -> None:
    arrays, text = unpacked(content)
    with pytest.raises(StorageError, match=r"unexpected entries: map\.R\.data, output\.3\.offset"):
        read_bytes(
            packed({**arrays, "output.3.offset": np.zeros(2), "map.R.data": np.zeros(2)}, text),
            tmp_path,
        )


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a JSON value."""
    inside: list[tuple[Any, ...]] = [place] if place else []
    keys: Any = ()
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        inside += places(value[key], (*place, key))
    return inside


WRONG = [None, True, -1, 0, 1, 3, 2**62, 10**30, 0.5, float("nan"), "", "text", [], [1], {}]
LEFT_OUT = object()


def test_damaged_text(content: bytes, tmp_path: Path) -> None:
    """Every value of the JSON text is left out, and exchanged for every other kind of value: an
    error, or at least a sound problem (another name, say)."""
    arrays, text = unpacked(content)
    outcomes = []
    for place in places(text):
        for wrong in [*WRONG, LEFT_OUT]:
            changed = copy.deepcopy(text)
            owner = changed
            for key in place[:-1]:
                owner = owner[key]
            before = owner[place[-1]]
            if wrong is LEFT_OUT:
                del owner[place[-1]]
            else:
                owner[place[-1]] = wrong
            try:
                if place[0] == "problem" != place[-1]:
                    canonical = from_arrays(arrays, changed["problem"])  # faster without a file
                else:
                    canonical, _ = read_bytes(packed(arrays, changed), tmp_path)
            except StorageError:
                outcomes.append(True)
            else:
                exercise(canonical)
                outcomes.append(False)
                if wrong is not LEFT_OUT:
                    # Of the same type, but for a scalar's shape [] that becomes [1].
                    assert type(before) is type(wrong), (place, wrong)
    assert sum(outcomes) > 0.9 * len(outcomes) > 500


def exercise(canonical: CanonicalProblem) -> None:
    """Every index of a problem is used once: none may lead out of an array."""
    theta = [np.ones((1, p.size)) for p in canonical.parameters]
    n, m = canonical.structure.n, canonical.structure.m
    with np.errstate(all="ignore"):
        program = canonical.program(theta, 1)
        x, z = np.ones((1, n)), np.ones((1, m))
        outputs = canonical.recover(x, z)
        canonical.recover_adjoint(outputs, outputs, x, z)
        canonical.program_adjoint(canonical.program_tangent(theta, theta), theta)
    for pattern, values in ((program.structure.P, program.P), (program.structure.A, program.A)):
        dense = pattern.matrix(values[0]).toarray()
        np.testing.assert_array_equal(dense[pattern.rows, pattern.cols], values[0])


def test_description_alone() -> None:
    arrays, problem = to_arrays(small())
    assert_same(from_arrays(arrays, problem), small())
    problem["N"] = problem.pop("n")
    with pytest.raises(StorageError, match=r"^problem: expected .*missing: n; unexpected: N\.$"):
        from_arrays(arrays, problem)


def test_unknown_values(content: bytes, tmp_path: Path) -> None:
    arrays, text = unpacked(content)

    def change(section: str, **changes: Any) -> bytes:
        return packed(arrays, {**text, section: {**text[section], **changes}})

    for section, changes, message in (
        ("settings", {"on_failure": 1}, "on_failure"),
        ("settings", {"extra": 1}, "settings: .*unexpected: extra"),
        ("problem", {"parts": [[9, False]]}, r"parts\[0\]: there are 5 parameters"),
        ("problem", {"n": text["problem"]["n"] + 1}, "pattern.P.indptr: expected shape"),
        ("problem", {"extra": 1}, "problem: .*unexpected: extra"),
    ):
        with pytest.raises(StorageError, match=message):
            read_bytes(change(section, **changes), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zero": 10_000}, "map.b.offset: expected shape"),
        ({"soc": [0]}, r"dims: soc\[0\]: expected a whole number from 1"),
        ({"soc": [-1, 1]}, r"dims: soc\[0\]"),
        ({"psd": [True]}, r"dims: psd\[0\]"),
        ({"pow": [1.0]}, "dims: pow: expected exponents between 0 and 1, got 1.0"),
        ({"pow": [float("nan")]}, "dims: pow"),
        ({"exp": 2**48}, "map.b.offset: expected shape"),
        ({"exp": 2**48 + 1}, "dims: exp"),
        ({"nonneg": -1}, "dims: nonneg"),
    ],
)
def test_wrong_cones(change: dict[str, Any], message: str, content: bytes, tmp_path: Path) -> None:
    arrays, text = unpacked(content)
    text["problem"]["dims"] |= change
    with pytest.raises(StorageError, match=message):
        read_bytes(packed(arrays, text), tmp_path)


def test_huge_parameters(content: bytes, tmp_path: Path) -> None:
    """Sizes that would overflow an index, or the memory."""
    arrays, text = unpacked(content)
    for shape in ([2**62], [2**40, 2**40], [10**30, 0], [2**48] * 8):
        text["problem"]["parameters"][4]["shape"] = shape
        with pytest.raises(StorageError, match=r"parameter.4: shape\[0\]|parameter.4: size"):
            read_bytes(packed(arrays, text), tmp_path)
    text["problem"]["parameters"][4] |= {"shape": [2**48], "size": 2**48}
    with pytest.raises(StorageError, match="too many"):
        read_bytes(packed(arrays, text), tmp_path)


def test_wrong_entries_of_a_parameter(content: bytes, tmp_path: Path) -> None:
    arrays, text = unpacked(content)
    for wrong in ([0, 4, 7], [0, 8, 4]):  # of the diagonal of 3 × 3
        changed = {**arrays, "parameter.1.stored": np.array(wrong)}
        with pytest.raises(StorageError, match=r"parameter\.1\.stored: expected the diagonal"):
            read_bytes(packed(changed, text), tmp_path)
    for stored in ([1, 5], [1, 5, 5], [1, 5, 9], [1, 5, 6, 7]):
        changed = {**arrays, "parameter.0.stored": np.array(stored)}
        with pytest.raises(StorageError, match=r"parameter\.0\.stored"):
            read_bytes(packed(changed, text), tmp_path)
    text["problem"]["parameters"][3]["size"] = 2
    with pytest.raises(StorageError, match=r"parameter\.3: size: expected 3, got 2"):
        read_bytes(packed(arrays, text), tmp_path)


def test_lower_triangle(content: bytes, tmp_path: Path) -> None:
    arrays, text = unpacked(content)
    n = text["problem"]["n"]
    indptr, indices = arrays["pattern.P.indptr"], arrays["pattern.P.indices"].copy()
    column = next(j for j in range(n - 1) if indptr[j + 1] > indptr[j])
    indices[indptr[column + 1] - 1] = n - 1
    with pytest.raises(StorageError, match=r"pattern\.P: expected the upper triangle"):
        read_bytes(packed({**arrays, "pattern.P.indices": indices}, text), tmp_path)


# Chance.


@pytest.mark.parametrize("seed", range(4))
def test_damage_at_random_places(seed: int, content: bytes, tmp_path: Path) -> None:
    """A StorageError, or the same content: most bytes of the frame mean nothing."""
    expected = small()
    rng = np.random.default_rng(seed)
    errors = 0
    for trial in range(200):
        damaged = bytearray(content)
        kind = trial % 4
        at = int(rng.integers(len(damaged)))
        if kind == 0:
            damaged[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            damaged[at : at + 8] = rng.bytes(8)
        elif kind == 2:
            del damaged[at:]
        else:
            del damaged[at : at + int(rng.integers(1, 100))]
        errors += outcome(bytes(damaged), expected, tmp_path)
    assert errors > 150


def test_damage_of_the_frame(content: bytes, tmp_path: Path) -> None:
    """The same in the directory at the end, where a bit can mean anything."""
    expected = small()
    start = content.index(b"PK\x01\x02")
    rng = np.random.default_rng(0)
    for at in rng.integers(start, len(content), 400):
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        outcome(bytes(damaged), expected, tmp_path)
    for at in range(len(content) - 22, len(content)):
        for value in (0, 1, 255):
            damaged = bytearray(content)
            damaged[at] = value
            outcome(bytes(damaged), expected, tmp_path)


def test_damage_with_a_good_checksum(content: bytes, tmp_path: Path) -> None:
    """Every byte of the headers of the arrays, and random ones of the numbers: other numbers may
    be read, but indices that are read are sound."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    rng = np.random.default_rng(0)
    names = sorted(files)
    errors = 0
    for trial in range(300):
        name = names[trial % len(names)]
        damaged = bytearray(files[name])
        at = int(rng.integers(min(len(damaged), 80 if trial % 2 else len(damaged))))
        damaged[at] = int(rng.integers(256))
        path = tmp_path / "file"
        with zipfile.ZipFile(path, "w") as archive:
            for other, data in files.items():
                archive.writestr(other, bytes(damaged) if other == name else data)
        try:
            canonical, _ = read(path)
        except StorageError:
            errors += 1
            continue
        exercise(canonical)
    assert errors > 100


def outcome(content: bytes, expected: CanonicalProblem, tmp_path: Path) -> bool:
    """Whether there is an error; if not, what was read is what was written."""
    try:
        canonical, settings = read_bytes(content, tmp_path)
    except StorageError:
        return True
    assert equal(canonical, expected)
    assert settings == SETTINGS
    return False


@pytest.mark.parametrize("name", ["torch", "jax", "mlx", "any"])
def test_every_framework_loads_what_numpy_saved(name: str, tmp_path: Path) -> None:
    b, x = cp.Parameter(2, name="b"), cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
    CvxpyLayer(problem, [b], [x], on_failure="warn").save(tmp_path / "layer")
    if name == "any":
        kind = cvxlayers.CvxpyLayer
    else:
        kind = pytest.importorskip(f"cvxlayers.{name}").CvxpyLayer
    layer = kind.load(tmp_path / "layer")
    assert layer.operations.settings.on_failure == "warn"
    np.testing.assert_allclose(layer(b=[1.0, -2.0])[0].tolist(), [1.0, 0.0], atol=1e-6)


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    canonical = canonicalize(*structured()[:3])
    write(tmp_path / "layer", canonical, {**SETTINGS, "solver": "NO_SUCH_SOLVER"})
    with pytest.raises(StorageError, match="NO_SUCH_SOLVER"):
        CvxpyLayer.load(tmp_path / "layer")
