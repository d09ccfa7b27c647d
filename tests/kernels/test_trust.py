"""What ``auto`` chose shows its values on first use; stand-ins that lie, raise or are not there are found out."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from kernels import cases

from incrlt import kernels, losses
from incrlt.kernels import TermSpec, TermTensors, closed_form, expert_loss, ops, reference, trust
from incrlt.kernels.backends import backend_module

CASES = {case.name: case for case in cases.METHODS}


@pytest.fixture(autouse=True)
def fresh():
    trust.forget()
    yield
    trust.forget()


@pytest.fixture
def stand_in(monkeypatch):
    """Let a stand-in be Triton's backend, chosen by ``auto``."""

    def use(terms_and_gradients):
        module = SimpleNamespace(
            terms_and_gradients=terms_and_gradients, rescale_gradients=lambda left, right, *_: (left, right)
        )

        def load(name):
            if name != "triton":
                return backend_module(name)
            if terms_and_gradients is None:
                raise ModuleNotFoundError("No module named 'triton'", name="triton")
            return module

        monkeypatch.setattr(trust.trusted, "__defaults__", (load,))
        monkeypatch.setattr(ops, "backend_module", load)
        monkeypatch.setattr(
            kernels, "choose_backend", lambda asked, logits: "triton" if asked == "auto" else asked
        )

    return use


def made(name="lucir-ride", dtype=torch.float32):
    inputs = cases.build(CASES[name], dtype=dtype)
    return inputs.logits.clone().requires_grad_(), inputs.labels, inputs.spec, inputs.tensors


def values(kernels, name="lucir-ride"):
    logits, *rest = made(name)
    terms = expert_loss(logits, *rest, kernels=kernels)
    (gradient,) = torch.autograd.grad(sum(terms.values()), logits)
    return [*(term.detach() for term in terms.values()), gradient]


def raises(error):
    def call(*_):
        raise error

    return call


def lies(change):
    return lambda *arguments: change(*closed_form.terms_and_gradients(*arguments))


STAND_INS = {
    "a term": (lies(lambda t, g, c: (t * 1.001, g, c)), "its term classification is off by"),
    "a NaN": (lies(lambda t, g, c: (t * torch.nan, g, c)), "its term classification is off by nan"),
    "a gradient": (lies(lambda t, g, c: (t, g * 1.01, c)), "its gradient of the logits is off by 1.0e-02"),
    "no gradient": (lies(lambda t, g, c: (t, None, c)), "its gradient of the logits is not there"),
    "the other gradient": (lies(lambda t, g, c: (t, g, -c)), "its gradient of the cosines is off by 2.0e"),
    "a term too few": (lies(lambda t, g, c: (t[:-1], g, c)), "it gives 3 terms for 4"),
    "a compiler": (raises(RuntimeError("PassManager::run failed\nmore")), "RuntimeError: PassManager::run failed;"),
    "no memory": (raises(torch.OutOfMemoryError("CUDA out of memory")), "OutOfMemoryError: CUDA out of memory;"),
    "not there": (None, "ModuleNotFoundError: No module named 'triton'"),
}  # fmt: skip


@pytest.mark.parametrize("which", STAND_INS)
def test_what_lies_raises_or_is_not_there_gives_way_with_one_warning(stand_in, which):
    change, reason = STAND_INS[which]
    expected = values("closed_form")
    stand_in(change)
    with pytest.warns(UserWarning) as said:
        found = values("auto")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    (text,) = {str(warning.message) for warning in said}
    assert text.startswith(f"kernels: triton is not used on cpu, {reason}")
    assert "closed_form computes instead. Set training.kernels: closed_form, and report this with" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values("auto")
        values("auto", "ncl")  # other terms: the backend is not asked again


def test_what_fails_only_at_the_true_size_gives_way(stand_in):
    def call(logits, *rest):
        if logits.shape[1] != trust.ROWS:
            raise RuntimeError("out of resource: shared memory")
        return closed_form.terms_and_gradients(logits, *rest)

    expected = values("closed_form")
    stand_in(call)
    with pytest.warns(UserWarning, match="out of resource: shared memory; closed_form computes instead"):
        found = values("auto")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_computes_right_is_looked_at_once_for_its_terms_and_sizes(stand_in):
    asked = []

    def call(logits, labels, spec, *rest):
        asked.append((logits.shape[1], spec.names))
        return closed_form.terms_and_gradients(logits, labels, spec, *rest)

    stand_in(call)
    before = torch.get_rng_state()
    for _ in range(3):
        values("auto")
    assert torch.equal(torch.get_rng_state(), before)
    assert [rows for rows, _ in asked].count(trust.ROWS) == 1
    values("auto", "ncl")
    assert [rows for rows, _ in asked].count(trust.ROWS) == 2
    logits, labels, spec, tensors = made()
    expert_loss(logits, labels, replace(spec, classification=0.3), tensors)  # a weight that follows the epoch
    assert [rows for rows, _ in asked].count(trust.ROWS) == 2


def test_what_is_asked_for_by_name_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(trust, "trusted", raises(AssertionError))
    values("closed_form")
    values("reference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(CASES))
def test_the_closed_form_is_believed_in_every_case(name, dtype):
    logits, _, spec, tensors = made(name, dtype)
    assert trust.trusted("closed_form", logits.detach(), spec, tensors) == "closed_form"


def test_many_classes_and_classes_that_were_not_seen():
    prior = torch.zeros(5000)
    prior[40:] = -torch.inf
    spec = TermSpec(classification=1.0, mutual=1.0, hard_classification=1.0, num_hard=30)
    for kind in (torch.float32, torch.bfloat16):
        logits = torch.zeros(3, 2, 5000, dtype=kind)
        assert trust.trusted("closed_form", logits, spec, TermTensors(prior=prior)) == "closed_form"


def test_the_reference_is_the_last_word():
    logits, _, spec, tensors = made()
    liar = SimpleNamespace(terms_and_gradients=lies(lambda t, g, c: (t + 1, g, c)))
    with pytest.warns(UserWarning, match="closed_form is not used on cpu.*reference computes instead"):
        name = trust.trusted("closed_form", logits.detach(), spec, tensors, lambda name: liar)
    assert backend_module(name) is reference


def fused(factor, slope):
    def call(features, teacher, wanted):
        leaf = features.detach().requires_grad_()
        value = losses.less_forget(leaf, teacher)
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach() * factor, gradient * slope

    return call


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (fused(1.01, 1.0), "its less-forget is"),
        (fused(1.0, -1.0), "its gradient of the features is off by 2.0e"),
        (raises(torch.OutOfMemoryError("CUDA out of memory")), "OutOfMemoryError"),
    ],
)
def test_less_forget_is_looked_at_too(call, reason):
    features = torch.zeros(3, 5, 12)
    assert trust.trusted_less_forget(features, fused(1.0, 1.0))
    trust.forget()
    with pytest.warns(UserWarning, match=reason):
        assert not trust.trusted_less_forget(features, call)
