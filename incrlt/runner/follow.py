"""A process that computes its share of a run and writes nothing; the first process has the folder and the console."""

from __future__ import annotations

import torch

from incrlt.benchmarks import streams
from incrlt.benchmarks.protocols import ResolvedProtocol
from incrlt.experiment.sections import Experiment
from incrlt.processes import World
from incrlt.runner.build import Images, build_strategy


def follow(
    experiment: Experiment, device: torch.device, images: Images, resolved: ResolvedProtocol, processes: World
) -> int:
    """Train and evaluate along with the first process; return the exit code.

    Args:
        experiment: What runs.
        device: This process's own.
        images: The dataset.
        resolved: The protocol on these data.
        processes: All of them, seen from here.
    """
    if processes.tell(None):
        return 0  # the run is finished
    data = images.take()
    benchmark = streams.build(data, resolved)
    if experiment.training.threads:
        torch.set_num_threads(experiment.training.threads)
    strategy = build_strategy(experiment, data.train_images.shape[1], device, [])
    strategy.model.normalisation = {"mean": list(data.mean), "std": list(data.std)}
    del data  # what the benchmark needs, it holds
    state, first = processes.tell(None), 0
    if state is not None:
        strategy.load_state_dict(state["strategy"], benchmark.train_stream)
        first = int(state["strategy"]["progress"]["experience"])
    for t in range(first, len(benchmark.train_stream)):
        strategy.train(benchmark.train_stream[t])
        strategy.eval(benchmark.test_stream[: t + 1])
    return 0
