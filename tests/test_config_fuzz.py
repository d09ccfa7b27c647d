"""Mutated experiment files, 100 and in the soak 500: a valid experiment or a user error, never another exception."""

from __future__ import annotations

import copy
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from draws import seeds
from experiment_files import FOLDER, OF_TENSORS

from incrlt.errors import UserError
from incrlt.experiment import schema
from incrlt.experiment.plan import plan

MUTANTS = 500
BATCH = 100

WORDS = (
    r"""null true -1 0 1 3.5 .nan .inf -.inf 1e400 99999999999999999999 0x7fffffffffffffff 5e-4 '' "\0" ~""",
    r"""[] {} [[]] [null] {a: &a [*a] *b !!python/none 2024-13-45 12:30:45 <<: lucir lws long-tailed-cil""",
    r"""os:path a:b:c it's | > ../../../x cuda:99 lfs-10 lfh-ordered-7 lfs-0 lfs-99999999 "\ud800" % @ `""",
    r"""? : - , # cifar10 shuffled 0.1""",
)
VALUES = [*" ".join(WORDS).split(), "{a: {b: {c: [1, {d: 2}]}}}", "!!int x", "!!binary x", "- 1"]

TREES = [
    *(None, True, False, -1, 0, 1, 2, 7, 0.5, 1.0, 1e300, float("nan"), float("inf"), 10**30, -(10**18)),
    *(
        "",
        "lucir",
        "x" * 999,
        "auto",
        "none",
        "lfs-10",
        "lfh-shuffled-3",
        "cifar10",
        "2",
        "0.1",
        "a\nb",
        "\t",
    ),
    *([], [1], ["a"], list(range(100)), [[]], {}, {"name": "lws"}, {"name": None}, {"name": "x:y"}),
    *({"per_class": 5}, {"total": 1}, {1: 2}, {"a": {"b": {"c": []}}}),
]


def lines_of(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def delete_line(text: str, rng: random.Random) -> str:
    lines = lines_of(text)
    del lines[rng.randrange(len(lines))]
    return "".join(lines)


def duplicate_line(text: str, rng: random.Random) -> str:
    lines = lines_of(text)
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return "".join(lines)


def swap_lines(text: str, rng: random.Random) -> str:
    lines = lines_of(text)
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]
    return "".join(lines)


def garble_characters(text: str, rng: random.Random) -> str:
    characters = list(text)
    for _ in range(rng.randint(1, 8)):
        characters[rng.randrange(len(characters))] = rng.choice(
            "{}[]:,&*!|>'\"%@`#-?\t\n\0 aZ09.é\u2028\ufeff😀"
        )
    return "".join(characters)


def swap_value(text: str, rng: random.Random) -> str:
    lines = lines_of(text)
    settable = [i for i, line in enumerate(lines) if ":" in line and not line.startswith("#")]
    i = rng.choice(settable)
    key, _, old = lines[i].rpartition(":")
    lines[i] = f"{key}: {rng.choice(VALUES)}{'}' * old.count('}')}\n"
    return "".join(lines)


def indent_line(text: str, rng: random.Random) -> str:
    lines = lines_of(text)
    i = rng.randrange(len(lines))
    lines[i] = " " * rng.randint(1, 9) + lines[i]
    return "".join(lines)


def cut(text: str, rng: random.Random) -> str:
    return text[: rng.randrange(len(text))]


def nonsense(text: str, rng: random.Random) -> str:
    depth = rng.choice([2, 20, 400, 3000])
    opening = rng.choice(["[", "{a: ", "- ", "? "])
    section = rng.choice(["training", "strategy", "memory", "benchmark", "base", "wat", "seeds", "1", "null"])
    return f"{text}{section}: {opening * depth}\n"


def add_section(text: str, rng: random.Random) -> str:
    section = rng.choice(
        ["training", "strategy", "memory", "benchmark", "rebalance", "experts", "device", "output"]
    )
    return f"{text}{section}: {rng.choice(VALUES)}\n"


def nested_nonsense(text: str, rng: random.Random) -> str:
    key = rng.choice(
        ["epochs", "lr", "milestones", "name", "order", "per_class", "protocol", "base_classes", "all"]
    )
    section = rng.choice(
        ["training", "strategy", "memory", "benchmark", "rebalance", "experts", "seeds", "model"]
    )
    return f"{text}{section}: {{{key}: {rng.choice(VALUES)}}}\n"


def random_bytes(text: str, rng: random.Random) -> bytes:
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 40)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def change_tree(text: str, rng: random.Random) -> str:
    """Change the content and keep the syntax: replace, remove, rename or move a value."""
    try:
        tree = yaml.safe_load(text)
    except Exception:  # an earlier mutation broke the syntax, that is enough for one mutant
        return text
    nodes = [tree] if isinstance(tree, dict) else []
    nodes += [value for value in (nodes[0].values() if nodes else []) if isinstance(value, dict) and value]
    if not nodes or not all(nodes):
        return text
    node = rng.choice(nodes)
    key, deed = rng.choice(list(node)), rng.randrange(5)
    if deed == 0:
        del node[key]
    elif deed == 1:
        node[rng.choice([f"{key}x", str(key)[1:], key.upper() if isinstance(key, str) else 1, None, 3.5])] = (
            node.pop(key)
        )
    elif deed == 2:
        other = rng.choice(nodes)
        node[key] = copy.deepcopy(other[rng.choice(list(other))])
    else:
        node[key] = copy.deepcopy(rng.choice(TREES))
    return yaml.safe_dump(tree, sort_keys=False)


MUTATIONS: list[Callable[[str, random.Random], str | bytes]] = [
    *(delete_line, duplicate_line, swap_lines, garble_characters, swap_value, indent_line, cut),
    *(nonsense, add_section, nested_nonsense, random_bytes),
    *[change_tree] * 9,
]


def mutant(seed: int) -> bytes:
    """Return the content of mutant number ``seed``: a file of the folder with one to three mutations.

    Every other mutant starts from the file with all values spelled out, one per line, so that mutations get
    past the YAML parser.
    """
    rng = random.Random(seed)
    path = rng.choice(OF_TENSORS)
    spelled_out = seed % 2 == 0
    text: str | bytes = (
        schema.load(path).resolved_yaml() if spelled_out else without_comments(path.read_text())
    )
    for _ in range(rng.choice([1, 1, 2, 3])):
        if isinstance(text, bytes) or len(text) < 2 or ":" not in text:
            break
        text = rng.choice(MUTATIONS)(text, rng)
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def without_comments(text: str) -> str:
    """Drop the header: a mutation of a comment tests nothing."""
    return "".join(line for line in lines_of(text) if not line.startswith("#"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("fuzz") / "experiments"
    shutil.copytree(FOLDER, target)
    return target


@pytest.mark.parametrize("start", seeds(BATCH, MUTANTS, BATCH))
def test_mutants_are_experiments_or_user_errors(folder, start):
    outcomes: list[str] = []
    for seed in range(start, start + BATCH):
        path = folder / "mutant.yaml"
        path.write_bytes(mutant(seed))
        before = time.process_time()
        try:
            plan(schema.load(path))
            outcomes.append("valid")
        except UserError as error:
            outcomes.append("refused")
            assert str(error).strip(), seed
            assert len(str(error)) < 20_000, seed
        assert time.process_time() - before < 60, seed  # a guard against hanging, not a measurement
    assert {"valid", "refused"} == set(outcomes), "mutations must be neither harmless nor all fatal"


def test_mutated_overrides_are_experiments_or_user_errors():
    rng = random.Random(0)
    keys = [
        "training.epochs",
        "strategy.name",
        "benchmark.order",
        "memory",
        "x.y",
        "",
        "a.b.c",
        "experts.name",
        "base",
    ]
    for _ in range(200):
        override = f"{rng.choice(keys)}{rng.choice(['=', '', '=='])}{rng.choice(VALUES)}"
        try:
            schema.load(FOLDER / "quickstart.yaml", [override])
        except UserError as error:
            assert str(error)
