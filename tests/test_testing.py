"""A class that breaks promises is told which, what was found, and what to do."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch.nn.functional as F
from torch import nn

from incrlt.experts.single import Single
from incrlt.models.backbones.resnet import ResNet
from incrlt.stages.lws import LWS
from incrlt.strategies import Replay
from incrlt.testing import BrokenPromiseError, backbones, check_expert_method, stages
from incrlt.testing.backbones import BackboneCase
from incrlt.testing.stages import StageLearner


@dataclass(frozen=True)
class Bare(Single):
    """Returns a bare tensor where terms with names are wanted."""

    name = "bare"

    def loss(self, context, output, labels):
        return sum(super().loss(context, output, labels).values())


def test_a_broken_promise_says_what_was_promised_found_and_is_to_do():
    with pytest.raises(BrokenPromiseError) as caught:
        check_expert_method(Bare, partners=["finetune"])
    text = str(caught.value)
    assert text.startswith("1 of 20 promises broken\nFinetune with experts Bare breaks a promise")
    assert "promised: Half of the images of four classes are known after 16 epochs" in text
    assert "return named terms, such as" in text, "what the template said"
    assert "to do:    run it in a script" in text


# ---------------------------------------------------------------------------- a backbone


class Small:
    """Flattened images to features; nothing is shared."""

    shares = ("nothing",)
    wishes = ("width_factor",)  # which it does not read

    def __init__(self, **settings):
        self.last_relu = settings["last_relu"]
        self.only = self.made()

    def made(self):
        return Features(self.last_relu)

    def stem(self, layout):
        return nn.Identity()

    def branch(self, layout, expert):
        return self.made()


class Features(nn.Module):
    """A linear map that looks at the batch."""

    num_features = 16

    def __init__(self, last_relu):
        super().__init__()
        self.linear, self.last_relu = nn.Linear(64, 16), last_relu

    def forward(self, x):
        features = self.linear(x.flatten(1))
        return F.relu(features) if self.last_relu else features


class Faulty(Small):
    """Gives one module to all, keeps its ReLU, and looks at the other images of a batch."""

    def __init__(self, **settings):
        super().__init__(**{**settings, "last_relu": True})

    def branch(self, layout, expert):
        return self.only

    def made(self):
        return Crowded(self.last_relu)


class Crowded(Features):
    """Has a module that it does not use, and remembers in an attribute."""

    def __init__(self, last_relu):
        super().__init__(last_relu)
        self.idle, self.seen = nn.Linear(2, 2), 0.0

    def forward(self, x):
        features = super().forward(x - x.mean(0))
        self.seen += 0.001 * self.training
        return features + self.seen


def broken(promises, case):
    """Names of the promises that a class breaks, to what was found."""
    found = {}
    for one in promises:
        try:
            one(case)
        except BrokenPromiseError as error:
            found[one.name] = str(error)
    return found


def test_a_faulty_backbone_is_told_each_promise_that_it_breaks():
    found = broken(backbones.PROMISES, BackboneCase(Faulty))
    assert set(found) == {
        "each-call-makes-new-modules",
        "an-image-is-answered-alone-as-in-a-batch",
        "every-weight-is-trained",
        "features-carry-a-sign-without-the-last-relu",
        "a-width-that-is-read-changes-the-branches",
        "its-state-and-its-copy-bring-it-back",
    }
    assert "backbone Faulty breaks a promise" in found["each-call-makes-new-modules"]
    assert "two calls of branch gave the same weights" in found["each-call-makes-new-modules"]
    assert "branches.0.idle.weight" in found["every-weight-is-trained"]
    assert "a fresh network with its state answers otherwise" in found["its-state-and-its-copy-bring-it-back"]
    assert set(broken(backbones.PROMISES, BackboneCase(Small))) == {
        "a-width-that-is-read-changes-the-branches"
    }


class ResNet8(ResNet):
    """The smallest network of the package under a name of its own."""

    def __init__(self, **settings):
        super().__init__(**settings, blocks=1)


def test_the_backbone_of_the_package_keeps_its_promises():
    assert broken(backbones.PROMISES, BackboneCase(ResNet8)) == {}


# ---------------------------------------------------------------------------- a stage


@dataclass(frozen=True)
class Loose(LWS):
    """LWS that counts its runs, moves the backbone that it says is frozen, and is a stage longer than it tells."""

    runs: int = 0

    def stages(self, strategy, first):
        object.__setattr__(self, "runs", self.runs + 1)
        _, own = super().stages(strategy, first)
        moving = replace(own, name="moving", epochs=1, prepare=self._move)
        return first, own, moving

    def _move(self, network, num_old):
        network.stem.conv.weight.data += 0.01


CHECKED = ("the_first_stage_stays_first", "the_stage_holds_no_state",
           "it_trains_what_it_names_and_leaves_a_frozen_backbone")  # fmt: skip


def checked(cls):
    """Promises of the stage alone; the others are those of methods, tested above."""
    own = [one for one in stages.PROMISES if one.name.replace("-", "_") in CHECKED]
    return broken(own, StageLearner(cls, Replay, Single))


def test_a_faulty_stage_is_told_each_promise_that_it_breaks():
    found = checked(Loose)
    assert set(found) == {
        "the-stage-holds-no-state",
        "it-trains-what-it-names-and-leaves-a-frozen-backbone",
    }
    assert "stage Loose after Replay breaks a promise" in found["the-stage-holds-no-state"]
    moved = found["it-trains-what-it-names-and-leaves-a-frozen-backbone"]
    assert "stem.conv.weight moved in stage 'moving' of experience 0, with frozen_backbone" in moved
