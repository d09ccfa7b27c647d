"""The closed form against the plain losses and their autograd, against arrays of official code, and at its edges."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from kernels.cases import CASES, EVERY, LUCIR, NCL, RIDE, SHIKE, Case, build
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from incrlt import losses
from incrlt.errors import UserError
from incrlt.kernels import closed_form, reference
from incrlt.kernels.spec import TERMS, TermSpec
from incrlt.kernels.tensors import TermTensors

HALF = {torch.float16, torch.bfloat16}
BY_NAME = {case.name: case for case in CASES}
cases = pytest.mark.parametrize("case", CASES, ids=BY_NAME)


def run(module, inputs, **options):
    return module.terms_and_gradients(
        inputs.logits, inputs.labels, inputs.spec, inputs.tensors, inputs.upstream, **options
    )


def largest_error(found, exact):
    return float((found.double() - exact).abs().max())


# ------------------------------------------------------------------------------------------ every case of the list


@cases
def test_float64_terms_and_gradients_are_those_of_the_losses(case):
    inputs = build(case, dtype=torch.float64)
    terms, *gradients = run(closed_form, inputs)
    expected_terms, *expected_gradients = run(reference, inputs)
    torch.testing.assert_close(terms, expected_terms, rtol=1e-10, atol=1e-12)
    for found, expected in zip(gradients, expected_gradients, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            largest = float(expected.abs().max())
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * largest + 1e-15)


@cases
def test_own_precision_is_no_worse_than_eager(case):
    """Terms and gradients of float32 and half inputs, against exact ones of the same rounded numbers."""
    exact_terms, *exact_gradients = run(reference, build(case, dtype=torch.float64))
    inputs = build(case)
    terms, *gradients = run(closed_form, inputs)
    eager_terms, *eager_gradients = run(reference, inputs)
    assert terms.dtype == torch.float32
    slack = 1e-6 + 1e-5 * exact_terms.abs()
    assert ((terms - exact_terms).abs() <= 2 * (eager_terms - exact_terms).abs() + slack).all()
    # float32 holds a logit to eps of its size, which is the relative error of its probability
    rounding = torch.finfo(torch.float32).eps * float(inputs.logits.abs().max())
    ulp = torch.finfo(case.dtype).eps if case.dtype in HALF else 5e-6
    for found, eager, exact in zip(gradients, eager_gradients, exact_gradients, strict=True):
        if found is None:
            continue
        bound = 2 * largest_error(eager, exact) + max(ulp, rounding) * float(exact.abs().max())
        assert found.dtype == case.dtype
        assert largest_error(found, exact) <= bound + 1e-7


@cases
def test_everything_is_finite_and_shaped_as_its_input(case):
    inputs = build(case)
    terms, *gradients = run(closed_form, inputs)
    assert terms.shape == (len(case.spec.names),)
    assert terms.isfinite().all() and not terms.requires_grad
    for gradient, like in zip(gradients, (inputs.logits, inputs.tensors.cosines), strict=True):
        assert (gradient is None) == (like is None)
        if gradient is not None:
            assert (gradient.shape, gradient.dtype) == (like.shape, like.dtype)
            assert gradient.is_contiguous() and gradient.isfinite().all()


class NoSync(TorchDispatchMode):
    """Fails on operators that wait for a device or whose result's shape depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique"))
        if name.startswith("aten.index."):
            assert not any(index is not None and index.dtype == torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))


@cases
def test_no_host_sync_and_no_write_into_inputs(case):
    inputs = build(case)
    before = [None if t is None else t.clone() for t in tensors_of(inputs)]
    with NoSync():
        run(closed_form, inputs)
    for tensor, kept in zip(tensors_of(inputs), before, strict=True):
        assert tensor is None or torch.equal(tensor, kept)


def test_the_mode_notices_a_sync():
    with NoSync():
        for sync in (torch.ones(2).nonzero, torch.ones(()).item, lambda: bool(torch.ones(()))):
            with pytest.raises(AssertionError):
                sync()
        with pytest.raises(AssertionError):
            torch.ones(2)[torch.ones(2) > 0]


def tensors_of(inputs):
    rest = [getattr(inputs.tensors, field.name) for field in fields(inputs.tensors)]
    return [inputs.logits, inputs.labels, inputs.upstream, *rest]


@pytest.mark.parametrize("name", ["every", "every-bare", "every-upstream", "every-k1", "lucir"])
def test_shapes_do_not_depend_on_values(name):
    """Runs on tensors that hold none."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        inputs = build_real(BY_NAME[name])
        fake = replace(
            inputs,
            logits=mode.from_tensor(inputs.logits),
            labels=mode.from_tensor(inputs.labels),
            tensors=TermTensors(
                **{
                    field.name: None
                    if (t := getattr(inputs.tensors, field.name)) is None
                    else mode.from_tensor(t)
                    for field in fields(TermTensors)
                }
            ),
            upstream=None if inputs.upstream is None else mode.from_tensor(inputs.upstream),
        )
        terms, gradient, _ = run(closed_form, fake)
    assert terms.shape == (len(inputs.spec.names),)
    assert gradient.shape == inputs.logits.shape


def build_real(case):
    with torch.utils._python_dispatch._disable_current_modes():
        return build(case)


@pytest.mark.parametrize("module", [closed_form, reference], ids=["closed_form", "reference"])
def test_gradients_only_where_needed(module):
    inputs = build(BY_NAME["every"])
    terms, left, right = run(module, inputs)
    for need_left, need_right in ((False, True), (True, False), (False, False)):
        same, *gradients = run(module, inputs, need_logits_grad=need_left, need_cosines_grad=need_right)
        assert torch.equal(same, terms)
        for gradient, needed, full in zip(gradients, (need_left, need_right), (left, right), strict=True):
            assert gradient is None if not needed else torch.equal(gradient, full)


# ------------------------------------------------------------------------- methods, straight from the loss functions


def _draw(experts=3, batch=9, classes=20, old=8):
    counts = torch.randint(0, 300, (classes,))  # some may be 0: the losses assume at least one image
    logits = 2 * torch.randn(experts, batch, classes, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, classes, (batch,)), counts, old


def _check_against_autograd(logits, labels, spec, tensors, terms, leaves=None):
    found, *gradients = closed_form.terms_and_gradients(logits, labels, spec, tensors)
    assert spec.names == tuple(terms)
    torch.testing.assert_close(found, torch.stack(list(terms.values())), rtol=1e-10, atol=1e-14)
    expected = torch.autograd.grad(sum(terms.values()), leaves or [logits])
    for gradient, wanted in zip(gradients, expected, strict=False):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-14)


def _log_prior(counts):
    return counts.clamp(min=1).double().log()


def test_ncl():
    z, y, counts, _ = _draw()
    columns = losses.hard_columns(z.mean(0), y, NCL.num_hard)
    terms = {
        "classification": losses.balanced_softmax(z, y, counts),
        "mutual": 0.6 * losses.online_distillation(z, counts.double()),
        "hard_classification": 0.9 * losses.hard_category_cross_entropy(z, y, counts.double(), columns),
        "hard_mutual": 0.7 * losses.online_distillation(z, counts.double(), columns),
    }
    _check_against_autograd(z, y, NCL, TermTensors(prior=_log_prior(counts)), terms)


def test_ride():
    z, y, counts, old = _draw()
    counts = counts.double()
    margins, weights = losses.ldam_margins(counts, smallest=5), losses.class_balanced_weights(counts)
    temperatures, scales = losses.class_temperatures(counts, 0.05), torch.tensor([20.0, 25.0, 30.0]).double()
    factor = float(temperatures.mean() ** 2)
    divergence = losses.distribution_aware_diversity(z, temperatures, first_class=old, images=y >= old)
    terms = {
        "classification": losses.ldam(z, y, margins, scales, weights),
        "diversity": -0.45 * factor * divergence,
    }
    spec = replace(RIDE, diversity=-0.45 * factor, first_class=old)
    tensors = TermTensors(margins=margins, scales=scales, class_weights=weights, temperatures=temperatures)
    _check_against_autograd(z, y, spec, tensors, terms)


@pytest.mark.parametrize("balanced", [False, True])
def test_shike(balanced):
    """With a prior in the classification alone, too."""
    z, y, counts, _ = _draw()
    terms = {
        "classification": losses.balanced_softmax(z, y, counts) if balanced else losses.cross_entropy(z, y),
        "mutual": 0.01 * losses.mutual_distillation(z),
        "transfer": 0.1 * losses.dynamic_knowledge_transfer(z, y),
    }
    tensors = TermTensors(prior=_log_prior(counts) if balanced else None)
    _check_against_autograd(z, y, SHIKE, tensors, terms)


@pytest.mark.parametrize("negatives", ["new", "all"])
def test_lucir(negatives):
    z, y, _, old = _draw()
    cosines = torch.rand(z.shape, dtype=torch.float64).mul(2).sub(1).requires_grad_()
    teacher = torch.randn(*z.shape[:2], old, dtype=torch.float64)
    terms = {
        "classification": losses.cross_entropy(z, y),
        "distillation": 1.5 * losses.knowledge_distillation(z, teacher),
        "ranking": 1.25 * losses.margin_ranking(cosines, y, old, negatives=negatives),
    }
    spec = replace(LUCIR, num_old=old, negatives=negatives)
    tensors = TermTensors(teacher_logits=teacher, cosines=cosines)
    _check_against_autograd(z, y, spec, tensors, terms, [z, cosines])


# ------------------------------------------------------------------------------- arrays computed by official code


def _golden(arrays):
    labels = torch.as_tensor(arrays["labels"]).long()
    return (
        torch.as_tensor(arrays["logits"]).double(),
        labels,
        torch.as_tensor(arrays["class_counts"]).double(),
    )


def _check_array(found, arrays, key, factor=1.0):
    wanted = torch.as_tensor(arrays[key]).double()
    atol = 1e-9 * float(wanted.abs().max()) + 1e-13
    torch.testing.assert_close(factor * found, wanted.reshape(found.shape), rtol=1e-9, atol=atol)


@pytest.mark.parametrize("name", ["ncl_a_c100_if100", "ncl_b_tiny_c7", "ncl_c_c300", "ncl_e_large"])
def test_balanced_softmax_of_ncl(golden, name):
    """The sum over networks; NCL's other published terms differ from the sane ones by more than a factor."""
    arrays = golden(name)
    z, y, counts = _golden(arrays)
    terms, gradient, _ = closed_form.terms_and_gradients(
        z, y, TermSpec(classification=len(z)), TermTensors(prior=counts.log())
    )
    _check_array(terms[0], arrays, "v0_loss_ce")
    if "v0_grad_ce" in arrays:
        _check_array(gradient, arrays, "v0_grad_ce")


@pytest.mark.parametrize(("variant", "reweighted"), [(0, True), (1, False)])
@pytest.mark.parametrize(
    "name", ["ride_a_c100_if100", "ride_b_tiny_c7", "ride_d_inc_50p10", "ride_e_extreme"]
)
def test_ride_as_published(golden, name, variant, reweighted):
    arrays = golden(name)
    z, y, counts = _golden(arrays)
    temperatures = losses.class_temperatures(counts, 0.05 if reweighted else 0.0)
    factor = len(z) * -0.45 * float(temperatures.mean()) ** 2
    tensors = TermTensors(
        margins=losses.ldam_margins(counts),
        scales=torch.full((len(z),), 30.0),
        class_weights=losses.class_balanced_weights(counts) if reweighted else None,
        temperatures=temperatures,
    )
    spec = TermSpec(classification=len(z), diversity=factor)
    terms, gradient, _ = closed_form.terms_and_gradients(z, y, spec, tensors)
    for term, found in zip(("base", "diversity"), terms, strict=True):
        wanted = torch.as_tensor(arrays[f"v{variant}_loss_{term}"]).sum()
        torch.testing.assert_close(found, wanted.double(), rtol=1e-9, atol=1e-11)
    _check_array(gradient, arrays, f"v{variant}_grad_total")


@pytest.mark.parametrize(
    "name", ["shike_a_c100_if100", "shike_b2_two_classes", "shike_b_tiny_c7", "shike_c_c300"]
)
def test_mutual_distillation_of_shike(golden, name):
    """Plain cross entropy and the mutual term; its transfer term has another flavor."""
    arrays = golden(name)
    z, y, _ = _golden(arrays)
    experts, _, classes = z.shape
    weights = {"ce": {"classification": experts}, "mut": {"mutual": experts * (experts - 1) / classes}}
    for term, weight in weights.items():
        spec = TermSpec(**weight, mutual_prior=False)
        terms, gradient, _ = closed_form.terms_and_gradients(z, y, spec, TermTensors())
        wanted = torch.as_tensor(arrays[f"s1_loss_{term}"]).sum().double()
        torch.testing.assert_close(terms[0], wanted, rtol=1e-9, atol=1e-11)
        if f"s1_grad_{term}" in arrays:
            _check_array(gradient, arrays, f"s1_grad_{term}")


LUCIR_CASES = {
    "lucir_a_c100_90p10": 90,
    "lucir_b_tiny_c7": 5,
    "lucir_d1_mixed_50p10": 50,
    "lucir_d2_no_old_50p10": 50,
    "lucir_d3_all_old_50p10": 50,
    "lucir_e_amr_50p10": 50,
}


@pytest.mark.parametrize("name", LUCIR_CASES)
def test_ranking_of_lucir(golden, name):
    arrays = {key: torch.as_tensor(value) for key, value in golden(name).items()}
    features = arrays["features"].double().requires_grad_()
    rows = torch.cat([arrays["W_old"], arrays["W_new"]]).double()
    cosines = F.linear(F.normalize(features), F.normalize(rows))[None]
    scale = round(float((arrays["logits"] / arrays["cosines"]).median()), 6)
    spec = TermSpec(
        classification=1.0,
        ranking=1.0,
        num_old=LUCIR_CASES[name],
        negatives="all" if "amr" in name else "new",
    )
    labels = arrays["labels"].long()
    terms, of_logits, of_cosines = closed_form.terms_and_gradients(
        scale * cosines.detach(), labels, spec, TermTensors(cosines=cosines.detach())
    )
    torch.testing.assert_close(terms[0], arrays["loss_ce"].double().reshape(()), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(terms[1], arrays["loss_mr"].double().reshape(()), rtol=1e-9, atol=1e-9)
    plain = losses.cross_entropy(scale * cosines, labels) + losses.margin_ranking(
        cosines, labels, spec.num_old, negatives=spec.negatives
    )
    (wanted,) = torch.autograd.grad(plain, features, retain_graph=True)
    (found,) = torch.autograd.grad(cosines, features, scale * of_logits + of_cosines)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-13)


# ----------------------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("module", [closed_form, reference], ids=["closed_form", "reference"])
def test_all_rows_ignored_is_zero(module):
    terms, *gradients = run(module, build(BY_NAME["edge-all_ignored"]))
    assert not terms.any()
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("module", [closed_form, reference], ids=["closed_form", "reference"])
def test_no_rows_at_all_is_zero(module):
    terms, gradient, _ = run(module, build(replace(BY_NAME["every"], shape=(3, 0, 19))))
    assert terms.tolist() == [0.0] * len(TERMS)
    assert gradient.shape == (3, 0, 19)


@pytest.mark.parametrize("name", ["edge-some_ignored", "edge-unseen_ignored"])
def test_ignored_rows_are_as_if_they_were_not_there(name):
    inputs = build(BY_NAME[name], dtype=torch.float64)
    kept = inputs.labels >= 0
    tensors = replace(
        inputs.tensors,
        teacher_logits=inputs.tensors.teacher_logits[:, kept],
        cosines=inputs.tensors.cosines[:, kept],
    )
    fewer = replace(inputs, logits=inputs.logits[:, kept], labels=inputs.labels[kept], tensors=tensors)
    terms, *gradients = run(closed_form, inputs)
    expected_terms, *expected = run(closed_form, fewer)
    torch.testing.assert_close(terms, expected_terms, rtol=1e-12, atol=1e-14)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert not gradient[:, ~kept].any()
        torch.testing.assert_close(gradient[:, kept], wanted, rtol=1e-12, atol=1e-14)


def test_unseen_classes_get_no_gradient_from_terms_with_the_prior():
    """Neither where they are hard categories: the largest logits are theirs."""
    case = replace(BY_NAME["edge-unseen"], spec=NCL)
    inputs = build(case, dtype=torch.float64)
    inputs.logits[..., -7:] += 50
    terms, gradient, _ = run(closed_form, inputs)
    assert terms.isfinite().all()
    assert not gradient[..., -7:].any()
    assert gradient[..., :-7].any()
    expected_terms, expected, _ = run(reference, inputs)
    torch.testing.assert_close(terms, expected_terms, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_a_label_of_an_unseen_class_is_infinitely_wrong_and_spoils_no_other_term():
    inputs = build(replace(BY_NAME["ncl"], unseen=1), dtype=torch.float64)
    inputs.labels[0] = 19
    terms, gradient, _ = run(closed_form, inputs)
    assert terms.isposinf().tolist() == [True, False, True, False]
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_of_equal_logits_the_lowest_classes_are_hard(dtype):
    """Five equal, one above, the label below: room for the label, the one above, and the first two of the five."""
    row = torch.tensor([1.0, 3.0, 3.0, 5.0, 3.0, 3.0, 0.0, 3.0])
    logits = row.expand(2, 1, 8).to(dtype)
    spec = TermSpec(hard_classification=1.0, num_hard=4)
    _, gradient, _ = closed_form.terms_and_gradients(logits, torch.tensor([6]), spec, TermTensors())
    assert (gradient[0, 0] != 0).nonzero().flatten().tolist() == [1, 2, 3, 6]


def test_experts_that_share_the_largest_logit_share_the_teachers_gradient():
    logits = torch.tensor([[0.0, 2.0, 1.0, 5.0], [0.0, 2.0, 0.5, 4.0], [0.0, 1.0, 0.0, 6.0]])
    inputs = logits[:, None].double(), torch.tensor([0]), TermSpec(transfer=1.0), TermTensors()
    _, found, _ = closed_form.terms_and_gradients(*inputs)
    _, expected, _ = reference.terms_and_gradients(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("experts", [1, 3])
def test_experts_that_agree_have_nothing_to_tell_each_other(experts):
    z = torch.randn(1, 5, 12, dtype=torch.float64).expand(experts, -1, -1)
    spec = TermSpec(mutual=1.0, hard_mutual=1.0, diversity=1.0, transfer=1.0)
    terms, gradient, _ = closed_form.terms_and_gradients(z, torch.arange(5), spec, TermTensors())
    torch.testing.assert_close(terms, torch.zeros(4).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "none"),
    [
        ("every-k1", {"mutual", "hard_mutual", "diversity", "transfer"}),
        ("every-c2", {"diversity", "transfer"}),
        ("edge-no_old", {"distillation", "ranking"}),
        ("edge-all_old", {"diversity", "ranking"}),
        ("edge-one_new", {"diversity"}),
        ("every-one_hard", {"hard_classification", "hard_mutual"}),
    ],
)
def test_terms_that_are_zero(name, none):
    terms, *_ = run(closed_form, build(BY_NAME[name]))
    values = dict(zip(BY_NAME[name].spec.names, terms.abs().tolist(), strict=True))
    assert {term for term in TERMS if values[term] < 1e-7} >= none


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 1e4), (torch.float64, 1e4), (torch.float16, 6e4)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_one_enormous_logit(dtype, size, sign):
    logits = torch.zeros(3, 4, 7, dtype=dtype)
    logits[0, :, 2] = sign * size
    logits[1, :, 3] = -sign * size
    inputs = build(replace(BY_NAME["every"], shape=(3, 4, 7), num_old=6, dtype=dtype))
    spec = replace(EVERY, first_class=0, num_old=6)
    terms, *gradients = closed_form.terms_and_gradients(logits, torch.arange(4), spec, inputs.tensors)
    assert terms.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_order_of_experts_and_shift_of_a_row_do_not_matter():
    inputs = build(BY_NAME["ncl"], dtype=torch.float64)
    terms, gradient, _ = run(closed_form, inputs)
    turned, turned_gradient, _ = run(closed_form, replace(inputs, logits=inputs.logits.flip(0)))
    torch.testing.assert_close(turned, terms, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(turned_gradient.flip(0), gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros_like(gradient[..., 0]), rtol=0, atol=1e-14)
    shifted, *_ = run(closed_form, replace(inputs, logits=inputs.logits + 100 * torch.rand(3, 6, 1).double()))
    torch.testing.assert_close(shifted[:2], terms[:2], rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------------------------------- what is given is checked


def _check(spec=EVERY, logits=(3, 5, 8), labels=None, **tensors):
    given = {"teacher_logits": torch.zeros(3, 5, 2), "cosines": torch.zeros(3, 5, 8)} | tensors
    labels = torch.zeros(5, dtype=torch.long) if labels is None else labels
    TermTensors(**given).check(spec, torch.zeros(logits), labels)


def test_what_fits_passes():
    _check()
    _check(prior=torch.zeros(8), scales=torch.zeros(3), teacher_logits=torch.zeros(3, 5, 0))
    _check(spec=NCL, teacher_logits=None, cosines=None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logits": (5, 8)}, r"logits are torch.float32 \[5, 8\].*\[K, B, C\].*logits\[None\]"),
        ({"logits": (3, 5, 0)}, "K and C at least 1"),
        ({"labels": torch.zeros(5)}, r"labels are torch.float32.*int64.*labels.long\(\)"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, r"labels has shape \[4\]; \[5\]"),
        ({"prior": torch.zeros(7)}, r"prior has shape \[7\]; \[8\]"),
        ({"margins": torch.zeros(1, 8)}, "margins has shape"),
        ({"scales": torch.zeros(8)}, r"scales has shape \[8\]; \[3\]"),
        ({"class_weights": torch.zeros(3)}, "class_weights has shape"),
        ({"temperatures": torch.zeros(3)}, "temperatures has shape"),
        ({"cosines": None}, "ranking term reads cosines.*none were given"),
        ({"cosines": torch.zeros(3, 5, 7)}, r"cosines has shape \[3, 5, 7\]"),
        ({"teacher_logits": None}, "distillation term reads teacher_logits.*none were given"),
        ({"teacher_logits": torch.zeros(3, 5, 9)}, "O <= 8"),
        ({"teacher_logits": torch.zeros(5, 2)}, r"\[3, 5, O\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_does_not_fit_is_named(changes, words):
    with pytest.raises(UserError, match=words):
        _check(**changes)


def test_the_list_has_what_it_promises():
    assert len(BY_NAME) == len(CASES)
    assert {case.dtype for case in CASES} == {torch.float32, torch.bfloat16, torch.float16}
    assert set(TERMS) == {name for case in CASES for name in case.spec.names}
    assert all(isinstance(case, Case) for case in CASES)
