"""Hyper-parameters of objects made in Python are held to the ranges that hold in YAML."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import incrlt._compat  # noqa: F401  (before avalanche)

import numpy as np
import pytest
import torch
import toy

from incrlt.errors import UserError
from incrlt.experiment.fields import Fraction
from incrlt.experts import NCL, RIDE, SHIKE, ExpertMethod, Single
from incrlt.stages import LWS, ExpertAssignment
from incrlt.strategies import LUCIR, ICaRL, Replay


def with_memory(memory):
    model = toy.network()
    return Replay(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), memory=memory)


REFUSED = {
    "a typing error in a name": (
        lambda: Single(objective="balanced"),
        "Single: objective must be one of cross_entropy, balanced_softmax, logit_adjustment, running_prior, ldam; "
        "got 'balanced'. "
        "Did you mean 'balanced_softmax'?",
    ),
    "flavor": (lambda: RIDE(flavor="publishd"), "RIDE: flavor must be one of sane, published"),
    "no expert": (lambda: RIDE(num_experts=0), "RIDE: num_experts must be a whole number >= 1 and <= 64; got 0."),
    "no temperature": (lambda: RIDE(temperature=0), "RIDE: temperature must be a number > 0; got 0."),
    "not a number": (lambda: SHIKE(scale=float("nan")), "SHIKE: scale must be a number > 0; got nan."),
    "a truth value for a number": (lambda: NCL(num_experts=True), "NCL: num_experts must be a whole number"),
    "epochs of a stage": (lambda: LWS(epochs=-1), "LWS: epochs must be a whole number >= 1; got -1."),
    "threshold of a router": (
        lambda: ExpertAssignment(threshold=1.5),
        "ExpertAssignment: threshold must be a number >= 0 and <= 1; got 1.5.",
    ),
    "objective of a strategy": (lambda: toy.make(ICaRL, objective="sigmod"), "ICaRL: objective must be one of"),
    "read-out": (lambda: toy.make(LUCIR, readout="foo"), "LUCIR: readout must be one of cnn, nme; got 'foo'."),
    "a weight": (lambda: toy.make(LUCIR, less_forget=-5), "LUCIR: less_forget must be a number >= 0; got -5."),
    "negatives": (lambda: toy.make(LUCIR, negatives="al"), "LUCIR: negatives must be one of new, all"),
    "kernels": (lambda: toy.make(LUCIR, kernels="foo"), "kernels 'foo' is not known; allowed: auto, reference"),
    "a number for the memory": (
        lambda: with_memory(20),
        "memory is 20; give an object with a method update",
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", REFUSED)
def test_what_lies_outside_is_refused_where_it_is_made(make):
    build, words = REFUSED[make]
    with pytest.raises(UserError) as caught:
        build()
    assert words in str(caught.value)


def test_all_problems_of_one_object_are_listed():
    with pytest.raises(UserError) as caught:
        RIDE(width_factor=0, beta=2)
    assert "RIDE has 2 problems" in str(caught.value)
    assert "width_factor must" in str(caught.value)
    assert "beta must" in str(caught.value)


def test_numbers_of_numpy_and_paths_are_taken_as_they_are():
    teacher = Path("runs/teacher")
    method = RIDE(num_experts=np.int64(2), max_margin=np.float32(0.25), diversity=0, teacher=teacher)
    assert (method.num_experts, method.max_margin, method.teacher) == (2, 0.25, teacher)


def test_methods_of_others_are_held_to_their_annotations_in_text_or_not():
    @dataclass(frozen=True)
    class Mine(ExpertMethod):
        share: Fraction = 0.5

    class Yours(Replay):
        def __init__(self, *, rule, order: Literal["up", "down"] = "up", **template):
            super().__init__(**template)
            self.rule, self.order = rule, order

    Evaluated = dataclass_of_values()
    with pytest.raises(UserError, match="Mine: share must be a number"):
        Mine(share=2)
    with pytest.raises(UserError, match="Yours: order must be one of up, down; got 'left'"):
        toy.make(Yours, rule=object(), order="left")
    assert toy.make(Yours, rule=len, order="down").rule is len
    with pytest.raises(UserError, match="Evaluated: word must be one of a, b, or null; got 'c'"):
        Evaluated(word="c")


def dataclass_of_values():
    """A method whose annotations are objects, not text."""
    namespace = {
        "__annotations__": {"word": Literal["a", "b"] | None, "other": object},
        "word": None,
        "other": 0,
    }
    return dataclass(frozen=True)(type("Evaluated", (ExpertMethod,), namespace))


def test_constructors_keep_their_signature_and_objects_can_be_copied():
    assert inspect.signature(LUCIR).parameters["less_forget"].default == 5.0
    assert copy.deepcopy(RIDE()) == pickle.loads(pickle.dumps(RIDE())) == RIDE()
