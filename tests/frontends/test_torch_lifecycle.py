"""What is done to a model around the layer: saved, moved, copied, checkpointed, run by workers."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch_checks import (
    EVERY_CONE,
    Values,
    all_cones,
    close,
    geometric,
    interval,
    least_squares,
    leaves,
    numbers,
    python,
    softmax,
)

import cvxlayers
from cvxlayers.torch import CvxpyLayer


class Model(torch.nn.Module):
    """Linear, then softmax as an optimization problem, then a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 3).double()
        self.choose = softmax()
        self.scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.choose(self.linear(x))[0]

    def true(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.softmax(self.linear(x), -1)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


X = numbers(4, 2)
C = numbers(4, 3)


def gradients_of(model: Model, function: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    loss = function(X)[:, 0].square().sum()
    return list(torch.autograd.grad(loss, list(model.parameters())))


# --- state, copies, dtypes ------------------------------------------------------------------------


def test_the_layer_has_no_state(model: Model) -> None:
    assert not model.choose.state_dict()
    assert not list(model.choose.parameters()) and not list(model.choose.buffers())
    assert set(model.state_dict()) == {"linear.weight", "linear.bias", "scale"}
    other = Model()
    assert other.load_state_dict(model.state_dict(), strict=True) == ([], [])
    close(other(X), model(X), 0)
    assert "CvxpyLayer" in repr(model) and "c[3]" in repr(model)


def test_state_dict_in_a_file(model: Model) -> None:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = Model()
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    close(other(X), model(X), 0)


MOVES: dict[str, Callable[[torch.nn.Module], Any]] = {
    "to(float32)": lambda m: m.to(torch.float32),
    "to(cpu)": lambda m: m.to("cpu"),
    "to(meta)": lambda m: m.to("meta"),
    "double": lambda m: m.double(),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "eval": lambda m: m.eval(),
    "requires_grad_": lambda m: m.requires_grad_(False),
    "zero_grad": lambda m: m.zero_grad(),
    "share_memory": lambda m: m.share_memory(),
    "to_empty": lambda m: m.to_empty(device="cpu"),
    "apply": lambda m: m.apply(lambda module: None),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_do_nothing_to_the_layer(name: str) -> None:
    """The arguments alone decide on dtype and device."""
    layer = softmax()
    (before,) = layer(C)
    assert MOVES[name](layer) is layer or name == "zero_grad"
    (after,) = layer(C)
    assert after.dtype == torch.float64
    close(after, before, 0)
    assert layer(C.float())[0].dtype == torch.float32


def test_training_mode_changes_nothing(model: Model) -> None:
    model.eval()
    evaluated = model(X)
    model.train()
    close(model(X), evaluated, 0)


DUPLICATES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": lambda m: _saved_and_loaded(m),
}


def _saved_and_loaded(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("name", DUPLICATES)
def test_a_copied_model_is_independent(name: str, model: Model) -> None:
    model(X).sum().backward()
    twin = DUPLICATES[name](model)
    close(twin(X), model(X), 0)
    assert twin.choose is not model.choose
    assert twin.choose.operations is not model.choose.operations
    with torch.no_grad():
        twin.linear.weight.mul_(-1)
    close(twin(X), twin.true(X), 1e-8)
    close(model(X), model.true(X), 1e-8)


def test_a_layer_is_collected() -> None:
    """Neither a call nor its results keep it, once they are gone."""
    layer = softmax()
    alive = weakref.ref(layer), weakref.ref(layer.operations)
    c = C.clone().requires_grad_()
    layer(c)[0].sum().backward()
    del layer
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_calls_do_not_accumulate() -> None:
    """A graph's memory ends with its outputs."""
    layer = softmax()

    def arrays() -> int:
        gc.collect()
        return sum(type(o) in (np.ndarray, torch.Tensor) for o in gc.get_objects())

    def call() -> None:
        layer(C.clone().requires_grad_())[0].sum().backward()

    call()
    before = arrays()
    for _ in range(5):
        call()
    assert arrays() <= before + 3


# --- other processes and threads ------------------------------------------------------------------

LOADER = """
import multiprocessing, warnings
import torch
from torch.utils.data import DataLoader, Dataset
from torch_checks import close, numbers, softmax

class Solved(Dataset):
    \"\"\"The layer in the data set, and another in the function that makes batches.\"\"\"

    def __init__(self):
        self.layer = softmax()

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return self.layer(numbers(3, seed=i), solver_args={"polish": True})[0]

class Collate:
    def __init__(self):
        self.layer = softmax()

    def __call__(self, rows):
        p = torch.stack(rows).log().requires_grad_()
        (q,) = self.layer(p)
        return q.detach(), torch.autograd.grad(q[:, 0].sum(), p)[0]

if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about fork and threads
    torch.set_num_threads(1)
    data = Solved()
    data[0]  # the pool of threads is in use before the workers start
    loader = DataLoader(
        data, batch_size=3, num_workers=2, collate_fn=Collate(),
        multiprocessing_context=sys.argv[1], timeout=120,
    )
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == 2
        p = torch.softmax(torch.stack([numbers(3, seed=i) for i in range(6)]), -1)
        close(torch.cat([q for q, _ in batches]), p, 1e-6)
        true = p * (torch.eye(3)[0] - p[:, :1])
        close(torch.cat([g for _, g in batches]), true, 1e-6)
        if sys.argv[1] == "spawn":
            break
"""


@pytest.mark.parametrize(
    "method", sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods()))
)
def test_workers_of_a_data_loader(method: str, tmp_path: Path) -> None:
    python(LOADER, tmp_path, method)


@pytest.mark.parametrize("build", [all_cones, geometric], ids=["all cones", "gp"])
def test_threads_share_a_layer(build: Callable[[], tuple[CvxpyLayer, Values]]) -> None:
    layer, values = build()
    batches = [tuple(torch.stack([(1 + 0.01 * k) * v] * 3) for v in values) for k in range(8)]
    start = threading.Barrier(4, timeout=60)

    def work(batch: Values) -> list[torch.Tensor]:
        inputs = leaves(batch)
        start.wait()
        outputs = layer(*inputs)
        start.wait()
        loss = sum(y.square().sum() for y in outputs)
        return [*(y.detach() for y in outputs), *torch.autograd.grad(loss, inputs)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, batches))
    start = threading.Barrier(1)
    for one, batch in zip(found, batches, strict=True):
        for f, t in zip(one, work(batch), strict=True):
            close(f, t, 0)


# --- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradients(mode: Callable[[], Any], model: Model) -> None:
    with mode():
        y = model(X)
    assert not y.requires_grad and y.is_inference() == (mode is torch.inference_mode)
    close(y, model.true(X).detach(), 1e-4)
    close(model(X), model.true(X), 1e-8)  # and with gradients again


def test_inference_tensors_as_inputs() -> None:
    layer = least_squares()
    with torch.inference_mode():
        A, b = numbers(3, 2) + 0, numbers(4, 3) + 0
        (inside,) = layer(A, b)
    assert A.is_inference()
    (x,) = layer(A, b)
    close(x, inside, 0)
    assert not x.is_inference()


def test_outputs_may_be_changed_in_place() -> None:
    """Gradients look at none of them, as PyTorch itself knows where they do."""
    for build in (geometric, all_cones):
        layer, values = build()
        found, true = leaves(values), leaves(values)
        y, z = layer(*found)[0], layer(*true)[0]
        y.mul_(2)
        y.sum().backward()
        (2 * z).sum().backward()
        for f, t in zip(found, true, strict=True):
            close(f.grad, t.grad, 1e-12)


def test_inputs_may_not_be_changed_in_place() -> None:
    layer, (c,) = softmax(), leaves([C])
    d = 1 * c
    (p,) = layer(d)
    d.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        p.sum().backward()


def test_inputs_do_not_share_memory_with_outputs() -> None:
    """x = b without constraints."""
    x, b = cp.Variable(2), cp.Parameter(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - b))), [b], [x])
    b_t = numbers(2)
    first, second = layer(b_t)[0], layer(b_t)[0]
    first.zero_()
    close(second, numbers(2), 1e-4)
    close(b_t, numbers(2), 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_device_of_the_inputs(dtype: torch.dtype) -> None:
    layer = softmax()
    c = C.to(dtype, copy=True).requires_grad_()
    (p,) = layer(c)
    assert p.dtype == dtype and p.device == c.device
    close(p, torch.softmax(c.double(), -1).to(dtype), max(torch.finfo(dtype).eps, 1e-12))
    p[:, 0].sum().backward()
    assert c.grad.dtype == dtype and c.grad.device == c.device


def test_autocast_of_what_comes_before_and_after() -> None:
    """Autocast touches PyTorch's own operations alone. What a bfloat16 linear map gives is solved
    in float64, and the outputs are bfloat16 again, or what the inputs promote to."""
    layer, linear, true = softmax(), torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    true.load_state_dict(linear.state_dict())
    x = X.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        c = linear(x)
        (p,) = layer(c)
        assert c.dtype == p.dtype == torch.bfloat16
        close(p, torch.softmax(c.double(), -1).bfloat16(), 2**-7)
        assert layer(x.new_zeros(3))[0].dtype == torch.float32  # nothing is rounded on the way in
        close(layer(C)[0], torch.softmax(C, -1), 1e-4)
        two = least_squares()(numbers(3, 2).bfloat16(), numbers(3).float())[0]
        assert two.dtype == torch.float32
    p[:, 0].float().sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = torch.softmax(true(x).float(), -1)
    q[:, 0].sum().backward()
    assert linear.weight.grad.dtype == torch.float32
    close(linear.weight.grad, true.weight.grad, 2e-2)


# --- autograd -------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("polish", [None, True])
def test_activation_checkpoints(use_reentrant: bool, polish: bool | None, model: Model) -> None:
    """The reentrant kind solves without gradients first, hence without polish, unless asked to."""
    model.choose = softmax(solver_args={"polish": polish})
    true = gradients_of(model, model)
    x = X.clone().requires_grad_()  # the reentrant kind wants an input with a gradient
    y = checkpoint(model, x, use_reentrant=use_reentrant)
    y[:, 0].square().sum().backward()
    for p, t in zip(model.parameters(), true, strict=True):
        close(p.grad, t, 1e-4 if use_reentrant and not polish else 0)


def test_second_derivatives_through_a_checkpoint() -> None:
    layer, (c, d) = softmax(), leaves([C, C])

    def penalty(p: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
        (first,) = torch.autograd.grad(p[:, 0].square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    found = penalty(checkpoint(lambda v: layer(v)[0], c, use_reentrant=False), c)
    close(found, penalty(torch.softmax(d, -1), d), 1e-7)


@pytest.fixture
def copied() -> Iterator[list[torch.Tensor]]:
    """Everything that a graph saves goes through a file, as it were."""
    packed: list[torch.Tensor] = []

    def pack(t: torch.Tensor) -> tuple[bytes, torch.dtype, torch.Size]:
        packed.append(t)
        return t.detach().numpy().tobytes(), t.dtype, t.shape

    def unpack(what: tuple[bytes, torch.dtype, torch.Size]) -> torch.Tensor:
        return torch.frombuffer(bytearray(what[0]), dtype=what[1]).reshape(what[2])

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield packed


@pytest.mark.parametrize("build", EVERY_CONE, ids=lambda build: build.__name__)
def test_saved_tensors_that_are_copies(
    build: Callable[[], tuple[CvxpyLayer, Values]], copied: list[torch.Tensor]
) -> None:
    layer, values = build()
    inputs = leaves(values)
    outputs = layer(*inputs)
    assert len(copied) == len(values) + 1  # and the point
    loss = sum(y.square().sum() for y in outputs)
    found = torch.autograd.grad(loss, inputs, retain_graph=True)
    layer(*(1.01 * v for v in values))
    again = torch.autograd.grad(loss, inputs)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        other = leaves(values)
        true = torch.autograd.grad(sum(y.square().sum() for y in layer(*other)), other)
    for f, g, t in zip(found, again, true, strict=True):
        close(f, t, 0)
        close(g, t, 0)


def test_saved_tensors_decide() -> None:
    """The derivative is taken at what the hooks bring back, not at what is remembered."""
    layer, A, b = least_squares(), numbers(3, 2) + torch.eye(3, 2), 3 + numbers(3)

    def jacobian_row(factor: float) -> torch.Tensor:
        (leaf,) = leaves([factor * b])
        return torch.autograd.grad(layer(factor * A, leaf)[0][0], leaf)[0]

    saved: list[torch.Tensor] = []
    (leaf,) = leaves([2 * b])
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        layer(2 * A, leaf)
    replacements = iter([t.detach() for t in saved])
    (leaf,) = leaves([b])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: next(replacements)):
        (x,) = layer(A, leaf)
        found = torch.autograd.grad(x[0], leaf)[0]
    assert jacobian_row(1.0).abs().max() > 0.1
    close(found, jacobian_row(2.0))
    close(2 * found, jacobian_row(1.0))


def test_save_on_cpu(model: Model) -> None:
    with torch.autograd.graph.save_on_cpu():
        found = gradients_of(model, model)
    for f, t in zip(found, gradients_of(model, model), strict=True):
        close(f, t, 0)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode(model: Model) -> None:
    with torch.autograd.detect_anomaly():
        found = gradients_of(model, model)
    for f, t in zip(found, gradients_of(model, model.true), strict=True):
        close(f, t, 1e-8)
    layer = interval(on_failure="nan")
    t_t, lower = leaves([torch.zeros(2).double(), torch.tensor([0.5, 2.0]).double()])
    with torch.autograd.detect_anomaly():
        layer(t_t, lower)[0].nansum().backward()  # the zero gradients are no anomaly
    assert lower.grad[1] == 0


def test_backward_twice() -> None:
    layer, (c,) = softmax(), leaves([C])
    (p,) = layer(c)
    loss = p[:, 0].square().sum()
    (first,) = torch.autograd.grad(loss, c, retain_graph=True)
    (second,) = torch.autograd.grad(loss, c)
    close(first, second, 0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, c)


def test_accumulation_of_gradients(model: Model) -> None:
    """Over passes, and over uses of a layer in one pass."""
    for rows in X.split(1):
        model(rows)[:, 0].square().sum().backward()
    for p, t in zip(model.parameters(), gradients_of(model, model), strict=True):
        close(p.grad, t)
    layer, (c, d) = softmax(), leaves([C, C])
    layer(layer(c)[0] * layer(-c)[0])[0][:, 0].sum().backward()
    torch.softmax(torch.softmax(d, -1) * torch.softmax(-d, -1), -1)[:, 0].sum().backward()
    close(c.grad, d.grad, 1e-8)


def test_hooks(model: Model) -> None:
    seen: dict[str, Any] = {}
    model.choose.register_full_backward_hook(lambda m, i, o: seen.update(i=i, o=o))
    model.choose.register_full_backward_pre_hook(lambda m, o: seen.update(pre=o))
    model.choose.register_forward_pre_hook(lambda m, a: seen.update(a=a))
    model.choose.register_forward_hook(lambda m, a, r: seen.update(r=r))
    found = gradients_of(model, model)
    for f, t in zip(found, gradients_of(model, model.true), strict=True):
        close(f, t, 1e-8)
    (c,), (p,) = seen["a"], seen["r"]
    close(p, torch.softmax(c, -1), 1e-8)
    (upstream,), (downstream,) = seen["o"], seen["i"]
    q = torch.softmax(c, -1)
    close(downstream, q * (upstream - (q * upstream).sum(-1, keepdim=True)), 1e-8)
    close(seen["pre"][0], upstream, 0)


def test_hooks_on_tensors() -> None:
    layer, (c,) = softmax(), leaves([C])
    (p,) = layer(c)
    p.retain_grad()
    p.register_hook(lambda g: 2 * g)
    p[:, 0].sum().backward()
    (d,) = leaves([C])
    (2 * torch.softmax(d, -1)[:, 0]).sum().backward()
    close(c.grad, d.grad, 1e-8)
    assert p.grad.max() == 2


def test_some_inputs_want_a_gradient() -> None:
    layer, A, b = least_squares(), numbers(3, 2), 2 + numbers(4, 3)
    both = leaves((A, b))
    true = torch.autograd.grad(layer(*both)[0].square().sum(), both)
    (leaf,) = leaves([A])
    (x,) = layer(leaf, b)
    x.square().sum().backward()
    close(leaf.grad, true[0], 1e-12)
    assert b.grad is None
    (leaf,) = leaves([b])
    layer(A, leaf)[0].square().sum().backward()
    close(leaf.grad, true[1], 1e-12)
    assert not layer(A, b)[0].requires_grad
    assert not layer(*(v.detach() for v in both))[0].requires_grad
    (x,) = layer(*both)
    assert not x.detach().requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        x.detach().sum().backward()


def test_some_outputs_are_used() -> None:
    layer, values = geometric()
    for k in range(2):
        found, true = leaves(values), leaves(values)
        layer(*found)[k].sum().backward()
        x, y = layer(*true)
        sum(w * o.sum() for w, o in zip((k == 0, k == 1), (x, y), strict=True)).backward()
        for f, t in zip(found, true, strict=True):
            close(f.grad, t.grad, 1e-12)


def test_weights_as_parameters_learn() -> None:
    """`nn.Parameter`s among the inputs, shared by the batch, and any optimizer."""
    A = torch.nn.Parameter(torch.eye(3, 2, dtype=torch.float64) + 0.3 * numbers(3, 2))
    truth, b = torch.eye(3, 2, dtype=torch.float64), 2 + numbers(16, 3)
    layer = least_squares()
    target = layer(truth, b)[0]
    optimizer = torch.optim.LBFGS([A], max_iter=15)
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (layer(A, b)[0] - target).square().mean()
        loss.backward()
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    assert losses[-1] < 1e-3 * losses[0]


def test_the_layer_of_any_framework_in_a_model() -> None:
    """`cvxlayers.CvxpyLayer` is no module, but takes part in autograd."""
    c, p = cp.Parameter(3), cp.Variable(3)
    problem = cp.Problem(cp.Maximize(c @ p + cp.sum(cp.entr(p))), [cp.sum(p) == 1])
    layer = cvxlayers.CvxpyLayer(problem, [c], [p])
    x, y = leaves([C, C])
    layer(x)[0][:, 0].sum().backward()
    torch.softmax(y, -1)[:, 0].sum().backward()
    close(x.grad, y.grad, 1e-8)
    twin = pickle.loads(pickle.dumps(layer))
    close(twin(x)[0], layer(x)[0], 0)


def test_subclasses_of_tensor() -> None:
    class Named(torch.Tensor):
        pass

    layer = softmax()
    c = C.clone().as_subclass(Named).requires_grad_()
    (p,) = layer(c)
    close(p.as_subclass(torch.Tensor).detach(), torch.softmax(C, -1), 1e-8)
    p[:, 0].sum().backward()
    (d,) = leaves([C])
    torch.softmax(d, -1)[:, 0].sum().backward()
    close(c.grad.as_subclass(torch.Tensor), d.grad, 1e-8)


@pytest.mark.parametrize("view", ["transposed", "expanded", "strided", "negative", "conjugate"])
def test_memory_of_all_kinds(view: str) -> None:
    c = {
        "transposed": C.T.contiguous().T,
        "expanded": C[:1].expand(4, 3),
        "strided": torch.stack([C, 0 * C], -1)[..., 0],
        "negative": torch._neg_view(-C),
        "conjugate": torch.complex(C, -C).conj().imag,
    }[view]
    (leaf, true) = c.detach().requires_grad_(), c.contiguous().clone().requires_grad_()
    layer = softmax()
    layer(leaf)[0][:, 0].sum().backward()
    torch.softmax(true, -1)[:, 0].sum().backward()
    close(leaf.grad, true.grad, 1e-8)
