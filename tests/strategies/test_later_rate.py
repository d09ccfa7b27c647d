"""Another learning rate after the first experience."""

from __future__ import annotations

import pytest
import toy

from incrlt.errors import UserError
from incrlt.experiment import schema
from incrlt.experts.shike import SHIKE
from incrlt.schedules import cosine, multistep_with_warmup, slowed
from incrlt.strategies import LUCIR


def rates(**options):
    """Return the rate of every epoch, by experience and stage."""
    seen = {}

    class Noting(LUCIR):
        def optimizer_step(self):
            rate = self.optimizer.param_groups[0]["lr"]
            seen[self.experience_index, self.stage.name, self.work.epoch] = rate
            super().optimizer_step()

    strategy = toy.make(Noting, train_epochs=2, **options)
    for experience in toy.stream().train_stream[:3]:
        strategy.train(experience)
    return [(t, stage, rate) for (t, stage, _), rate in seen.items()]


def test_every_experience_after_the_first_has_it_and_other_stages_do_not():
    """torch keeps ``initial_lr`` of the first schedule, so that a rate that is only multiplied would come back."""
    experts = SHIKE(num_experts=2, classifier_epochs=1, classifier_warmup=0, classifier_lr=0.5)
    first = toy.make(LUCIR).optimizer.param_groups[0]["lr"]
    found = rates(experts=experts, schedule=multistep_with_warmup((0.5,), 0.5), later_rate=0.2)
    expected = [(0, "train", first), (0, "train", first / 2), (0, "classifier", 0.5)]
    for t in (1, 2):
        expected += [(t, "train", first / 5), (t, "train", first / 10), (t, "classifier", 0.5)]
    assert [(t, name) for t, name, _ in found] == [(t, name) for t, name, _ in expected]
    assert [rate for *_, rate in found] == pytest.approx([rate for *_, rate in expected])


def test_a_factor_of_one_is_the_schedule_itself():
    schedule = cosine()
    assert slowed(schedule, 1.0) is schedule


def test_it_needs_a_schedule_and_a_positive_number():
    with pytest.raises(UserError, match="without a schedule nothing sets rates"):
        toy.make(LUCIR, schedule=None, later_rate=0.5)
    with pytest.raises(UserError, match="later_rate must be a number > 0; got 0"):
        toy.make(LUCIR, schedule=cosine(), later_rate=0)


def test_a_file_that_does_not_name_it_keeps_its_hash(tmp_path):
    page = tmp_path / "page.yaml"
    page.write_text(
        "benchmark: {dataset: digits, base_classes: 4, increment: 3}\nstrategy: {name: lucir}\nmemory: {per_class: 5}\n"
    )
    plain, null = (schema.load(page, words).hash() for words in ([], ["training.later_lr=null"]))
    assert plain == null != schema.load(page, ["training.later_lr=0.01"]).hash()
