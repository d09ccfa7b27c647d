"""A batch of one image before a BatchNorm on 1 x 1 maps: each stage that normalises it says so, the others train."""

from __future__ import annotations

from functools import cache

import incrlt._compat  # noqa: F401  (before avalanche)

import pytest
import torch
import toy
from avalanche.benchmarks import nc_benchmark

from incrlt.data import augment
from incrlt.data.tensors import ImageTensors
from incrlt.errors import UserError
from incrlt.experts import NCL, RIDE, SHIKE, Single
from incrlt.plugins import ExemplarMemory
from incrlt.stages import CRT, LWS, BalancedHead, ExpertAssignment, GVAlign
from incrlt.strategies import DGR, EEIL, LUCIR, Finetune, ICaRL, PODNet, Replay


@cache
def stream():
    """Digits of 4 x 4 pixels, whose last maps are of one pixel."""

    def pooled(train):
        chosen = toy.chosen(train, 3)
        images = torch.nn.functional.avg_pool2d(toy.digits()[0][chosen].float(), 2)
        return ImageTensors(images.to(torch.uint8), toy.digits()[1][chosen])

    shape = (1, 4, 4), (0.3,), (0.4,)
    return nc_benchmark(
        pooled(True), pooled(False), n_experiences=3, task_labels=False, fixed_class_order=list(toy.ORDER),
        per_exp_classes=dict(enumerate(toy.SIZES)), class_ids_from_zero_from_first_exp=True,
        train_transform=augment.build("shift", *shape, train=True),
        eval_transform=augment.build("none", *shape, train=False),
    ).train_stream  # fmt: skip


def train(kind, *, size=1, epochs=0, head="cosine", experts=None, memory=2, **settings):
    """Two experiences in batches of one; without a first stage, unless it is asked for."""
    experts = experts or Single()
    model = toy.network(head, experts.layout)
    strategy = kind(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01), experts=experts, train_mb_size=size,
        train_epochs=epochs, memory=ExemplarMemory(per_class=memory) if memory else None, evaluator=toy.quiet(),
        **settings,
    )  # fmt: skip
    toy.train(strategy, stream()[:2])


NORMALISES = {
    "train": lambda fast: train(Finetune, epochs=1, memory=0, fast_data=fast),
    "train, with a teacher": lambda fast: train(LUCIR, epochs=1, fast_data=fast),
    "train, ncl": lambda fast: train(Replay, epochs=1, experts=NCL(num_experts=2), fast_data=fast),
    "balanced": lambda fast: train(EEIL, balanced_epochs=1, fast_data=fast),
    "class_balanced_finetune": lambda fast: train(
        PODNet, class_balanced_finetune=1, head="proxies", fast_data=fast
    ),
    "classifier": lambda fast: train(
        Replay, experts=SHIKE(classifier_epochs=1, flavor="published"), fast_data=fast
    ),
}


@pytest.mark.parametrize("fast", [True, False], ids=["tensors", "loader"])
@pytest.mark.parametrize("stage", NORMALISES)
def test_a_stage_that_trains_the_backbone_says_so(stage, fast):
    """Before: the sentence told a stage of many images to get more of them."""
    words = f"stage '{stage.split(',')[0]}' has batches of 1, and the network normalises .* of 2 or more"
    with pytest.raises(UserError, match=words):
        NORMALISES[stage](fast)


def test_second_views_are_told_too():
    with pytest.raises(UserError, match="stage 'train' has batches of 1"):
        train(Replay, epochs=1, experts=NCL(num_experts=2, contrastive=1.0, queue=8))


def test_the_last_batch_alone_may_be_the_one():
    """12 images in batches of 11; the batch size that is proposed works."""
    with pytest.raises(UserError, match=r"has 12 images, in batches of 11 .* to 10, for example"):
        train(Finetune, size=11, epochs=1, memory=0)


STANDS = {
    "lws": lambda fast: train(Replay, rebalance=LWS(epochs=1), fast_data=fast),
    "crt": lambda fast: train(Replay, rebalance=CRT(epochs=1), fast_data=fast),
    "gvalign": lambda fast: train(Replay, rebalance=GVAlign(steps=2), fast_data=fast),
    "balanced_head": lambda fast: train(Replay, rebalance=BalancedHead(), fast_data=fast),
    "finetuned heads": lambda fast: train(LUCIR, class_balanced_finetune=1, fast_data=fast),
    "router": lambda fast: train(
        Replay, experts=RIDE(num_experts=2), router=ExpertAssignment(epochs=1, batch_size=1), fast_data=fast
    ),
    "classifier": lambda fast: train(Replay, experts=SHIKE(classifier_epochs=1), fast_data=fast),
    "no later stage": lambda fast: train(DGR, fast_data=fast),
    "means": lambda fast: train(ICaRL, head="linear", fast_data=fast),
}


@pytest.mark.parametrize("fast", [True, False], ids=["tensors", "loader"])
@pytest.mark.parametrize("stage", STANDS)
def test_a_stage_whose_backbone_stands_trains_on_one_image(stage, fast):
    STANDS[stage](fast)
