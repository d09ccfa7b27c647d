"""The evaluation recorder against the network's own answers to the same images, in one batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toy

from incrlt.experts.ride import RIDE
from incrlt.metrics.evaluation import BINS, load_evaluations
from incrlt.models.cost import macs
from incrlt.plugins import ConfusionRecorder, EvaluationRecorder
from incrlt.plugins.evaluation import confidence_counts
from incrlt.strategies import LUCIR


@pytest.fixture(scope="module")
def run():
    """LUCIR with three experts over two experiences; all test images are shown, those of unseen classes too."""
    recorder = EvaluationRecorder()
    strategy = toy.make(
        LUCIR,
        experts=RIDE(num_experts=3, reweight_after=1.0),
        eval_mb_size=17,
        train_epochs=3,
        plugins=[recorder],
    )
    torch.manual_seed(1)
    benchmark = toy.stream()
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    return strategy, recorder, benchmark


@pytest.fixture(scope="module")
def output(run):
    """What the network says to the seven seen classes' 70 test images in the stream's order, and their labels."""
    strategy, recorder, benchmark = run
    shown = [sample for experience in benchmark.test_stream[:2] for sample in experience.dataset.eval()]
    x, y = torch.stack([sample[0] for sample in shown]), [int(sample[1]) for sample in shown]
    strategy.model.eval()
    with torch.no_grad():
        return strategy.model.forward_all(x, rebalanced=True), np.array(
            [recorder.class_ids.index(label) for label in y]
        )


def per_class(labels, values):
    return np.stack([values[labels == index].sum(axis=0) for index in range(7)])


def test_experts_are_counted_alone_and_together(run, output):
    logits, labels = output[0].expert_logits.numpy(), output[1]
    first = np.stack([logits[: k + 1].mean(axis=0) for k in range(3)])
    answers = logits.argmax(-1)
    right = np.stack([answers == labels, first.argmax(-1) == labels]).transpose(2, 0, 1)
    differ = (answers[:, None] != answers[None]).transpose(2, 0, 1)
    kept = run[1].evaluations[1]
    np.testing.assert_array_equal(kept["right"].numpy(), per_class(labels, right))
    np.testing.assert_array_equal(kept["disagree"].numpy(), per_class(labels, differ))
    assert kept["disagree"].sum() > 0
    assert kept["macs"].tolist() == [macs(run[0].model, (1, 8, 8), k) for k in (1, 2, 3)]


def test_confidence_is_the_winners_probability(run, output):
    logits, labels = output[0].logits.double().numpy(), output[1]
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    sure = (chances / chances.sum(axis=1, keepdims=True)).max(axis=1)
    images, right, millionths = run[1].evaluations[1]["confidence_cnn"].numpy().sum(axis=0)
    np.testing.assert_array_equal(images, np.histogram(sure, BINS, (0, 1))[0])
    assert right.sum() == (logits.argmax(axis=1) == labels).sum()
    assert millionths.sum() / 1e6 == pytest.approx(sure.sum(), abs=1e-3)
    assert "confidence_nme" not in run[1].evaluations[1]  # a similarity is no probability


def test_a_certain_answer_falls_into_the_last_bin():
    counted = confidence_counts(torch.tensor([[0.0, 1e4], [0.0, 0.0]]), torch.tensor([1, 1]))
    assert counted[0, :, BINS - 1].tolist() == [1, 1, 1_000_000]
    assert counted[1, :, BINS // 2].tolist() == [1, 0, 500_000]
    assert counted.sum() == 1 + 1 + 1_000_000 + 1 + 500_000


def test_last_answers_are_those_to_the_seen_classes(run, output):
    answers = run[1].answers
    np.testing.assert_array_equal(answers["labels"].numpy(), output[1])
    np.testing.assert_array_equal(answers["predicted_cnn"].numpy(), output[0].logits.argmax(1).numpy())
    assert set(answers) == {"labels", "predicted_cnn", "predicted_nme"}


def test_memory_is_counted_by_class(run):
    assert run[1].evaluations[0]["memory"].tolist() == [5] * 4
    assert run[1].evaluations[1]["memory"].tolist() == [5] * 7


def test_file_holds_what_was_kept(run, tmp_path):
    run[1].write(tmp_path)
    record = load_evaluations(tmp_path / "evaluations.npz")
    assert sorted(record.steps) == [0, 1]
    for t, step in run[1].evaluations.items():
        assert set(record.steps[t]) == set(step)
        for name, values in step.items():
            np.testing.assert_array_equal(record.steps[t][name], values.numpy())


def test_it_remembers_and_writes_the_same_file(run, tmp_path):
    copy = EvaluationRecorder()
    torch.save(run[1].state_dict(), tmp_path / "state.pt")
    copy.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for place, recorder in (("a", run[1]), ("b", copy)):
        (tmp_path / place).mkdir()
        recorder.write(tmp_path / place)
    files = [(tmp_path / place / "evaluations.npz").read_bytes() for place in "ab"]
    assert files[0] == files[1]


def test_checkpoint_of_a_plain_recorder_is_continued(run):
    old = ConfusionRecorder()
    old.load_state_dict(run[1].state_dict())
    copy = EvaluationRecorder()
    copy.load_state_dict(old.state_dict())
    assert copy.evaluations == {} and copy.class_ids == run[1].class_ids


def test_avalanches_own_strategy_has_confidence_but_no_experts():
    from avalanche.training.supervised import Naive

    recorder, benchmark = EvaluationRecorder(), toy.benchmark("nc")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    strategy = Naive(model=model, optimizer=optimizer, evaluator=toy.quiet(), plugins=[recorder])
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream[:1])
    (step,) = recorder.evaluations.values()
    assert set(step) == {"confidence_cnn"}
    np.testing.assert_array_equal(
        step["confidence_cnn"][:, 1].sum(1).numpy(), np.diag(recorder.confusions["cnn"][0])
    )
