"""Threads: the GIL is released, calls at once do not meet, forks and Ctrl-C work, nothing leaks."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvxlayers.lanes import Answer, Engine, engine, load
from cvxlayers.program import ConeDims, ConeProgram
from solvers.random_programs import CONES, random_program

module = load()
pytestmark = [
    # JAX, where another test of this process has imported it, warns of every fork.
    pytest.mark.filterwarnings(r"ignore:os.fork\(\) was called:RuntimeWarning"),
    pytest.mark.skipif(module is None, reason="not compiled"),
    # Python's own, of a fork beside threads, which is what is tested here.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

TOLERANCES = (1e-8, 1e-8, 1e-8)
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


@pytest.fixture(autouse=True)
def several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine with one processor."""
    monkeypatch.setattr(engine, "workers", lambda: 3)


def solve(core: Engine, program: ConeProgram) -> Answer:
    return core.solve(program, TOLERANCES, 100)


def small(batch: int = 64, seed: int = 0) -> ConeProgram:
    return random_program(CONES["mixed"], 6, batch=batch, rank=3, seed=seed)


def long(count: int) -> ConeProgram:
    """So many instances of about a millisecond each."""
    program = random_program(ConeDims(nonneg=5, psd=(8,), exp=4), 14, batch=16, rank=5)
    return program.take(np.tile(np.arange(16), count // 16))


def check(found: Answer, expected: Answer) -> None:
    for name in ("x", "z", "s", "outcome", "iterations"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


# ---- the GIL ----


def long_call(kind: str) -> Any:
    """A call that takes a while."""
    program = long(4000)
    core = Engine(module, program.structure)
    answer = solve(core, program)
    if kind == "solve":
        return lambda: solve(core, program)
    if kind == "newton":
        r = np.ones_like(answer.x)
        return lambda: core.newton(program, answer.x, answer.z, answer.s, r, None)
    x, z, s = (v + 1e-6 for v in (answer.x, answer.z, answer.s))
    return lambda: core.polish(program, x, z, s)


@pytest.mark.parametrize("kind", ["solve", "polish", "newton"])
def test_other_threads_of_python_go_on(kind: str) -> None:
    call = long_call(kind)
    count, over = 0, threading.Event()

    def work() -> None:
        nonlocal count
        while not over.is_set():
            count += 1
            time.sleep(1e-4)

    other = threading.Thread(target=work)
    other.start()
    before = count
    call()
    advanced = count - before
    over.set()
    other.join()
    # With the GIL held it would be none or one.
    assert advanced >= 3


def test_calls_at_once() -> None:
    """On one engine, and on several, from threads of Python."""
    program, other = small(), random_program(CONES["psd"], 6, batch=40, rank=6)
    core, second = Engine(module, program.structure), Engine(module, other.structure)
    expected, of_second = solve(core, program), solve(second, other)
    polished = [v.copy() for v in (expected.x, expected.z, expected.s)]
    residual = core.polish(program, *polished)

    def work(number: int) -> None:
        for _ in range(5):
            check(solve(core, program), expected)
            check(solve(second, other), of_second)
            part = program.take(np.arange(number, number + 9))
            check(solve(core, part), solve(core, part))
            point = [v.copy() for v in (expected.x, expected.z, expected.s)]
            np.testing.assert_array_equal(core.polish(program, *point), residual)
            for a, b in zip(point, polished, strict=True):
                np.testing.assert_array_equal(a, b)

    with ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(work, k) for k in range(4)]:
            future.result()


# ---- processes ----


def in_child(program: ConeProgram, core: Engine | None, pipe: Any) -> None:
    try:
        found = solve(Engine(module, program.structure) if core is None else core, program)
        pipe.send((found.x, found.outcome, threads_of_process()))
    except BaseException as error:
        pipe.send(error)
    pipe.close()


def from_child(method: str, core: Engine | None, program: ConeProgram) -> Any:
    context = multiprocessing.get_context(method)
    mine, its = context.Pipe(False)
    child = context.Process(target=in_child, args=(program, core, its))
    child.start()
    its.close()
    assert mine.poll(60), "the child hangs"
    found = mine.recv()
    child.join(60)
    if isinstance(found, BaseException):
        raise found
    assert child.exitcode == 0
    return found


@posix
def test_a_fork_after_use() -> None:
    """The child has an engine that has been used, and none of its threads: it makes new ones."""
    program = small()
    core = Engine(module, program.structure)
    expected = solve(core, program)
    for _ in range(3):
        x, outcome, threads = from_child("fork", core, program)
        assert threads > 1
        np.testing.assert_array_equal(x, expected.x)
        np.testing.assert_array_equal(outcome, expected.outcome)
    check(solve(core, program), expected)


@posix
def test_a_fork_while_others_solve() -> None:
    program, others = small(), long(800)
    core, busy = Engine(module, program.structure), Engine(module, others.structure)
    expected = solve(core, program)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            solve(busy, others)

    other = threading.Thread(target=work)
    other.start()
    try:
        for _ in range(5):
            x, _, _ = from_child("fork", core, program)
            np.testing.assert_array_equal(x, expected.x)
    finally:
        over.set()
        other.join()


@posix
def test_a_fork_of_a_fork() -> None:
    program = small()
    core = Engine(module, program.structure)
    expected = solve(core, program)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            solve(core, program)
            second = os.fork()
            if second == 0:
                same = np.array_equal(solve(core, program).x, expected.x)
                os._exit(0 if same else 1)
            code = os.waitstatus_to_exitcode(os.waitpid(second, 0)[1])
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@posix
def test_a_fork_while_an_engine_is_made() -> None:
    """The lock that the making thread holds is not the child's."""
    program = small(8)
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with engine._lock:
            entered.set()
            leave.wait(60)

    other = threading.Thread(target=work)
    other.start()
    entered.wait()
    try:
        pid = os.fork()
        if pid == 0:
            # If it hangs, this ends it.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(3)
            found = engine.engine_for(program.structure)
            os._exit(0 if found is not None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        leave.set()
        other.join()


SPAWNED = """
import sys
import numpy as np
from lanes.test_pool import CONES, Engine, module, random_program, small, solve

program = small()
core = Engine(module, program.structure)
expected = solve(core, program)
np.savez(sys.argv[1], x=expected.x)
"""

INTERRUPTED = """
import os, signal, sys, threading, time
import numpy as np
from lanes.test_pool import Engine, check, long, module, small, solve

kind = sys.argv[1]
program = long(1600)
core = Engine(module, program.structure)
answer = solve(core, program)
start = time.perf_counter()
solve(core, program)
each = time.perf_counter() - start
many = program.take(np.tile(np.arange(1600), int(12.0 / each) + 1))
points = [np.tile(v, (len(many.q) // 1600, 1)) for v in (answer.x, answer.z, answer.s)]
call = {
    "solve": lambda: solve(core, many),
    # From afar, so that it takes its time.
    "polish": lambda: [core.polish(many, *(v + 0.1 for v in points)) for _ in range(100)],
    "newton": lambda: [
        core.newton(many, *points, np.ones_like(points[0]), None) for _ in range(100)
    ],
}[kind]
sent = []

def interrupt():
    time.sleep(0.3)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    call()
except KeyboardInterrupt:
    took = time.perf_counter() - sent[0]
    assert took < 2.0, took
else:
    raise AssertionError("not interrupted")
check(solve(core, program), answer)
print("as expected")
"""


def run(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    tests = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([tests, *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "CVXLAYERS_NUM_THREADS": "2"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_another_process(tmp_path: Path) -> None:
    program = small()
    expected = solve(Engine(module, program.structure), program)
    result = run(SPAWNED, str(tmp_path / "x.npz"))
    assert result.returncode == 0, result.stdout
    with np.load(tmp_path / "x.npz") as found:
        np.testing.assert_array_equal(found["x"], expected.x)


@pytest.mark.slow
def test_spawned_by_multiprocessing() -> None:
    program = small()
    expected = solve(Engine(module, program.structure), program)
    x, _, _ = from_child("spawn", None, program)
    np.testing.assert_array_equal(x, expected.x)


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to send")
@pytest.mark.parametrize("kind", ["solve", "polish", "newton"])
def test_ctrl_c(kind: str) -> None:
    result = run(INTERRUPTED, kind)
    assert result.returncode == 0 and "as expected" in result.stdout, result.stdout


# ---- what is kept ----


def resident() -> int:
    """Bytes of memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def threads_of_process() -> int:
    """How many there are; 2 where nobody tells."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else 2


linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")


@linux
def test_many_calls_keep_neither_memory_nor_threads() -> None:
    program = small(32)
    core = Engine(module, program.structure)

    def calls(count: int) -> None:
        for _ in range(count):
            answer = solve(core, program)
            core.newton(program, answer.x, answer.z, answer.s, np.ones_like(answer.x), None)
            core.polish(program, answer.x, answer.z, answer.s)

    calls(50)
    memory, threads = resident(), threads_of_process()
    calls(300)
    assert resident() - memory < 4_000_000
    assert threads_of_process() == threads


@linux
def test_engines_are_given_back() -> None:
    def use(seed: int) -> None:
        program = random_program(ConeDims(nonneg=80, psd=(6,)), 40, batch=16, seed=seed)
        core = engine.engine_for(program.structure)
        assert core is not None
        solve(core, program)

    for seed in range(10):
        use(seed)
    memory, known = resident(), len(engine._engines)
    for seed in range(10, 40):
        use(seed)
    assert resident() - memory < 30_000_000
    assert len(engine._engines) <= known


@linux
def test_no_more_threads_than_groups_of_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "workers", lambda: 1000)
    program = small(64)
    before = threads_of_process()
    solve(Engine(module, program.structure), program)
    assert threads_of_process() - before < 64


def test_a_wrong_shape_is_refused() -> None:
    program = small(4)
    core = Engine(module, program.structure)
    with pytest.raises(ValueError, match="wrong number of rows"):
        core.solve(
            ConeProgram(program.structure, program.P, program.q, program.A, program.b, 5),
            TOLERANCES,
            10,
        )


@pytest.mark.parametrize("how", ["columns first", "single precision"])
def test_what_is_written_into_a_copy_is_refused(how: str) -> None:
    """An answer in a converted copy of an output would be lost."""
    program = small(4)
    core = Engine(module, program.structure)
    found = solve(core, program)
    points = [found.x, found.z, found.s]
    for k in range(3):
        other = list(points)
        other[k] = (
            np.asfortranarray(points[k]) if how == "columns first" else points[k].astype(np.float32)
        )
        with pytest.raises(TypeError, match="incompatible function arguments"):
            core.polish(program, *other)


def structure_of(**changes: Any) -> tuple[Any, ...]:
    """What the compiled class takes for x₁ + 2 x₂ <= 1 with P = I, but for changes."""
    parts: dict[str, Any] = {
        "n": 2,
        "m": 1,
        "zero": 0,
        "nonneg": 1,
        "soc": [],
        "psd": [],
        "exp": 0,
        "pow": [],
        "P_start": [0, 1, 2],
        "P_index": [0, 1],
        "A_start": [0, 1, 2],
        "A_index": [0, 0],
    }
    return (*(parts | changes).values(), [[]] * 4, [[]] * 2, [[]] * 4, 1000)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"nonneg": 2}, "rows of A"),
        ({"nonneg": 1, "soc": [0]}, "no rows"),
        ({"nonneg": 0, "psd": [40]}, "too large"),
        ({"nonneg": -2, "pow": [1.0]}, "negative"),
        ({"nonneg": 1, "pow": [1.0]}, "between 0 and 1"),
        ({"A_index": [0, 1]}, "out of range"),
        ({"A_index": [0, -1]}, "out of range"),
        ({"P_index": [0, 2]}, "out of range"),
        ({"A_start": [0, 2, 1]}, "start"),
        ({"A_start": [0, 1]}, "start"),
    ],
)
def test_a_wrong_structure_is_refused(changes: dict[str, Any], told: str) -> None:
    assert module is not None
    module.Engine(*structure_of())
    with pytest.raises(ValueError, match=told):
        module.Engine(*structure_of(**changes))


NO_THREADS = """
import os
import numpy as np
from cvxlayers.lanes import Engine, engine
from lanes.test_pool import check, module, small, solve

program = small(256)
core = Engine(module, program.structure)
engine.workers = lambda: 1
expected = solve(core, program)
engine.workers = lambda: 64
found = solve(core, program)
check(found, expected)
assert len(os.listdir("/proc/self/task")) == 1, "no limit was met"
"""


@linux
def test_as_many_threads_as_there_may_be() -> None:
    """Of a process in which no thread can be started, for want of addresses for its stack."""

    if resource.getrlimit(resource.RLIMIT_STACK)[1] != resource.RLIM_INFINITY:
        pytest.skip("the size of a stack may not be raised here")

    def stacks_without_end() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (2**47, resource.RLIM_INFINITY))

    result = run(NO_THREADS, preexec_fn=stacks_without_end)
    assert result.returncode == 0, result.stdout
