"""What every strategy with every expert method promises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from incrlt.experiment.methods import find, load_class
from incrlt.experts.base import ExpertMethod
from incrlt.models.named import name_of
from incrlt.plugins.features import evaluation
from incrlt.testing import digits
from incrlt.testing.learners import FIRST, Learner, Weights, batch, has_a_file, plain, resumed
from incrlt.testing.promises import Promise, check_all, expect, expect_frozen, promise
from incrlt.training.template import IncrTemplate
from incrlt.types import LossTerms, ModelOutput


def check_strategy(
    cls: type[IncrTemplate], *, partners: Sequence[str] = ("single", "shike"), **hyper_parameters: object
) -> None:
    """Check on digits that a strategy of yours does what every strategy here does.

    Args:
        cls: Its class.
        partners: Expert methods that it is trained with; some twenty seconds of one core for each.
        hyper_parameters: Those of its constructor that are to differ from the defaults.

    Raises:
        BrokenPromiseError: The promises that it breaks, what was found, and what to do.

    Example::

        def test_my_strategy():
            check_strategy(MyStrategy, distillation=2.0)
    """
    for name in partners:
        experts: type[ExpertMethod] = load_class("experts", name)
        check_all(PROMISES, Learner(cls, experts, settings=hyper_parameters))


def check_expert_method(
    cls: type[ExpertMethod], *, partners: Sequence[str] = ("finetune", "lucir"), **hyper_parameters: object
) -> None:
    """Check on digits that an expert method of yours does what every one here does.

    Args:
        cls: Its class.
        partners: Strategies that it is trained under; some twenty seconds of one core for each.
        hyper_parameters: Those of its fields that are to differ from the defaults; stages (fields that end in
            ``_epochs``) are two epochs long unless they are given.

    Raises:
        BrokenPromiseError: The promises that it breaks, what was found, and what to do.
    """
    for name in partners:
        strategy: type[IncrTemplate] = load_class("strategy", name)
        check_all(PROMISES, Learner(strategy, cls, expert_settings=hyper_parameters))


# ---------------------------------------------------------------------------- it trains


@promise("run it in a script with one experience; the traceback says where it stops.")
def it_learns_the_stream(case: Learner) -> None:
    """Half of the images of four classes are known after 16 epochs, and three experiences are trained to their end."""
    run = case.trained
    expect(run.accuracies[0] > 0.5, f"accuracy {run.accuracies[0]:.2f}; chance is 0.25")
    expect(run.strategy.seen_classes == list(range(10)), f"classes seen: {run.strategy.seen_classes}")
    expect(run.strategy.experience_index == 3, f"experiences trained: {run.strategy.experience_index}")


@promise("return a dict of named scalar tensors from loss_terms or loss, and guard divisions and logarithms.")
def loss_terms_are_named_and_finite(case: Learner) -> None:
    """Every epoch has loss terms, with names, and all are finite."""
    run = case.trained
    firsts = [t for t, stage, _ in run.terms if stage == "train"]
    expect(firsts == [0] * FIRST + [1] * 3 + [2] * 3, f"experiences of the first stage's epochs: {firsts}")
    for t, stage, terms in run.terms:
        expect(bool(terms), f"no terms in stage {stage!r} of experience {t}")
        for name, value in terms.items():
            expect(isinstance(name, str) and bool(name), f"a term is called {name!r}")
            expect(math.isfinite(value), f"{name} is {value} in stage {stage!r} of experience {t}")


@promise("check the sign of the terms, and that nothing is detached between the network and the loss.")
def the_loss_of_the_first_experience_falls(case: Learner) -> None:
    """The sum of the terms falls by a fifth or more over 16 epochs on the first experience."""
    losses = [sum(v.values()) for t, stage, v in case.trained.terms if t == 0 and stage == "train"]
    expect(losses[-1] < 0.8 * losses[0], f"from {losses[0]:.4f} to {losses[-1]:.4f}")


@promise(
    "loss terms see counts through incrlt.experts.base.log_prior or incrlt.losses.margins.never_zero, which have no log"
    " of 0; divide by what cannot be 0."
)
def a_class_with_one_image_or_none_is_no_special_case(case: Learner) -> None:
    """Loss and gradients are finite where a class has one image and an old one none."""
    logits, output, labels = answered(case)
    terms = case.method().loss(case.context(3, 4, {}), output, labels)
    expect(all(bool(term.isfinite()) for term in terms.values()), f"terms {values_of(terms)}")
    torch.stack(list(terms.values())).sum().backward()
    expect(logits.grad is not None and bool(logits.grad.isfinite().all()), "gradients that are not finite")


@promise("write phase() so that it changes whenever the loss does; returning context.epoch is always right.")
def the_phase_tells_when_the_loss_changes(case: Learner) -> None:
    """The loss of one batch is the same in all epochs between which phase() does not change."""
    method, constants, found = case.method(), {}, {}  # type: ExpertMethod, dict[object, object], dict[object, object]
    for epoch in range(10):
        _, output, labels = answered(case)
        context = case.context(epoch, 10, constants)
        torch.manual_seed(0)
        values = values_of(method.loss(context, output, labels))
        before = found.setdefault(method.phase(context), values)
        expect(
            before == values, f"epoch {epoch}: {values}, earlier in phase {method.phase(context)}: {before}"
        )


@promise(
    "weigh experts so that the first k alone make an answer, image by image: bring their weights to a sum of one."
)
def any_number_of_experts_makes_one_answer(case: Learner) -> None:
    """combine() takes the first 1, 2, ... K experts, and an image's answer does not depend on those beside it."""
    logits = answered(case)[0].detach()
    method = case.method()
    for k in range(1, len(logits) + 1):
        answer = method.combine(logits[:k])
        expect(
            answer.shape == logits.shape[1:],
            f"shape {list(answer.shape)} of {k} experts' {list(logits[:k].shape)}",
        )
        rows = torch.stack([method.combine(logits[:k, i : i + 1])[0] for i in range(logits.shape[1])])
        expect(
            torch.allclose(rows, answer, rtol=1e-4, atol=1e-5), f"other answers one by one, of {k} experts"
        )


def answered(case: Learner) -> tuple[Tensor, ModelOutput, Tensor]:
    """Return logits ``[K, B, C]`` that take gradient, the output of the trained network on them, and labels."""
    images, labels = batch()
    model = case.trained.strategy.model
    with torch.no_grad(), evaluation(model):  # running statistics stay as training left them
        told = model.forward_all(images, rebalanced=False, maps=case.experts.needs_maps)
    logits = told.expert_logits.clone().requires_grad_()
    output = ModelOutput(
        case.trained.strategy.model.combine(logits),
        logits,
        told.features,
        told.cosines,
        told.scales,
        told.combine,
        told.maps,
    )
    return logits, output, labels


def values_of(terms: LossTerms) -> dict[str, float]:
    """Return terms as numbers."""
    return {name: float(term.detach()) for name, term in terms.items()}


# ---------------------------------------------------------------------------- what moves, what stays


@promise("change nothing in readouts() or forward passes; draw random numbers in training alone.")
def evaluation_changes_neither_weights_nor_random_states(case: Learner) -> None:
    """Evaluation, of classes yet to come as well, leaves weights, seen classes and random states as they were."""
    run = case.trained
    expect(run.touched == [set()] * 3, f"changed: {sorted(set().union(*run.touched))}")
    expect(all(before == after for before, after in run.random), "random states moved")


@promise("make it @dataclass(frozen=True), and keep what runs over in the network's buffers.")
def the_expert_method_holds_no_state(case: Learner) -> None:
    """An expert method is frozen, and after training what it was before."""
    experts, before = case.trained.strategy.experts, case.trained.experts_before
    expect(vars(experts) == vars(before) and experts == before, f"{vars(before)} became {vars(experts)}")
    expect_frozen(experts)


@promise(
    "say freeze_old_rows = True on a strategy whose frozen_rows() freezes them in the first stage, else leave it out."
)
def rows_of_old_classes_stay_where_the_strategy_says_so(case: Learner) -> None:
    """Head rows of old classes stay to the bit if, and only if, the strategy's freeze_old_rows is true."""
    run = case.trained
    pairs = [rows for experience in run.rows[1:] for rows in experience]
    kept = all(torch.equal(before, after) for before, after in pairs)
    said = bool(getattr(run.strategy, "freeze_old_rows", False))
    expect(kept == said, f"rows {'stayed' if kept else 'moved'}, freeze_old_rows is {said}")


@promise("leave the teacher to the template: set uses_teacher = True and ask teacher_output().")
def the_teacher_is_the_frozen_model_of_the_experience_before(case: Learner) -> None:
    """With uses_teacher there is a frozen copy of the model of before; without, there is none."""
    strategy = case.trained.strategy
    teacher = strategy.teacher
    if not strategy.uses_teacher:
        expect(teacher is None, "a teacher where uses_teacher is False")
        return
    assert teacher is not None, "no teacher"
    moved = digits.changed(digits.weights(teacher), digits.weights(strategy.model))
    expect(not moved, f"it differs from the model in {sorted(moved)}")
    expect(not teacher.training, "it is in training mode")
    expect(not any(p.requires_grad for p in teacher.parameters()), "its parameters take gradient")
    own = {p.data_ptr() for p in strategy.model.parameters()}
    expect(not own & {p.data_ptr() for p in teacher.parameters()}, "it shares memory with the model")


# ---------------------------------------------------------------------------- any number, any loader, any backend


def learns(strategy: IncrTemplate) -> None:
    """Train on two experiences; the classes of the first are learned well above chance."""
    torch.manual_seed(1)
    stream = digits.stream()
    strategy.train(stream.train_stream[0])
    accuracy = digits.accuracy(strategy, stream.test_stream[:1])
    strategy.train(stream.train_stream[1])
    expect(accuracy > 0.5, f"accuracy {accuracy:.2f} on four classes; chance is 0.25")
    expect(all(map(math.isfinite, strategy.epoch_terms.values())), f"terms {strategy.epoch_terms}")


def _with_experts(case: Learner, num_experts: int) -> None:
    if "num_experts" not in getattr(case.experts, "__dataclass_fields__", {}):
        return  # it has the number that its layout says, which the other promises train
    strategy = case.build(case.method(num_experts=num_experts), train_epochs=1, base_epochs=FIRST)
    learns(strategy)
    asked, found = strategy.experts.layout.num_experts, strategy.model.num_experts
    expect(found == asked == num_experts, f"network {found}, layout {asked}, asked for {num_experts}")


@promise("treat the first axis as any K >= 1: no term may need a second expert.")
def it_runs_with_one_expert(case: Learner) -> None:
    """A method with a field num_experts trains with one."""
    _with_experts(case, 1)


@promise("let layout return Layout(num_experts=self.num_experts).")
def it_runs_with_two_experts(case: Learner) -> None:
    """A method with a field num_experts trains with two."""
    _with_experts(case, 2)


@promise("read what the batch is from output and labels alone; second views need needs = {'tensors': ...}.")
def it_runs_on_the_loader_of_avalanche(case: Learner) -> None:
    """It trains on an ordinary loader of finished images."""
    learns(case.build(fast_data=False, train_epochs=1, base_epochs=FIRST))


@promise("compare your closed form or kernel with incrlt.losses on the same batch, gradients too.")
def kernels_change_nothing_beyond_rounding(case: Learner) -> None:
    """Terms and weights after two experiences are those of the reference backend."""

    def run(kernels: str) -> tuple[list[dict[str, float]], Weights]:
        terms: list[dict[str, float]] = []

        def note(strategy: IncrTemplate) -> None:
            terms.append(dict(strategy.epoch_terms))

        torch.manual_seed(0)
        # a large rate would turn differences in the last digit into other trajectories
        strategy = case.build(lr=1e-4, train_epochs=2, kernels=kernels)
        strategy.on_epoch_end = note
        digits.train(strategy, digits.stream().train_stream[:2])
        return terms, digits.weights(strategy.model)

    (terms, weights), (wanted_terms, wanted) = run("auto"), run("reference")
    expect([list(epoch) for epoch in terms] == [list(epoch) for epoch in wanted_terms], "other terms")
    for epoch, expected in zip(terms, wanted_terms, strict=True):
        near = all(math.isclose(epoch[n], expected[n], rel_tol=1e-4, abs_tol=1e-5) for n in epoch)
        expect(near, f"terms {epoch}, of the reference {expected}")
    for name, value in weights.items():
        near = torch.allclose(value, wanted[name], rtol=1e-3, atol=1e-4, equal_nan=True)
        expect(near, f"{name} differs by {(value - wanted[name]).abs().max()} from the reference")


# ---------------------------------------------------------------------------- the same bits


@promise("draw random numbers from torch's generators alone, never from time, hash() or NumPy's own.")
def the_same_seeds_give_the_same_bits_and_others_do_not(case: Learner) -> None:
    """Equal seeds give equal weights; another order of images or another augmentation reaches the first convolution."""
    first = case.two_experiences()
    moved = digits.changed(first, case.two_experiences())
    expect(not moved, f"two runs differ in {sorted(moved)}")
    convolution = next(name for name in first if name.endswith("conv.weight"))
    for seed in ("batch_seed", "augmentation_seed"):
        reached = convolution in digits.changed(first, case.two_experiences(**{seed: 1}))
        expect(reached, f"{seed}=1 does not change {convolution}")


def _goes_on(case: Learner, stop: Callable[[IncrTemplate], bool]) -> None:
    again = resumed(lambda: case.build(train_epochs=3), stop)
    moved = digits.changed(case.uninterrupted, again)
    expect(not moved, f"other weights in {sorted(moved)}")


STATE = (
    "return what your class remembers from extra_state() and take it back in load_extra_state(); begin_experience() is "
    "not called when a run goes on."
)


@promise(STATE)
def a_run_stopped_inside_the_first_stage_goes_on(case: Learner) -> None:
    """Stopped after the first epoch of the second experience, it ends in the same bits."""
    _goes_on(case, lambda s: s.stage_index == 0 and s.stage_epoch == 0)


@promise(STATE)
def a_run_stopped_between_stages_goes_on(case: Learner) -> None:
    """Stopped after the last epoch of the first stage, it ends in the same bits."""
    _goes_on(case, lambda s: s.stage_index == 0 and s.stage_epoch + 1 == s.stage.epochs)


@promise(STATE)
def a_run_stopped_inside_the_last_stage_goes_on(case: Learner) -> None:
    """Stopped inside the last stage, it ends in the same bits."""
    _goes_on(case, lambda s: s.stage_index + 1 == len(s.stages(s.experience)) and s.stage_epoch == 1)


@promise(STATE)
def its_state_is_plain_and_brings_it_back(case: Learner) -> None:
    """The state of a trained strategy, loaded into a fresh one, gives the same weights and the same answers."""
    run, copy = case.trained, case.build()
    copy.load_state_dict(run.strategy.state_dict(trained=True), digits.stream().train_stream)
    moved = digits.changed(digits.weights(run.strategy.model), digits.weights(copy.model))
    expect(not moved, f"other weights in {sorted(moved)}")
    accuracy = digits.accuracy(copy, digits.stream().test_stream)
    expect(accuracy == run.accuracies[-1], f"accuracy {accuracy}, before {run.accuracies[-1]}")
    plain(run.strategy.state_dict(trained=True))


# ---------------------------------------------------------------------------- what YAML and a dry run know


@promise(
    "write hyper-parameters as keyword-only arguments (strategy) or fields (expert method) with a type of "
    "incrlt.experiment.fields, and the length of own stages in later_stages; see incrlt.experiment.declared."
)
def yaml_and_a_dry_run_know_what_it_trains(case: Learner) -> None:
    """Its hyper-parameters can be set in YAML, and a dry run counts the epochs that are trained."""
    later, kinds = [0, 0, 0], [part for part in case.parts() if has_a_file(part[1])]
    for kind, cls, settings in kinds:
        declared = find(kind, name_of(cls))
        expect(not declared.faults, "; ".join(declared.faults))
        values = {key: default for key, (_, default) in declared.parameters.items()}
        values |= declared.usual(settings) | dict(settings)
        for t, (old, new) in enumerate(((0, 4), (4, 3), (7, 3))):
            told = declared.later_stages({**values, "num_old": old, "num_new": new, "images": 24 * new})
            later[t] += sum(stage.epochs for stage in told)
    if len(kinds) == len(case.parts()):
        found = [epochs - first for epochs, first in zip(case.trained.epochs, (FIRST, 3, 3), strict=True)]
        expect(
            found == later, f"later stages trained {found} epochs in three experiences, declared are {later}"
        )


PROMISES: tuple[Promise[Learner], ...] = (
    it_learns_the_stream,
    loss_terms_are_named_and_finite,
    the_loss_of_the_first_experience_falls,
    a_class_with_one_image_or_none_is_no_special_case,
    the_phase_tells_when_the_loss_changes,
    any_number_of_experts_makes_one_answer,
    evaluation_changes_neither_weights_nor_random_states,
    the_expert_method_holds_no_state,
    rows_of_old_classes_stay_where_the_strategy_says_so,
    the_teacher_is_the_frozen_model_of_the_experience_before,
    it_runs_with_one_expert,
    it_runs_with_two_experts,
    it_runs_on_the_loader_of_avalanche,
    kernels_change_nothing_beyond_rounding,
    the_same_seeds_give_the_same_bits_and_others_do_not,
    a_run_stopped_inside_the_first_stage_goes_on,
    a_run_stopped_between_stages_goes_on,
    a_run_stopped_inside_the_last_stage_goes_on,
    its_state_is_plain_and_brings_it_back,
    yaml_and_a_dry_run_know_what_it_trains,
)
"""In the order in which they are checked; the others build on the first."""
