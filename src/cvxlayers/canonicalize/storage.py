"""A canonical problem as arrays and JSON, in one file, and back.

The file is an .npz as `numpy.savez` writes it, whatever its name. Nothing in it is pickled, and
nothing of it is believed: what is read is checked until a wrong index cannot reach compiled code.

    layer                                  JSON text: versions, settings, names, shapes, cones
    pattern.{P,A}.{indptr,indices}         sparsity patterns, compressed sparse column
    map.{P,q,A,b}.{offset,indptr,indices,data}    (parts) → (P, q, A, b)
    output.{k}.{offset,indptr,indices,data}       (x, z) → output k
    parameter.{k}.{stored,lower,upper}     where the parameter is sparse, or has bounds

The matrices of a map stand side by side in one compressed sparse row matrix.
"""

from __future__ import annotations

import io
import json
import math
import os
import secrets
import zipfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cvxlayers.affine import AffineMap
from cvxlayers.canonicalize.canonical import (
    CanonicalProblem,
    OutputSpec,
    ParameterSpec,
    diagonal,
)
from cvxlayers.errors import StorageError
from cvxlayers.program import ConeDims, Pattern, ProblemStructure

__all__ = ["FORMAT_VERSION", "from_arrays", "read", "to_arrays", "write"]

Arrays = dict[str, NDArray[Any]]
PathLike = str | os.PathLike[str]

FORMAT = "cvxlayers layer"
# To be raised with any change of the entries or of what they mean.
FORMAT_VERSION = 2
# The entry with the JSON text. In every version of the format it has this name, the text has the
# keys of `_HEADER`, and the archive is not compressed: so that a version can tell the others.
TEXT = "layer"

# Every size is at most this, so that no index overflows.
LARGEST = 2**48

_MAPS = ("P", "q", "A", "b")
_SQUARE = {"symmetric", "PSD", "NSD", "diag"}
_ATTRIBUTES = {
    "nonneg",
    "nonpos",
    "pos",
    "neg",
    "integer",
    "boolean",
    "sparsity",
    "bounds",
    *_SQUARE,
}
_FLOAT = (np.dtype(np.float64),)
_INDEX = (np.dtype(np.int32), np.dtype(np.int64))

# Keys of every JSON object, and the exact types of their values.
_HEADER = {"format": str, "format_version": int, "cvxlayers": str}
_FILE = {**_HEADER, "settings": dict, "problem": dict}
_SETTINGS = {
    "solver": str,
    "solver_args": dict,
    "on_failure": str,
    "verbose": bool,
    "derivative": str,
    "smoothing": float,  # zero for none
    "max_batch_memory": float,  # zero for none
}
_PROBLEM = {"n": int, "dims": dict, "parameters": list, "outputs": list, "parts": list}
_DIMS = {"zero": int, "nonneg": int, "soc": list, "psd": list, "exp": int, "pow": list}
_PARAMETER = {"name": str, "shape": list, "size": int, "attributes": list}
_OUTPUT = {"name": str, "shape": list, "exponentiate": bool}


def write(path: PathLike, canonical: CanonicalProblem, settings: Mapping[str, Any]) -> None:
    """Save a canonical problem and the settings of its layer.

    The file is complete or not there: it replaces an older one at once. Equal layers give equal
    files.

    Parameters
    ----------
    path : str or PathLike
        The name of the file, as it is: no suffix is added.
    canonical : CanonicalProblem
    settings : mapping
        The fields of `cvxlayers.settings.Settings`, zero for a number that is None, and an empty
        name for a solver that is.

    Raises
    ------
    StorageError
        If an option of the solver is nothing that JSON has. The message names it.
    OSError
        If the file cannot be written.
    """
    target = Path(os.path.realpath(Path(path)))  # a link stays one
    checked = _checked_settings(settings)
    arrays, problem = to_arrays(canonical)
    from_arrays(arrays, problem)  # what could not be read again is not written
    text = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "cvxlayers": _library_version(),
        "settings": checked,
        "problem": problem,
    }
    entries: dict[str, Any] = {TEXT: np.array(json.dumps(text, sort_keys=True)), **arrays}
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            np.savez(file, **entries)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: PathLike) -> tuple[CanonicalProblem, dict[str, Any]]:
    """What `write` saved.

    Returns
    -------
    canonical : CanonicalProblem
    settings : dict
        As given to `write`, with solver_args of plain Python values.

    Raises
    ------
    StorageError
        If the file is no saved layer, is damaged, or has another format.
    OSError
        If the file cannot be opened.
    """
    with open(Path(path), "rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            names = _names(archive, file)
        except Exception as error:  # zipfile does not say what it raises
            raise StorageError(
                f"{path} is not a saved layer, or was cut off or damaged ({_cause(error)}). Pass "
                "a file that the method `save` of a layer wrote."
            ) from error
        if TEXT not in names:
            raise StorageError(
                f"{path} is not a saved layer: it has no entry {TEXT!r}. Pass a file that the "
                "method `save` of a layer wrote."
            )
        try:
            text = _text(_content(archive, TEXT))
            _check_version(path, text)
            settings = _checked_settings(_record("the JSON text", text, _FILE)["settings"])
            arrays = {name: _array(_content(archive, name)) for name in names if name != TEXT}
            return from_arrays(arrays, text["problem"]), settings
        except _VersionError as error:
            raise StorageError(str(error)) from None
        except Exception as error:  # nor do NumPy's header and json, for input made to break them
            raise StorageError(
                f"{path} is damaged, or was not written by cvxlayers. {_cause(error)} Get a good "
                "copy of the file, or build the layer again from its problem and save it."
            ) from error


def to_arrays(canonical: CanonicalProblem) -> tuple[Arrays, dict[str, Any]]:
    """Take a canonical problem apart.

    Returns
    -------
    arrays : dict of ndarray
        Of float64, int32 and int64, see above. They may share memory with the problem.
    description : dict
        The rest, as JSON has it.
    """
    structure = canonical.structure
    arrays: Arrays = {}
    for name, pattern in (("P", structure.P), ("A", structure.A)):
        arrays[f"pattern.{name}.indptr"] = pattern.indptr
        arrays[f"pattern.{name}.indices"] = pattern.indices
    for name in _MAPS:
        _put_map(arrays, f"map.{name}", getattr(canonical, name))
    for k, output in enumerate(canonical.outputs):
        _put_map(arrays, f"output.{k}", output.recovery)
    for k, parameter in enumerate(canonical.parameters):
        if parameter.stored is not None:
            arrays[f"parameter.{k}.stored"] = parameter.stored.astype(np.int64)
        if parameter.bounds is not None:
            for side, bound in zip(("lower", "upper"), parameter.bounds, strict=True):
                arrays[f"parameter.{k}.{side}"] = np.asarray(bound, np.float64, order="C")
    dims = structure.dims
    description = {
        "n": structure.n,
        "dims": {
            "zero": dims.zero,
            "nonneg": dims.nonneg,
            "soc": list(dims.soc),
            "psd": list(dims.psd),
            "exp": dims.exp,
            "pow": list(dims.pow),
        },
        "parameters": [
            {
                "name": p.name,
                "shape": list(p.shape),
                "size": p.size,
                "attributes": sorted(p.attributes),
            }
            for p in canonical.parameters
        ],
        "outputs": [
            {"name": v.name, "shape": list(v.shape), "exponentiate": v.exponentiate}
            for v in canonical.outputs
        ],
        "parts": [[position, is_log] for position, is_log in canonical.parts],
    }
    return arrays, description


def from_arrays(
    arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]
) -> CanonicalProblem:
    """Put together what `to_arrays` took apart.

    Raises
    ------
    StorageError
        Naming what is missing, unexpected or wrong.
    """
    problem = _record("problem", description, _PROBLEM)
    rest = _Entries(arrays)
    dims = _dims(problem["dims"])
    n, m = _size("problem: n", problem["n"]), dims.m
    P, A = _pattern(rest, "pattern.P", (n, n)), _pattern(rest, "pattern.A", (m, n))
    if (P.rows > P.cols).any():
        raise StorageError("pattern.P: expected the upper triangle, got entries below it.")
    parameters = tuple(_parameter(rest, k, p) for k, p in enumerate(problem["parameters"]))
    parts = tuple(_part(k, part, len(parameters)) for k, part in enumerate(problem["parts"]))
    widths = [parameters[position].size for position, _ in parts]
    sizes = {"P": P.nnz, "q": n, "A": A.nnz, "b": m}
    maps = {name: _map(rest, f"map.{name}", sizes[name], widths) for name in _MAPS}
    outputs = tuple(_output(rest, k, v, (n, m)) for k, v in enumerate(problem["outputs"]))
    rest.finish()
    structure = ProblemStructure(dims, P, A, maps["A"].fixed)
    return CanonicalProblem(structure, parameters, outputs, parts, **maps)


# The file.


class _VersionError(Exception):
    """The text is one of another version of the format."""


def _names(archive: zipfile.ZipFile, file: IO[bytes]) -> list[str]:
    """Names of the arrays. What cannot all be in the file, byte by byte, is refused."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
        raise StorageError("its entries are not those of an .npz")
    # Compressed entries may unpack to any size, and overlapping ones add up to any.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise StorageError("it is compressed")
    if sum(entry.file_size for entry in entries) > file.seek(0, os.SEEK_END):
        raise StorageError("its entries are larger than the file")
    return [name.removesuffix(".npy") for name in names]


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    return archive.read(f"{name}.npy")  # compares the checksum


def _array(content: bytes) -> NDArray[Any]:
    """The array of an .npy file without pickled objects."""
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise StorageError("An entry has another version of the .npy format.")
    shape, in_fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    size = math.prod(shape) * dtype.itemsize
    if in_fortran_order or dtype.kind not in "fiU" or size != len(content) - stream.tell():
        raise StorageError("An entry is no array of numbers, or has another size than it says.")
    array: NDArray[Any] = np.ndarray(shape, dtype, content, stream.tell())
    return array.astype(dtype.newbyteorder("="))


def _text(content: bytes) -> Any:
    array = _array(content)
    if array.dtype.kind != "U" or array.shape != ():
        raise StorageError(f"{TEXT}: expected a text, got an array.")
    return json.loads(str(array))


def _check_version(path: PathLike, text: Any) -> None:
    """Raise unless the text is one of this version, whatever else it says."""
    header = _record("the JSON text", text, _HEADER, exactly=False)
    if header["format"] != FORMAT:
        raise StorageError(f"Expected the format {FORMAT!r}, got {header['format']!r}.")
    if header["format_version"] != FORMAT_VERSION:
        raise _VersionError(
            f"{path} has version {header['format_version']} of the format of saved layers, written "
            f"by cvxlayers {header['cvxlayers']}; this is cvxlayers {_library_version()}, which "
            f"reads version {FORMAT_VERSION}. Build the layer again from its problem with this "
            f"version and save it, or install cvxlayers {header['cvxlayers']}."
        )


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, StorageError) else f"{type(error).__name__}: {error}."


def _library_version() -> str:
    # Not an import statement: above this module, the package also offers the layers.
    return str(import_module("cvxlayers").__version__)


def _checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with plain values, or an error that names the one that has none."""
    checked = dict(_record("settings", settings, _SETTINGS))
    checked["solver_args"] = {
        name: _plain(value, name) for name, value in checked["solver_args"].items()
    }
    return checked


def _plain(value: Any, option: Any) -> Any:
    """A value as JSON gives it back."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(entry, option) for entry in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(entry, option) for key, entry in value.items()}
    raise StorageError(
        f"solver_args[{option!r}]: expected a number, a string, or a list or dict of those, got "
        f"{value!r} of type {type(value).__name__}, which cannot be saved. Build the layer without "
        "this option, and pass it to every call instead."
    )


# Maps.


def _put_map(arrays: Arrays, name: str, f: AffineMap) -> None:
    offset, counts = f.offset, np.zeros(f.size, dtype=np.int64)
    arrays[f"{name}.offset"] = offset
    indices, data = np.zeros(0, dtype=np.int64), np.zeros(0)
    if f.blocks:
        matrix = sp.hstack(f.blocks, format="csr")
        matrix.sum_duplicates()
        counts[f.rows] = np.diff(matrix.indptr)
        indices, data = matrix.indices, matrix.data
    arrays[f"{name}.indptr"] = _narrow(np.concatenate([[0], np.cumsum(counts)]))
    arrays[f"{name}.indices"] = _narrow(indices)
    arrays[f"{name}.data"] = data


def _map(rest: _Entries, name: str, size: int, widths: Sequence[int]) -> AffineMap:
    offset = rest.take(f"{name}.offset", _FLOAT, size)
    indptr = rest.take(f"{name}.indptr", _INDEX, size + 1)
    indices = rest.take(f"{name}.indices", _INDEX)
    data = rest.take(f"{name}.data", _FLOAT, len(indices))
    starts = [0, *accumulate(widths)]
    if starts[-1] > LARGEST:
        raise StorageError(f"{name}: the parameters have {starts[-1]} entries; too many.")
    _check_compressed(name, indptr, indices, starts[-1])

    row = np.repeat(np.arange(size), np.diff(indptr))
    part = np.searchsorted(np.array(starts[1:], np.int64), indices, side="right")
    order = np.argsort(part, kind="stable")
    stops = np.cumsum(np.bincount(part, minlength=len(widths))).tolist()
    blocks = []
    for first, stop, start, width in zip([0, *stops], stops, starts, widths, strict=False):
        entries = order[first:stop]
        columns = _narrow(indices[entries].astype(np.int64) - start)
        counts = np.bincount(row[entries], minlength=size)
        own = np.concatenate([[0], np.cumsum(counts)]).astype(columns.dtype)
        blocks.append(sp.csr_array((data[entries], columns, own), shape=(size, width)))
    return AffineMap(blocks, offset)


def _narrow(indices: NDArray[Any]) -> NDArray[Any]:
    """As int32 where that holds them: the same on every machine."""
    fits = indices.max(initial=0) <= np.iinfo(np.int32).max
    return indices.astype(np.int32 if fits else np.int64)


def _check_compressed(name: str, indptr: NDArray[Any], indices: NDArray[Any], minor: int) -> None:
    """Raise unless these are the rows (or columns) of a compressed matrix with sorted entries."""
    # Comparisons, not differences, which overflow.
    if indptr[0] != 0 or indptr[-1] != len(indices) or (indptr[1:] < indptr[:-1]).any():
        raise StorageError(f"{name}.indptr: expected rising positions from 0 to {len(indices)}.")
    if len(indices) and not 0 <= indices.min() <= indices.max() < minor:
        raise StorageError(
            f"{name}.indices: expected indices from 0 to {minor - 1}, got some from "
            f"{indices.min()} to {indices.max()}."
        )
    first = np.zeros(len(indices) + 1, dtype=bool)
    first[indptr] = True
    if not (first[1:-1] | (indices[1:] > indices[:-1])).all():
        raise StorageError(f"{name}.indices: expected rising indices without duplicates.")


# What is read, piece by piece.


class _Entries:
    """Arrays that are taken out one by one."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]):
        self._left = dict(arrays)

    def take(
        self, name: str, dtypes: tuple[np.dtype[Any], ...], length: int | None = None
    ) -> NDArray[Any]:
        """A vector, of this length if one is given."""
        array = self.take_any(name, dtypes)
        if array.ndim != 1 or (length is not None and len(array) != length):
            expected = "one axis" if length is None else f"shape ({length},)"
            raise StorageError(f"{name}: expected {expected}, got shape {array.shape}.")
        return array

    def take_any(self, name: str, dtypes: tuple[np.dtype[Any], ...]) -> NDArray[Any]:
        """An array of any shape."""
        if name not in self._left:
            raise StorageError(f"There is no entry {name!r}.")
        array = self._left.pop(name)
        if array.dtype not in dtypes:
            expected = " or ".join(str(dtype) for dtype in dtypes)
            raise StorageError(f"{name}: expected dtype {expected}, got {array.dtype}.")
        return array

    def finish(self) -> None:
        """Raise if something is left."""
        if self._left:
            raise StorageError(f"There are unexpected entries: {', '.join(sorted(self._left))}.")


def _record(
    where: str, value: Any, kinds: Mapping[str, type], exactly: bool = True
) -> Mapping[str, Any]:
    """A JSON object with these keys, and no others, and values of these types."""
    if not isinstance(value, Mapping):
        raise StorageError(f"{where}: expected an object, got {type(value).__name__}.")
    missing = sorted(kinds.keys() - value.keys())
    unexpected = sorted(map(str, value.keys() - kinds.keys())) if exactly else []
    if missing or unexpected:
        raise StorageError(
            f"{where}: expected {', '.join(kinds)}; missing: {', '.join(missing) or 'none'}; "
            f"unexpected: {', '.join(unexpected) or 'none'}."
        )
    for key, kind in kinds.items():
        if type(value[key]) is not kind:
            raise StorageError(
                f"{where}: {key}: expected {kind.__name__}, got {type(value[key]).__name__}."
            )
    return value


def _size(where: str, value: Any, lowest: int = 0) -> int:
    if type(value) is not int or not lowest <= value <= LARGEST:
        raise StorageError(
            f"{where}: expected a whole number from {lowest} to {LARGEST}, got {value!r}."
        )
    return value


def _sizes(where: str, values: list[Any], lowest: int = 0) -> tuple[int, ...]:
    return tuple(_size(f"{where}[{k}]", value, lowest) for k, value in enumerate(values))


def _dims(value: Any) -> ConeDims:
    dims = _record("dims", value, _DIMS)
    for alpha in dims["pow"]:
        if type(alpha) is not float or not 0.0 < alpha < 1.0:
            raise StorageError(f"dims: pow: expected exponents between 0 and 1, got {alpha!r}.")
    return ConeDims(
        zero=_size("dims: zero", dims["zero"]),
        nonneg=_size("dims: nonneg", dims["nonneg"]),
        soc=_sizes("dims: soc", dims["soc"], lowest=1),
        psd=_sizes("dims: psd", dims["psd"], lowest=1),
        exp=_size("dims: exp", dims["exp"]),
        pow=tuple(dims["pow"]),
    )


def _pattern(rest: _Entries, name: str, shape: tuple[int, int]) -> Pattern:
    indptr = rest.take(f"{name}.indptr", _INDEX[:1], shape[1] + 1)
    indices = rest.take(f"{name}.indices", _INDEX[:1])
    _check_compressed(name, indptr, indices, shape[0])
    return Pattern(shape, indices, indptr)


def _shape(where: str, values: list[Any]) -> tuple[int, ...]:
    shape = _sizes(f"{where}: shape", values)
    _size(f"{where}: size", math.prod(shape))
    return shape


def _parameter(rest: _Entries, k: int, value: Any) -> ParameterSpec:
    where = f"parameter.{k}"
    record = _record(where, value, _PARAMETER)
    shape, names = _shape(where, record["shape"]), record["attributes"]
    if not all(type(name) is str for name in names) or not _ATTRIBUTES.issuperset(names):
        raise StorageError(f"{where}: expected attributes of CVXPY's, got {names!r}.")
    attributes = frozenset(names)
    if attributes & _SQUARE and (len(shape) < 2 or shape[-1] != shape[-2]):
        raise StorageError(f"{where}: expected a square matrix ({names}), got shape {shape}.")
    stored, size = None, _size(f"{where}: size", record["size"])
    if attributes & {"diag", "sparsity"}:
        stored = _stored(rest, f"{where}.stored", shape, size)
        if "diag" in attributes and (
            shape != (size, size) or not np.array_equal(stored, diagonal(size))
        ):
            raise StorageError(f"{where}.stored: expected the diagonal.")
    elif size != math.prod(shape):
        raise StorageError(f"{where}: size: expected {math.prod(shape)}, got {size}.")
    bounds = None
    if "bounds" in attributes:
        form = (size,) if "sparsity" in attributes else shape
        bounds = (_bound(rest, f"{where}.lower", form), _bound(rest, f"{where}.upper", form))
    return ParameterSpec(record["name"], shape, k, attributes, stored, bounds)


def _stored(rest: _Entries, name: str, shape: tuple[int, ...], size: int) -> NDArray[np.intp]:
    """Different positions in an array of this shape."""
    stored = rest.take(name, _INDEX, size).astype(np.intp)
    _check_compressed(name, np.array([0, size]), np.sort(stored), math.prod(shape))
    return stored


def _bound(rest: _Entries, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    bound = rest.take_any(name, _FLOAT)
    # Broadcasting by hand: NumPy's would refuse some shapes as too large.
    pairs = zip(reversed(bound.shape), reversed(shape), strict=False)
    if bound.ndim > len(shape) or any(own not in (1, other) for own, other in pairs):
        raise StorageError(f"{name}: expected a bound for the shape {shape}, got {bound.shape}.")
    return bound


def _part(k: int, value: Any, count: int) -> tuple[int, bool]:
    if type(value) is not list or [type(entry) for entry in value] != [int, bool]:
        raise StorageError(f"parts[{k}]: expected a position and true or false, got {value!r}.")
    position, is_log = value
    if not 0 <= position < count:
        raise StorageError(f"parts[{k}]: there are {count} parameters, got position {position}.")
    return position, is_log


def _output(rest: _Entries, k: int, value: Any, widths: tuple[int, int]) -> OutputSpec:
    where = f"output.{k}"
    record = _record(where, value, _OUTPUT)
    shape = _shape(where, record["shape"])
    recovery = _map(rest, where, math.prod(shape), widths)
    return OutputSpec(record["name"], shape, recovery, record["exponentiate"])
