"""iCaRL: nearest mean of exemplars by hand, and what its objectives do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import toy
from avalanche.training.plugins import SupervisedPlugin

from incrlt.losses import knowledge_distillation
from incrlt.strategies import ICaRL
from incrlt.training.class_means import ClassMeans
from incrlt.types import ModelOutput


class Scores(SupervisedPlugin):
    """Keeps what evaluation saw."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def after_eval_iteration(self, strategy, **kwargs):
        self.batches.append((strategy.mb_x, dict(strategy.mb_scores), strategy.mb_output))


def features(model, x):
    model.eval()
    with torch.no_grad():
        return F.normalize(model.extract(x)[0], dim=1)


def means_by_hand(strategy):
    """One class at a time: original and mirror image averaged, then over exemplars, then to length 1."""
    dataset = strategy.memory.dataset().eval()
    x = torch.stack([dataset[i][0] for i in range(len(dataset))])
    y = torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])
    both = (features(strategy.model, x) + features(strategy.model, x.flip(-1))) / 2
    return torch.stack([F.normalize(both[y == label].mean(0), dim=0) for label in strategy.seen_classes])


@pytest.mark.parametrize("head", ["cosine", "linear"])
def test_class_means_and_scores_equal_those_by_hand(head):
    spy = Scores()
    strategy = toy.make(ICaRL, head=head, plugins=[spy])
    toy.train(strategy, toy.stream().train_stream[:2])
    means = means_by_hand(strategy)
    assert means.shape[0] == 7
    assert torch.allclose(strategy.class_means.means, means, atol=1e-5)
    strategy.eval(toy.stream().test_stream[:2])
    for x, scores, output in spy.batches:
        assert list(scores) == ["nme", "cnn"]
        assert torch.allclose(scores["nme"], features(strategy.model, x) @ means.T, atol=1e-5)
        assert torch.equal(output[:, :7], scores["nme"]), "Avalanche's metrics see the chosen read-out"


def test_a_class_without_exemplars_never_wins():
    means = ClassMeans(first=True)
    means.means = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 0.0]]), dim=1)
    x = torch.tensor([[-1.0, 0.05], [0.3, -1.0], [1.0, 0.0]])
    scores = means.readouts(ModelOutput(torch.zeros(3, 3), torch.zeros(1, 3, 3), x[None]))["nme"]
    assert scores.argmax(1).tolist() == [1, 0, 0], "the nearest of those that have a mean, however far"
    assert scores.isfinite().all()
    assert torch.allclose(scores[:, :2], F.normalize(x, dim=1) @ means.means[:2].T)


def test_a_quarter_of_the_weight_is_the_baseline_of_lucir():
    """Its code: the default mean of the KL, times O, T squared and beta = 0.25."""
    temperature, num_old, beta = 2.0, 7, 0.25
    torch.manual_seed(0)
    logits, teacher = torch.randn(6, 10), torch.randn(6, num_old)
    log_p = F.log_softmax(logits[:, :num_old] / temperature, dim=1)
    mean = F.kl_div(log_p, F.softmax(teacher / temperature, dim=1), reduction="none").mean()
    official = mean * num_old * temperature**2 * beta
    ours = 0.25 * knowledge_distillation(logits[None], teacher[None], temperature)
    torch.testing.assert_close(ours, official)


def test_the_head_can_be_the_read_out():
    spy = Scores()
    strategy = toy.make(ICaRL, readout="cnn", plugins=[spy])
    toy.train(strategy, toy.stream().train_stream[:1], toy.stream().test_stream[:1])
    _, scores, output = spy.batches[0]
    assert list(scores) == ["cnn", "nme"]
    assert torch.equal(output[:, :4], scores["cnn"])


@pytest.mark.parametrize(
    ("options", "first", "later"),
    [
        ({}, {"cross_entropy"}, {"cross_entropy", "distillation"}),
        ({"objective": "sigmoid"}, {"sigmoid"}, {"sigmoid"}),
    ],
)
def test_terms_of_the_objectives(options, first, later):
    strategy = toy.make(ICaRL, head="linear", **options)
    strategy.train(toy.stream().train_stream[0])
    assert set(strategy.epoch_terms) == first
    strategy.train(toy.stream().train_stream[1])
    assert set(strategy.epoch_terms) == later


def test_distillation_is_weighted():
    terms = []
    for weight in (1.0, 0.0):
        strategy = toy.make(ICaRL, distillation=weight, train_epochs=1)
        toy.train(strategy, toy.stream().train_stream[:2])
        terms.append((strategy.epoch_terms["distillation"], toy.weights(strategy.model)))
    assert terms[0][0] > 0
    assert terms[1][0] == 0
    assert "stem.conv.weight" in toy.changed(terms[0][1], terms[1][1])


def test_evaluation_in_the_middle_of_an_experience_reads_out_by_the_head():
    spy = Scores()
    strategy = toy.make(ICaRL, plugins=[spy], eval_every=1, train_epochs=2)
    strategy.train(toy.stream().train_stream[0], eval_streams=[toy.stream().test_stream[:1]])
    assert {tuple(scores) for _, scores, _ in spy.batches} >= {("cnn",)}
    assert strategy.class_means.means is not None


def test_more_exemplars_than_images_and_one_image_per_class_work():
    strategy = toy.make(ICaRL, memory=50)
    toy.train(strategy, toy.stream(per_class=1).train_stream)
    assert strategy.memory.counts() == dict.fromkeys(range(10), 1)
    assert torch.allclose(strategy.class_means.means, means_by_hand(strategy), atol=1e-5)
