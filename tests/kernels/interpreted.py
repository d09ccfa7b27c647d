"""Tests of the Triton kernels on a CPU; :mod:`test_interpret` runs them where ``TRITON_INTERPRET=1`` is set."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from kernels.agreement import check, run, tensors_of
from kernels.broken_kernel import last_tile_sum
from kernels.cases import CASES, EVERY, NCL, build

from incrlt import losses
from incrlt.errors import UserError
from incrlt.kernels import closed_form, triton_backend
from incrlt.kernels._triton import heuristics
from incrlt.kernels.ops import expert_terms
from incrlt.kernels.spec import TermSpec
from incrlt.kernels.tensors import TermTensors

assert os.environ.get("TRITON_INTERPRET") == "1", "these kernels would need a GPU; see test_interpret.py"

LEFT_OUT = {
    "every-k6", "every-c32", "every-c130", "every-beyond_hard", "every-more_negatives", "edge-transposed",
    "edge-unseen_ignored-bf16", "edge-sliced-bf16", "every-bf16", "edge-huge-bf16", "ncl-100-fp16", "ride-fp16",
    "lucir-fp16", "edge-unseen_ignored-fp16", "edge-sliced-fp16", "every-no_hard", "every-balanced", "every-c1000",
    "every-negatives_beyond", "edge-strided", "edge-old_labels", "edge-new_labels", "edge-large", "nature-bf16",
    "nature-upstream",
}  # fmt: skip
"""Close relatives of cases that run here; a GPU runs all."""


def kinds_of_labels(case):
    labels = build(case).labels
    return {bool(label < case.num_old) for label in labels if label >= 0}


def shortened(case):
    """Leave few rows, since they cost the interpreter time and a program sees only one; both old and new classes."""
    num_experts, batch, num_classes = case.shape
    rows = min(batch, 3 if case.ignored == "some" else 2)
    short = (replace(case, shape=(num_experts, rows, num_classes), seed=seed) for seed in range(100))
    wanted = kinds_of_labels(case)
    return next(one for one in short if kinds_of_labels(one) == wanted)


SHORT = [shortened(case) for case in CASES if case.name not in LEFT_OUT]
BY_NAME = {case.name: case for case in SHORT}


def in_tiles(monkeypatch, block, warps=1):
    """Let the main kernel and the ranking take rows tile by tile."""

    def launch(*arguments):
        whole = heuristics.power_of_two(arguments[-2] if len(arguments) > 1 else arguments[0])
        return heuristics.Launch(min(block, whole), whole, warps)

    monkeypatch.setattr(heuristics, "main_launch", launch)
    monkeypatch.setattr(heuristics, "tile_launch", launch)


# ------------------------------------------------------------------------------------------ every case of the list


@pytest.mark.parametrize("case", SHORT, ids=BY_NAME)
def test_terms_and_gradients(case):
    inputs = build(case)
    before = [tensor.clone() for tensor in tensors_of(inputs)]
    check(case, inputs, run(triton_backend, inputs))
    assert all(torch.equal(*pair) for pair in zip(tensors_of(inputs), before, strict=True))


TILED = ["every-c100", "edge-ties", "edge-unseen", "edge-sliced", "every-plain_mutual"]


@pytest.mark.parametrize("name", [*TILED, "shike-balanced", "lucir", "edge-huge"])
def test_tile_by_tile(name, monkeypatch):
    in_tiles(monkeypatch, 32 if "100" in name else 16)
    inputs = build(BY_NAME[name])
    check(BY_NAME[name], inputs, run(triton_backend, inputs))


def test_whole_tiles_of_unseen_classes(monkeypatch):
    """The running maximum is -inf until the third of four tiles."""
    in_tiles(monkeypatch, 32)
    case = replace(BY_NAME["every-c100"], spec=replace(EVERY, num_hard=70))
    inputs = build(case)
    inputs.tensors.prior[:83] = -torch.inf
    labels = torch.tensor([90, 99])
    found = run(triton_backend, replace(inputs, labels=labels))
    expected = run(closed_form, replace(inputs, labels=labels))
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------------------------- hard categories


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("num_hard", [1, 7, 39, 99])
def test_hard_categories_are_those_of_a_stable_sort(num_hard, block, monkeypatch):
    in_tiles(monkeypatch, block)
    torch.manual_seed(num_hard)
    logits = torch.randint(-3, 4, (2, 2, 40)).float() * 0.5  # many ties, zeros of both signs
    logits[:, 1] = 0.0
    logits[:, 1, ::2] = -0.0
    labels = torch.tensor([39, 17])
    spec = TermSpec(hard_classification=1.0, num_hard=num_hard)
    _, gradient, _ = triton_backend.terms_and_gradients(logits, labels, spec, TermTensors())
    first = logits.sum(0).scatter(-1, labels.unsqueeze(-1), torch.inf)
    order = (first + 0.0).sort(dim=-1, descending=True, stable=True).indices[:, :num_hard]
    expected = torch.zeros(2, 40, dtype=torch.bool).scatter(-1, order, num_hard > 1)
    assert torch.equal(gradient[0] != 0, expected)


# ---------------------------------------------------------------------------------------- what comes from above


def _forward(name, **changes):
    inputs = build(replace(BY_NAME[name], upstream=False, **changes))
    terms, left, right = run(triton_backend, inputs)
    t = inputs.tensors
    arguments = (
        inputs.logits, inputs.labels, t.prior, t.margins, t.scales, t.class_weights, t.temperatures,
        t.teacher_logits, t.cosines,
    )  # fmt: skip
    return inputs, len(terms), left, right, arguments


def _rescaled(name, upstream, spoil=False, **changes):
    """Return inputs and the gradients before and after; the latter are the same tensors."""
    inputs, _, left, right, arguments = _forward(name, **changes)
    before = left.clone(), right.clone()
    if spoil:
        inputs.logits.fill_(torch.nan)
        inputs.tensors.cosines.fill_(torch.nan)
    after = triton_backend.rescale_gradients(left, right, arguments, upstream, inputs.spec, (True, True))
    assert after[0] is left and after[1] is right
    return inputs, before, after


SEVERAL = "lucir-ride"
"""Case of the following tests: terms on logits, teacher and cosines."""
NUMBER = len(BY_NAME[SEVERAL].spec.names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ones_from_above_leave_the_gradient_alone(dtype):
    """Nothing is computed: there is nothing left to compute from."""
    _, before, after = _rescaled(SEVERAL, torch.ones(NUMBER), spoil=True, dtype=dtype)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_one_number_from_above_multiplies():
    _, before, after = _rescaled(SEVERAL, torch.full((NUMBER,), 8.0), spoil=True)
    assert torch.equal(after[0], 8 * before[0])


def test_cosines_get_their_own_number_from_above():
    _, before, after = _rescaled(SEVERAL, torch.tensor([1.0] * (NUMBER - 1) + [3.0]))
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1], 3 * before[1])


@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_different_numbers_from_above(dtype, block, monkeypatch):
    in_tiles(monkeypatch, block)
    upstream = torch.linspace(-1, 2, NUMBER)
    inputs, _, after = _rescaled(SEVERAL, upstream, dtype=dtype)
    _, *expected = run(triton_backend, replace(inputs, upstream=upstream))
    assert all(torch.equal(*pair) for pair in zip(after, expected, strict=True))


def test_a_nan_from_above_is_not_taken_for_one():
    upstream = torch.ones(NUMBER)
    upstream[2] = torch.nan
    _, _, after = _rescaled(SEVERAL, upstream)
    assert after[0].isnan().any()


def test_loss_scaling_brings_back_what_underflows_in_half_precision():
    _, before, after = _rescaled(SEVERAL, torch.full((NUMBER,), 2.0**14), dtype=torch.float16, spread=8.0)
    assert (before[0] == 0).sum() > (after[0] == 0).sum()


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_only_the_gradient_that_is_needed(needed):
    inputs, number, left, right, arguments = _forward("lucir")
    empty = inputs.logits.new_empty(0)
    given = tuple(one if wanted else empty for one, wanted in zip((left, right), needed, strict=True))
    before = [one.clone() for one in given]
    triton_backend.rescale_gradients(*given, arguments, torch.full((number,), 3.0), inputs.spec, needed)
    for one, old in zip(given, before, strict=True):
        torch.testing.assert_close(one, 3 * old)


def test_backward_through_the_op():
    inputs = build(BY_NAME["lucir-ride"])
    mixture = torch.arange(1.0, 1 + len(inputs.spec.names)).sin()

    def gradients(backend, retain=False):
        leaves = [inputs.logits.clone().requires_grad_(), inputs.tensors.cosines.clone().requires_grad_()]
        terms = expert_terms(
            leaves[0], inputs.labels, inputs.spec, replace(inputs.tensors, cosines=leaves[1]), backend
        )
        total = (terms * mixture).sum()
        return total, torch.autograd.grad(total, leaves, retain_graph=retain), leaves

    total, found, leaves = gradients("triton", retain=True)
    for left, right in zip(found, gradients("closed_form")[1], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total, leaves)


# ------------------------------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize(("left", "right"), [(False, True), (True, False), (False, False)])
def test_gradients_only_where_needed(left, right):
    inputs = build(BY_NAME[SEVERAL])
    terms, *full = run(triton_backend, inputs)
    same, *found = run(triton_backend, inputs, need_logits_grad=left, need_cosines_grad=right)
    assert torch.equal(same, terms)
    for gradient, needed, expected in zip(found, (left, right), full, strict=True):
        assert torch.equal(gradient, expected) if needed else gradient is None


def test_no_rows_at_all_is_zero():
    terms, gradient, _ = run(triton_backend, build(replace(BY_NAME["every"], shape=(3, 0, 19))))
    assert terms.tolist() == [0.0] * len(EVERY.names)
    assert gradient.shape == (3, 0, 19)


def test_ignored_rows_may_hold_anything():
    inputs = build(BY_NAME["edge-some_ignored"])
    terms, gradient, _ = run(triton_backend, inputs)
    inputs.logits[:, inputs.labels < 0] = torch.nan
    same, other, _ = run(triton_backend, inputs)
    assert torch.equal(same, terms) and torch.equal(other, gradient)


def test_a_label_that_is_no_class_makes_every_term_nan():
    inputs = build(BY_NAME["every"])
    inputs.labels[1] = 19
    terms, *_ = run(triton_backend, inputs)
    assert terms.isnan().all()


def test_a_label_of_an_unseen_class_is_infinitely_wrong_and_spoils_no_other_term():
    inputs = build(replace(BY_NAME["ncl"], unseen=1))
    inputs.labels[0] = 19
    terms, gradient, _ = run(triton_backend, inputs)
    assert terms.isposinf().tolist() == [True, False, True, False]
    assert gradient.isfinite().all()


def test_offsets_beyond_32_bits():
    """Rows and experts half a billion numbers apart: of four gigabytes, a few pages are touched."""
    step = 2**29
    try:
        memory = torch.empty(4 * step + 64, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("this machine does not lend 4 GiB of address space")
    labels = torch.arange(5)
    for strides in ((32, step, 1), (step, 32, 1)):
        far = memory.as_strided((2, 5, 8) if strides[0] == 32 else (5, 2, 8), strides)
        far.copy_(torch.randn(far.shape))
        spec, labels = replace(NCL, num_hard=2), torch.arange(far.shape[1])
        found = triton_backend.terms_and_gradients(far, labels, spec, TermTensors())
        expected = triton_backend.terms_and_gradients(far.contiguous(), labels, spec, TermTensors())
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_double_precision_is_refused():
    with pytest.raises(UserError, match="closed_form"):
        run(triton_backend, build(BY_NAME["ncl"], dtype=torch.float64))


# ----------------------------------------------------------------------------------------------------- less-forget


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 4, 64), torch.float32),
        ((1, 2, 2500), torch.float32),
        ((2, 3, 1), torch.float32),
        ((2, 3, 70), torch.float16),
    ],
)
def test_less_forget(shape, dtype):
    teacher = torch.randn(shape).to(dtype)
    leaf = (teacher + torch.randn(shape)).to(dtype).double().requires_grad_()
    loss, gradient = triton_backend.less_forget(leaf.detach().to(dtype), teacher)
    expected = losses.less_forget(leaf, teacher.double())
    expected.backward()
    torch.testing.assert_close(loss, expected.detach().float(), rtol=1e-5, atol=1e-6)
    ulp = torch.finfo(dtype).eps
    atol = 4 * ulp * float(leaf.grad.abs().max()) + 1e-7
    torch.testing.assert_close(gradient.double(), leaf.grad, rtol=2 * ulp, atol=atol)
    assert triton_backend.less_forget(leaf.detach().to(dtype), teacher, need_gradient=False)[1] is None


def test_less_forget_of_nothing_at_all_is_finite():
    zero = torch.zeros(2, 3, 8)
    loss, gradient = triton_backend.less_forget(zero, zero)
    assert loss == 1.0 and not gradient.any()


def test_less_forget_refuses_other_shapes():
    with pytest.raises(UserError, match=r"\[K, B, D\]"):
        triton_backend.less_forget(torch.zeros(3, 4), torch.zeros(3, 4))


# ------------------------------------------------------------------------------------------------------- by contrast


def test_the_interpreter_accepts_what_does_not_compile():
    """The counterpart of :mod:`ahead_of_time`: why both are needed."""
    numbers, result = torch.arange(32.0), torch.zeros(1)
    last_tile_sum[(1,)](numbers, result, 32, BLOCK=16)
    assert result.item() == numbers[16:].sum()
