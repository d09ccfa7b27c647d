"""What every strategy with every expert method must keep, found by listing the package: new files join alone.

The promises are those that :mod:`incrlt.testing` checks on a user's class.
"""

from __future__ import annotations

import itertools

import pytest

from incrlt.experiment.methods import load_class, names
from incrlt.testing import check_stage
from incrlt.testing.learners import Learner
from incrlt.testing.methods import PROMISES

PAIRS = list(itertools.product(names("strategy"), names("experts")))
SHORT = {(strategy, "single") for strategy in names("strategy")} | {
    ("lucir", experts) for experts in names("experts")
}
"""Pairs of the default suite: every method once; ``make soak`` takes the product."""


def case(pair):
    marks = () if pair in SHORT else (pytest.mark.soak,)
    return pytest.param(pair, id="-".join(pair), marks=marks)


@pytest.fixture(scope="module")
def learner():
    made = {}

    def once(pair):
        if pair not in made:
            made.clear()  # tests come pair by pair
            made[pair] = Learner(load_class("strategy", pair[0]), load_class("experts", pair[1]))
        return made[pair]

    return once


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.name)
@pytest.mark.parametrize("pair", [case(pair) for pair in PAIRS])
def test_promise(pair, promise, learner):
    promise(learner(pair))


LINEAR = {"tau_norm"}
"""Stages of linear heads alone."""
STAGES = [(kind, name) for kind in ("rebalance", "router") for name in names(kind)]


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "name"), STAGES)
def test_every_stage_keeps_what_is_promised_of_users_own(kind, name):
    check_stage(load_class(kind, name), head="linear" if name in LINEAR else "cosine")
