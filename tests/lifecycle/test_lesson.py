"""One more experience from kept pictures ends where a run over all experiences ends."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import toy

from incrlt.benchmarks import datasets, protocols, streams
from incrlt.errors import UserError
from incrlt.experiment import schema
from incrlt.experiment.methods import names
from incrlt.lifecycle import learned as models
from incrlt.lifecycle.learned import Learned
from incrlt.lifecycle.lesson import Batch, Lesson, measure
from incrlt.plugins.evaluation import EvaluationRecorder
from incrlt.runner import kept
from incrlt.runner.build import build_strategy
from incrlt.runner.folder import RunFolder
from incrlt.runner.kept import Facts, Pictures, Preparation

CPU = torch.device("cpu")
TINY = {
    "benchmark": {"dataset": "digits", "base_classes": 4, "increment": 3, "imbalance_ratio": 20.0},
    "model": {"name": "resnet8", "width": 4},
    "training": {"epochs": 2, "batch_size": 64, "precision": "fp32", "threads": 1},
    "device": "cpu",
}
CASES = {
    "lucir_lws_ride": {
        "strategy": {"name": "lucir"},
        "memory": {"per_class": 5},
        "rebalance": {"name": "lws", "epochs": 1},
        "experts": {"name": "ride", "num_experts": 2},
        "router": {"name": "expert_assignment", "epochs": 1},
    },
    "icarl_random": {
        "strategy": {"name": "icarl"},
        "model": {"name": "resnet8", "width": 4, "head": "linear"},
        "memory": {"total": 24, "selection": "random"},
    },
    "joint": {"strategy": {"name": "joint"}},
    "finetune": {"strategy": {"name": "finetune"}},
}

NEEDS = {"podnet": {"model": {"name": "resnet8", "width": 4, "head": "proxies"}}}
"""What a strategy must have beside its name."""


def experiment(case):
    return schema.parse(TINY | CASES[case])


class Straight:
    """A run over all three experiences, and what it had after two of them."""

    def __init__(self, case):
        asked = experiment(case)
        data = datasets.load("digits")
        self.resolved = protocols.resolve(asked.protocol(), data.train_labels.numpy())
        benchmark = streams.build(data, self.resolved)
        self.recorder = EvaluationRecorder()
        self.strategy = build_strategy(asked, 1, CPU, [self.recorder])
        order = torch.as_tensor(self.resolved.protocol.class_order)
        tests = Pictures(data.test_images, order.argsort()[data.test_labels])
        for t, experience in enumerate(benchmark.train_stream):
            if t == 2:
                self.before = self.kept(asked, data, benchmark, tests.only(tests.labels < 7))
                self.last = self.batch(experience, tests, benchmark.class_names)
            self.strategy.train(experience)
            self.strategy.eval(benchmark.test_stream[: t + 1])

    def kept(self, asked, data, benchmark, tests):
        preparation = Preparation(8, 8, 1, data.mean, data.std)
        facts = Facts(benchmark.class_names[:7], tuple(self.resolved.counts[:7].tolist()), preparation, "two")
        state, recorder = copy.deepcopy((self.strategy.state_dict(True), self.recorder.state_dict()))
        exemplars = kept.exemplars_of(self.strategy, (1, 8, 8))
        return Learned(asked, facts, state, recorder, exemplars, tests)

    def batch(self, experience, tests, names):
        images, labels = kept.raw_pictures(experience.dataset)
        tests = tests.only(tests.labels >= 7)
        named = [tuple(names[label] for label in part.tolist()) for part in (labels, tests.labels)]
        return Batch(images, named[0], tests.images, named[1], order=names)


@pytest.fixture(scope="module")
def straight():
    made = {}
    return lambda case: made.setdefault(case, None) or made.update({case: Straight(case)}) or made[case]


def tensors(state):
    """Every tensor and number of a nested state, by its place; a router's table has NaN where nothing was recorded."""
    if isinstance(state, torch.Tensor):
        return repr(state.tolist())
    if isinstance(state, dict):
        return {key: tensors(value) for key, value in state.items()}
    return [tensors(value) for value in state] if isinstance(state, list | tuple) else state


@pytest.mark.parametrize("case", CASES)
def test_an_experience_learned_from_kept_pictures_ends_where_the_straight_run_ends(case, straight, tmp_path):
    run = straight(case)
    folder = RunFolder(tmp_path / "version")
    models.write(folder, run.before, {})  # and by way of the disk, without the data
    folder.close()
    after = Lesson(models.read(tmp_path / "version"), run.last, CPU).learn()
    direct = run.strategy.state_dict(True)
    same = ("model", "teacher", "num_old", "extra", "optimizer", "generators", "random")
    for part in same:
        assert tensors(after.strategy[part]) == tensors(direct[part]), part
    expected = kept.exemplars_of(run.strategy, (1, 8, 8))
    assert torch.equal(after.exemplars.images, expected.images)
    assert after.exemplars.labels.tolist() == expected.labels.tolist()
    theirs, ours = run.recorder.records()["cnn"].confusions, after.records()["cnn"].confusions
    assert [matrix.tolist() for matrix in ours] == [matrix.tolist() for matrix in theirs]
    assert after.facts.seen == tuple(run.resolved.counts.tolist())


@pytest.mark.parametrize("case", ["lucir_lws_ride", "joint"])
def test_a_killed_experience_goes_on_to_the_same_bits(case, straight):
    run = straight(case)
    saved = []
    lesson = Lesson(run.before, run.last, CPU)
    whole = lesson.learn(lambda _: saved.append(copy.deepcopy(lesson.state())))
    for state in (saved[0], saved[-1]):
        again = Lesson(run.before, run.last, CPU)
        again.resume(state)
        after = again.learn()
        assert tensors(after.strategy["model"]) == tensors(whole.strategy["model"])
        assert tensors(after.recorder["confusions"]) == tensors(whole.recorder["confusions"])
        assert torch.equal(after.exemplars.images, whole.exemplars.images)


@pytest.mark.parametrize("case", CASES)
def test_new_and_known_classes_and_both_can_arrive_in_any_number(case, straight):
    run = straight(case)
    now, known = run.before, run.before.class_names
    images = run.last.images
    for arriving in ([known[2]] * 3 + [known[0]], ["heron", known[1], "heron", known[5]], ["wren", "coot"]):
        batch = Batch(images[: len(arriving)], tuple(arriving), images[:0], ())
        images = images[len(arriving) :]
        before, now = now, Lesson(now, batch, CPU).learn()
        new = list(dict.fromkeys(name for name in arriving if name not in before.class_names))
        assert now.class_names == (*before.class_names, *new)
        assert sum(now.facts.seen) == sum(before.facts.seen) + len(arriving)
        assert now.experiences == before.experiences + 1
        assert now.facts.stream != before.facts.stream
    counts = measure(now, now.tests, CPU)
    assert counts.shape == (10, 10) and counts.sum() == len(now.tests)


def test_measuring_counts_what_the_evaluation_counted(straight):
    run = straight("icarl_random")  # whose main read-out is not the head
    now = Lesson(run.before, run.last, CPU).learn()
    counted = now.recorder["confusions"]["nme"][-1]
    assert torch.equal(measure(now, now.tests, CPU), counted)
    assert not torch.equal(now.recorder["confusions"]["cnn"][-1], counted)


def test_the_callers_random_numbers_stay(straight):
    run = straight("joint")
    before = torch.get_rng_state()
    now = Lesson(run.before, run.last, CPU).learn()
    measure(now, now.tests, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_exemplar_that_arrives_again_is_stored_once(straight):
    run = straight("lucir_lws_ride")
    old = run.before.exemplars
    mine = old.only(old.labels == 3)
    batch = Batch(mine.images, (run.before.class_names[3],) * len(mine), old.images[:0], ())
    after = Lesson(run.before, batch, CPU).learn()
    hashes = after.exemplars.hashes()
    assert len(hashes) == len(set(hashes)) == len(old)


def test_what_does_not_fit_is_said(straight):
    before = straight("joint").before
    none = before.exemplars.images[:0]
    cases = {
        r"takes uint8 of shape \[1, 8, 8\]": Batch(torch.zeros(1, 3, 8, 8).byte(), ("a",), none, ()),
        "there are no pictures to learn from": Batch(none, (), none, ()),
        "test pictures of owl and none": Batch(before.tests.images[:1], ("a",), before.tests.images[:1], ("owl",)),
    }  # fmt: skip
    for words, batch in cases.items():
        with pytest.raises(UserError, match=words):
            Lesson(before, batch, CPU)


def test_a_kept_picture_that_was_changed_is_refused(straight, tmp_path):
    before = straight("joint").before
    (tmp_path / "kept").mkdir()
    kept.write(tmp_path, before.facts, before.exemplars, before.tests)
    path = tmp_path / kept.TESTS_FILE
    assert torch.equal(kept.read_pictures(path, before.facts).images, before.tests.images)
    other = dataclasses.replace(before.facts, class_names=tuple("abcdefg"))
    with pytest.raises(UserError, match="missing or damaged"):
        kept.read_pictures(path, other)
    changed = Pictures(before.tests.images.clone(), before.tests.labels)
    changed.images[3, 0, 0, 0] += 1
    content = kept.packed(changed, before.facts.class_names)
    lie = before.tests.hashes()[3].encode()
    path.write_bytes(content.replace(changed.hashes()[3].encode(), lie))
    with pytest.raises(UserError, match="damaged"):
        kept.read_pictures(path, before.facts)


@pytest.mark.parametrize("name", [name for name in names("strategy") if name not in ("joint", "finetune")])
def test_every_strategy_goes_on_from_its_exemplars(name):
    """Found by listing the package: a new strategy joins alone."""
    asked = schema.parse(
        TINY | {"strategy": {"name": name}, "memory": {"per_class": 3}} | NEEDS.get(name, {})
    )
    images, labels = (part[:60] for part in toy.digits())
    now = models.nothing(asked, Preparation(8, 8, 1, (0.3,), (0.4,)))
    for own in ((0, 1, 2, 3), (1, 4), (2,)):
        chosen = torch.isin(labels, torch.tensor(own))
        names_of = tuple(f"class {label}" for label in labels[chosen].tolist())
        now = Lesson(now, Batch(images[chosen], names_of, images[:0], ()), CPU).learn()
    assert now.experiences == 3 and len(now.class_names) == 5
    assert now.exemplars.labels.bincount().tolist() == [3] * 5
