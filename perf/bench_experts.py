"""Three RIDE experts one after the other, as one module of grouped convolutions, and under ``torch.func.vmap``.

All competitors map the same 128 images to the features of the same network in training mode, the shared stem included:
``sequential`` runs a branch at a time; ``grouped`` joins the branches' parameters in every call, as ``network.grouped``
does; ``owned`` is a module that keeps them joined; ``vmap`` is PyTorch's own batching over stacked parameters, which
autocast does not reach, so that it takes no part in bf16.

On a GPU: ``python -m perf.bench_experts --device cuda --precision bf16 --channels-last``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import incrlt.models
from incrlt.models import ExpertNetwork, Layout
from incrlt.models.grouped import GroupedBranches
from perf.alternate import alternate, ratio, spread

RIDE = Layout(num_experts=3, width_factor=0.75, shortcut="padding", scale=30.0)
Extract = Callable[[Tensor], Tensor]


def network(device: torch.device, channels_last: bool) -> ExpertNetwork:
    """Return the network that all competitors run."""
    torch.manual_seed(0)
    model = incrlt.models.build("resnet32", layout=RIDE, last_relu=True).to(device)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def grouped(model: ExpertNetwork) -> Extract:
    """Return ``extract`` of a copy whose branches are joined in every call."""
    model = copy.deepcopy(model)
    model.grouped = True
    return model.extract


def owned(model: ExpertNetwork) -> Extract:
    """Return the stem and a module that owns the joined parameters."""
    stem = copy.deepcopy(model.stem)
    branches = GroupedBranches.from_branches(list(model.branches))
    return lambda x: branches(stem(x))


def mapped(model: ExpertNetwork) -> Extract:
    """Return the stem and branches under vmap, over stacked parameters and statistics."""
    stem, branches = copy.deepcopy(model.stem), copy.deepcopy(model.branches)
    parameters, buffers = stack_module_state(list(branches))
    shape = copy.deepcopy(branches[0]).to("meta")

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], maps: Tensor) -> Tensor:
        return functional_call(shape, (parameters, buffers), (maps,))

    run = vmap(one, in_dims=(0, 0, None))
    return lambda x: run(parameters, buffers, stem(x))


def competitors(model: ExpertNetwork, precision: str = "fp32") -> dict[str, Extract]:
    """Return ``extract`` by name, each on parameters of its own with the same values."""
    named = {"sequential": copy.deepcopy(model).extract, "grouped": grouped(model), "owned": owned(model)}
    return {**named, "vmap": mapped(model)} if precision == "fp32" else named


def turn(extract: Extract, images: Tensor, backward: bool, precision: str) -> Callable[[], None]:
    """Return one pass, waited for."""
    mixed = torch.autocast(images.device.type, torch.bfloat16) if precision == "bf16" else None

    def once() -> None:
        with mixed or contextlib.nullcontext(), torch.set_grad_enabled(backward):
            features = extract(images)
        if backward:
            nn.functional.normalize(features.float(), dim=-1)[..., 0].sum().backward()
        if images.is_cuda:
            torch.cuda.synchronize()

    return once


def measure(
    device: str = "cpu",
    batch: int = 128,
    rounds: int = 12,
    seconds: float = float("inf"),
    threads: int = 1,
    precision: str = "fp32",
    channels_last: bool = False,
) -> dict[str, Any]:
    """Measure all competitors in alternation.

    Returns:
        ``settings``, seconds by pass and competitor, and the paired ratio of each to ``sequential`` (below 1: faster).
    """
    if device == "cpu":
        torch.set_num_threads(threads)
    model = network(torch.device(device), channels_last)
    images = torch.randn(batch, 3, 32, 32, device=device)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    settings = {"device": device, "batch": batch, "precision": precision, "channels_last": channels_last}
    found: dict[str, Any] = {"settings": {**settings, "threads": threads}}
    for name, backward in (("forward", False), ("forward and backward", True)):
        turns = {
            kind: turn(extract, images, backward, precision)
            for kind, extract in competitors(model, precision).items()
        }
        times = alternate(turns, rounds, seconds)
        found[name] = {
            "seconds": {kind: spread(values) for kind, values in times.items()},
            "over_sequential": {kind: ratio(times, kind, "sequential") for kind in times},
        }
    return found


def test_competitors_agree():
    """What is timed is the same arithmetic."""
    model = network(torch.device("cpu"), False)
    images = torch.randn(4, 3, 32, 32)
    results = {kind: extract(images) for kind, extract in competitors(model).items()}
    for features in results.values():
        torch.testing.assert_close(features, results["sequential"], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_experts(benchmark):
    """No goal is asserted: whether grouping pays is the device's doing (see README.md)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    figures = benchmark.pedantic(measure, kwargs={"device": device, "rounds": 5}, rounds=1)
    benchmark.extra_info.update(figures)


def main(arguments: list[str] | None = None) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no round after this time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args(arguments)
    sys.stdout.write(json.dumps(measure(**vars(options)), indent=2) + "\n")


if __name__ == "__main__":
    main()
