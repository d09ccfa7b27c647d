"""EEIL in training: which experiences it distils when, on what it finetunes, and the noise it adds."""

from __future__ import annotations

import pytest
import torch
import toy

from incrlt.errors import UserError
from incrlt.experts.single import Single
from incrlt.losses.per_head import per_head_distillation
from incrlt.stages.lws import LWS
from incrlt.strategies.eeil import EEIL


def trained(watch, experiences=3, **options):
    strategy = toy.make(EEIL, **{"train_epochs": 1, "balanced_epochs": 2, "memory": 5, **options})
    strategy.on_epoch_end = watch
    torch.manual_seed(1)
    toy.train(strategy, toy.stream().train_stream[:experiences])
    return strategy


@pytest.mark.parametrize(("distilled", "first"), [("all", [[], [4], [4, 3]]), ("ltcil", [[], [], [4]])])
def test_old_experiences_are_distilled_and_the_code_leaves_one_out(distilled, first):
    sizes, terms = {}, {}

    def watch(s):
        sizes[s.experience_index, s.stage.name] = s.distilled_sizes
        terms[s.experience_index, s.stage.name] = set(s.epoch_terms)

    trained(watch, distilled=distilled)
    assert [sizes[t, "train"] for t in range(3)] == first
    assert [sizes[t, "balanced"] for t in (1, 2)] == [[4], [4, 3]]
    for key, heads in sizes.items():
        assert ("distillation" in terms[key]) == bool(heads)


def test_the_term_is_that_of_the_function():
    values = []

    def step(strategy):
        backward = strategy.backward

        def spy():
            teacher = strategy.teacher_output()
            if teacher is not None:
                output = strategy.mb_out.expert_logits.detach()
                found = strategy.terms._steps[-1]
                value = dict(zip(found[0], found[1].tolist(), strict=True))["distillation"]
                sizes = strategy.distilled_sizes
                expected = 3.0 * per_head_distillation(output, teacher.expert_logits, sizes, 1.5)
                values.append((value, float(expected)))
            backward()

        strategy.backward = spy
        return strategy

    strategy = step(toy.make(EEIL, balanced_epochs=0, distillation=3.0, temperature=1.5))
    toy.train(strategy, toy.stream().train_stream)
    assert values
    for value, expected in values:
        assert value == pytest.approx(expected, rel=1e-5)


def test_the_finetune_trains_everything_gently_on_exemplars():
    seen, kept = [], {}

    def watch(s):
        seen.append((s.experience_index, s.stage.name, s.epoch_lr, s.stage_counts.tolist()))
        if s.stage.name == "balanced":
            changed = toy.changed(kept["before"], toy.weights(s.model))
            assert "stem.conv.weight" in changed or any("conv" in name for name in changed)
        kept["before"] = toy.weights(s.model)

    trained(watch, 2, rebalance=LWS(epochs=1))
    assert [one[:2] for one in seen] == [
        (0, "train"), (0, "lws"), (1, "train"), (1, "balanced"), (1, "balanced"), (1, "lws"),
    ]  # fmt: skip
    assert seen[3][2:] == (0.001, [5] * 7)


def test_noise_has_its_size_on_shared_and_own_parameters_alike():
    """On the first step of an epoch; the difference of two gradients of the same batch is the noise."""
    differences = {}
    experts = Single(num_experts=2)
    strategy = toy.make(EEIL, experts=experts, gradient_noise=0.3, train_epochs=2, head="linear")
    backward = strategy.backward

    def spy():
        named = dict(strategy.model.named_parameters())
        terms = strategy.loss_terms(strategy.mb_out, strategy.positions(strategy.mb_y))
        terms.pop("gradient_noise")
        found = torch.autograd.grad(
            sum(terms.values()), list(named.values()), retain_graph=True, allow_unused=True
        )
        backward()
        for (name, parameter), plain in zip(named.items(), found, strict=True):
            if parameter.grad is not None and plain is not None:
                factor = 1 if name.startswith("stem") else 2
                key = strategy.stage_epoch, name.split(".")[0]
                differences.setdefault(key, []).append((parameter.grad - factor * plain).flatten())
            else:
                assert parameter.grad is None, f"{name} takes part in no loss, and must not move"

    strategy.backward = spy
    torch.manual_seed(1)
    strategy.train(toy.stream().train_stream[0])
    for epoch, std in ((0, 0.3), (1, 0.3 / 2**0.55)):
        for part in ("stem", "branches"):
            noise = torch.cat(differences[epoch, part])
            assert float(noise.std()) == pytest.approx(std, rel=0.05)
            assert abs(float(noise.mean())) < 0.02
    rows = torch.cat(differences[0, "heads"])
    assert 0 < float((rows != 0).float().mean()) < 1, "rows of classes that have not arrived get none"
    assert strategy.epoch_terms["gradient_noise"] == 0


def test_it_needs_exemplars():
    with pytest.raises(UserError, match="needs exemplars"):
        toy.make(EEIL, memory=0)
