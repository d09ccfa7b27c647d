"""What every second or last stage promises: a rebalancing stage, or a router."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from incrlt.experiment.methods import Kind, load_class
from incrlt.experts.base import ExpertMethod
from incrlt.testing import digits, methods
from incrlt.testing.learners import FIRST, Learner, Part, Settings, short
from incrlt.testing.promises import Promise, check_all, expect, expect_frozen, promise
from incrlt.training.optim import held_by
from incrlt.training.template import IncrTemplate
from incrlt.types import Stage


def check_stage(
    cls: type, *, partners: Sequence[str] = ("replay",), head: str = "cosine", **hyper_parameters: object
) -> None:
    """Check on digits that a rebalancing stage or a router of yours does what every one here does.

    Args:
        cls: Its class; with a method ``stages`` it stands under ``rebalance:``, with ``stage`` under ``router:``.
        partners: Strategies that it follows; some twenty seconds of one core for each. A router's have RIDE.
        head: ``cosine`` or ``linear``.
        hyper_parameters: Those of its fields that are to differ from the defaults; ``epochs`` is 2 unless it is given.

    Raises:
        BrokenPromiseError: The promises that it breaks, what was found, and what to do.
    """
    experts: type[ExpertMethod] = load_class("experts", "ride" if kind_of(cls) == "router" else "single")
    for name in partners:
        strategy: type[IncrTemplate] = load_class("strategy", name)
        check_all(PROMISES, StageLearner(cls, strategy, experts, hyper_parameters, head))


def kind_of(cls: type) -> Kind:
    """Tell a router from a rebalancing stage by the method that it has."""
    return "rebalance" if hasattr(cls, "stages") else "router"


class StageLearner(Learner):
    """A strategy with a second or last stage.

    Args:
        stage: Class of the stage.
        strategy: Class of the strategy.
        experts: Class of the expert method.
        stage_settings: Hyper-parameters of the stage.
        head: Of the network.
    """

    def __init__(
        self,
        stage: type,
        strategy: type[IncrTemplate],
        experts: type[ExpertMethod],
        stage_settings: Settings | None = None,
        head: str = "cosine",
    ) -> None:
        count = {"num_experts": 2} if "num_experts" in getattr(experts, "__dataclass_fields__", {}) else {}
        super().__init__(strategy, experts, expert_settings=count if kind_of(stage) == "router" else None)
        self.stage, self.head, self.kind = stage, head, kind_of(stage)
        self.stage_settings = {**short(self.kind, stage), **(stage_settings or {})}

    @property
    def subject(self) -> str:
        """How messages call it."""
        return f"stage {self.stage.__name__} after {self.strategy.__name__}"

    def part(self) -> Any:
        """Make the stage."""
        return self.stage(**self.stage_settings)

    def build(self, experts: ExpertMethod | None = None, **options: object) -> IncrTemplate:
        """Make the strategy with the stage."""
        return super().build(experts, **{"head": self.head, self.kind: self.part(), **options})

    def parts(self) -> list[Part]:
        """Return strategy, experts and stage, each with its hyper-parameters."""
        made = self.part()
        own = {name: getattr(made, name) for name in getattr(self.stage, "__dataclass_fields__", {})}
        return [*super().parts(), (self.kind, self.stage, own)]

    @functools.cached_property
    def stages(self) -> list[Stage]:
        """The stages of the first experience."""
        strategy, found = self.build(train_epochs=1), list[Stage]()

        def note(running: IncrTemplate) -> None:
            if running.stage_index == 0:
                found.extend(running.stages(running.experience))

        strategy.on_epoch_end = note
        digits.train(strategy, digits.stream().train_stream[:1])
        return found

    def later(self) -> list[Stage]:
        """Return the stages after the first, those without epochs left out."""
        return [stage for stage in self.stages[1:] if stage.epochs]


@promise("return the strategy's first stage and yours: return first, Stage('mine', self.epochs, ...).")
def the_first_stage_stays_first(case: StageLearner) -> None:
    """Its stages follow the strategy's first one, and each has a name of its own."""
    names = [stage.name for stage in case.stages]
    expect(names[0] == "train", f"stages {names}; the first one is 'train'")
    expect(len(set(names)) == len(names) > 1, f"stages {names}; two of one name, or none beside the first")


@promise("make it @dataclass(frozen=True), and keep what runs over in the network's buffers.")
def the_stage_holds_no_state(case: StageLearner) -> None:
    """It is frozen, and after training what it was before."""
    part = case.part()
    before = copy.deepcopy(vars(part))
    strategy = case.build(train_epochs=1, **{case.kind: part})
    digits.train(strategy, digits.stream().train_stream[:2])
    expect(vars(part) == before, f"{before} became {vars(part)}")
    expect_frozen(part)


@promise(
    "let parameters(model) name what trains, and say frozen_backbone=True where stem and branches are to stay."
)
def it_trains_what_it_names_and_leaves_a_frozen_backbone(case: StageLearner) -> None:
    """In each of its stages what parameters(model) names moves; stem and branches stay to the bit where frozen."""
    strategy, before = case.build(train_epochs=1), list[dict[str, Tensor]]()
    told: list[str] = []

    def note(running: IncrTemplate) -> None:
        now = digits.weights(running.model)
        stage = running.stage
        if running.stage_index and running.stage_epoch + 1 == stage.epochs:
            moved = digits.changed(before[-1], now)
            told.extend(_wrong(running, stage, moved))
        if running.stage_epoch + 1 == stage.epochs:
            before.append(now)

    strategy.on_epoch_end = note
    torch.manual_seed(1)
    digits.train(strategy, digits.stream().train_stream[:2])
    expect(not told, "; ".join(told))


def _wrong(strategy: IncrTemplate, stage: Stage, moved: set[str]) -> list[str]:
    ids = {id(p) for p in held_by(strategy.optimizer)}
    own = {name for name, p in strategy.model.named_parameters() if id(p) in ids}
    where = f"stage {stage.name!r} of experience {strategy.experience_index}"
    found = [] if own & moved else [f"nothing moved in {where} of {sorted(own)[:5]}"]
    backbone = sorted(name for name in moved if name.startswith(("stem", "branches")))
    if stage.frozen_backbone and backbone:
        found.append(f"{', '.join(backbone[:5])} moved in {where}, with frozen_backbone")
    others = sorted(name for name, _ in strategy.model.named_parameters() if name in moved - own)
    if others and stage.prepare is None:  # which may set what it likes before the first epoch
        found.append(f"{', '.join(others[:5])} moved in {where}, which its parameters do not name")
    return found


@promise("a loss sees counts through incrlt.experts.base.log_prior or never_zero, which have no log of 0.")
def its_loss_is_finite_where_a_class_has_one_image_or_none(case: StageLearner) -> None:
    """The terms of its own losses are finite where a class has one image and an old one none."""
    for stage in case.later():
        if stage.loss is None:
            continue
        logits, output, labels = methods.answered(case)
        terms = stage.loss(case.context(1, 2, {}), output, labels)
        expect(all(bool(term.isfinite()) for term in terms.values()), f"terms {methods.values_of(terms)}")
        total = torch.stack(list(terms.values())).sum()
        if total.requires_grad:
            total.backward()
            kept = logits.grad is None or bool(logits.grad.isfinite().all())
            expect(kept, "gradients that are not finite")


@promise("read images from the batch alone, and let cache_features be a choice that is off by default.")
def it_runs_on_the_loader_of_avalanche(case: StageLearner) -> None:
    """It trains on an ordinary loader of finished images, unless it is to store features."""
    if not any(stage.cache_features for stage in case.later()):
        methods.learns(case.build(fast_data=False, train_epochs=1, base_epochs=FIRST))


@promise("look at the weights after prepare: it is not called where a run goes on inside the stage.")
def a_run_stopped_inside_the_last_stage_goes_on(case: StageLearner) -> None:
    """Stopped inside the last stage, where it has two epochs, it ends in the same bits."""
    if case.later()[-1].epochs > 1:
        methods.a_run_stopped_inside_the_last_stage_goes_on.holds(case)


STATE = (
    "keep what runs over in the network's buffers: a stage is made anew when a run goes on, and "
    "prepare is not called."
)
DECLARED = (
    "write hyper-parameters as fields with a type of incrlt.experiment.fields, and names and lengths of its stages in "
    "later_stages; see incrlt.experiment.declared."
)

PROMISES: tuple[Promise[Any], ...] = (
    methods.it_learns_the_stream,
    the_first_stage_stays_first,
    methods.loss_terms_are_named_and_finite,
    its_loss_is_finite_where_a_class_has_one_image_or_none,
    the_stage_holds_no_state,
    it_trains_what_it_names_and_leaves_a_frozen_backbone,
    it_runs_on_the_loader_of_avalanche,
    methods.evaluation_changes_neither_weights_nor_random_states,
    methods.the_same_seeds_give_the_same_bits_and_others_do_not,
    replace(methods.a_run_stopped_between_stages_goes_on, advice=STATE),
    a_run_stopped_inside_the_last_stage_goes_on,
    replace(methods.its_state_is_plain_and_brings_it_back, advice=STATE),
    replace(methods.yaml_and_a_dry_run_know_what_it_trains, advice=DECLARED),
)
"""In the order in which they are checked; the others build on the first."""
