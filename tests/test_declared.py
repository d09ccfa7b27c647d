"""What classes tell of themselves is what they do, and a user's own class is asked as ours are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import incrlt._compat  # noqa: F401  (before avalanche)

import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from incrlt.errors import UserError
from incrlt.experiment import expressions, methods, schema
from incrlt.experiment.plan import plan, untold
from incrlt.experiment.source import find_class, lineage
from incrlt.strategies import LUCIR, Replay

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")
SHORT = ["training.epochs=8", "rebalance=null", "strategy={name: finetune}", "memory=null"]

MINE = '''
import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

import incrlt.experts.ride as narrow
from incrlt import strategies
from incrlt.experiment.fields import Count, Positive
from incrlt.experts import Single
from incrlt.stages.lws import LWS
from incrlt.strategies import LUCIR as Base
from incrlt.strategies.icarl import ICaRL
from incrlt.types import Stage


class Plain(Base):
    """LUCIR under another name."""


class Pod(Base):
    """Pooled outputs.

    Args:
        pod: Weight of the pooled term.
    """

    needs: ClassVar = {"memory": "pod > 1"}

    def __init__(
        self,
        *,
        pod: Positive = 1 / 3,
        rounds: Count = 2 * 5,
        shift: float = -0.5,
        weights: tuple[Positive, ...] = (1.0, 0.5),
        pair: tuple[Count, Count] = (1, 2),
        groups: Annotated[int, Field(ge=2, le=8)] = 4,
        **template: Any,
    ) -> None:
        super().__init__(less_forget=2.0, **template)
        self.pod, self.weights = pod, weights


class Alone(strategies.LUCIR):
    """Passes nothing on."""

    def __init__(self, *, model, optimizer, own: Positive = 1.0):
        super().__init__(model=model, optimizer=optimizer)


class Drops(Base):
    """Takes what it does not pass on."""

    def __init__(self, *, own: Positive = 1.0, **template):
        super().__init__()


class Asks(Base):
    """Cannot be made from YAML."""

    def __init__(self, *, rule, **template):
        super().__init__(**template)


class Must(Base):
    """Has to be told."""

    def __init__(self, *, size: Count, **template):
        super().__init__(**template)
        self.size = size


class Remembers(ICaRL):
    """Needs what iCaRL needs."""


@dataclass(frozen=True)
class Wide(narrow.RIDE):
    """RIDE with a field of its own, and another default."""

    num_experts: Count = 2
    extra: Positive = dataclasses.field(default=0.5)
    """A field of its own."""
    kept: Count = dataclasses.field(default=1, init=False)


class Undecorated(narrow.RIDE):
    """Is made as RIDE is."""

    num_experts: Count = 9


@dataclass(frozen=True)
class Long(Single):
    """A second stage of 30 epochs."""

    later_stages = (("second", 30, "stream"),)

    def stages(self):
        return (Stage("second", 30, lr=0.1),)


@dataclass(frozen=True)
class Silent(Single):
    """The same, and does not tell."""

    def stages(self):
        return (Stage("second", 30, lr=0.1),)


@dataclass(frozen=True)
class Three(Single):
    """Three experts, always."""

    num_experts: ClassVar[int] = 3


@dataclass(frozen=True)
class Shorter(LWS):
    """LWS of 7 epochs."""

    epochs: Count = 7


class Wrong(Base):
    """Declares what is not understood."""

    needs: ClassVar = {"memory": "les_forget"}
'''


@pytest.fixture(scope="module", autouse=True)
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    (folder / "declared_mine.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop("declared_mine", None)


def load(*overrides: str):
    return schema.load(QUICKSTART, overrides)


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(*overrides)
    return str(caught.value)


def strategy(name: str, **settings) -> str:
    words = ", ".join(
        f"{key}: {value}" for key, value in {"name": f"'declared_mine:{name}'", **settings}.items()
    )
    return f"strategy={{{words}}}"


def experts(name: str, **settings) -> str:
    return strategy(name, **settings).replace("strategy=", "experts=")


# ------------------------------------------------------------------------------------------ inherited parameters


def test_a_subclass_without_a_constructor_takes_what_its_base_takes():
    """A PODNet-like subclass of LUCIR could not set less_forget."""
    entry = load(strategy("Plain", less_forget=3, margin=0.25)).strategy
    assert (entry.less_forget, entry.margin) == (3.0, 0.25)
    assert (
        entry.hyper_parameters.keys()
        == methods.schema("strategy", "lucir")(name="lucir").hyper_parameters.keys()
    )
    assert methods.find("strategy", "declared_mine:Plain").help["less_forget"].startswith("Base weight")


def test_a_constructor_adds_to_what_it_passes_on_and_keeps_what_it_gives():
    entry = load(strategy("Pod", margin=0.25, weights="[2, 3, 4]", pair="[5, 6]")).strategy
    own = {"pod": 1 / 3, "rounds": 10, "shift": -0.5, "weights": (2.0, 3.0, 4.0), "pair": (5, 6), "groups": 4}
    assert own.items() <= entry.hyper_parameters.items()
    assert (entry.margin, "less_forget" in entry.hyper_parameters) == (0.25, False)
    assert "'less_forget' is not a key of strategy Pod" in refused(strategy("Pod", less_forget=3))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"weights": "[1, 0]"},
            "strategy.weights must be a list of items that are each a number > 0; got a list of 2",
        ),
        ({"weights": "[1, x]"}, "(item 2 is 'x')"),
        ({"weights": "3"}, "strategy.weights must be a list of items"),
        (
            {"pair": "[1]"},
            "strategy.pair must be a list of 2 items: a whole number >= 1; a whole number >= 1; ",
        ),
        ({"pair": "[1, 2, 3]"}, "strategy.pair must be a list of 2 items"),
        ({"groups": "9"}, "strategy.groups must be a whole number >= 2 and <= 8; got 9."),
        ({"rounds": "1.5"}, "strategy.rounds must be a whole number >= 1; got 1.5."),
    ],
)
def test_tuples_and_bounds_of_a_users_own_are_held(settings, sentence):
    assert sentence in refused(strategy("Pod", **settings))


def test_the_dry_run_refuses_what_the_run_refuses():
    assert "takes no **template, so that model and optimizer cannot be passed on" in refused(
        strategy("Alone")
    )
    assert "takes **template and does not pass it on, so that model and optimizer are lost" in refused(
        strategy("Drops")
    )
    assert "its argument 'rule' has no default, and its annotation is none that YAML can give" in refused(
        strategy("Asks")
    )
    assert "strategy.size is missing; give a whole number >= 1." in refused(strategy("Must"))
    assert load(strategy("Must", size=3)).strategy.size == 3
    assert "strategy 'declared_mine:Remembers' needs exemplars" in refused(
        strategy("Remembers"), "memory=null"
    )


def test_fields_of_a_dataclass_are_those_of_its_bases_and_its_own():
    entry = load(experts("Wide", diversity=-0.2, extra=0.75)).experts
    assert (entry.num_experts, entry.diversity, entry.extra) == (2, -0.2, 0.75)
    assert next(iter(entry.hyper_parameters)) == "num_experts", "a field that is written anew keeps its place"
    assert load(experts("Undecorated")).experts.num_experts == 3, "as Python makes it"


def test_what_is_read_from_source_is_what_python_makes():
    """The oracle: the imported classes, made with what YAML gives."""
    for kind, name in (
        ("experts", "Wide"),
        ("experts", "Undecorated"),
        ("experts", "Three"),
        ("rebalance", "Shorter"),
    ):
        name = f"declared_mine:{name}"
        entry = methods.schema(kind, name)(name=name)
        made = methods.load_class(kind, name)(**entry.hyper_parameters)
        defaults = methods.load_class(kind, name)()
        assert made == defaults
        assert all(getattr(made, key) == value for key, value in entry.hyper_parameters.items())
    given = methods.schema("strategy", "declared_mine:Pod")(name="declared_mine:Pod", margin=0.25)
    made = toy.make(methods.load_class("strategy", "declared_mine:Pod"), memory=5, **given.hyper_parameters)
    assert (made.less_forget, made.margin, made.weights) == (2.0, 0.25, (1.0, 0.5))
    with pytest.raises(UserError, match="Pod: weights must be a list of items that are each a number > 0"):
        toy.make(type(made), weights=(1.0, -1.0))


def test_a_file_that_cannot_be_imported_is_refused_by_the_dry_run(mine):
    (mine / "declared_broken.py").write_text(
        "import no_such_package\nfrom incrlt.strategies import LUCIR\nclass A(LUCIR): ...\n"
    )
    message = refused("strategy={name: 'declared_broken:A'}")
    assert "its file imports 'no_such_package', which is not installed" in message


# ------------------------------------------------------------------------------------------ stages and plan


def epochs(*overrides: str) -> int:
    return sum(row["epochs"] + row["later_epochs"] for row in plan(load(*overrides)))


def test_a_users_stage_of_30_epochs_is_counted():
    """Four experiences of 8 epochs, with 30 after each: 152, where the dry run said 32."""
    assert epochs(*SHORT) == 32
    assert epochs(*SHORT, experts("Long")) == 152
    assert untold(load(*SHORT, experts("Long"))) == []
    stage = plan(load(*SHORT, experts("Long")))[0]
    assert stage["work"] == stage["images"] * 38


def test_a_stage_that_is_not_told_is_said_not_to_be_counted():
    assert untold(load(*SHORT, experts("Silent"))) == ["experts 'declared_mine:Silent'"]
    path = methods.find("experts", "declared_mine:Silent").ancestors[0].file.parent
    command = [sys.executable, "-m", "incrlt.run", QUICKSTART, *SHORT, experts("Silent"), "--dry-run"]
    env = {"PYTHONPATH": f"{ROOT}:{path}", "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=True)
    assert "not counted" in done.stdout and "later stages of experts 'declared_mine:Silent'" in done.stdout


def test_inherited_stages_are_counted():
    assert epochs(*SHORT, "rebalance={name: 'declared_mine:Shorter'}") == 32 + 4 * 7
    finetune = strategy("Plain", class_balanced_finetune=20)
    assert epochs(*SHORT[:2], finetune) == 32 + 3 * 20, "from the second experience on"


def test_a_first_stage_that_is_skipped_is_not_counted():
    images = [row["images"] / len(row["classes"]) for row in plan(load(*SHORT))]
    below = int(max(images[1:])) + 1
    rows = plan(load(*SHORT, f"rebalance={{name: lws, epochs: 5, skip_below: {below}}}"))
    assert [row["epochs"] for row in rows] == [8, 0, 0, 0]


@pytest.mark.parametrize("kind", ["experts", "rebalance", "router"])
def test_lengths_that_are_told_are_those_of_the_stages(kind):
    for name in methods.names(kind):
        declared = methods.find(kind, name)
        assert declared.tells_its_stages, name
        made = methods.load_class(kind, name)()
        values = methods.schema(kind, name)(name=name).hyper_parameters
        told = declared.later_stages(values | {"num_old": 4, "num_new": 2, "images": 10})
        if kind == "experts":
            stages = made.stages()
        elif kind == "router":
            stages = (made.stage(),)
        else:
            strategy = a_strategy(
                "linear" if name == "tau_norm" else "cosine"
            )  # which looks at lengths of rows
            stages = made.stages(strategy, first(strategy))[1:]
        assert [(stage.name, stage.epochs, stage.data) for stage in stages] == [
            (stage.name, stage.epochs, stage.data) for stage in told
        ], name


def a_strategy(head="cosine"):
    """A strategy in its second experience, as far as stages ask."""
    made = toy.make(LUCIR if head == "cosine" else Replay, head=head, memory=5, train_epochs=3)
    made.experience = toy.benchmark("nc").train_stream[1]
    made.num_old = 4
    return made


def first(made):
    return made.stages(made.experience)[0]


@pytest.mark.parametrize("name", methods.names("strategy"))
def test_lengths_that_strategies_tell_are_those_of_their_stages(name):
    declared = methods.find("strategy", name)
    values = methods.schema("strategy", name)(name=name).hyper_parameters
    lengths = {key: 3 for key in values if key in str(declared.facts.get("later_stages"))}
    memory = 5 if "memory" in declared.needs(values | lengths) else 0
    made = toy.make(methods.load_class("strategy", name), memory=memory, **lengths)
    made.experience = toy.benchmark("nc").train_stream[1]
    for num_old in (0, 4):
        made.num_old = num_old
        told = declared.later_stages(values | lengths | {"num_old": num_old, "num_new": 2, "images": 10})
        assert [(stage.name, stage.epochs, stage.data) for stage in made.stages(made.experience)[1:]] == [
            (stage.name, stage.epochs, stage.data) for stage in told
        ]


# ------------------------------------------------------------------------------------------ names, needs, clashes


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["rebalance=null"], "LUCIR"),
        ([], "LUCIR+LWS"),
        (["strategy={name: icarl}"], "iCaRL+LWS"),
        (["strategy={name: joint}", "memory=null", "rebalance=null"], "Joint"),
        (["strategy={name: finetune}", "memory=null", "experts={name: ncl}"], "Finetune+NCL+LWS"),
        (["experts={name: ride}", "router={name: expert_assignment}"], "LUCIR+RIDE+LWS+router"),
        (["experts={name: shike}"], "LUCIR+SHIKE+LWS"),
        (["experts={objective: balanced_softmax, num_experts: 3}"], "LUCIR+balanced softmax+3 branches+LWS"),
        (["experts={objective: logit_adjustment}"], "LUCIR+logit adjustment+LWS"),
        ([strategy("Plain"), experts("Wide")], "Plain+Wide+LWS"),
    ],
)
def test_a_run_is_called_as_its_classes_say(overrides, name):
    assert load(*overrides).method == name


def test_needs_of_a_base_hold_beside_those_of_a_subclass():
    assert "'declared_mine:Pod' with pod 2 needs exemplars" in refused(strategy("Pod", pod=2), "memory=null")
    assert "'declared_mine:Pod' with margin_ranking 1 needs a cosine head" in refused(
        strategy("Pod"), "model.head=linear"
    )
    assert load(strategy("Pod"), "memory=null", "rebalance=null").memory is None


def test_the_number_of_experts_may_be_written_in_the_class():
    assert methods.find("experts", "declared_mine:Three").count("num_experts", {}) == 3
    router = "router={name: expert_assignment}"
    assert "a router chooses between experts, but experts 'single' has one" in refused(
        "experts={name: single}", router
    )


def test_a_declaration_that_is_not_understood_is_a_sentence():
    message = refused(strategy("Wrong"))
    assert (
        "strategy 'declared_mine:Wrong': its class Wrong declares what is not understood: 'les_forget' cannot be"
        in message
    )


def test_every_condition_of_the_package_can_be_worked_out():
    for kind in methods.KINDS:
        for name in methods.names(kind):
            declared, entry = methods.find(kind, name), methods.schema(kind, name)(name=name)
            declared.check(entry.hyper_parameters)
            for told in ("needs", "traits"):
                for condition in declared.facts.get(told, {}).values():
                    expressions.evaluate(condition, entry.hyper_parameters)


# ------------------------------------------------------------------------------------------ sources and expressions


def test_bases_are_followed_however_they_are_imported(tmp_path, monkeypatch):
    package = tmp_path / "declared_pkg"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from .inner import Root\n")
    (package / "inner" / "__init__.py").write_text("from .roots import *\n")
    (package / "inner" / "roots.py").write_text("class Root: ...\nclass Other(Root): ...\nAlias = Other\n")
    (package / "free").mkdir()  # no __init__.py
    (package / "free" / "mod.py").write_text("class Free: ...\n")
    (package / "kids.py").write_text(
        "import declared_pkg\nimport declared_pkg.inner.roots as r\nfrom . import inner\n"
        "from .inner.roots import Alias\nimport declared_pkg.free.mod\n"
        "try:\n    from declared_pkg import Root as Mine\nexcept ImportError:\n    Mine = object\n"
        "class A(r.Root): ...\nclass B(inner.Root): ...\nclass C(Alias): ...\nclass D(Mine): ...\n"
        "class E(declared_pkg.Root): ...\nclass F(declared_pkg.free.mod.Free): ...\nclass G(Gone, make()): ...\n"
        "class H(A, C): ...\nclass I(H['x']): ...\nclass J(J): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def line(name):
        found = lineage(find_class("declared_pkg.kids", name))
        return [cls.name for cls in found.classes], found.unknown

    assert line("A") == (["A", "Root"], ())
    assert [line(name)[0][1:] for name in "BDE"] == [["Root"]] * 3
    assert line("C")[0] == ["C", "Other", "Root"]
    assert line("F")[0] == ["F", "Free"]
    assert line("G") == (["G"], ("Gone", "make()"))
    assert line("I")[0] == ["I", "H", "A", "C", "Other", "Root"], "Python's own order"
    assert line("J")[0][0] == "J", "a circle ends"
    assert "declared_pkg" not in sys.modules


def test_the_order_of_bases_is_pythons():
    kinds = {
        "Plain": "strategy",
        "Pod": "strategy",
        "Remembers": "strategy",
        "Wide": "experts",
        "Shorter": "rebalance",
    }
    for name, kind in kinds.items():
        found = methods.find(kind, f"declared_mine:{name}")
        live = methods.load_class(kind, found.name).__mro__
        assert [cls.name for cls in found.ancestors] == [cls.__name__ for cls in live][: len(found.ancestors)]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1 / 3", 1 / 3), ("2 * 5", 10), ("-0.5", -0.5), ("(1, -2.0)", (1, -2.0)), ("7 // 2 + 7 % 2", 4),
     ("2 ** 10", 1024), ("a if b else 0", 0), ("a and b.c", None), ("1 < a <= 5", True),
     ("a in (4, 5)", True), ("not a", False)],
)  # fmt: skip
def test_expressions_are_what_python_says(text, value):
    assert (
        expressions.evaluate(text, {"a": 5, "b": {"c": None}} if "b.c" in text else {"a": 5, "b": 0}) == value
    )


@pytest.mark.parametrize(
    "text",
    ["10 ** 10 ** 10", "'a' * 10 ** 9", "1 / 0", "open('x')", "a.__class__", "[x for x in y]", "lambda: 1", "1 if",
     "~1", "(" * 500 + ")" * 500, "f'{a}'", "1e308 * 10", "a[0]", "True + 1", "1 << 100"],
)  # fmt: skip
def test_expressions_that_are_not_plain_are_refused(text):
    with pytest.raises(expressions.NotPlainError):
        expressions.evaluate(text, {"a": 1})


@given(
    st.recursive(
        st.integers(-9, 9), lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner), max_leaves=8
    )
)
def test_arithmetic_is_pythons(tree):
    def spell(node):
        return f"({node})" if isinstance(node, int) else f"({spell(node[0])} {node[1]} {spell(node[2])})"

    assert expressions.plain(ast.parse(spell(tree), mode="eval").body) == eval(spell(tree))


def test_nothing_of_this_loads_torch(mine):
    code = (
        f"import sys; sys.path.insert(0, {str(mine)!r})\n"
        "from incrlt.experiment import schema\nfrom incrlt.experiment.plan import plan\n"
        f"plan(schema.load({QUICKSTART!r}, [\"strategy={{name: 'declared_mine:Pod', margin: 0.2}}\"]))\n"
        "print(sorted({'torch', 'avalanche', 'declared_mine'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
