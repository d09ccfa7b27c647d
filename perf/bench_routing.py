"""Wall time per image of routed inference against all experts, at batch 1, 32 and 512.

All competitors classify the same images with the same three RIDE experts (ResNet-32, 100 classes) in evaluation mode.
Weights and images are random, which costs what trained ones cost; thresholds are calibrated on the images, so that
the mean number of experts is what the name says. Arithmetic saved, the figure of the paper, stands beside the time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from incrlt.models import ExpertNetwork, Layout, build
from incrlt.models.cost import macs
from incrlt.models.inference import calibrate, predict
from incrlt.models.router import Router
from perf.alternate import alternate, ratio, spread

LAYOUT = Layout(
    num_experts=3, width_factor=0.75, shortcut="padding", scale=30.0, learn_scale=False, unit_rows=True
)
CLASSES = 100
BATCHES = {1: 24, 32: 128, 512: 512}  # images per step: images per turn
BUDGETS = (1.0, 1.5, 2.09, 3.0)  # 2.09: exits of 40.99, 9.47 and 49.54 %, the example of the official code
GATHERS = (2, 4, 8, 16, 32)
NEVER = 1_000_000_000


def network_and_images(images: int, device: torch.device) -> tuple[ExpertNetwork, Tensor]:
    """Return three RIDE experts with a router that has seen the images, and the images."""
    torch.manual_seed(0)
    network = build("resnet32", layout=LAYOUT)
    network.grow(range(CLASSES))
    network.router = Router(LAYOUT.num_experts, network.heads[0].num_features)
    network.eval().to(device)
    x = torch.randn(images, 3, 32, 32, device=device)
    calibrate(network, x.split(128))
    return network, x


def finished(device: torch.device) -> None:
    """Wait for the device, so that its time is counted."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def everything(network: ExpertNetwork, batches: list[Tensor], grouped: bool) -> Callable[[], None]:
    """Return a turn that runs all experts on each batch, up to the class on the host."""

    @torch.no_grad()
    def turn() -> None:
        network.grouped = grouped
        for x in batches:
            network.forward_all(x).logits.argmax(1).tolist()
        network.grouped = False
        finished(batches[0].device)

    return turn


def routed(
    network: ExpertNetwork, batches: list[Tensor], budget: float, **options: Any
) -> Callable[[], None]:
    """Return a turn that stops as soon as the router says so, up to the class on the host."""
    threshold = float(network.router.threshold_for(budget))

    def turn() -> None:
        for x in batches:
            predict(network, x, threshold=threshold, **options).class_ids.tolist()
        finished(batches[0].device)

    return turn


def exits(network: ExpertNetwork, batches: list[Tensor], budget: float) -> dict[str, Any]:
    """Return the mean number of experts that ran, and the share of arithmetic that this is."""
    threshold = float(network.router.threshold_for(budget))
    used = torch.cat([predict(network, x, threshold=threshold).experts_used for x in batches]).cpu()
    costs = torch.tensor([macs(network, experts=k) for k in range(1, network.num_experts + 1)])
    return {
        "mean_experts": used.double().mean().item(),
        "macs_over_all": (costs[used - 1].mean() / costs[-1]).item(),
    }


def compare(network: ExpertNetwork, batches: list[Tensor], rounds: int, seconds: float) -> dict[str, Any]:
    """Measure one batch size: all experts, one after the other and grouped, against several budgets."""
    turns = {
        "all experts": everything(network, batches, False),
        "all experts, grouped": everything(network, batches, True),
        **{f"routed, {budget}": routed(network, batches, budget) for budget in BUDGETS},
    }
    times = alternate(turns, rounds, seconds)
    images = sum(len(x) for x in batches)
    return {
        "images_per_turn": images,
        "ms_per_image": {name: spread([1000 * t / images for t in values]) for name, values in times.items()},
        "time_over_all": {
            f"routed, {budget}": ratio(times, f"routed, {budget}", "all experts")
            | exits(network, batches, budget)
            for budget in BUDGETS
        },
    }


def compare_gathers(
    network: ExpertNetwork, images: Tensor, rounds: int, seconds: float
) -> dict[int, dict[str, Any]]:
    """Measure from which batch size on it pays to copy the images left; justifies ``SMALLEST_GATHER``."""
    found = {}
    for size in GATHERS:
        batches = list(images[:64].split(size))
        turns = {
            "gather": routed(network, batches, BUDGETS[2], smallest_gather=0),
            "whole": routed(network, batches, BUDGETS[2], smallest_gather=NEVER),
        }
        found[size] = {"gather_over_whole": ratio(alternate(turns, rounds, seconds), "gather", "whole")}
    return found


def measure(
    rounds: int = 12, seconds: float = float("inf"), threads: int = 1, device: str = "cpu"
) -> dict[str, Any]:
    """Measure all competitors in alternation.

    Args:
        rounds: Turns of each competitor.
        seconds: Per comparison, start no round after this time.
        threads: Of torch.
        device: Where the network runs.

    Returns:
        Per batch size ms per image, and time and arithmetic relative to all experts, with medians and quartiles.
    """
    torch.set_num_threads(threads)
    place = torch.device(device)
    network, x = network_and_images(max(BATCHES.values()), place)
    return {
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "threads": threads,
        "batches": {
            size: compare(network, list(x[:images].split(size)), rounds, seconds)
            for size, images in BATCHES.items()
        },
        "gather": compare_gathers(network, x, rounds, seconds),
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_routed_inference(benchmark):
    """Goals are not asserted: how much of the arithmetic saved is time saved is the machine's doing."""
    benchmark.extra_info.update(benchmark.pedantic(measure, rounds=1))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_routed_inference_on_a_gpu(benchmark):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    benchmark.extra_info.update(benchmark.pedantic(lambda: measure(device="cuda"), rounds=1))


def main(arguments: list[str] | None = None) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no round after this time")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    sys.stdout.write(json.dumps(measure(**vars(options)), indent=2) + "\n")


if __name__ == "__main__":
    main()
