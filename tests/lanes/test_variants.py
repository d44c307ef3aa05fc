"""The compiled module that is chosen: with stand-ins for the modules, and with those installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

from cvxlayers.lanes.variants import VARIANTS, available, load

CORE = Path(__file__).resolve().parents[2] / "src/cvxlayers/lanes/core/module.cpp"


@pytest.fixture(autouse=True)
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CVXLAYERS_LANES", raising=False)


def install(
    monkeypatch: pytest.MonkeyPatch, built: tuple[str, ...], supported: tuple[str, ...]
) -> dict[str, ModuleType]:
    """Put stand-ins in the place of the compiled modules; None makes an import fail."""
    modules = {name: ModuleType(name) for name in built}
    for name in VARIANTS:
        monkeypatch.setitem(sys.modules, f"cvxlayers.lanes._{name}", modules.get(name))
    if "baseline" in modules:
        monkeypatch.setattr(modules["baseline"], "supported", lambda: supported, raising=False)
    return modules


@pytest.mark.parametrize(
    ("built", "supported", "found"),
    [
        (VARIANTS, VARIANTS, VARIANTS),
        (VARIANTS, ("baseline", "avx2"), ("avx2", "baseline")),  # an older processor
        (VARIANTS, ("baseline",), ("baseline",)),
        (("baseline",), ("baseline",), ("baseline",)),  # as on arm64
        (("avx2", "baseline"), VARIANTS, ("avx2", "baseline")),  # an older compiler
        (VARIANTS, ("baseline", "avx1024"), ("baseline",)),
        ((), VARIANTS, ()),
        (("avx512", "avx2"), VARIANTS, ()),  # nobody to ask
    ],
)
def test_the_best_that_is_built_and_supported(
    monkeypatch: pytest.MonkeyPatch,
    built: tuple[str, ...],
    supported: tuple[str, ...],
    found: tuple[str, ...],
) -> None:
    modules = install(monkeypatch, built, supported)
    assert available() == found
    assert load() is (modules[found[0]] if found else None)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    modules = install(monkeypatch, VARIANTS, VARIANTS)
    monkeypatch.setenv("CVXLAYERS_LANES", name)
    assert load() is modules[name]


@pytest.mark.parametrize("built", [VARIANTS, ()])
def test_off(monkeypatch: pytest.MonkeyPatch, built: tuple[str, ...]) -> None:
    install(monkeypatch, built, VARIANTS)
    monkeypatch.setenv("CVXLAYERS_LANES", "off")
    assert load() is None


@pytest.mark.parametrize("built", [VARIANTS, ()])
@pytest.mark.parametrize("value", ["", "AVX2", "sse"])
def test_an_unknown_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, built: tuple[str, ...]
) -> None:
    install(monkeypatch, built, VARIANTS)
    monkeypatch.setenv("CVXLAYERS_LANES", value)
    with pytest.raises(ValueError, match=rf"expected one of avx512, avx2, .*or off, got '{value}'"):
        load()


@pytest.mark.parametrize(
    ("built", "supported", "found"),
    [
        (VARIANTS, ("avx2", "baseline"), "avx2, baseline, off"),
        (("baseline",), VARIANTS, "baseline, off"),
        ((), VARIANTS, "off"),
    ],
)
def test_what_is_not_available_is_refused(
    monkeypatch: pytest.MonkeyPatch, built: tuple[str, ...], supported: tuple[str, ...], found: str
) -> None:
    install(monkeypatch, built, supported)
    monkeypatch.setenv("CVXLAYERS_LANES", "avx512")
    with pytest.raises(ValueError, match=rf"'avx512' is not available .*; available: {found}$"):
        load()


def loaded_with(choice: str | None) -> str:
    """The name of the installed module that a new interpreter loads."""
    environment = {key: value for key, value in os.environ.items() if key != "CVXLAYERS_LANES"}
    if choice is not None:
        environment["CVXLAYERS_LANES"] = choice
    code = "from cvxlayers.lanes.variants import load; print(getattr(load(), '__name__', None))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout.strip()


def test_installed_modules() -> None:
    """Whatever was compiled here; nothing, if there was no compiler."""
    names = available()
    assert loaded_with(None) == (f"cvxlayers.lanes._{names[0]}" if names else "None")
    assert loaded_with("off") == "None"
    for name in names:
        assert loaded_with(name) == f"cvxlayers.lanes._{name}"


def can_compile() -> bool:
    """Whether the installation found what it needs. It does not fail without."""
    compiler = os.environ.get("CXX") or "c++"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return CORE.exists() and header.exists() and shutil.which(compiler) is not None


@pytest.mark.skipif(sys.platform == "win32", reason="compiled on other systems only")
@pytest.mark.skipif(not can_compile(), reason="no compiler, or nothing to compile")
def test_a_compiler_leads_to_modules() -> None:
    assert "baseline" in available(), "CVXLAYERS_REQUIRE_CORE=ON pip install -e . says what failed"
