"""The op around the backends: gradients for any upstream, torch.compile, dispatch and its warnings, errors."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from kernels import cases

from incrlt.errors import UserError
from incrlt.kernels import TERMS, TermSpec, TermTensors, backends, choose_backend, expert_loss
from incrlt.kernels.reference import _terms

SAMPLE = [case for case in cases.METHODS if case.name in ("ncl", "ride", "shike", "lucir", "lucir-ride")]
BACKENDS = ("reference", "closed_form")


def _inputs(case, dtype=torch.float64):
    inputs = cases.build(case, dtype=dtype)
    logits = inputs.logits.clone().requires_grad_()
    cosines = inputs.tensors.cosines
    cosines = None if cosines is None else cosines.clone().requires_grad_()
    return logits, inputs.labels, inputs.spec, replace(inputs.tensors, cosines=cosines)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.name)
def test_backward_of_any_mixture_of_terms(case, backend, mixed):
    """Terms weighted after the fact, each otherwise or all alike, which forward does not foresee."""
    logits, labels, spec, tensors = _inputs(case)
    leaves = [leaf for leaf in (logits, tensors.cosines) if leaf is not None]
    mixture = torch.arange(1.0, 1 + len(spec.names), dtype=torch.float64).sin()
    mixture = mixture if mixed else torch.full_like(mixture, 3.0)

    def total(kernels):
        terms = expert_loss(logits, labels, spec, tensors, kernels=kernels)
        return (torch.stack(list(terms.values())) * mixture).sum()

    by_autograd = _terms(logits, labels, spec, tensors) * mixture
    expected = torch.autograd.grad(by_autograd.sum(), leaves, allow_unused=True)
    found = torch.autograd.grad(total(backend), leaves, allow_unused=True)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)
    assert found[0].abs().sum() > 0


def test_one_of_two_inputs_may_go_without_gradient():
    logits, labels, spec, tensors = _inputs(next(case for case in SAMPLE if case.name == "lucir"))
    sum(expert_loss(logits.detach(), labels, spec, tensors).values()).backward()
    assert logits.grad is None and tensors.cosines.grad.abs().sum() > 0
    detached = replace(tensors, cosines=tensors.cosines.detach())
    sum(expert_loss(logits, labels, spec, detached).values()).backward()
    assert logits.grad.abs().sum() > 0


def test_a_second_derivative_raises():
    logits, labels, spec, tensors = _inputs(SAMPLE[0])
    total = sum(expert_loss(logits, labels, spec, tensors).values())
    (gradient,) = torch.autograd.grad(total, logits, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "case", [case for case in SAMPLE if case.name in ("ncl", "lucir")], ids=lambda c: c.name
)
def test_the_registered_op_is_sound(case):
    logits, labels, spec, tensors = _inputs(case, torch.float32)
    t = tensors
    arguments = (
        logits.detach(), labels, t.prior, t.margins, t.scales, t.class_weights, t.temperatures, t.teacher_logits,
        None if t.cosines is None else t.cosines.detach(), None, spec.text, "closed_form", True, True,
    )  # fmt: skip
    torch.library.opcheck(
        torch.ops.incrlt.expert_terms.default, arguments, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize(
    "case", [case for case in SAMPLE if case.name in ("ncl", "lucir")], ids=lambda c: c.name
)
def test_compiles_as_one_graph(case):
    logits, labels, spec, tensors = _inputs(case, torch.float32)

    def step(logits, cosines):
        terms = expert_loss(2 * logits, labels, spec, replace(tensors, cosines=cosines))
        return 3.0 * sum(terms.values())

    leaves = [leaf for leaf in (logits, tensors.cosines) if leaf is not None]
    expected = torch.autograd.grad(step(logits, tensors.cosines), leaves)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(logits, tensors.cosines), leaves)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_under_autocast_terms_are_fp32_and_the_gradient_has_the_type_of_the_logits():
    logits, labels, spec, tensors = _inputs(SAMPLE[0], torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        terms = expert_loss(logits, labels, spec, tensors)
    assert all(term.dtype == torch.float32 for term in terms.values())
    sum(terms.values()).backward()
    assert logits.grad.dtype == torch.bfloat16 and logits.grad.isfinite().all()


def test_a_spec_survives_its_text():
    spec = TermSpec(
        classification=0.1,
        mutual=1 / 3,
        ranking=2.0,
        mutual_prior=False,
        num_hard=7,
        num_old=3,
        negatives="all",
    )
    assert TermSpec.parse(spec.text) == spec
    assert spec.names == tuple(name for name in TERMS if name in ("classification", "mutual", "ranking"))


def test_on_the_cpu_the_closed_form_computes():
    logits = torch.zeros(2, 1, 3)
    assert choose_backend("auto", logits) == "closed_form"
    assert choose_backend("reference", logits) == "reference"
    backends._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="need a CUDA GPU"):
        assert choose_backend("triton", logits) == "closed_form"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend("triton", logits) == "closed_form", "one warning is enough"


@pytest.mark.parametrize(
    ("dtype", "experts", "classes", "part"),
    [
        (torch.float64, 3, 10, "fp64"),
        (torch.float32, 9, 10, "9 and 10"),
        (torch.bfloat16, 3, 40_000, "3 and 40000"),
    ],
)
def test_what_triton_does_not_take(dtype, experts, classes, part):
    assert part in backends._obstacle(dtype, experts, classes)
    assert backends._obstacle(torch.float32, 8, 32_768) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernels": "cuda"}, "allowed: auto, reference, closed_form, triton"),
        ({"logits": torch.zeros(4, 5)}, r"\[K, B, C\]"),
        ({"labels": torch.zeros(4)}, "int64"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"labels has shape \[3\]"),
        ({"tensors": TermTensors(prior=torch.zeros(4))}, r"prior has shape \[4\]; \[5\]"),
        ({"spec": TermSpec(ranking=1.0)}, "cosines"),
        ({"spec": TermSpec(distillation=1.0)}, "teacher_logits"),
    ],
)
def test_refusals(change, message):
    arguments = {
        "logits": torch.zeros(2, 4, 5),
        "labels": torch.zeros(4, dtype=torch.long),
        "spec": TermSpec(classification=1.0),
        "tensors": None,
        "kernels": "auto",
        **change,
    }
    kernels = arguments.pop("kernels")
    with pytest.raises(UserError, match=message):
        expert_loss(*arguments.values(), kernels=kernels)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({}, "no term"),
        ({"mutual": 1.0, "temperature": 0.0}, "above 0"),
        ({"mutual": 1.0, "num_old": -1}, "negative"),
    ],
)
def test_refused_specs(numbers, message):
    with pytest.raises(UserError, match=message):
        TermSpec(**numbers)
