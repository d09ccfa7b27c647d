"""Recorders over streams whose numbers start again, cut experiences, empty evaluations, and foreign strategies."""

from __future__ import annotations

import copy
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import as_classification_dataset
from streams import Digits, indices, make, naive

from incrlt.errors import UserError
from incrlt.metrics.evaluation import save_evaluations
from incrlt.metrics.record import save_confusions
from incrlt.plugins import ConfusionRecorder, EvaluationRecorder, RoutingRecorder
from incrlt.plugins.steps import Steps

PAIRS = [(0, 1), (2, 3), (4, 5)]


def stream(pairs, images=8):
    data = [as_classification_dataset(Digits(indices([images] * 10, pair))) for pair in pairs]
    return benchmark_from_datasets(train=data).train_stream


def train(recorder, experiences, evaluated):
    """Train each experience and evaluate on everything."""
    strategy = naive(recorder)
    for experience in experiences:
        strategy.train(experience)
        strategy.eval(evaluated)
    return strategy


@pytest.mark.parametrize("kind", [ConfusionRecorder, EvaluationRecorder])
def test_two_streams_with_the_same_numbers_fill_one_record(kind):
    """Before: the second stream's matrices took the places of the first one's."""
    recorder = kind()
    experiences = [*stream(PAIRS[:2]), *stream(PAIRS[2:])]
    train(recorder, experiences, stream(PAIRS))
    record = recorder.records()["cnn"]
    assert [matrix.sum() for matrix in record.confusions] == [16, 32, 48]
    assert record.experience_of_class.tolist() == [0, 0, 1, 1, 2, 2]
    if kind is EvaluationRecorder:
        assert sorted(recorder.evaluations) == [0, 1, 2]


def test_an_experience_cut_into_many_has_a_matrix_each():
    recorder = ConfusionRecorder()
    parts = list(split_online_stream(stream(PAIRS[:2]), experience_size=6, shuffle=False))
    train(recorder, parts, stream(PAIRS))
    assert len(recorder.records()["cnn"].confusions) == len(parts) == 6
    assert recorder.experience_of_class == [0, 1, 3, 4]


def test_an_experience_that_comes_again_later_is_a_step_of_its_own():
    recorder, [first, second] = ConfusionRecorder(), stream(PAIRS[:2])
    train(recorder, [first, second, second, first], stream(PAIRS))
    assert [len(matrix) for matrix in recorder.records()["cnn"].confusions] == [2, 4, 4]
    assert recorder.images_of_class == [8] * 4


def test_a_label_with_two_names_is_refused():
    first, second = stream(PAIRS[:1]), stream(PAIRS[:1])
    first.benchmark = SimpleNamespace(class_names=["nought", "one"])
    second.benchmark = SimpleNamespace(class_names=["zero", "one"])
    for recorder in (ConfusionRecorder(), RoutingRecorder()):
        strategy = naive(recorder)
        strategy.train(first[0])
        with pytest.raises(UserError, match=r"label 0 is 'nought' .* 'zero'"):
            strategy.train(second[0])


def test_an_evaluation_without_images_of_known_classes_is_dropped_with_a_word():
    recorder = EvaluationRecorder()
    strategy = naive(recorder)
    strategy.train(stream(PAIRS)[0])
    strategy.eval(stream(PAIRS)[:1])
    kept = copy.deepcopy(recorder.state_dict())
    for nothing in (stream(PAIRS)[1:], []):
        with pytest.warns(
            UserWarning, match="after experience 0: it showed no image of a class that has arrived"
        ):
            strategy.eval(nothing)
    assert np.array_equal(recorder.records()["cnn"].confusions[0], kept["confusions"]["cnn"][0])
    assert torch.equal(recorder.answers["labels"], kept["answers"]["labels"])


def test_the_routing_recorder_does_nothing_on_foreign_strategies():
    """Before: AttributeError in the first batch of an evaluation on Naive."""
    routing = RoutingRecorder()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*evaluation after experience")
        train(routing, make("nc").train_stream[:1], make("nc").test_stream[:1])
    assert routing.used == [] and routing.line() is None


class TestSteps:
    def test_another_process_knows_the_experience_it_was_killed_in(self):
        steps = Steps()
        assert [steps.arrive(e) for e in (*stream(PAIRS), *stream([(6, 7)]))] == [0, 1, 2, 3]
        for experience, number in (
            (stream([(6, 7)])[0], 3),
            (stream([(8, 9)])[0], 4),
            (stream([(6, 7)], 7)[0], 4),
        ):
            again = Steps()
            again.load_state_dict(steps.state_dict())
            assert again.arrive(experience) == number

    def test_older_states_tell_the_place_in_the_stream_alone(self):
        for place, number in ((1, 1), (2, 2)):
            steps = Steps()
            steps.load_state_dict({"experience": 1})
            assert steps.arrive(stream(PAIRS)[place]) == number

    def test_a_pickle_holds_no_images_and_knows_the_experience(self):
        steps, experiences = Steps(), stream(PAIRS)
        steps.arrive(experiences[0])
        content = pickle.dumps(steps)
        assert len(content) < 2000
        assert [pickle.loads(content).arrive(e) for e in experiences[:2]] == [0, 1]


def test_saved_counts_can_be_added_by_whoever_reads_them(tmp_path):
    """Before: uint8, in which 200 + 100 is 44."""
    save_confusions(tmp_path / "c.npz", {"cnn": [np.array([[200, 100], [0, 1]])]})
    save_evaluations(
        tmp_path / "e.npz", {0: {"memory": np.array([200, 100])}}, {"labels": np.array([200, 100])}
    )
    with np.load(tmp_path / "c.npz") as confusions, np.load(tmp_path / "e.npz") as evaluations:
        rows = [confusions["cnn_000"][0], *evaluations.values()]
    assert [row[0] + row[1] for row in rows] == [300, 300, 300]
