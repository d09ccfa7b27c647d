"""What ``test_processes.py`` starts several times: strategies on the digits in double precision, results to a file."""

from __future__ import annotations

import sys
from pathlib import Path

import incrlt._compat  # noqa: F401  (before avalanche)

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import toy
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin

from incrlt import processes
from incrlt.experts.ncl import NCL
from incrlt.experts.ride import RIDE
from incrlt.experts.shike import SHIKE
from incrlt.experts.single import Single
from incrlt.plugins import EvaluationRecorder, ExemplarMemory
from incrlt.stages.expert_assignment import ExpertAssignment
from incrlt.stages.lws import LWS
from incrlt.strategies import LUCIR

EXPERTS = {
    "single": Single(objective="balanced_softmax"),
    "penalty": Single(),
    "ride": RIDE(num_experts=2, reweight_after=0.5),
    "ncl": NCL(num_experts=2),
    "contrast": NCL(num_experts=2, contrastive=1.0, projection=8, queue=32),
    "shike": SHIKE(num_experts=2, classifier_epochs=1, classifier_warmup=0),
}


class Decay(SupervisedPlugin):
    """A penalty on all parameters, as EWC's: its gradient does not come through the images of any process."""

    def before_backward(self, strategy, **kwargs):
        strategy.loss += 0.01 * sum(p.square().sum() for p in strategy.model.parameters() if p.requires_grad)


def doubles(train, labels):
    """Doubles in [0, 1]; a number of images that no number of processes divides."""
    index = toy.chosen(train, 7 if train else 5, labels)
    data = torch.utils.data.TensorDataset(toy.digits()[0][index].double() / 240, toy.digits()[1][index])
    data.targets = data.tensors[1].tolist()
    return as_classification_dataset(data)


def in_double(model):
    """Pictures that are augmented are in single precision: let the network and its momentum copies take them."""
    for part in (model.stem, *model.contrast.key_branches):
        part.register_forward_pre_hook(lambda _, images: images[0].double())


def benchmark(name):
    """Finished doubles; pictures where a second view is drawn."""
    if name == "contrast":
        return toy.stream(remap=False, per_class=7)
    made = benchmark_from_datasets(
        train=[doubles(True, part) for part in toy.parts()],
        test=[doubles(False, part) for part in toy.parts()],
    )
    return with_classes_timeline(made)


def run(name, experiences=3):
    """Train through the stream; return every number that is left."""
    experts = EXPERTS[name]
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    model = toy.network(layout=experts.layout).double()
    if name == "contrast":
        in_double(model)
    recorder = EvaluationRecorder()
    strategy = LUCIR(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4),
        experts=experts,
        memory=ExemplarMemory(per_class=3),
        rebalance=LWS(epochs=1),
        router=ExpertAssignment(epochs=1, batch_size=16) if experts.layout.num_experts > 1 else None,
        train_mb_size=13,
        train_epochs=2,
        eval_mb_size=9,
        evaluator=toy.quiet(),
        plugins=[recorder, *([Decay()] if name == "penalty" else [])],
        kernels="reference",
    )
    stream = benchmark(name)
    for t, experience in enumerate(stream.train_stream[:experiences]):
        strategy.train(experience)
        strategy.eval(stream.test_stream[: t + 1])
    matrices = [torch.tensor(m) for m in recorder.records()["cnn"].confusions]
    return {
        "weights": {k: v for k, v in model.state_dict().items() if v.is_floating_point()},
        "memory": strategy.memory.state_dict(),
        "counts": matrices,
        "terms": strategy.epoch_terms,
    }


if __name__ == "__main__":
    names, batch_norm, out = sys.argv[1].split(","), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    with processes.joined(batch_norm) as all_processes:
        for name in names:
            found = run(name)
            if all_processes.is_first:
                torch.save(found, out / f"{name}.pt")
