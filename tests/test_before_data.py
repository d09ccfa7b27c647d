"""What cannot work is refused before data are read: every example that somebody ran into, and its neighbours."""

from __future__ import annotations

from pathlib import Path

import incrlt._compat  # noqa: F401  (before avalanche)

import pytest
import torch

from incrlt.experiment import schema
from incrlt.run import main

QUICKSTART = Path(__file__).resolve().parent.parent / "experiments" / "quickstart.yaml"
LOADER = "data.on_device=false"
BILLION = 10**9
EXPERTS, STAGE, ROUTER = (
    "experts={{name: {}}}",
    "rebalance={{name: {}}}",
    "router={{name: expert_assignment, {}}}",
)

REFUSED = {
    "a graph on a CPU": (["training.step=graph", "device=cpu"], "'graph' needs a CUDA device; device is 'cpu'"),
    "a graph where auto is a CPU": (["training.step=graph", "device=auto"], "'graph' needs a CUDA device"),
    "fp16 where auto is a CPU": (["training.precision=fp16", "device=auto"], "'fp16' needs a GPU"),
    "channels last of few channels": (  # before: the heap was overwritten, and the process aborted
        ["training.channels_last=true", "model.width=4", "device=auto"], "takes a model.width of 8 or more; got 4"),
    "a GPU that is not there": (["device=cuda:9"], "device 'cuda:9' is not here: torch sees 0 CUDA devices"),
    "digits of another script": (["device=cuda:\u0661"], "device must be auto, cpu, cuda or cuda:N"),
    "digits in width": (["device=cuda:\uff11"], "device must be auto, cpu, cuda or cuda:N"),
    "digits in superscript": (["device=cuda:\u00b9"], "device must be auto, cpu, cuda or cuda:N"),
    "features kept of a loader, lws": (
        [LOADER, STAGE.format("lws, cache_features: true")], "cache_features true needs images as tensors"),
    "features kept of a loader, crt": (
        [LOADER, STAGE.format("crt, cache_features: true")], "cache_features true needs images as tensors"),
    "features kept of a loader, router": (
        [LOADER, EXPERTS.format("ride"), ROUTER.format("cache_features: true")], "true needs images as tensors"),
    "features kept of a loader, shike": (
        [LOADER, EXPERTS.format("shike, cache_features: true")], "cache_features true needs images as tensors"),
    "contrast with a loader": (
        [LOADER, EXPERTS.format("ncl, contrastive: 1")], "with contrastive 1 needs images as tensors"),
    "contrast in a graph": (
        [EXPERTS.format("ncl, contrastive: 1"), "training.step=graph"], "cannot draw the second views"),
    "a small width factor": ([EXPERTS.format("ride, width_factor: 0.01")], "must be a number >= 0.5 and <= 16"),
    "a width factor of nothing": ([EXPERTS.format("ride, width_factor: 0")], "must be a number >= 0.5"),
    "NUL in a folder": (['output.folder="a\\0b"'], "output.folder must be a path; it holds a NUL character"),
    "NUL in data": (['data.root="a\\0b"'], "data.root must be a path; it holds a NUL character"),
    "NUL in a teacher": ([EXPERTS.format('ride, teacher: "a\\0b"')], "experts.teacher must be a path; it holds a NUL"),
    "nobody's home": (["output.folder=~nouser/runs"], "begins with ~nouser, but there is no such user here"),
    "nobody's data": (["data.root=~nouser"], "begins with ~nouser, but there is no such user here"),
    "the template as strategy": (
        ["strategy={name: 'incrlt.training.template:IncrTemplate'}"], "is the class that methods are built on"),
    "the template of experts": (
        ["experts={name: 'incrlt.experts.base:ExpertMethod'}"], "is the class that methods are built on"),
    "a warm-up as long as its stage": (
        [EXPERTS.format("shike, classifier_epochs: 2, classifier_warmup: 2")], "classifier stage has only 2 epochs"),
    "minutes for a number": (["training.epochs=1:30"], "training.epochs must be a whole number >= 1; got '1:30'"),
    "a large batch on a wide network": (
        ["training.batch_size=100000", "model.width=1024", "benchmark.dataset=cifar100"],
        "425 GB of memory or more, most of it for a batch of 100,000 images; at most 256 GB are taken. Make "
        "training.batch_size"),
    "a large evaluation": (
        ["training.eval_batch_size=100000", "model.width=1024", "benchmark.dataset=cifar100"], "at most 256 GB"),
    "a long queue of wide projections": (
        [EXPERTS.format("ncl, contrastive: 1, queue: 100000, projection: 100000, num_experts: 8")],
        "320 GB of memory or more, most of it for the queue of experts.contrastive"),
    "a wide router": (
        [EXPERTS.format("ride, num_experts: 64"), ROUTER.format("hidden: 100000"), "model.width=1024"],
        "most of it for a network of about"),
}  # fmt: skip
SIZES = {
    "training.epochs": 10_000_000,
    "training.base_epochs": 10_000_000,
    "training.warmup_epochs": 10_000_000,
    "training.batch_size": 100_000,
    "training.eval_batch_size": 100_000,
    "training.threads": 4096,
    "model.width": 1024,
    "memory.per_class": 10_000_000,
    "memory.total": 10_000_000,
    "benchmark.base_classes": 10_000_000,
    "benchmark.increment": 10_000_000,
    "benchmark.image_size": 1024,
    "strategy.num_negatives": 10_000_000,
    "strategy.class_balanced_finetune": 10_000_000,
}
"""Every size of the sections and of LUCIR, with its bound."""
OF_METHODS = {
    "experts": {
        "ride": {"num_experts": 64, "margin_images": 10_000_000},
        "tcl": {"num_experts": 64},
        "ncl": {"num_experts": 64, "queue": 100_000, "projection": 100_000},
        "shike": {"num_experts": 64, "classifier_epochs": 10_000_000, "classifier_warmup": 10_000_000},
        "single": {"num_experts": 64},
    },
    "rebalance": {
        "lws": {"epochs": 10_000_000, "skip_below": 10_000_000},
        "crt": {"epochs": 10_000_000},
        "gvalign": {"steps": 10_000_000},
    },
    "router": {
        "expert_assignment": {"epochs": 10_000_000, "batch_size": 100_000, "top": 100_000, "hidden": 100_000}
    },
}  # fmt: skip
BILLIONS = {f"{key}={BILLION}": bound for key, bound in SIZES.items()} | {
    f"{kind}={{name: {name}, {key}: {BILLION}}}": bound
    for kind, methods in OF_METHODS.items()
    for name, sizes in methods.items()
    for key, bound in sizes.items()
}


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Run the command, data out of reach; returns the sentence with which it ends."""

    def call(words):
        monkeypatch.setattr("incrlt.runner.run.Images", lambda experiment: pytest.fail("data were read"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        monkeypatch.setenv("COLUMNS", "1000")
        assert main([str(QUICKSTART), f"output.folder={tmp_path / 'runs'}", *words]) == 2
        assert not (tmp_path / "runs").exists()
        return " ".join(capsys.readouterr().err.split())

    return call


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_data_are_read(refused, case):
    words, sentence = REFUSED[case]
    assert sentence in refused(words)


def test_a_compiled_step_without_a_compiler_is_refused_before_data_are_read(refused, monkeypatch):
    """Before: the first step of the first experience said so."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    said = refused(["training.step=compile", "device=cpu"])
    assert "needs a C++ compiler on a CPU, and 'no-such-compiler' is not here" in said


@pytest.mark.parametrize("word", BILLIONS)
def test_a_billion_of_anything_is_refused_with_its_bound(refused, word):
    """Before: a billion epochs, exemplars or negatives were taken, and the experts of TCL had no bound of their own."""
    found = refused([word])
    assert f"got {BILLION}" in found and f" {BILLIONS[word]}" in found


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["training.epochs=010"], {"training": {"epochs": 10}}),
        (["training.lr=1e-3"], {"training": {"lr": 0.001}}),
        (["training.weight_decay=5e-4"], {"training": {"weight_decay": 0.0005}}),
        (["seeds.all=0x1f"], {"seeds": {"all": 31}}),
        (["seeds.all=1_000"], {"seeds": {"all": 1000}}),
        (["output.name='010'"], {"output": {"name": "010"}}),
        (["data.root='1e-3'"], {"data": {"root": "1e-3"}}),
        (["experts={name: shike, classifier_epochs: 2}"],
         {"experts": {"classifier_epochs": 2, "classifier_warmup": 1}}),
        (["training.epochs=10000000"], {"training": {"epochs": 10_000_000}}),
    ],
)  # fmt: skip
def test_what_reads_like_a_number_is_that_number(words, value):
    found = schema.load(QUICKSTART, words).resolved()
    for section, expected in value.items():
        assert {key: found[section][key] for key in expected} == expected
