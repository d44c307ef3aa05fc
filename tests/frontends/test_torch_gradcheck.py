"""PyTorch's own checks of derivatives over every cone, and `torch.func` against loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cvxpy as cp
import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch_checks import EVERY_CONE, Values, close, least_squares, leaves, numbers, softmax

from cvxlayers.torch import CvxpyLayer

# PyTorch's own, when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

every_cone = pytest.mark.parametrize("build", EVERY_CONE, ids=lambda build: build.__name__)
Build = Callable[[], tuple[CvxpyLayer, Values]]


@every_cone
def test_gradcheck(build: Build) -> None:
    layer, values = build()
    assert gradcheck(
        lambda *v: layer(*v),
        leaves(values),
        eps=1e-5,
        atol=1e-7,
        rtol=1e-7,
        check_undefined_grad=True,
        check_batched_grad=True,
        check_forward_ad=True,
        check_batched_forward_grad=True,
    )


@every_cone
def test_gradgradcheck(build: Build) -> None:
    layer, values = build()
    assert gradgradcheck(
        lambda *v: layer(*v),
        leaves(values),
        eps=1e-5,
        atol=1e-6,
        rtol=1e-6,
        check_undefined_grad=True,
        check_batched_grad=True,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
    )


def test_the_problems_have_every_cone() -> None:
    kinds = {
        kind
        for build in EVERY_CONE
        for kind in build()[0].operations.canonical.structure.dims.kinds
    }
    assert kinds == {"zero", "nonneg", "soc", "psd", "exp", "pow"}


# --- torch.func, against one instance and one derivative at a time --------------------------------

N = 3  # instances


@pytest.fixture(scope="module")
def layer() -> CvxpyLayer:
    """(A, b) ↦ x; some bounds are active."""
    return least_squares()


A = torch.eye(3, 2, dtype=torch.float64) + 0.1 * numbers(N, 3, 2)
B = torch.tensor([[1.0, -1.0, 0.3], [0.2, 0.7, -0.1], [-1.0, 2.0, 0.4]], dtype=torch.float64)


def jacobians(function: Callable[..., torch.Tensor], values: Sequence[torch.Tensor]) -> Values:
    """One backward pass for each entry of the result."""
    inputs = leaves(values)
    y = function(*inputs)
    rows = [torch.autograd.grad(e, inputs, retain_graph=True) for e in y.reshape(-1)]
    return tuple(
        torch.stack(parts).reshape(y.shape + v.shape)
        for parts, v in zip(zip(*rows, strict=True), values, strict=True)
    )


def hessian_of(
    function: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor
) -> torch.Tensor:
    """Two backward passes, one for each entry of the gradient."""
    (leaf,) = leaves([value])
    (first,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    rows = [torch.autograd.grad(g, leaf, retain_graph=True)[0] for g in first.reshape(-1)]
    return torch.stack(rows).reshape(value.shape * 2)


def loop(function: Callable[..., torch.Tensor], *columns: torch.Tensor) -> torch.Tensor:
    return torch.stack([function(*row) for row in zip(*columns, strict=True)])


@pytest.mark.parametrize("transform", [jacrev, jacfwd])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_jacobian(transform: Callable, chunk_size: int | None, layer: CvxpyLayer) -> None:
    if transform is jacrev:
        found = jacrev(lambda *v: layer(*v)[0], (0, 1), chunk_size=chunk_size)(A[0], B)
    else:
        found = jacfwd(lambda *v: layer(*v)[0], (0, 1))(A[0], B)
    for f, t in zip(found, jacobians(lambda *v: layer(*v)[0], (A[0], B)), strict=True):
        close(f, t)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_jacobian_of_torch_autograd(strategy: str, layer: CvxpyLayer) -> None:
    """`vectorize` maps with the predecessor of torch.vmap."""
    found = torch.autograd.functional.jacobian(
        lambda *v: layer(*v)[0], (A[0], B), vectorize=True, strategy=strategy
    )
    for f, t in zip(found, jacobians(lambda *v: layer(*v)[0], (A[0], B)), strict=True):
        close(f, t)


@pytest.mark.parametrize("outer", ["reverse-mode", "forward-mode"])
def test_hessian_of_torch_autograd(outer: str, layer: CvxpyLayer) -> None:
    found = torch.autograd.functional.hessian(
        lambda a: layer(a, B[0])[0].sum(), A[0], vectorize=True, outer_jacobian_strategy=outer
    )
    close(found, hessian_of(lambda a: layer(a, B[0])[0].sum(), A[0]))


def test_is_grads_batched(layer: CvxpyLayer) -> None:
    a, b = leaves((A[0], B[0]))
    (x,) = layer(a, b)
    eye = torch.eye(2, dtype=torch.float64)
    found = torch.autograd.grad(x, (a, b), eye, is_grads_batched=True)
    for f, t in zip(found, jacobians(lambda *v: layer(*v)[0], (A[0], B[0])), strict=True):
        close(f, t)


def loss_in_A(layer: CvxpyLayer, b: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda a: layer(a, b)[0].square().sum() + layer(a, 2 * b)[0][0]


@pytest.mark.parametrize("outer", [jacrev, jacfwd])
@pytest.mark.parametrize("inner", [jacrev, jacfwd])
def test_hessian(outer: Callable, inner: Callable, layer: CvxpyLayer) -> None:
    function = loss_in_A(layer, B[0])
    close(outer(inner(function))(A[0]), hessian_of(function, A[0]))


def test_hessian_of_two_arguments(layer: CvxpyLayer) -> None:
    """The mixed blocks, too."""
    size = A[0].numel()

    def flat(theta: torch.Tensor) -> torch.Tensor:
        return layer(theta[:size].reshape(3, 2), theta[size:])[0].sum()

    ((aa, ab), (ba, bb)) = hessian(lambda a, b: layer(a, b)[0].sum(), (0, 1))(A[0], B[0])
    top = torch.cat([aa.reshape(size, size), ab.reshape(size, 3)], 1)
    found = torch.cat([top, torch.cat([ba.reshape(3, size), bb], 1)])
    close(found, hessian_of(flat, torch.cat([A[0].reshape(-1), B[0]])))


def test_vmap_of_hessian_and_hessian_of_vmap(layer: CvxpyLayer) -> None:
    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return layer(a, b)[0].square().sum()

    true = loop(lambda a, b: hessian_of(lambda v: function(v, b), a), A, B)
    close(vmap(hessian(function))(A, B), true)
    whole = hessian(lambda a: vmap(function)(a, B).sum())(A)
    for i in range(N):
        for j in range(N):
            close(whole[i, :, :, j], true[i] if i == j else torch.zeros_like(true[i]))


def test_vmap_with_axes_of_all_kinds(layer: CvxpyLayer) -> None:
    """Mapped over any axis, not mapped, a number, by name, from nested structures, to any axis."""
    true = loop(lambda a, b: layer(a, b)[0], A, B)
    close(vmap(layer)(A, B)[0], true)
    close(vmap(layer, (1, -1))(A.movedim(0, 1), B.T)[0], true)
    close(vmap(layer, out_dims=1)(A, B)[0], true.T)
    close(vmap(layer, (None, 0))(A[1], B)[0], loop(lambda b: layer(A[1], b)[0], B))
    close(vmap(layer, (0, None))(A, B[1])[0], loop(lambda a: layer(a, B[1])[0], A))
    close(vmap(lambda v: layer(b=v["b"], A=v["A"])[0])({"A": A, "b": B}), true)
    close(vmap(lambda a: layer(a, [1.0, -1.0, 0.3])[0])(A), loop(lambda a: layer(a, B[0])[0], A))
    close(vmap(lambda a: layer(a, B[0].numpy())[0])(A), loop(lambda a: layer(a, B[0])[0], A))


@pytest.mark.parametrize("chunk_size", [1, 2, 5])
def test_vmap_in_chunks(chunk_size: int, layer: CvxpyLayer) -> None:
    close(vmap(layer, chunk_size=chunk_size)(A, B)[0], loop(lambda a, b: layer(a, b)[0], A, B))


def test_vmap_over_batches(layer: CvxpyLayer) -> None:
    """What is mapped has batch axes of its own, and broadcasts by them."""
    stacks = torch.stack([B, -B])  # (2, N, 3)
    found = vmap(layer, (None, 0))(A, stacks)[0]
    close(found, torch.stack([layer(A, B)[0], layer(A, -B)[0]]))
    found = vmap(layer, (None, 1))(A[:, None], stacks)[0]  # N mapped, (N, 1) and (2,) inside
    close(found, torch.stack([layer(A[:, None], stacks[:, i])[0] for i in range(N)]))


def test_nested_vmap(layer: CvxpyLayer) -> None:
    true = torch.stack([torch.stack([layer(a, b)[0] for b in B]) for a in A])
    close(vmap(vmap(layer, (None, 0)), (0, None))(A, B)[0], true)
    close(vmap(vmap(layer, (0, None)), (None, 0), out_dims=1)(A, B)[0], true)

    def derivative(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return jacrev(lambda v: layer(v, b)[0])(a)

    true = torch.stack([loop(lambda b, a=a: derivative(a, b), B) for a in A])
    close(vmap(vmap(derivative, (None, 0)), (0, None))(A, B), true)
    mixed = vmap(lambda a: jacfwd(lambda v: vmap(layer, (None, 0))(v, B)[0])(a))(A)
    close(mixed, true)


@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_vmap_of_jacobian(transform: Callable, layer: CvxpyLayer) -> None:
    function = transform(lambda a, b: layer(a, b)[0], (0, 1))
    found = vmap(function)(A, B)
    for k in range(2):
        true = loop(lambda a, b, k=k: jacobians(lambda *v: layer(*v)[0], (a, b))[k], A, B)
        close(found[k], true)


def test_vmap_of_gradients_of_what_is_not_mapped(layer: CvxpyLayer) -> None:
    """One gradient for each instance, not their sum."""
    single = grad(lambda a, b: layer(a, b)[0].sum())
    found = vmap(single, (None, 0))(A[0], B)
    assert found.shape == (N, 3, 2)
    close(found, loop(lambda b: single(A[0], b), B))
    closed_over = vmap(grad(lambda b: layer(A[0], b)[0].sum()))(B)
    close(closed_over, loop(grad(lambda b: layer(A[0], b)[0].sum()), B))


def test_gradient_of_vmap_sums_over_what_is_shared(layer: CvxpyLayer) -> None:
    """Through torch.func, and through a backward pass outside of the map."""
    true = sum(grad(lambda a, b: layer(a, b)[0].sum())(A[0], b) for b in B)
    close(grad(lambda a: vmap(layer, (None, 0))(a, B)[0].sum())(A[0]), true)
    (leaf,) = leaves([A[0]])
    vmap(layer, (None, 0))(leaf, B)[0].sum().backward()
    close(leaf.grad, true)
    (captured,) = leaves([A[0]])
    vmap(lambda b: layer(captured, b)[0])(B).sum().backward()
    close(captured.grad, true)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_backward_through_vmap(chunk_size: int | None, layer: CvxpyLayer) -> None:
    """What is mapped wants a gradient itself, which inside of the map cannot be seen."""
    found, true = leaves((A, B)), leaves((A, B))
    vmap(layer, chunk_size=chunk_size)(*found)[0].square().sum().backward()
    loop(lambda a, b: layer(a, b)[0], *true).square().sum().backward()
    close(found[0].grad, true[0].grad)
    close(found[1].grad, true[1].grad)


def test_backward_through_nested_vmap(layer: CvxpyLayer) -> None:
    found, true = leaves((A, B)), leaves((A, B))
    vmap(vmap(layer, (None, 0)), (0, None))(*found)[0].square().sum().backward()
    layer(true[0][:, None], true[1])[0].square().sum().backward()
    close(found[0].grad, true[0].grad)
    close(found[1].grad, true[1].grad)


def test_double_backward_through_vmap(layer: CvxpyLayer) -> None:
    def penalty(solve: Callable[..., torch.Tensor], a: torch.Tensor) -> torch.Tensor:
        (first,) = torch.autograd.grad(solve(a, B).square().sum(), a, create_graph=True)
        return torch.autograd.grad(first.square().sum(), a)[0]

    (a,) = leaves([A])
    close(penalty(lambda *v: vmap(layer)(*v)[0], a), penalty(lambda *v: layer(*v)[0], a))


def test_dual_numbers_through_vmap(layer: CvxpyLayer) -> None:
    tangent = numbers(N, 3)
    true = jvp(lambda b: layer(A, b)[0], (B,), (tangent,))[1]
    with forward_ad.dual_level():
        outer = forward_ad.make_dual(B, tangent)
        close(forward_ad.unpack_dual(vmap(layer)(A, outer)[0]).tangent, true)
        assert forward_ad.unpack_dual(vmap(layer)(A, B)[0]).tangent is None


def test_jvp_of_vmap_and_vmap_of_jvp(layer: CvxpyLayer) -> None:
    dA, dB = numbers(N, 3, 2, seed=1), numbers(N, 3, seed=1)

    def one(a: torch.Tensor, b: torch.Tensor, da: torch.Tensor, db: torch.Tensor) -> torch.Tensor:
        in_A, in_b = jacobians(lambda *v: layer(*v)[0], (a, b))
        return (in_A * da).sum((1, 2)) + in_b @ db

    true = loop(one, A, B, dA, dB)
    inside = vmap(lambda a, b, da, db: jvp(lambda *v: layer(*v)[0], (a, b), (da, db))[1])
    close(inside(A, B, dA, dB), true)
    close(jvp(lambda *v: vmap(layer)(*v)[0], (A, B), (dA, dB))[1], true)
    # Many directions at one point.
    found = vmap(lambda da: jvp(lambda a: layer(a, B[0])[0], (A[0],), (da,))[1])(dA)
    close(found, loop(lambda da: one(A[0], B[0], da, 0 * dB[0]), dA))


def test_vjp_mapped_over_cotangents(layer: CvxpyLayer) -> None:
    _, pullback = vjp(lambda b: layer(A, b)[0], B)
    cotangents = numbers(4, N, 2)
    close(vmap(pullback)(cotangents)[0], torch.stack([pullback(c)[0] for c in cotangents]))


class Model(torch.nn.Module):
    """Linear, then softmax as an optimization problem."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 3).double()
        self.choose = softmax()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.choose(self.linear(x))[0]


def test_per_sample_gradients_of_a_model() -> None:
    torch.manual_seed(0)
    model, x, y = Model(), numbers(4, 2), torch.tensor([0, 2, 1, 1])
    weights = {k: p.detach() for k, p in model.named_parameters()}

    def loss(w: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        p = functional_call(model, w, (x,))
        return -torch.log((p * y).sum())

    hot = torch.nn.functional.one_hot(y, 3)
    found = vmap(grad(loss), (None, 0, 0))(weights, x, hot)
    for i in range(4):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model.linear(x[i]), y[i]).backward()  # the closed form
        for name, p in model.named_parameters():
            close(found[name][i], p.grad, 1e-8)


def test_ensemble_of_models() -> None:
    models = [Model() for _ in range(3)]
    params, buffers = torch.func.stack_module_state(models)
    x = numbers(4, 2)
    found = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(params, buffers)
    close(found, torch.stack([torch.softmax(m.linear(x), -1) for m in models]), 1e-8)


def test_newton_step_of_vmapped_hessians() -> None:
    """With the closed form: the Hessian of log Σ exp is diag p − p pᵀ, the Jacobian of softmax."""
    c, layer = numbers(5, 3), softmax()
    p = torch.softmax(c, -1)
    close(
        vmap(jacrev(lambda v: layer(v)[0]))(c),
        torch.diag_embed(p) - p[:, :, None] * p[:, None],
        1e-8,
    )
    true = vmap(hessian(lambda v: torch.softmax(v, -1)[0]))(c)
    close(vmap(hessian(lambda v: layer(v)[0][0]))(c), true, 1e-8)


@pytest.mark.parametrize("solver", [cp.CLARABEL, cp.SCS])
def test_vmap_without_derivatives_does_not_polish(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = softmax(solver=solver)
    true = layer(B)[0]
    monkeypatch.setattr("cvxlayers.solution_map.polish", None)
    with torch.no_grad():
        close(vmap(layer)(B)[0], true, 1e-12)
    close(vmap(layer)(B)[0], true, 1e-12)


def test_failures_inside_vmap() -> None:
    """Rows that are not solved are named, or NaN with zero gradients."""
    x, b = cp.Variable(), cp.Parameter()
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.square(x - b)), [x >= b, x <= 1]), [b], [x])
    values = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"1 of 3 instances.*row 1 PRIMAL_INFEASIBLE"):
        vmap(layer)(values)

    def permissive(v: torch.Tensor) -> torch.Tensor:
        return layer(v, on_failure="nan")[0]

    gradients = vmap(grad(permissive))(values)
    assert gradients[1] == 0 and gradients.isfinite().all()
    assert vmap(permissive)(values).isnan().tolist() == [False, True, False]
