"""`torch.compile` and `torch.export`: one graph, the same numbers, and errors where it ends."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cvxpy as cp
import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch_checks import (
    EVERY_CONE,
    Values,
    close,
    execute,
    geometric,
    interval,
    least_squares,
    leaves,
    numbers,
    python,
    softmax,
)

from cvxlayers import SolverError
from cvxlayers.call import Call
from cvxlayers.operations import ARGUMENTS
from cvxlayers.torch import CvxpyLayer
from cvxlayers.torch.tracing import options_of

# PyTorch's own, when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    return torch.compile(function, **{"fullgraph": True, "backend": "aot_eager", **settings})


def gradients(function: Callable[..., Any], values: Values) -> tuple[torch.Tensor, ...]:
    """Outputs, and gradients of the sum of their squares."""
    inputs = leaves(values)
    outputs = function(*inputs)
    loss = sum(y.square().sum() for y in outputs)
    return (*(y.detach() for y in outputs), *torch.autograd.grad(loss, inputs))


class Model(torch.nn.Module):
    """Linear, then softmax as an optimization problem."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 3).double()
        self.choose = softmax()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.choose(self.linear(x))[0]

    def true(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.linear(x), -1)


A = torch.eye(3, 2, dtype=torch.float64) + 0.1 * numbers(3, 2)
B = torch.tensor([[1.0, -1.0, 0.3], [0.2, 0.7, -0.1]], dtype=torch.float64)


# --- torch.compile --------------------------------------------------------------------------------


def test_there_are_no_graph_breaks() -> None:
    report = torch._dynamo.explain(Model())(numbers(4, 2))
    assert report.graph_break_count == 0, report.break_reasons
    assert report.graph_count == 1


@pytest.mark.parametrize("build", EVERY_CONE, ids=lambda build: build.__name__)
def test_equal_to_eager(build: Callable[[], tuple[CvxpyLayer, Values]]) -> None:
    layer, values = build()
    for found, true in zip(
        gradients(compiled(lambda *v: layer(*v)), values), gradients(layer, values), strict=True
    ):
        assert found.dtype == true.dtype
        close(found, true)


@pytest.mark.slow
def test_inductor() -> None:
    torch.manual_seed(0)
    model, x = Model(), numbers(4, 2)
    for found, true in zip(
        gradients(compiled(lambda x: (model(x),), backend="inductor"), (x,)),
        gradients(lambda x: (model.true(x),), (x,)),
        strict=True,
    ):
        close(found, true, 1e-8)


def test_module_compile() -> None:
    """As a user writes it: a compiled module in a loop of training, and compile() in place."""
    torch.manual_seed(0)
    model, x = Model(), numbers(4, 2)
    twin = copy.deepcopy(model)
    fast = compiled(model)
    for net, function in ((model, fast), (twin, twin.true)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            function(x)[:, 0].sum().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        close(p, q, 1e-8)
    twin.compile(fullgraph=True, backend="aot_eager")
    close(twin(x), twin.true(x), 1e-8)


@pytest.mark.parametrize("trained", [False, True])
def test_batch_sizes_need_no_graph_of_their_own(trained: bool) -> None:
    """The second size makes a graph for all further ones; a batch of one is by itself."""
    model = Model().requires_grad_(trained)
    counter = CompileCounterWithBackend("aot_eager")
    fast = compiled(model, backend=counter)
    for size in (4, 3, 7, 2, 11):
        x = numbers(size, 2)
        y = fast(x)
        close(y, model.true(x), 1e-4 if not trained else 1e-8)
        if trained:
            y[:, 0].sum().backward()
            found = model.linear.weight.grad
            model.zero_grad()
            model.true(x)[:, 0].sum().backward()
            close(found, model.linear.weight.grad, 1e-8)
            model.zero_grad()
    assert counter.frame_count == 2


def test_dynamic_batch_beside_shared_parameters() -> None:
    layer = least_squares()
    counter = CompileCounterWithBackend("aot_eager")
    fast = compiled(lambda a, b: layer(a, b), backend=counter)
    for size in (2, 3, 5):
        for found, true in zip(
            gradients(fast, (A, numbers(size, 3))),
            gradients(layer, (A, numbers(size, 3))),
            strict=True,
        ):
            close(found, true)
    assert counter.frame_count == 2


def test_other_values_need_no_new_graph() -> None:
    layer = softmax()
    counter = CompileCounterWithBackend("aot_eager")
    fast = compiled(lambda c: layer(c)[0], backend=counter)
    for seed in range(3):
        c = numbers(3, seed=seed)
        close(fast(c.requires_grad_()), torch.softmax(c, -1), 1e-8)
    assert counter.frame_count == 1


CALLS: dict[str, Callable[[CvxpyLayer, torch.Tensor], Any]] = {
    "by name": lambda layer, b: layer(b=b, A=A),
    "partly by name": lambda layer, b: layer(A, b=b),
    "solver_args": lambda layer, b: layer(A, b, solver_args={"eps": 1e-9, "max_iters": 70}),
    "a list": lambda layer, b: layer([[1.0, 0.1], [0.0, 1.0], [0.2, 0.3]], b),
    "a NumPy array": lambda layer, b: layer(A.numpy(), b),
    "a tensor made inside": lambda layer, b: layer(torch.ones(3, 2).double() + A, b),
    "on_failure": lambda layer, b: layer(A, b, on_failure="nan"),
    "float32 beside float64": lambda layer, b: layer(A.float(), b),
    "float32 alone": lambda layer, b: layer(A.float(), b.float()),
    "no batch": lambda layer, b: layer(A, b[0]),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_of_all_kinds(name: str) -> None:
    layer, call = least_squares(), CALLS[name]
    for found, true in zip(
        gradients(compiled(lambda b: call(layer, b)), (B,)),
        gradients(lambda b: call(layer, b), (B,)),
        strict=True,
    ):
        assert found.dtype == true.dtype
        close(found, true, 1e-6 if found.dtype == torch.float32 else 1e-10)


def test_numbers_among_the_arguments() -> None:
    """That are in the code, and that are arguments of the compiled function."""
    layer = interval()
    fast = compiled(lambda t, lower: layer(t, lower)[0] + layer(t, 0.25)[0])
    t = torch.tensor([0.1, 0.5, 3.0], dtype=torch.float64)
    for lower in (0.2, 0.4, 0.6):
        (leaf,) = leaves([t])
        y = fast(leaf, lower)
        close(y, t.clamp(lower, 1) + t.clamp(0.25, 1), 1e-8)
        (g,) = torch.autograd.grad(y.sum(), leaf)
        inside = [(t > bound) & (t < 1) for bound in (lower, 0.25)]
        close(g, inside[0].double() + inside[1].double(), 1e-6)


def test_solver_args_count() -> None:
    """They are in the graph: another value of the option gives another result, and an error."""
    layer = softmax()
    with pytest.raises(SolverError, match="MAX_ITER"):
        compiled(lambda c: layer(c, solver_args={"max_iters": 1}))(B)
    rough = compiled(lambda c: layer(c, solver_args={"eps": 1e-2}))(B)[0]
    assert (rough - torch.softmax(B, -1)).abs().max() > 1e-6


def test_failures() -> None:
    layer = interval()
    t = torch.zeros(3, dtype=torch.float64)
    lower = torch.tensor([0.0, 2.0, 0.5], dtype=torch.float64)
    with pytest.raises(SolverError, match=r"1 of 3 instances were not solved.*row 1 PRIMAL_INFEAS"):
        compiled(lambda *v: layer(*v))(t, lower)
    leaf, bound = leaves((t, lower))
    (x,) = compiled(lambda *v: layer(*v, on_failure="nan"))(leaf, bound)
    assert x.isnan().tolist() == [False, True, False]
    g, h = torch.autograd.grad(x.nansum(), (leaf, bound))
    assert g[1] == 0 and h[1] == 0
    close(h[2], torch.tensor(1.0).double(), 1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda layer: layer(A, B[:, :2]), "parameter 'b'.*expected that or"),
        (lambda layer: layer(A), "'b'.* is missing"),
        (lambda layer: layer(A, B, c=B), "no parameter or option 'c'"),
        (lambda layer: layer(A, B.long()), "'b'.*floating-point"),
        (lambda layer: layer(A.expand(3, 3, 2), B), "Inconsistent batch sizes"),
        (lambda layer: layer(A, B, solver_args={"typo": 1}), "typo"),
        (lambda layer: layer(A, B, warm_start=True), "warm_start=True"),
        (lambda layer: layer(A, B, on_failure="no"), "on_failure"),
    ],
    ids=["shape", "missing", "name", "dtype", "batch", "option", "warm_start", "on_failure"],
)
def test_errors_arrive_with_their_text(call: Callable[..., Any], message: str) -> None:
    layer = least_squares()
    with pytest.raises(Exception, match=f"(?s){message}"):
        call(layer)
    with pytest.raises(Exception, match=f"(?s){message}"):
        compiled(lambda: call(layer))()


@pytest.fixture
def polishes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every polish."""
    import cvxlayers.solution_map

    count: list[int] = []
    original = cvxlayers.solution_map.polish

    def counting(*arguments: Any) -> Any:
        count.append(1)
        return original(*arguments)

    monkeypatch.setattr("cvxlayers.solution_map.polish", counting)
    return count


def test_polished_only_where_a_gradient_is_wanted(polishes: list[int]) -> None:
    layer = softmax()
    fast = compiled(lambda c: layer(c)[0])
    fast(B)
    with torch.no_grad():
        fast(B.clone().requires_grad_())
    assert not polishes
    fast(B.clone().requires_grad_())
    assert len(polishes) == 1


def test_first_without_a_gradient_then_with() -> None:
    layer = softmax()
    counter = CompileCounterWithBackend("aot_eager")
    fast = compiled(lambda c: layer(c)[0], backend=counter)
    fast(B)
    with torch.no_grad():
        fast(B.clone().requires_grad_())
    c, d = leaves((B, B))
    close(
        torch.autograd.grad(fast(c)[:, 0].sum(), c),
        torch.autograd.grad(torch.softmax(d, -1)[:, 0].sum(), d),
        1e-8,
    )
    assert not fast(B).requires_grad


def test_backward_solves_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, (c,) = softmax(), leaves([B])
    fast = compiled(lambda c: layer(c)[0])
    fast(c)
    solves = []
    original = type(layer.operations.solution_map.solver).solve
    monkeypatch.setattr(
        type(layer.operations.solution_map.solver),
        "solve",
        lambda *a: (solves.append(1), original(*a))[1],
    )
    fast(c).square().sum().backward()
    assert len(solves) == 1


def test_calls_between_forward_and_backward() -> None:
    """The graph's memory of the last point is not mistaken for that of another call."""
    layer = softmax()
    fast = compiled(lambda c: layer(c)[0])
    first, second = leaves((B, -B))
    y, z = fast(first), fast(second)
    close(
        torch.autograd.grad(y[:, 0].sum(), first),
        torch.autograd.grad(layer(first)[0][:, 0].sum(), first),
    )
    close(
        torch.autograd.grad(z[:, 0].sum(), second),
        torch.autograd.grad(layer(second)[0][:, 0].sum(), second),
    )


@pytest.mark.parametrize("wrap", [compiled, lambda function: function], ids=["graph", "eager"])
def test_calls_that_lead_to_the_same_point(wrap: Callable[..., Any]) -> None:
    """At c = 0 the x of least ½ (1 + a²) x² − c x is zero for all a, but dx/dc is 1 / (1 + a²)."""
    a, c, x = cp.Parameter(), cp.Parameter(), cp.Variable()
    problem = cp.Problem(cp.Minimize((cp.square(x) + cp.square(a * x)) / 2 - c * x))
    layer = CvxpyLayer(problem, [a, c], [x])
    function = wrap(lambda *v: layer(*v)[0])
    c_t = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    values = [torch.tensor(k, dtype=torch.float64) for k in (1.0, 3.0)]
    outputs = [function(v, c_t) for v in values]
    for v, y in zip(values, outputs, strict=True):
        close(torch.autograd.grad(y, c_t)[0], 1 / (1 + v.square()))


# --- with torch.func ------------------------------------------------------------------------------


def test_compiled_vmap() -> None:
    """Whether a gradient is wanted cannot be seen inside: what is compiled may be polished."""
    layer, values = least_squares(), numbers(4, 3)
    found = compiled(torch.vmap(lambda b: layer(A, b)[0]))(values)
    close(found, layer(A, values)[0], 1e-6)
    stack = torch.stack([A, 2 * A])
    nested = torch.vmap(torch.vmap(layer, (None, 0)), (0, None))
    found = compiled(lambda a, b: nested(a, b)[0])(stack, values)
    close(found, layer(stack[:, None], values)[0], 1e-6)
    other_axes = torch.vmap(layer, (-1, 1))
    found = compiled(lambda a, b: other_axes(a, b)[0])(stack.movedim(0, -1), values[:2].T)
    close(found, layer(stack, values[:2])[0], 1e-6)


@pytest.mark.parametrize("mapped", [True, False])
def test_backward_through_compiled_vmap(mapped: bool) -> None:
    """Of what is mapped, and of what is shared."""
    layer, values = least_squares(), numbers(4, 3)
    found, true = (leaves([values if mapped else A])[0] for _ in range(2))

    def function(leaf: torch.Tensor) -> torch.Tensor:
        a, b = (A, leaf) if mapped else (leaf, values)
        return torch.vmap(lambda v: layer(a, v)[0])(b)

    compiled(function)(found).square().sum().backward()
    layer(*((A, true) if mapped else (true, values)))[0].square().sum().backward()
    close(found.grad, true.grad)


DERIVATIVES: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "grad": lambda f: torch.func.grad(lambda c: f(c).square().sum()),
    "vmap of grad": lambda f: torch.vmap(torch.func.grad(lambda c: f(c).square().sum())),
    "jvp": lambda f: lambda c: torch.func.jvp(f, (c,), (torch.ones_like(c),))[1],
    "jacrev": lambda f: torch.func.jacrev(f),
    "jacfwd": lambda f: torch.func.jacfwd(f),
}


# PyTorch's own, where a graph breaks inside of jacrev.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_inside_of_the_graph(name: str) -> None:
    """An error with fullgraph, the right numbers without."""
    layer = softmax()
    function = DERIVATIVES[name](lambda c: layer(c)[0])
    with pytest.raises(Exception, match=r"cannot be compiled inside a derivative of torch.func"):
        compiled(function)(B)
    torch._dynamo.reset()
    true = DERIVATIVES[name](lambda c: torch.softmax(c, -1))(B)
    close(compiled(function, fullgraph=False)(B), true, 1e-8)


TANGENT = numbers(2, 3)


def pushed_by_jvp(function: Callable[..., torch.Tensor]) -> torch.Tensor:
    return torch.func.jvp(function, (B,), (TANGENT,))[1]


def pushed_by_dual_numbers(function: Callable[..., torch.Tensor]) -> torch.Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(B, TANGENT))).tangent


@pytest.mark.parametrize("push", [pushed_by_jvp, pushed_by_dual_numbers])
@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("called_before", [True, False])
def test_forward_mode_of_a_compiled_function(
    push: Callable[..., torch.Tensor], fullgraph: bool, called_before: bool
) -> None:
    """Right or an error, and never zero; an error where the graph must be whole."""
    layer = softmax()
    fast = compiled(lambda c: layer(c)[0], fullgraph=fullgraph)
    if called_before:
        fast(B)
    try:
        found = push(fast)
    except NotImplementedError as error:
        assert called_before and "no forward-mode derivative" in str(error)
    except torch._dynamo.exc.Unsupported:
        assert fullgraph
    else:
        assert not fullgraph
        close(found, push(lambda c: torch.softmax(c, -1)), 1e-8)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.vmap])
def test_transforms_of_a_compiled_function(transform: Callable[..., Any]) -> None:
    layer = softmax()
    fast = compiled(lambda c: layer(c)[0], fullgraph=False)
    fast(B)
    if transform is torch.vmap:
        close(torch.vmap(fast)(B), torch.softmax(B, -1), 1e-4)
    else:
        close(
            torch.func.grad(lambda c: fast(c)[:, 0].sum())(B),
            torch.func.grad(lambda c: torch.softmax(c, -1)[:, 0].sum())(B),
            1e-8,
        )


def test_forward_mode_of_the_operator_raises() -> None:
    """Where PyTorch has no rule it takes the tangent for zero."""
    layer = softmax()
    (c,) = leaves([B])
    module = torch.export.export(Wrapped(layer), (c,), strict=False).module()
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(module, (B,), (B,))
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="no forward-mode derivative"),
    ):
        module(forward_ad.make_dual(B, B))


# --- the operator ---------------------------------------------------------------------------------


class Wrapped(torch.nn.Module):
    """The layer's first output."""

    def __init__(self, layer: CvxpyLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return self.layer(*values)[0]


def operands_of(layer: CvxpyLayer, name: str, values: Values) -> list[torch.Tensor]:
    call = Call(layer.operations)
    *outputs, v = map(torch.from_numpy, call.run("solve", [t.numpy() for t in values]))
    groups = {"outputs": outputs, "parameters": values}
    operands = list(values) if name == "solve" else [*values, v]
    for seed, kind in enumerate(ARGUMENTS[name]):
        operands += [numbers(*like.shape, seed=seed) for like in groups[kind]]
    return operands


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name != "inspect"])  # JAX's alone
@pytest.mark.parametrize("build", [geometric, lambda: (least_squares(), (A, B))], ids=["gp", "qp"])
def test_opcheck(name: str, build: Callable[[], tuple[CvxpyLayer, Values]]) -> None:
    layer, values = build()
    operands = operands_of(layer, name, values)
    second = name in ("hvp", "jvp2")  # linear arguments alone: a third derivative does not exist
    points = len(values) + 1
    operands = [
        t.clone().requires_grad_(i != len(values) and (not second or i >= points))
        for i, t in enumerate(operands)
    ]
    options = options_of({}, False, None, True, torch.float64)
    torch.library.opcheck(
        torch.ops.cvxlayers.operation.default, (layer.key, options, name, 0, operands)
    )


def test_opcheck_without_gradient() -> None:
    options = options_of({"eps": 1e-9}, False, "nan", False, torch.float32)
    layer = least_squares()
    torch.library.opcheck(
        torch.ops.cvxlayers.operation.default, (layer.key, options, "solve", 0, [A, B])
    )


def test_third_derivative_of_the_operator_raises() -> None:
    layer, (c,) = softmax(), leaves([B])
    (v,) = (operands_of(layer, "vjp", (B,))[1],)
    options = options_of({}, False, None, True, torch.float64)
    (h,) = torch.ops.cvxlayers.operation(layer.key, options, "hvp", 0, [c, v, B, B])
    with pytest.raises(NotImplementedError, match="third"):
        h.sum().backward()


# --- torch.export ---------------------------------------------------------------------------------


def exported(
    model: torch.nn.Module, strict: bool, trained: bool = True
) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=2, max=64)
    x = numbers(4, 2).requires_grad_(trained)
    return torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool) -> None:
    """One operator, any batch size, forward and backward."""
    torch.manual_seed(0)
    model = Model()
    program = exported(model, strict)
    calls = [n for n in program.graph.nodes if n.target is torch.ops.cvxlayers.operation.default]
    assert len(calls) == 1
    module = program.module()
    for size in (2, 4, 9):
        x, y = leaves([numbers(size, 2)] * 2)
        module(x)[:, 0].sum().backward()
        model.true(y)[:, 0].sum().backward()
        close(module(x), model.true(x), 1e-8)
        close(x.grad, y.grad, 1e-8)


def test_export_of_a_model_without_gradients() -> None:
    """Its graph cannot have one later, and says so."""
    layer = softmax()
    module = torch.export.export(Wrapped(layer), (B,)).module()
    close(module(B), layer(B)[0], 1e-12)
    (c,) = leaves([B])
    with pytest.raises(RuntimeError, match="inputs wanted no gradient"):
        module(c).sum().backward()


LOAD = """
import torch
import cvxlayers.torch
program, layer, values = sys.argv[1:]
x, y, g = torch.load(values)
module = torch.export.load(program).module()
try:
    module(x)
except RuntimeError as error:
    assert "load the layer with torch.load" in str(error), error
else:
    raise AssertionError("no error")
layer = torch.load(layer, weights_only=False)
x.requires_grad_()
found = module(x)
torch.testing.assert_close(found, y, rtol=1e-10, atol=1e-10)
found.square().sum().backward()
torch.testing.assert_close(x.grad, g, rtol=1e-10, atol=1e-10)
"""


def test_export_into_another_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model()
    files = [tmp_path / name for name in ("model.pt2", "layer.pt", "values.pt")]
    torch.export.save(exported(model, strict=False), files[0])
    torch.save(model.choose, files[1])
    (x,) = leaves([numbers(5, 2)])
    y = model(x)
    y.square().sum().backward()
    torch.save((x.detach(), y.detach(), x.grad), files[2])
    python(LOAD, tmp_path, *map(str, files))


def test_a_graph_without_its_layer_says_so() -> None:
    layer, (c,) = softmax(), leaves([B])
    module = torch.export.export(Wrapped(layer), (c,), strict=False).module()
    module(c).sum().backward()
    alive = weakref.ref(layer), weakref.ref(layer.operations)
    del layer
    gc.collect()
    assert [reference() for reference in alive] == [None, None]  # graphs keep no layer
    with pytest.raises(RuntimeError, match="CvxpyLayer of this graph no longer exists"):
        module(B)


@pytest.mark.parametrize("dies", ["copy", "original"])
def test_a_graph_outlives_the_copy_or_the_original(dies: str) -> None:
    layer = softmax()
    (c,) = leaves([B])
    module = torch.export.export(Wrapped(layer), (c,), strict=False).module()
    twin = copy.deepcopy(layer)
    true = layer(B)[0]
    if dies == "copy":
        del twin
    else:
        layer = twin
        del twin
    gc.collect()
    close(module(B), true, 1e-5)
    (d,) = leaves([B])
    close(
        torch.autograd.grad(module(c)[:, 0].sum(), c),
        torch.autograd.grad(torch.softmax(d, -1)[:, 0].sum(), d),
        1e-8,
    )
    assert layer is not None


def test_a_compiled_model_and_its_copy() -> None:
    """Each has its own weights; the optimization problem is the same."""
    model = Model()
    fast = compiled(model)
    x = numbers(4, 2)
    fast(x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.linear.weight.mul_(-1)
    fast_twin = compiled(twin)
    close(fast_twin(x), twin.true(x), 1e-8)
    del twin, fast_twin
    gc.collect()
    close(fast(x), model.true(x), 1e-8)


def test_many_layers_in_one_graph() -> None:
    first, second = softmax(), least_squares(3, 3)

    def function(c: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor]:
        p = first(c)[0]
        return (second(torch.diag_embed(p + 1), b)[0] + first(b)[0],)

    for found, true in zip(
        gradients(compiled(function), (B, B.flip(0))),
        gradients(function, (B, B.flip(0))),
        strict=True,
    ):
        close(found, true)


def test_the_frontend_leaves_the_compiler_alone() -> None:
    """Importing it takes seconds."""
    code = """
import sys, cvxpy as cp, torch, cvxlayers.torch
x, b = cp.Variable(), cp.Parameter()
problem = cp.Problem(cp.Minimize(cp.square(x - b)))
layer = cvxlayers.torch.CvxpyLayer(problem, [b], [x])
layer(torch.tensor(1.0, requires_grad=True))[0].backward()
print([m for m in ("torch._dynamo", "torch._inductor") if m in sys.modules])
"""
    assert execute(["-c", code]).strip() == "[]"
