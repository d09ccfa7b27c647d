"""The learning rate of every epoch of every experience, on Avalanche's own Naive."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
import toy
from avalanche.benchmarks import nc_benchmark
from avalanche.training.plugins import LRSchedulerPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from torch.optim.lr_scheduler import (
    ConstantLR,
    LinearLR,
    MultiStepLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import TensorDataset

from incrlt.errors import UserError
from incrlt.plugins import SchedulerFactory, cosine, multistep_with_warmup
from incrlt.stages import LWS
from incrlt.strategies import Finetune


class Watcher(SupervisedPlugin):
    """Notes the rate with which each epoch trains."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def before_training_epoch(self, strategy, **kwargs):
        self.rates.append([group["lr"] for group in strategy.optimizer.param_groups])


def benchmark():
    images, labels = torch.randn(24, 4), torch.arange(24) % 6
    data = TensorDataset(images, labels)
    data.targets = labels.tolist()
    return nc_benchmark(data, data, n_experiences=3, task_labels=False, shuffle=False)


def rates(schedule, epochs=4, groups=1, optimizer=None):
    """Train three experiences and return the rates per epoch."""
    model = torch.nn.Linear(4, 6)
    if optimizer is None:
        parts = [[model.weight], [model.bias]] if groups == 2 else [list(model.parameters())]
        optimizer = torch.optim.SGD([{"params": p, "lr": 0.5 / (i + 1)} for i, p in enumerate(parts)])
    watcher = Watcher()
    strategy = Naive(
        model=model,
        optimizer=optimizer,
        train_mb_size=8,
        train_epochs=epochs,
        plugins=[SchedulerFactory(schedule), watcher],
        evaluator=None,
    )
    for experience in benchmark().train_stream:
        strategy.train(experience)
    return watcher.rates


def flat(rows):
    return [row[0] for row in rows]


def test_warm_up_is_right_in_every_experience():
    seen = flat(rates(multistep_with_warmup((0.5, 0.75), gamma=0.1, warmup_epochs=2), epochs=8))
    one = [0.25, 0.5, 0.5, 0.5, 0.05, 0.05, 0.005, 0.005]
    assert seen == pytest.approx(one * 3)


def test_a_composed_torch_scheduler_restarts():
    """The case that LRSchedulerPlugin gets wrong from the second experience on."""

    def schedule(optimizer, epochs):
        warm = LinearLR(optimizer, start_factor=0.1, total_iters=2)
        return SequentialLR(optimizer, [warm, ConstantLR(optimizer, factor=1.0)], milestones=[2])

    seen = flat(rates(schedule))
    assert seen[:2] == pytest.approx([0.05, 0.275])
    assert seen[4:8] == seen[:4]
    assert seen[8:] == seen[:4]


def test_each_param_group_keeps_its_own_rate():
    seen = rates(lambda optimizer, epochs: StepLR(optimizer, 2, gamma=0.1), groups=2)
    assert seen[:4] == [
        pytest.approx(pair) for pair in ([0.5, 0.25], [0.5, 0.25], [0.05, 0.025], [0.05, 0.025])
    ]
    assert seen[4:] == seen[:4] * 2


def test_a_strategy_of_stages_gives_the_epochs_of_its_first_stage():
    """The base has epochs of its own, and later stages schedules of their own."""
    asked, ends = [], []

    def schedule(optimizer, epochs):
        asked.append(epochs)
        return cosine()(optimizer, epochs)

    strategy = toy.make(
        Finetune, memory=0, train_epochs=1, base_epochs=3, rebalance=LWS(epochs=2),
        plugins=[factory := SchedulerFactory(schedule)],
    )  # fmt: skip
    strategy.on_epoch_end = lambda s: ends.append((s.stage.name, factory.state_dict()["epochs_done"]))
    toy.train(strategy, toy.stream().train_stream[:2])
    assert asked == [3, 1]
    base = [("train", 1), ("train", 2), ("train", 3), ("lws", 3), ("lws", 3)]
    assert ends == [*base, ("train", 1), ("lws", 1), ("lws", 1)]


def test_lucir_recipe():
    """160 epochs, a tenth from epochs 80 and 120 on (counted from 0)."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = multistep_with_warmup()(optimizer, 160)
    seen = []
    for _ in range(160):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.1] * 80 + [0.01] * 40 + [0.001] * 40)


def test_cosine_is_torchs_and_ends_where_told():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    ours, torchs = torch.optim.SGD(parameters, lr=0.2), torch.optim.SGD(parameters, lr=0.2)
    mine = cosine(final_fraction=0.05)(ours, 10)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(torchs, 10, eta_min=0.01)
    for _ in range(11):
        assert ours.param_groups[0]["lr"] == pytest.approx(torchs.param_groups[0]["lr"])
        for part in (ours, torchs, mine, theirs):
            part.step()
    assert flat(rates(cosine(warmup_epochs=2)))[:4] == pytest.approx([0.25, 0.5, 0.5, 0.25])


@pytest.mark.parametrize("optimizer_first", [True, False])
def test_resume_within_an_experience_is_exact(optimizer_first):
    """Interrupted after three epochs of the second experience; rates go on bit by bit."""

    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        return optimizer, SchedulerFactory(lambda optimizer, epochs: StepLR(optimizer, 2, gamma=0.3))

    optimizer, plugin = make()
    for epochs in (7, 3):
        plugin.start(optimizer, 7)
        for _ in range(epochs):
            optimizer.step()
            plugin.step()
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": plugin.state_dict()}, file)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed, other = make()
    if optimizer_first:
        resumed.load_state_dict(state["optimizer"])
        other.load_state_dict(state["scheduler"])
        other.start(resumed, 7)
    else:
        other.start(resumed, 7)
        other.load_state_dict(state["scheduler"])
        resumed.load_state_dict(state["optimizer"])
    for _ in range(4):
        assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for part in (optimizer, plugin, resumed, other):
            part.step()
    assert other.state_dict() == plugin.state_dict() == {"epochs_done": 7}


def test_state_between_experiences_starts_anew():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    plugin = SchedulerFactory(multistep_with_warmup())
    plugin.start(optimizer, 2)
    optimizer.step()
    plugin.step()
    plugin.after_training_exp(None)
    assert plugin.state_dict() == {"epochs_done": 0}
    plugin.load_state_dict(plugin.state_dict())
    plugin.start(optimizer, 2)
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_schedules_can_be_pickled():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for schedule in (multistep_with_warmup(), cosine(1)):
        copy = pickle.loads(pickle.dumps(schedule))
        assert copy(optimizer, 4).get_last_lr() == [1.0]


def test_wrong_arguments_are_explained():
    with pytest.raises(UserError, match="fractions"):
        multistep_with_warmup((80, 120))
    with pytest.raises(UserError, match="greater than 0"):
        multistep_with_warmup(gamma=0)
    with pytest.raises(UserError, match="warmup_epochs"):
        cosine(warmup_epochs=-1)
    with pytest.raises(UserError, match="final_fraction"):
        cosine(final_fraction=2)
    plateau = SchedulerFactory(lambda optimizer, epochs: ReduceLROnPlateau(optimizer))
    with pytest.raises(UserError, match="LRSchedulerPlugin"):
        plateau.start(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 3)


# ------------------------------------------------------------------------------------ Avalanche's own plugin


PLUGINS = {
    "steps": lambda o: LRSchedulerPlugin(MultiStepLR(o, [2, 3], gamma=0.1)),
    "goes on": lambda o: LRSchedulerPlugin(StepLR(o, 3, gamma=0.1), reset_scheduler=False, reset_lr=False),
    "per batch": lambda o: LRSchedulerPlugin(StepLR(o, 2), reset_scheduler=False, step_granularity="iteration"),
    "on a plateau": lambda o: LRSchedulerPlugin(
        ReduceLROnPlateau(o, patience=0, threshold=10.0), metric="train_loss", reset_scheduler=False, reset_lr=False
    ),
    "the first experience": lambda o: LRSchedulerPlugin(StepLR(o, 2), first_exp_only=True),
    "a warm-up, once": lambda o: LRSchedulerPlugin(LinearLR(o, 0.1, total_iters=2), first_exp_only=True),
}  # fmt: skip


def rates_of_first_stages(make, rebalance):
    """Train two experiences of three epochs; return the rates that first stages trained with."""
    model = toy.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seen, plugin = [], make(optimizer)

    class Watch(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            if strategy.stage.name == "train":
                seen.append(strategy.optimizer.param_groups[0]["lr"])

    strategy = Finetune(
        model=model, optimizer=optimizer, rebalance=rebalance, plugins=[plugin, Watch()], evaluator=toy.quiet(),
        train_epochs=3, train_mb_size=48,
    )  # fmt: skip
    before = list(strategy.plugins)
    toy.train(strategy, toy.stream().train_stream[:2])
    assert strategy.plugins == before
    return seen


@pytest.mark.parametrize("which", PLUGINS)
def test_avalanches_scheduler_counts_the_epochs_of_first_stages_alone(which):
    """Before: it counted those of LWS too, so that rates fell early where it is not reset."""
    alone = rates_of_first_stages(PLUGINS[which], None)
    assert len(set(alone)) > 1
    assert rates_of_first_stages(PLUGINS[which], LWS(epochs=4)) == alone
    if which == "steps":
        assert alone == pytest.approx(2 * [0.01] * 2 + [0.001] * 2 + 2 * [0.01] * 2 + [0.001] * 2)


TWICE, OTHER, RESET = (
    "both set the learning rate",
    "belongs to another optimizer",
    "wrong from the second experience on",
)


@pytest.mark.parametrize(
    ("make", "more", "words"),
    [
        (lambda o: LRSchedulerPlugin(StepLR(o, 2)), {"schedule": cosine()}, TWICE),
        (lambda o: [LRSchedulerPlugin(StepLR(o, 2)), SchedulerFactory(cosine())], {}, TWICE),
        (lambda o: LRSchedulerPlugin(StepLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 2)), {}, OTHER),
        (lambda o: LRSchedulerPlugin(LinearLR(o, 0.1, total_iters=2)), {}, RESET),
        (lambda o: LRSchedulerPlugin(SequentialLR(o, [ConstantLR(o, 1.0), StepLR(o, 2)], [2])), {}, RESET),
    ],
)
def test_what_avalanches_scheduler_would_not_do_is_refused(make, more, words):
    model = toy.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugins = make(optimizer)
    plugins = plugins if isinstance(plugins, list) else [plugins]
    with pytest.raises(UserError, match=words):
        Finetune(model=model, optimizer=optimizer, plugins=plugins, evaluator=toy.quiet(), **more)
