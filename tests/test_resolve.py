"""Names become classes by file, and hyper-parameters are read from source without running it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from incrlt.errors import UserError
from incrlt.experiment import methods

STRATEGY = '''
import a_module_that_does_not_exist
from typing import Any, ClassVar, Literal
from incrlt.experiment.fields import Count, Index, NonNegative
import incrlt.experiment.fields as fields

raise RuntimeError("executed")

class _Private:
    name = "foo"

class Helper:
    pass

class Foo(Base):
    """Does foo.

    Args:
        weight: Weight of the term; continued
            here.
        model: A network.
    """

    name: ClassVar[str] = "foo"
    needs_memory = True
    computed = 1 + len("x")

    def __init__(
        self,
        positional=1,
        *,
        model: Any,
        weight: NonNegative = 5.0,
        fraction: fields.Fraction = 0.25,
        negatives: Count = 2,
        epochs: Index = 0,
        signed: float = -0.45,
        limit: float | None = None,
        flag: "bool" = True,
        readout: Literal["cnn", "nme"] = "cnn",
        plugins: list | None = None,
        either: int | Plugin = 3,
        factory: Count = make(),
        required: Count,
        nothing: None = None,
        unannotated=4,
        train_epochs: int = 1,
        **template,
    ):
        self.rest = template
'''

EXPERT = '''
from dataclasses import dataclass, field

@dataclass(frozen=True)
class Bar:
    """Does bar."""

    name = "bar"
    num_experts: Count = 3
    """Number of experts."""
    diversity: float = -0.45
    objective: Literal["a", "b"] = "a"
    weights: dict = field(default_factory=dict)

    def loss(self): ...
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for folder in ("strategies", "stages", "experts"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "strategies/foo.py").write_text(STRATEGY)
    (tmp_path / "strategies/_hidden.py").write_text("class H:\n    name = '_hidden'\n")
    (tmp_path / "strategies/helpers.py").write_text("class Helpers:\n    pass\n")
    (tmp_path / "experts/bar.py").write_text(EXPERT)
    (tmp_path / "experts/base.py").write_text("class B:\n    name: str\n")
    return tmp_path


def test_names_are_the_files_that_declare_them(package):
    assert methods.names("strategy", package) == ["foo"]
    assert methods.names("experts", package) == ["bar"]
    assert methods.names("rebalance", package) == []


def test_two_kinds_of_stages_share_a_folder_and_say_which_they_are(package):
    for kind in ("rebalance", "router"):
        (package / f"stages/a_{kind}.py").write_text(
            f"class A:\n    name = 'a_{kind}'\n    kind = '{kind}'\n"
        )
    assert methods.names("rebalance", package) == ["a_rebalance"]
    assert methods.names("router", package) == ["a_router"]


def test_hyper_parameters_of_a_strategy_are_its_literal_keyword_arguments(package):
    found = methods.find("strategy", "foo", package)
    assert (found.module, found.class_name) == ("incrlt.strategies.foo", "Foo")
    assert {key: default for key, (_, default) in found.parameters.items()} == {
        "weight": 5.0,
        "fraction": 0.25,
        "negatives": 2,
        "epochs": 0,
        "signed": -0.45,
        "limit": None,
        "flag": True,
        "readout": "cnn",
        "required": ...,
    }
    assert found.parameters["readout"][0] == Literal["cnn", "nme"]
    assert found.help["weight"] == "Weight of the term; continued here."
    assert dict(found.facts) == {"name": "foo", "needs_memory": True}


def test_hyper_parameters_of_an_expert_are_its_fields(package):
    found = methods.find("experts", "bar", package)
    assert {key: default for key, (_, default) in found.parameters.items()} == {
        "num_experts": 3,
        "diversity": -0.45,
        "objective": "a",
    }
    assert found.help["num_experts"] == "Number of experts."


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("weight", -1),
        ("weight", True),
        ("weight", float("nan")),
        ("fraction", 1.5),
        ("negatives", 0),
        ("negatives", 2.0),
        ("epochs", -1),
        ("flag", 1),
        ("readout", "knn"),
        ("limit", "none"),
        ("model", 1),
    ],
)
def test_schema_refuses(package, key, bad):
    with pytest.raises(ValidationError):
        methods.schema("strategy", "foo", package)(name="foo", **{"required": 1, key: bad})


def test_schema_accepts_and_gives_keyword_arguments(package):
    entry = methods.schema("strategy", "foo", package)(
        name="foo", weight=2, limit=1.5, readout="nme", required=1
    )
    assert entry.hyper_parameters == {
        "weight": 2.0,
        "fraction": 0.25,
        "negatives": 2,
        "epochs": 0,
        "signed": -0.45,
        "limit": 1.5,
        "flag": True,
        "readout": "nme",
        "required": 1,
    }


def test_unknown_name_lists_and_suggests(package):
    with pytest.raises(
        UserError, match=r"strategy.name 'fo' is not known; allowed: foo, .*Did you mean 'foo'\?"
    ):
        methods.find("strategy", "fo", package)


def test_broken_file_is_named(package):
    (package / "experts/bar.py").write_text("def (")
    with pytest.raises(UserError, match=r"bar\.py is not valid Python"):
        methods.find("experts", "bar", package)


def test_external_class_is_found_without_importing_its_package(tmp_path, monkeypatch):
    folder = tmp_path / "my_pkg"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('executed')")
    (folder / "my_mod.py").write_text(STRATEGY)
    monkeypatch.syspath_prepend(tmp_path)
    found = methods.find("strategy", "my_pkg.my_mod:Foo")
    assert (found.module, found.class_name, found.parameters["weight"][1]) == ("my_pkg.my_mod", "Foo", 5.0)
    assert "my_pkg" not in sys.modules
    with pytest.raises(UserError, match=r"has no class 'Fo'; it has: Helper, Foo\. Did you mean 'Foo'\?"):
        methods.find("strategy", "my_pkg.my_mod:Fo")


@pytest.mark.parametrize("name", ["a:b:c", ":", "a..b:C", ".a:C", "a:", "a b:C", "../x:C", "é\x00:C", "1:2"])
def test_malformed_external_name(name):
    with pytest.raises(UserError, match="is not of the form"):
        methods.find("strategy", name)


@pytest.mark.parametrize("name", ["no_such_module_at_all:C", "os.no_such:C", "sys:C", "math:C"])
def test_external_module_without_source(name):
    with pytest.raises(UserError, match="no Python file of module"):
        methods.find("strategy", name)


@pytest.mark.parametrize("kind", ["strategy", "experts", "rebalance"])
def test_every_method_of_the_package_resolves_and_its_defaults_are_valid(kind):
    assert methods.names(kind)
    for name in methods.names(kind):
        entry = methods.schema(kind, name)(name=name)
        assert entry.name == name


def test_methods_of_the_literature_are_there_with_their_published_defaults():
    assert {"finetune", "joint", "replay", "icarl", "lucir"} <= set(methods.names("strategy"))
    lucir = methods.schema("strategy", "lucir")(name="lucir").hyper_parameters
    published = {
        "less_forget": 5.0,
        "margin": 0.5,
        "num_negatives": 2,
        "margin_ranking": 1.0,
        "adaptive": True,
    }
    assert published.items() <= lucir.items()
    lws = methods.schema("rebalance", "lws")(name="lws").hyper_parameters
    assert {"epochs": 30, "lr": 0.1}.items() <= lws.items()


def test_every_hyper_parameter_of_the_package_is_documented():
    undocumented = [
        f"{kind} {name}.{key}"
        for kind in ("strategy", "experts", "rebalance")
        for name in methods.names(kind)
        for key in methods.find(kind, name).parameters
        if not methods.find(kind, name).help.get(key)
    ]
    assert undocumented == []


def test_resolving_everything_loads_no_torch():
    code = (
        "import sys; from incrlt.experiment import methods\n"
        "for kind in methods.FOLDERS:\n"
        "    for name in methods.names(kind): methods.schema(kind, name)\n"
        "assert not {'torch', 'avalanche'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_signature_read_from_source_is_the_one_the_class_has():
    """The oracle: Python's own view of the imported class."""
    import inspect

    for kind in ("strategy", "experts", "rebalance"):
        for name in methods.names(kind):
            signature = inspect.signature(methods.load_class(kind, name))
            for key, (_, default) in methods.find(kind, name).parameters.items():
                assert signature.parameters[key].default == default, (name, key)
