"""An experiment file is read into one frozen value, or refused with one clear sentence per problem."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from incrlt.errors import UserError
from incrlt.experiment import explain, fields, schema, yamlfile, yamltext
from incrlt.experiment import sections as parts
from incrlt.experiment.json_schema import json_schema
from incrlt.experiment.methods import names

FIRST = {kind: names(kind)[0] for kind in ("strategy", "rebalance")}
"""The method that a sentence gives as an example."""
MINIMAL = "benchmark: {dataset: cifar100, protocol: lfh-shuffled-10}\nstrategy: {name: lucir}\n"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    return write(tmp_path / "minimal.yaml", MINIMAL)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        schema.load(path, overrides)
    return str(caught.value)


# ---------------------------------------------------------------------------------------- what is read


def test_defaults_are_the_published_recipe(minimal):
    t = schema.load(minimal).training
    assert (t.epochs, t.batch_size, t.lr, t.momentum, t.weight_decay) == (160, 128, 0.1, 0.9, 5e-4)
    assert [m * t.epochs for m in t.milestones] == [80, 120]
    assert schema.load(minimal).seeds.class_order == 1993


def test_name_comes_from_the_file_or_from_output(minimal):
    assert schema.load(minimal).name == "minimal"
    assert schema.load(minimal, ["output.name=mine"]).name == "mine"
    assert schema.load(minimal, ["output.name=mine"]).overrides == ("output.name=mine",)


def test_yaml_12_floats_are_numbers(minimal):
    for text, value in {"5e-4": 5e-4, "1E-3": 1e-3, "2e+1": 20.0, "0.5e0": 0.5, "1": 1.0}.items():
        assert schema.load(minimal, [f"training.lr={text}"]).training.lr == value


def test_frozen(minimal):
    experiment = schema.load(minimal)
    with pytest.raises(ValidationError):
        experiment.training.epochs = 3
    with pytest.raises(ValidationError):
        experiment.strategy.margin = 3


def test_experts_without_a_name_are_the_usual_one(minimal):
    experiment = schema.load(minimal, ["experts.objective=balanced_softmax"])
    assert experiment.experts.name == "single"
    assert experiment.experts.hyper_parameters["objective"] == "balanced_softmax"


def test_base_is_merged_key_by_key(tmp_path):
    write(tmp_path / "_base/b.yaml", MINIMAL + "training: {epochs: 7, lr: 0.5}\nmemory: {per_class: 20}\n")
    middle = write(tmp_path / "middle.yaml", "base: _base/b.yaml\ntraining: {epochs: 8}\n")
    child = write(
        tmp_path / "child.yaml", "base: middle.yaml\nmemory: {total: 2000}\nrebalance: {name: lws}\n"
    )
    experiment = schema.load(child)
    assert (experiment.training.epochs, experiment.training.lr) == (8, 0.5)
    assert (experiment.memory.per_class, experiment.memory.total) == (None, 2000)
    assert schema.load(middle).memory.per_class == 20
    assert experiment.source == child


def test_another_method_starts_its_section_afresh(tmp_path):
    write(tmp_path / "b.yaml", MINIMAL.replace("lucir", "lucir, margin: 0.4") + "memory: {per_class: 20}\n")
    child = write(tmp_path / "c.yaml", "base: b.yaml\nstrategy: {name: icarl}\n")
    assert schema.load(child).strategy.name == "icarl"
    same = write(tmp_path / "d.yaml", "base: b.yaml\nstrategy: {name: lucir, imprint: false}\n")
    assert schema.load(same).strategy.margin == 0.4
    assert schema.load(tmp_path / "b.yaml", ["strategy.name=replay"]).strategy.hyper_parameters == {}


def test_free_form_replaces_the_named_protocol_of_a_base(tmp_path, minimal):
    child = write(tmp_path / "c.yaml", "base: minimal.yaml\nbenchmark: {base_classes: 40, increment: 20}\n")
    assert schema.load(child).protocol().classes_per_experience == (40, 20, 20, 20)
    explicit = list(range(99, -1, -1))
    child = write(tmp_path / "e.yaml", f"base: c.yaml\nbenchmark: {{order: {explicit}}}\n")
    assert schema.load(child).protocol().class_order == tuple(explicit)


def test_anchors_and_merge_keys_work(tmp_path):
    text = "x: &x {dataset: cifar100}\n".replace("x: &x", "benchmark: &x")
    text = (
        text.replace("}", ", protocol: lfs-10}")
        + "strategy: {name: lucir, margin: &m 0.25, less_forget: *m}\n"
    )
    experiment = schema.load(write(tmp_path / "a.yaml", text))
    assert experiment.strategy.less_forget == 0.25


def test_protocol_gets_everything_the_benchmark_says(minimal):
    options = ["benchmark.imbalance_ratio=50", "benchmark.profile=step", "benchmark.holdout=long-tailed-cil"]
    options += ["seeds.images=3", "memory.per_class=7", "benchmark.augmentation=none", "seeds.class_order=5"]
    rule = schema.load(minimal, options).protocol()
    assert (rule.imbalance_ratio, rule.profile, rule.holdout) == (50, "step", "long-tailed-cil")
    assert (rule.image_seed, rule.memory, rule.augmentation) == (3, {"per_class": 7}, "none")
    assert rule.class_order != schema.load(minimal).protocol().class_order
    assert schema.load(minimal).protocol().class_order[:4] == (68, 56, 78, 8)


def test_memory_rule_names_only_what_departs_from_the_usual(minimal):
    assert schema.load(minimal).memory_rule() == {}
    assert schema.load(minimal, ["memory.total=9", "memory.redistribute=true"]).memory_rule() == {
        "total": 9,
        "redistribute": True,
    }


# -------------------------------------------------------------------------------------------- identity


def test_resolved_yaml_reads_back_equal(minimal, tmp_path):
    experiment = schema.load(
        minimal, ["rebalance.name=lws", "memory.per_class=20", "training.milestones=[0.25]"]
    )
    again = schema.load(write(tmp_path / "again.yaml", experiment.resolved_yaml()))
    assert again.resolved() == experiment.resolved()
    assert again.hash() == experiment.hash()


def test_hash_ignores_spelling_and_place(minimal, tmp_path):
    plain = schema.load(minimal).hash()
    spelled = "strategy: {margin: 0.5, name: lucir}\ntraining: {epochs: 160, lr: 1e-1}\nseeds: {init: 0}\n"
    spelled += "benchmark: {imbalance_ratio: 100, protocol: lfh-shuffled-10, dataset: cifar100}\n"
    assert schema.load(write(tmp_path / "s.yaml", spelled)).hash() == plain
    same = ["data.root=/x", "data.download=true", "device=cpu", "training.threads=2"]
    same += ["output.folder=/y", "output.name=z"]
    assert schema.load(minimal, same).hash() == plain


@pytest.mark.parametrize(
    "override",
    [
        "seeds.all=1",
        "seeds.init=1",
        "training.lr=0.2",
        "strategy.margin=0.4",
        "rebalance.name=lws",
        "benchmark.holdout=long-tailed-cil",
        "memory.per_class=20",
        "experts.objective=balanced_softmax",
        "model.width=8",
        "data.on_device=false",
        "training.precision=bf16",
    ],
)
def test_hash_tells_apart_what_changes_results(minimal, override):
    assert schema.load(minimal, [override]).hash() != schema.load(minimal).hash()


def test_every_field_is_either_hashed_or_listed_as_harmless():
    sections = {name: field.annotation for name, field in parts.Experiment.model_fields.items()}
    for section, keys in parts.DOES_NOT_CHANGE_RESULTS.items():
        assert section in sections
        assert keys is None or keys <= sections[section].model_fields.keys()


def test_run_folder(minimal):
    experiment = schema.load(minimal, ["seeds.all=3", "output.folder=out"])
    expected = Path("out") / "minimal" / f"0123abcd-{experiment.hash()[:8]}-s3"
    assert experiment.run_folder("0123abcd4567") == expected


def test_seeds_left_out_follow_all():
    seeds = parts.Seeds(all=3, batches=7)
    assert seeds.filled() == {
        "all": 3, "class_order": 1993, "images": 0, "init": 3, "batches": 7, "augmentation": 3,
    }  # fmt: skip


# ------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("strategy.name=lucr", "strategy.name 'lucr' is not known; allowed: dgr, eeil, finetune, icarl, "),
        ("strategy.name=lucr", "Did you mean 'lucir'?"),
        (
            "strategy.less_forgt=2",
            "'less_forgt' is not a key of strategy LUCIR; allowed: name, less_forget, ",
        ),
        ("strategy.less_forgt=2", "Did you mean 'less_forget'?"),
        ("traning.lr=1", "'traning' is not a key of an experiment"),
        ("traning.lr=1", "Did you mean 'training'?"),
        ("training.lerning_rate=1", "'lerning_rate' is not a key of section 'training'"),
        ("strategy.margin=-1", "strategy.margin must be a number >= 0; got -1."),
        ("strategy.margin=.inf", "strategy.margin must be a number >= 0 and <= 1000000000; got inf."),
        ("training.lr=.nan", "training.lr must be a number > 0; got nan."),
        ("training.lr=true", "training.lr must be a number > 0; got true."),
        ("training.lr='0.1'", "training.lr must be a number > 0; got '0.1'. Remove the quotes."),
        ("training.epochs=3.5", "training.epochs must be a whole number >= 1; got 3.5."),
        ("training.epochs=0", "training.epochs must be a whole number >= 1; got 0."),
        ("training.epochs=0x" + "f" * 5000, "got a number of about 6021 digits."),
        ("training.epochs=null", "training.epochs must be a whole number >= 1; got null."),
        ("training=3", "training must be a mapping of epochs, base_epochs, "),
        ("training={1: 3}", "keys must be names; got 1 in section 'training'."),
        (
            "training.milestones=[0.5, x]",
            "training.milestones must be a list of items that are each a number",
        ),
        ("training.milestones=[0.5, x]", "(item 2 is 'x')"),
        ("training.milestones=[0.75, 0.5]", "training.milestones must rise; got [0.75, 0.5]."),
        (
            "training.warmup_epochs=200",
            "training.warmup_epochs is 200, but an experience has only 160 epochs.",
        ),
        ("benchmark.imbalance_ratio=0.01", "benchmark.imbalance_ratio must be a number >= 1"),
        ("benchmark.imbalance_ratio=0.01", "Did you mean 100?"),
        ("benchmark.profile=exp", "benchmark.profile must be one of exponential, step, pareto; got 'exp'."),
        ("benchmark.dataset=cifar-100", "Did you mean 'cifar100'?"),
        (
            "benchmark.dataset=null",
            "benchmark.dataset must be one of digits, cifar10, cifar100, imagenet-lt,",
        ),
        (
            "benchmark.order=sideways",
            "benchmark.order must be shuffled, ordered, reverse, or a list of all class ids",
        ),
        ("benchmark.protocol=lfh-shufled-10", "Did you mean 'lfh-shuffled-10'?"),
        ("benchmark={dataset: cifar100, protocol: lfs-10, increment: 5}", "already decides the split"),
        ("benchmark.base_classes=50", "benchmark needs a protocol"),
        ("benchmark={dataset: cifar100, base_classes: 50, increment: 7}", "do not add up to 100 classes"),
        ("benchmark={dataset: cifar100, base_classes: 50, increment: 5, order: [1, 2]}", "missing:"),
        (
            "model.head=linear",
            "strategy 'lucir' with margin_ranking 1 needs a cosine head; model.head is 'linear'. ",
        ),
        ("model.head=linear", "Set model.head: cosine, or strategy.margin_ranking: 0."),
        ("model.name=resnet33", "Did you mean 'resnet32'?"),
        ("strategy.readout=nme", "needs exemplars; memory is null. Set memory: {per_class: 20}."),
        ("strategy.class_balanced_finetune=20", "needs exemplars; memory is null."),
        ("strategy={name: replay}", "strategy 'replay' needs exemplars; memory is null."),
        ("strategy={name: icarl}", "strategy 'icarl' needs exemplars; memory is null."),
        (
            "strategy=lucir",
            f"strategy must be a mapping with a name, such as {{name: {FIRST['strategy']}}}; got 'lucir'.",
        ),
        (
            "strategy=null",
            f"strategy must be a mapping with a name, such as {{name: {FIRST['strategy']}}}; got null.",
        ),
        (
            "rebalance={epochs: 3}",
            f"rebalance must be a mapping with a name, such as {{name: {FIRST['rebalance']}}}, or null; got no name",
        ),
        ("rebalance={name: lws, lr: 0}", "rebalance.lr must be a number > 0; got 0."),
        ("memory={}", "memory takes exactly one of per_class and total; got neither."),
        ("memory={per_class: 2, total: 3}", "memory takes exactly one of per_class and total; got both."),
        ("memory.per_class=0", "memory.per_class must be a whole number >= 1, or null; got 0."),
        ("seeds.all=-1", "seeds.all must be a whole number from 0 to 4294967295; got -1."),
        ("device=gpu", "device must be auto, cpu, cuda or cuda:N; got 'gpu'."),
        ("output.name=a/b", "output.name must be a name of letters, digits"),
        ("data.on_device=2", "data.on_device must be true or false; got 2."),
        ("device=cuda:\u0661", "device must be auto, cpu, cuda or cuda:N; got 'cuda:\u0661'."),
        ('output.folder="a\\0b"', "output.folder must be a path; it holds a NUL character. Remove it."),
        ('data.root="a\\0b"', "data.root must be a path; it holds a NUL character."),
        ("output.folder=~nouser/runs", "output.folder begins with ~nouser, but there is no such user here."),
        ("data.root=~nouser", "data.root begins with ~nouser, but there is no such user here."),
        ("experts={name: ride, teacher: ~nouser/x}", "experts.teacher begins with ~nouser"),
        (
            "output.folder=" + "x" * 300,
            "output.folder must be a path of at most 4000 bytes, each name at most 255",
        ),
        ("output.name=123", "got 123. Put it in quotes."),
        ("data.download=yes", "data.download must be true or false; got 'yes'. Write true."),
        ("training.epochs=1:30", "training.epochs must be a whole number >= 1; got '1:30'."),
        (
            "benchmark.protocol=lfh-shuffled-\u0661\u0660",
            "benchmark.protocol must be a name such as lfh-shuffled-10",
        ),
        ("training.batch_size=1000000000", "must be a whole number >= 1 and <= 100000; got 1000000000."),
        (
            "experts={name: ride, num_experts: 1000000000}",
            "experts.num_experts must be a whole number >= 1 and <= 64;",
        ),
        (
            "experts={name: ncl, queue: 1000000000}",
            "experts.queue must be a whole number >= 1 and <= 100000;",
        ),
        ("model.width=1000000000", "model.width must be a whole number >= 1 and <= 1024;"),
        (
            "experts={name: ride, width_factor: 0.3}",
            "experts.width_factor must be a number >= 0.5 and <= 16; got 0.3.",
        ),
        (
            "experts={name: ride, width_factor: 1000000000}",
            "experts.width_factor must be a number >= 0.5 and <= 16;",
        ),
        (
            "strategy={name: 'incrlt.training.template:IncrTemplate'}",
            "is the class that methods are built on, and trains nothing by itself. Give a subclass of it, or one of:",
        ),
        ("experts={name: 'incrlt.experts.base:ExpertMethod'}", "is the class that methods are built on"),
        (
            "strategy={name: 'incrlt.experts.ride:RIDE'}",
            "is no strategy: that is a subclass of incrlt.training",
        ),
        (
            "experts={name: 'incrlt.strategies:LUCIR'}",
            "is no expert method: that is a subclass of incrlt.experts",
        ),
        (
            "rebalance={name: 'incrlt.types:Stage'}",
            "is no rebalancing stage: that is a class with a method stages.",
        ),
        ("router={name: 'incrlt.stages.lws:LWS'}", "is no router: that is a class with a method stage."),
        ("base=x.yaml", "is not of the form section.key=value"),
        ("training.epochs", "is not of the form section.key=value"),
        ("a.b.c=1", "is not of the form section.key=value"),
        ("training.lr=[1", "is not valid YAML: line 1, column 3"),
        ("training={lr: 1, lr: 2}", "the key 'lr' is given twice"),
    ],
)
def test_bad_value_gets_its_sentence(minimal, override, sentence):
    message = refused(minimal, override)
    assert sentence in message
    assert "\n" not in message
    assert "pydantic" not in message and "Traceback" not in message


def test_joint_refuses_exemplars(minimal):
    assert "keeps all images already" in refused(minimal, "strategy={name: joint}", "memory.per_class=20")


def test_finetune_with_exemplars_is_replay(minimal):
    assert "is strategy 'replay'" in refused(minimal, "strategy={name: finetune}", "memory.per_class=20")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["experts={name: ride}", "model.head=linear", "strategy={name: finetune}"], "needs a cosine head"),
        (
            ["experts={name: single, objective: ldam}", "model.head=linear", "strategy={name: finetune}"],
            "experts 'single' with objective 'ldam' needs a cosine head",
        ),
        (["router={name: expert_assignment}"], "a router chooses between experts"),
        (
            ["experts={name: ride, num_experts: 1}", "router={name: expert_assignment}"],
            "Set experts.num_experts: 3",
        ),
        (
            ["experts={name: shike, classifier_epochs: 3, classifier_warmup: 3}"],
            "the classifier stage has only 3 epochs",
        ),
        (
            ["experts={name: shike}", "strategy.class_balanced_finetune=5", "memory.per_class=5"],
            "would train heads that experts 'shike' do not answer with",
        ),
        (["training.nesterov=true", "training.momentum=0"], "training.nesterov needs momentum"),
        (
            ["training.step=graph", "device=cpu"],
            "training.step 'graph' needs a CUDA device; device is 'cpu'.",
        ),
        (
            ["training.step=graph", "training.precision=fp16"],
            "'graph' does not go with training.precision 'fp16'",
        ),
        (
            ["training.step=graph", "experts={name: ride, teacher: runs/a}"],
            "does not capture the answers of experts.teacher",
        ),
        (
            ["training.step=graph", "experts={name: ncl, contrastive: 1}"],
            "cannot draw the second views of experts.contrastive",
        ),
        (
            ["data.on_device=false", "rebalance={name: lws, cache_features: true}"],
            "rebalance 'lws' with cache_features true needs images as tensors on the device; data.on_device is false. "
            "Set data.on_device: true, or rebalance.cache_features: false.",
        ),
        (
            [
                "data.on_device=false",
                "experts={name: ride}",
                "router={name: expert_assignment, cache_features: true}",
            ],
            "router 'expert_assignment' with cache_features true needs images as tensors",
        ),
        (
            ["data.on_device=false", "experts={name: shike, cache_features: true}"],
            "experts 'shike' with cache_features true needs images as tensors",
        ),
        (
            ["data.on_device=false", "experts={name: ncl, contrastive: 0.5}"],
            "experts 'ncl' with contrastive 0.5 needs images as tensors on the device",
        ),
        (
            ["experts={name: shike, cache_features: true, classifier_epochs: 0}"],
            "classifier_epochs 0 has none",
        ),
        (
            ["model.width=1024", "experts={name: ncl, num_experts: 60}"],
            "at most 256 GB are taken. Make model.width",
        ),
    ],
)
def test_parts_that_cannot_work_together(minimal, overrides, sentence):
    assert sentence in refused(minimal, *overrides)


def test_lucir_without_cosine_terms_may_have_a_linear_head(minimal):
    experiment = schema.load(minimal, ["model.head=linear", "strategy.margin_ranking=0"])
    assert experiment.model.head == "linear"


def test_a_short_classifier_stage_alone_takes_a_shorter_warm_up(minimal, tmp_path):
    from incrlt.experts import SHIKE

    for epochs, warmup in ((0, 5), (1, 0), (2, 1), (5, 4), (6, 5), (20, 5)):
        experiment = schema.load(minimal, [f"experts={{name: shike, classifier_epochs: {epochs}}}"])
        assert experiment.experts.hyper_parameters["classifier_warmup"] == warmup
        assert (
            schema.load(write(tmp_path / "again.yaml", experiment.resolved_yaml())).hash()
            == experiment.hash()
        )
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    (stage,) = SHIKE(classifier_epochs=2).stages()  # a script is given the same
    assert stage.schedule(optimizer, 2).get_last_lr() == [1.0], "one epoch of warm-up is the full rate"


def test_fp16_needs_a_gpu(minimal):
    assert "needs a GPU" in refused(minimal, "training.precision=fp16", "device=cpu")


def test_all_problems_come_at_once(minimal):
    message = refused(minimal, "training.epochs=0", "training.lr=-1", "strategy.margin=x", "wat=1")
    first, *rest = message.split("\n")
    assert first.endswith("has 4 problems:")
    assert len(rest) == 4 and all(line.startswith("  - ") for line in rest)


def test_missing_sections_are_named(tmp_path):
    message = refused(write(tmp_path / "m.yaml", "training: {epochs: 3}\n"))
    assert "benchmark is missing; give a mapping of dataset, protocol" in message
    assert "strategy is missing; give a mapping with a name." in message


def test_a_mapping_that_holds_itself_is_refused(tmp_path):
    for section in ("training", "strategy", "memory", "device", "other"):
        assert refused(
            write(tmp_path / "m.yaml", MINIMAL.replace("strategy", "st") + f"{section}: &a {{name: *a}}\n")
        )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "must hold a mapping of sections"),
        (b"lucir", "must hold a mapping of sections (benchmark: ..., strategy: ...); it holds text"),
        (b"a: [1\n", "is not valid YAML: line 2, column 1"),
        (b"a: 1\na: 2\n", "line 2, column 1: the key 'a' is given twice"),
        (b"\xff\xfe\x00\x01", "is not UTF-8 text (byte 0 is 0xff)"),
        (b"a: \x00\x01", "is not valid YAML"),
        (b"a: !!python/object:os.system x\n", "is not valid YAML"),
        (b"a: !!int x\n", "is not valid YAML"),
        (b"a: !!bool x\n", "is not valid YAML"),
        (b"a: !!timestamp x\n", "is not valid YAML"),
        (b"a: " + b"9" * 5000 + b"\n", "is not valid YAML"),
        (b"? [1, {a: 2}]\n: 3\n", "is not valid YAML"),
        (b"a: " + b"[" * 3000, "nested too deeply"),
        (b"--- {a: 1}\n--- {b: 2}\n", "is not valid YAML"),
        (b"--- &a [*a]\n", "a value holds itself"),
        (b"a: *nothing\n", "is not valid YAML"),
        (b"base: 3\n", "'base' must be the path of one YAML file, relative to this file; got 3."),
        (b"base: /etc/passwd\n", "'base' must be the path"),
        (b"base: gone.yaml\n", "gone.yaml does not exist"),
        (b"base: .\n", "is a folder"),
        (b'base: "a\\0b"\n', "'base' must be the path"),
        (b'base: "\\ud800"\n', "'base' must be the path"),
        (b"base: bad.yaml\n", "leads back to a file that is built on it"),
        (b"x" * (yamlfile.LARGEST_FILE + 1), "is larger than"),
    ],
    ids=range(26),
)
def test_bad_file_gets_its_sentence(tmp_path, content, sentence):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    message = refused(path)
    assert sentence in message
    assert "\n" not in message


def test_missing_file_suggests_a_neighbour(tmp_path, minimal):
    assert refused(tmp_path / "minimum.yaml").endswith("does not exist. Did you mean 'minimal.yaml'?")
    assert refused(tmp_path / "no/such/folder.yaml").endswith("does not exist. Check the path.")


def test_folder_lists_its_files(tmp_path, minimal):
    assert refused(tmp_path).endswith("is a folder; give one of the YAML files in it: minimal.yaml.")


def test_long_chain_and_long_circle_of_bases(tmp_path, minimal):
    for name, base in (("b", "minimal"), ("c", "b"), ("d", "c"), ("x", "y"), ("y", "x")):
        write(tmp_path / f"{name}.yaml", f"base: {base}.yaml\n")
    assert schema.load(tmp_path / "c.yaml").strategy.name == "lucir"
    assert "more than 2 bases in a row: d.yaml -> c.yaml -> b.yaml -> minimal.yaml" in refused(
        tmp_path / "d.yaml"
    )
    assert "leads back" in refused(tmp_path / "x.yaml")


def test_alias_bomb_is_refused_quickly(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    lines.append("training: {milestones: *a11}")
    assert "aliases stand for" in refused(write(tmp_path / "bomb.yaml", "\n".join(lines)))


def test_many_problems_are_cut(tmp_path):
    path = write(tmp_path / "m.yaml", MINIMAL + "\n".join(f"key{i}: 1" for i in range(500)))
    message = refused(path)
    assert message.endswith(f"and {500 - explain.MOST} more")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n".join(f"key{i}: 1" for i in range(60_000)), "a mapping has more than 1000 keys"),
        ("training: " + "[" * 200_000, "nested too deeply"),
        ("training: " + "{a: " * 200_000, "nested too deeply"),
        ("benchmark: [" + "1," * 100_000 + "]", "more than 60000 values"),
        ("a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)),
         "aliases stand for about"),
    ],
    ids=["keys", "brackets", "braces", "values", "merged aliases"],
)  # fmt: skip
def test_bombs_are_refused_before_they_go_off(tmp_path, text, sentence):
    begun = time.process_time()
    message = refused(write(tmp_path / "bomb.yaml", text))
    assert sentence in message
    assert "\n" not in message
    assert time.process_time() - begun < 30, "a guard against hanging, not a measurement"


def test_many_keys_from_python_are_refused_quickly():
    begun = time.process_time()
    with pytest.raises(UserError, match="and 59982 more"):
        schema.parse({f"key{i}": 1 for i in range(60_000)})
    assert time.process_time() - begun < 8, "it took 17 seconds to look for what each key was meant to be"


LONG = "x" * 700_000


@pytest.mark.parametrize(
    "override",
    ["benchmark.protocol=LONG", "strategy.name=LONG", "strategy.LONG=1", "LONG=1", "LONG", "output.folder=LONG",
     "data.root=LONG", "device=LONG", "training.lr=LONG", "strategy.name=LONG:LONG", "training.lr=[LONG",
     "experts={name: ride, teacher: LONG}"],
)  # fmt: skip
def test_messages_are_short_whatever_was_given(minimal, override):
    assert len(refused(minimal, override.replace("LONG", LONG))) < 2_500


# ------------------------------------------------------------------------------- what a reader thinks it says


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("08", 8), ("-010", -10), ("0x1f", 31), ("0o17", 15), ("1_000", 1000), ("1e-3", 0.001),
     (".5e3", 500.0), ("1.5e3", 1500.0), ("5.", 5.0), ("-.inf", float("-inf")), ("yes", "yes"), ("no", "no"),
     ("on", "on"), ("off", "off"),
     ("1:30", "1:30"), ("12:30:45", "12:30:45"), ("2024-01-01", "2024-01-01"), ("2024-13-45", "2024-13-45"),
     ("true", True), ("False", False), ("null", None), ("~", None), ("''", ""), ("'010'", "010"), ("1.2.3", "1.2.3")],
)  # fmt: skip
def test_scalars_mean_what_a_reader_thinks(text, value):
    found = yamltext.parse(f"a: {text}", "it")["a"]
    assert (found, type(found)) == (value, type(value))


@given(
    st.text(max_size=12) | st.sampled_from(["1e3", "yes", "010", "0o17", "1:30", "2024-01-01", ".5e3", "0x1"])
)
def test_what_is_written_is_read_back(text):
    assert yamltext.parse(yamltext.dump({"a": text}), "it") == {"a": text}


@given(st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none())
def test_numbers_that_are_written_are_read_back(value):
    found = yamltext.parse(yamltext.dump([value]), "it")[0]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("root", ["1e3", "yes", "010", "1:30"])
def test_a_folder_with_the_name_of_a_number_survives_the_resolved_file(minimal, tmp_path, root):
    experiment = schema.load(minimal, [f"data.root='{root}'"])
    assert schema.load(write(tmp_path / "again.yaml", experiment.resolved_yaml())).data.root == root


# ----------------------------------------------------------------------------------------- small parts

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from([*parts.Experiment.model_fields, "nothing"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, PLAIN, max_size=6))
def test_any_plain_data_is_an_experiment_or_a_user_error(values):
    try:
        schema.parse(values)
    except UserError as error:
        assert str(error)


@given(PLAIN)
def test_show_is_short_and_on_one_line(value):
    shown = explain.show(value)
    assert len(shown) < 4 * explain.LONGEST + 20
    assert len(shown.splitlines()) <= 1


@given(st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.sampled_from("xyz"), st.integers())))
def test_merging_a_mapping_with_nothing_or_itself_changes_nothing(values):
    assert yamlfile.merge(values, {}) == values
    assert yamlfile.merge({}, values) == values
    assert yamlfile.merge(values, values) == values


def test_choices_are_those_of_the_modules_that_honour_them():
    from incrlt.benchmarks import facts, holdout, longtail, splits

    known = parts.Benchmark.model_fields
    assert set(get_args(parts.Dataset)) == {*facts.names(), "folder"}
    assert set(get_args(known["profile"].annotation)) == set(longtail.PROFILES)
    assert set(get_args(known["holdout"].annotation)) == set(holdout.RULES)
    assert set(get_args(get_args(known["order"].annotation)[0])) == set(splits.ORDERS)
    for name in facts.names():
        assert facts.info(name).augmentation in get_args(parts.Augmentation)


def test_choices_of_models_and_augmentations_are_those_of_torch_modules():
    from incrlt.data import augment
    from incrlt.models import heads
    from incrlt.models.backbone import variants

    assert set(get_args(parts.ModelSection.model_fields["head"].annotation)) == set(heads.HEADS)
    assert set(get_args(fields.Model)) == set(variants())
    for name in get_args(parts.Augmentation):
        augment.build(name, (3, 32, 32), (0.5,) * 3, (0.2,) * 3, train=True)


def test_every_field_is_documented():
    sections = [parts.Benchmark, parts.ModelSection, parts.Memory, parts.Training, parts.Seeds]
    for section in (*sections, parts.Data, parts.Output, parts.Experiment):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


def test_json_schema_knows_every_method_and_accepts_every_experiment_file():
    document = json_schema()
    names = [
        choice["properties"]["name"].get("const") for choice in document["properties"]["strategy"]["anyOf"]
    ]
    assert {"lucir", "icarl", "finetune"} <= set(names)
    assert document["properties"]["training"]
    assert json.loads(json.dumps(document)) == document
    lucir = next(c for c in document["properties"]["strategy"]["anyOf"] if c["title"] == "LUCIR")
    assert lucir["properties"]["margin"]["minimum"] == 0
    assert "cosine" in lucir["properties"]["margin"]["description"]


def test_schema_command_writes_json():
    done = subprocess.run([sys.executable, "-m", "incrlt.experiment"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "benchmark" in json.loads(done.stdout)["properties"]


def test_resolved_values_are_plain_data(minimal):
    text = schema.load(minimal, ["rebalance.name=lws"]).resolved_yaml()
    assert yaml.safe_load(text)["rebalance"]["epochs"] == 30


def test_import_is_light():
    heavy = {"torch", "avalanche", "rich", "numpy"}
    code = f"import sys, incrlt.experiment.schema\nprint(sorted({heavy!r} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
