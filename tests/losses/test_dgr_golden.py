"""DGR against arrays of its official code: the distillation, every step's rewriting, and whole trajectories."""

from __future__ import annotations

import pytest
import torch
from arrays import close, tensor

from incrlt.losses import balanced_softmax
from incrlt.losses.gradients import (
    LARGEST_RATIO,
    attenuation,
    distillation_factor,
    distillation_ratio,
    distribution_aware_distillation,
    gradient_weights,
    removal_entropy,
    removal_mix,
    rewritten,
)

pytestmark = pytest.mark.usefixtures("double")
DAKD = ["a", "b_equal", "c_one_class_lost", "d_large_logits", "e_T1"]
STEPS = [(t, s) for t in (0, 1, 2) for s in range(4)]


@pytest.mark.parametrize("name", DAKD)
def test_distribution_aware_distillation(golden, name):
    arrays = golden(f"dgr_dakd_{name}")
    student, removed = tensor(arrays["pred"]).requires_grad_(), tensor(arrays["removed"])
    close(removal_entropy(removed), arrays["entropy"])
    close(removal_mix(removed), arrays["mix"])
    temperature = 1.0 if name == "e_T1" else 2.0
    loss = distribution_aware_distillation(student, tensor(arrays["soft"]), removed, temperature)
    close(loss.detach(), arrays["dakd"])
    close(torch.autograd.grad(loss, student)[0], arrays["grad_pred"])


def counts(arrays, t):
    """Images per seen class when they arrived and now."""
    arrived = torch.cat([tensor(arrays[f"t{i}_num_per_cls"])[len(tensor(arrays[f"t{i - 1}_num_per_cls"])) :]
                         if i else tensor(arrays["t0_num_per_cls"]) for i in range(t + 1)])  # fmt: skip
    return arrived, tensor(arrays[f"t{t}_num_per_cls"])


@pytest.mark.parametrize("t", [1, 2])
def test_what_holds_for_an_experience(golden, t):
    arrays = golden("dgr_a_three_tasks")
    arrived, now = counts(arrays, t)
    old = len(tensor(arrays[f"t{t - 1}_num_per_cls"]))
    removed = (arrived - now)[:old]
    assert removed.tolist() == arrays[f"t{t}_removed"].tolist()
    seen, new = float(arrived[:old].sum()), float(now[old:].sum())
    assert attenuation(seen, new) == pytest.approx(float(arrays[f"t{t}_gamma"]), rel=1e-12)
    assert distillation_factor(seen, new) == pytest.approx(float(arrays[f"t{t}_kd_factor"]), rel=1e-12)
    close(removal_entropy(removed), arrays[f"t{t}_entropy"])


@pytest.mark.parametrize(("t", "s"), [(t, s) for t, s in STEPS if t])
def test_one_step_is_rewritten(golden, t, s):
    arrays = golden("dgr_a_three_tasks")
    step = {key[6:]: tensor(value) for key, value in arrays.items() if key.startswith(f"t{t}_s{s}_")}
    old, norms = len(step["gkd_b"]), step["gcn_W"].norm(dim=1)
    before = tensor(arrays[f"t{t}_s{s - 1}_phi"]) if s else torch.zeros(len(norms))
    close(before + norms, step["phi"])
    weights = gradient_weights(step["phi"], old, float(arrays[f"t{t}_gamma"]))
    close(weights, step["weights"])
    ratio = distillation_ratio(norms, weights, step["gkd_W"].norm(dim=1))
    close(ratio, step["ratio_kd"])
    for kind, wanted in (("W", step["grad_W"]), ("b", step["grad_b"])):
        gradient, distilled = step[f"gcn_{kind}"], step[f"gkd_{kind}"]
        padded = torch.cat([distilled, torch.zeros_like(gradient[old:])])
        close(rewritten(gradient, padded, weights, ratio), wanted)


class Replay:
    """The official training, written again from the functions: linear body and heads, SGD, three tasks."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.body = tensor(arrays["body_init"]).clone()
        self.rows, self.biases = torch.zeros(0, len(self.body)), torch.zeros(0)

    def task(self, t):
        a = self.arrays
        teacher = (self.body, self.rows, self.biases)
        old = len(self.rows)
        self.rows = torch.cat([self.rows, tensor(a[f"t{t}_head_W_init"])])
        self.biases = torch.cat([self.biases, tensor(a[f"t{t}_head_b_init"])])
        arrived, now = counts(a, t)
        seen, new = float(arrived[:old].sum()), float(now[old:].sum())
        gathered, momentum = torch.zeros(len(self.rows)), None
        for s in range(4):
            x, y = tensor(a[f"t{t}_x"])[s % 2], tensor(a[f"t{t}_y"])[s % 2]
            parts = [p.clone().requires_grad_() for p in (self.body, self.rows, self.biases)]
            logits = x @ parts[0].T @ parts[1].T + parts[2]
            terms = [balanced_softmax(logits, y, now)]
            if old:
                features = (x @ teacher[0].T) * tensor(a["eval_gain"])
                distance = distribution_aware_distillation(
                    logits, features @ teacher[1].T + teacher[2], (arrived - now)[:old]
                )
                terms.append(distillation_factor(seen, new) * 4 * distance)
            (gcn, *rest) = [torch.autograd.grad(term, parts, retain_graph=True) for term in terms]
            norms = gcn[1].norm(dim=1)
            gathered += norms
            weights = gradient_weights(gathered, old, attenuation(seen, new) if old else 1.0)
            gkd = rest[0] if rest else None
            ratio = distillation_ratio(norms, weights, gkd[1].norm(dim=1)) if rest else 1.0
            gradients = [sum(g[0] for g in (gcn, *rest))]
            gradients += [rewritten(gcn[i], gkd[i] if rest else None, weights, ratio) for i in (1, 2)]
            momentum = self.step(gradients, momentum, float(a[f"t{t}_s{s}_lr"]))
            yield s, sum(terms).detach()

    def step(self, gradients, momentum, rate):
        parts = [self.body, self.rows, self.biases]
        decayed = [g + 5e-4 * p for g, p in zip(gradients, parts, strict=True)]
        momentum = (
            decayed if momentum is None else [0.9 * m + g for m, g in zip(momentum, decayed, strict=True)]
        )
        self.body, self.rows, self.biases = [p - rate * m for p, m in zip(parts, momentum, strict=True)]
        return momentum


def test_trajectory_over_three_tasks(golden):
    arrays = golden("dgr_a_three_tasks")
    replay = Replay(arrays)
    for t in range(3):
        for s, loss in replay.task(t):
            close(loss, arrays[f"t{t}_s{s}_loss_total"], 1e-8)
            close(replay.rows, arrays[f"t{t}_s{s}_W"], 1e-8)
            close(replay.biases, arrays[f"t{t}_s{s}_b"], 1e-8)
            close(replay.body, arrays[f"t{t}_s{s}_body"], 1e-8)


# ---------------------------------------------------------------------------- the guards: 0 / 0 in the official code


def test_no_class_lost_an_image_is_ordinary_distillation():
    student, teacher = torch.randn(3, 5, 4, requires_grad=True), torch.randn(3, 5, 4)
    nothing = torch.zeros(4, dtype=torch.long)
    assert removal_mix(nothing).tolist() == [0] * 4
    assert removal_entropy(nothing) == pytest.approx(1)
    loss = distribution_aware_distillation(student, teacher, nothing)
    plain = -((teacher / 2).softmax(-1) * (student / 2).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss, plain)


def test_a_single_old_class_is_finite():
    assert removal_entropy(torch.tensor([7])) == 1
    loss = distribution_aware_distillation(
        torch.randn(3, 2, requires_grad=True), torch.randn(3, 1), torch.tensor([7])
    )
    assert loss == 0


def test_rows_without_gradient_slow_nobody():
    weights = gradient_weights(torch.tensor([0.0, 2.0, 4.0, 1.0, 0.0]), 3)
    ratio = (0.5) / 2.0  # means of new and old
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0]) * ratio)
    assert gradient_weights(torch.zeros(5), 3, 0.4).isfinite().all()
    assert gradient_weights(torch.zeros(5), 0).tolist() == [1] * 5


def test_without_new_classes_all_are_one_group():
    gathered = torch.tensor([1.0, 2.0, 4.0])
    for num_old in (0, 3):
        assert gradient_weights(gathered, num_old, 0.4).tolist() == [1, 0.5, 0.25]


def test_a_student_equal_to_its_teacher_does_not_amplify_noise():
    norms, weights = torch.tensor([1.0, 2.0]), torch.ones(2)
    assert distillation_ratio(norms, weights, torch.zeros(1)) == LARGEST_RATIO
    assert distillation_ratio(norms, weights, torch.full((1,), 1e-15)) == LARGEST_RATIO
    assert distillation_ratio(norms, weights, torch.ones(1)) == pytest.approx(5**0.5)


def test_experts_keep_their_own_weights():
    gathered = torch.rand(2, 5)
    torch.testing.assert_close(
        gradient_weights(gathered, 3, 0.5), torch.stack([gradient_weights(g, 3, 0.5) for g in gathered])
    )


def test_gradcheck():
    student, teacher = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 4)
    removed = torch.tensor([0, 5, 2, 90])
    assert torch.autograd.gradcheck(
        lambda z: distribution_aware_distillation(z, teacher, removed), (student,)
    )
