"""The small values that the template works with, each alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import incrlt.models
from incrlt.errors import UserError
from incrlt.training import epoch as epochs
from incrlt.training.arrival import take_in
from incrlt.training.epoch import EpochRun
from incrlt.training.optim import Upkeep
from incrlt.training.readouts import all_scores
from incrlt.training.state import Awaited
from incrlt.training.terms import named
from incrlt.types import ModelOutput


def parameters(*shapes):
    return [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]


class TestUpkeep:
    def optimizer(self, first, second):
        made = torch.optim.SGD(
            [{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.4}], momentum=0.5
        )
        first.grad, second.grad = torch.full_like(first, 2.0), torch.full_like(second, 3.0)
        made.step()
        return made

    @pytest.mark.parametrize("first_rates", [True, False])
    @pytest.mark.parametrize("forget", [True, False])
    def test_an_experience_begins_with_the_first_rates_and_without_momentum_where_asked(
        self, first_rates, forget
    ):
        first, second = parameters((2, 3), 4)
        optimizer = self.optimizer(first, second)
        upkeep = Upkeep(optimizer)
        for group in optimizer.param_groups:
            group["lr"] /= 8
        upkeep.begin(optimizer, first_rates=first_rates, forget=forget)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == ([0.1, 0.4] if first_rates else [0.1 / 8, 0.4 / 8])
        assert (not optimizer.state) is forget
        if not forget:
            assert torch.equal(optimizer.state[second]["momentum_buffer"], torch.full((4,), 3.0))

    def test_grown_parameters_are_carried_once_with_the_momentum_of_their_old_rows(self):
        old, kept, grown = parameters((2, 3), 4, (3, 3))
        optimizer = self.optimizer(old, kept)
        upkeep = Upkeep(optimizer)
        upkeep.note([(old, grown)])
        upkeep.carry(optimizer)
        assert optimizer.param_groups[0]["params"][0] is grown
        assert optimizer.state[grown]["momentum_buffer"].tolist() == [[2.0] * 3, [2.0] * 3, [0.0] * 3]
        optimizer.param_groups[0]["params"] = [old]
        upkeep.carry(optimizer)  # nothing is left to carry
        assert optimizer.param_groups[0]["params"][0] is old


class TestEpochRun:
    def test_what_runs_inside_is_measured(self, monkeypatch):
        clock = iter([10.0, 12.5, 20.0, 21.0])
        monkeypatch.setattr(epochs.time, "perf_counter", lambda: next(clock))
        optimizer, run = torch.optim.SGD(parameters(1), lr=0.25), EpochRun()
        with run.measured(optimizer):
            run.images += 7
            optimizer.param_groups[0]["lr"] = 0.5  # a plugin within the epoch
        assert (run.images, run.seconds, run.lr) == (7, 2.5, 0.25)
        with run.measured(optimizer):
            run.images += 3
        assert (run.images, run.seconds, run.lr) == (3, 1.0, 0.5)


class TestScores:
    output = ModelOutput(torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0]]]))
    model = SimpleNamespace(router="the router")

    def beside(self, model, output):
        assert model is self.model and output is self.output
        return {"analytic": output.logits + 1}

    def read_out(self, router, output):
        assert router == "the router" and output is self.output
        return output.logits * 2, torch.tensor([1])

    def scores(self, rebalance, router, output=None):
        own = {"nme": torch.zeros(1, 2)}
        found, used = all_scores(own, output or self.output, self.model, rebalance, router)
        return {name: value.tolist() for name, value in found.items()}, used, own

    def test_the_strategys_own_come_first_and_the_routers_last(self):
        rebalance, router = SimpleNamespace(readouts=self.beside), SimpleNamespace(read_out=self.read_out)
        found, used, own = self.scores(rebalance, router)
        assert list(found.items()) == [
            ("nme", [[0.0, 0.0]]), ("analytic", [[2.0, 1.0]]), ("routed", [[2.0, 0.0]]),
        ]  # fmt: skip
        assert used.tolist() == [1]
        assert list(own) == ["nme"]  # what the strategy gave is left as it was

    def test_a_stage_without_read_outs_and_no_router_add_nothing(self):
        assert self.scores(SimpleNamespace(), None)[:2] == ({"nme": [[0.0, 0.0]]}, None)

    def test_a_router_waits_for_the_first_class(self):
        def never(router, output):
            raise AssertionError("there is nothing to answer with")

        nothing = ModelOutput(torch.zeros(1, 0), torch.zeros(1, 1, 0))
        assert self.scores(None, SimpleNamespace(read_out=never), nothing)[1] is None


class TestAwaited:
    def saved(self, trained, stage=1):
        return {"progress": {"stage": stage, "trained": trained}, "memory": "exemplars"}

    def test_nothing_waits_at_first(self):
        awaited = Awaited()
        assert (awaited.inside, awaited.stage, awaited.arrive(0)) == (False, 0, None)

    @pytest.mark.parametrize("trained", [True, False])
    def test_training_goes_on_inside_an_experience_that_was_not_trained_whole(self, trained):
        awaited = Awaited()
        awaited.wait(self.saved(trained), ["experience"])
        assert (awaited.inside, awaited.stage) == (not trained, 1)
        awaited.drop()
        assert (awaited.inside, awaited.stage) == (False, 0)

    def test_it_is_given_once_and_in_its_own_stage_alone(self):
        awaited, saved = Awaited(), self.saved(False)
        awaited.wait(saved, [])
        assert awaited.arrive(1) is saved and awaited.arrive(1) is None
        awaited.wait(saved, [])
        assert awaited.arrive(2) is None and awaited.arrive(1) is None  # its stage has no epochs any more

    def test_exemplars_come_back_as_they_were_saved(self):
        given = []
        memory = SimpleNamespace(load_state_dict=lambda *values: given.append(values))
        awaited = Awaited()
        awaited.restore_memory(memory)
        awaited.wait(self.saved(False), ["experience"])
        awaited.restore_memory(memory)
        assert given == [("exemplars", ["experience"])]


class TestArrival:
    def experience(self, labels, names=None):
        stream = SimpleNamespace(benchmark=SimpleNamespace(class_names=names))
        return SimpleNamespace(
            classes_in_this_experience=labels,
            dataset=SimpleNamespace(targets=labels),
            logging=lambda: SimpleNamespace(_origin_stream=stream),
        )

    def test_new_classes_are_appended_in_the_order_of_their_labels(self):
        network = incrlt.models.build("resnet8", width=8)
        take_in(network, self.experience([5, 2]))
        assert network.class_ids == [2, 5]
        rows = network.heads[0].weight[:2].clone()
        take_in(network, self.experience([2, 9, 1, 5]))
        assert network.class_ids == [2, 5, 1, 9]
        assert torch.equal(network.heads[0].weight[:2], rows)

    def test_classes_that_come_again_replace_nothing(self):
        network = incrlt.models.build("resnet8", width=8)
        take_in(network, self.experience([0, 1]))
        before = list(network.parameters())
        assert take_in(network, self.experience([1, 0])) == []
        assert all(a is b for a, b in zip(before, network.parameters(), strict=True))

    def test_names_are_learned_and_another_name_is_refused(self):
        network = incrlt.models.build("resnet8", width=8)
        take_in(network, self.experience([0, 1], ["owl", "wren"]))
        assert network.class_names == {0: "owl", 1: "wren"}
        with pytest.raises(UserError, match="wren"):
            take_in(network, self.experience([1], ["owl", "crow"]))


def test_a_loss_gives_named_terms():
    terms = {"focal": torch.zeros(())}
    assert named(terms, "own") is terms
    with pytest.raises(UserError, match=r"the loss of experts 'own' is a Tensor; return named terms"):
        named(terms["focal"], "own")
