"""A loader that is kept, with workers that stay: they end with the experience, and a checkpoint can be saved."""

from __future__ import annotations

import multiprocessing
import warnings

import incrlt._compat  # noqa: F401  (before avalanche)

import pytest
import torch
import toy
from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint
from avalanche.training.plugins import ReplayPlugin, SupervisedPlugin

from incrlt.strategies import Finetune

WORKERS = {"num_workers": 1, "persistent_workers": True}


class Count(SupervisedPlugin):
    """How many workers are at work in an epoch."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def after_training_epoch(self, strategy, **kwargs):
        self.most = max(self.most, len(multiprocessing.active_children()))


def made(*plugins):
    return toy.make(Finetune, memory=0, fast_data=False, plugins=list(plugins), train_epochs=2)


@pytest.mark.parametrize("replay", [False, True])
def test_workers_end_and_the_strategy_is_saved_and_goes_on(tmp_path, replay):
    """Before: workers of every experience lived on, and save_checkpoint could not pickle the loader's iterator."""
    count = Count()
    strategy = made(count, *([ReplayPlugin(mem_size=10)] if replay else []))
    experiences, tests = toy.stream().train_stream, toy.stream().test_stream
    before = len(multiprocessing.active_children())
    for experience in experiences[:2]:
        strategy.train(experience, **WORKERS)
        assert len(multiprocessing.active_children()) == before
    assert count.most > before
    strategy.eval(tests[:2], **WORKERS)
    assert len(multiprocessing.active_children()) == before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dill's own
        save_checkpoint(strategy, tmp_path / "strategy.pkl")
        found, trained = maybe_load_checkpoint(made(count), tmp_path / "strategy.pkl")
    assert trained == 2
    wanted = toy.weights(strategy.model)
    assert not toy.changed(wanted, toy.weights(found.model))
    torch.manual_seed(0)
    found.train(experiences[2])
    assert found.model.num_classes == 10 and toy.changed(wanted, toy.weights(found.model))
