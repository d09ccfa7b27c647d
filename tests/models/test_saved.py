"""A network is built anew from its run folder with what its methods remember, and every way to ask it agrees."""

from __future__ import annotations

import pytest
import torch
import toy

import incrlt.models
from incrlt.checkpoint import CheckpointFolder
from incrlt.experts.shike import SHIKE
from incrlt.experts.tcl import TCL
from incrlt.lifecycle.graphs import AllExperts, FirstExpert, LaterExpert
from incrlt.stages.balanced_head import BalancedHead
from incrlt.stages.lda import LDA
from incrlt.stages.logit_adjustment import LogitAdjustment
from incrlt.strategies import LUCIR

SHORT = {"num_experts": 2, "classifier_epochs": 1, "classifier_warmup": 0}
REMEMBER = {
    "running accuracy": {"experts": TCL(num_experts=2)},
    "offsets": {"experts": SHIKE(**SHORT), "rebalance": LogitAdjustment(strength=3.0)},
    "rows beside": {"experts": SHIKE(**SHORT), "rebalance": BalancedHead(beside=True)},
    "discriminant beside": {"experts": SHIKE(**SHORT), "rebalance": LDA()},
    "discriminants": {"experts": SHIKE(**SHORT), "rebalance": LDA(beside=False)},
}


@pytest.mark.parametrize("parts", REMEMBER.values(), ids=REMEMBER)
def test_what_methods_remember_is_loaded_and_answers_everywhere(tmp_path, parts):
    """Before: a run with any of these could not be loaded, and graphs of single experts left offsets out."""
    strategy = toy.make(LUCIR, **parts)
    torch.manual_seed(1)
    toy.train(strategy, toy.stream().train_stream[:2])
    network = strategy.model.eval()
    CheckpointFolder(tmp_path / "checkpoints").save({"strategy": strategy.state_dict(trained=True)})
    loaded = incrlt.models.load(tmp_path)
    kept = {name for name in network.state_dict() if name.startswith("kept_")}
    assert kept and kept == {name for name in loaded.state_dict() if name.startswith("kept_")}
    for name, value in network.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, loaded.state_dict()[name]), name

    images = torch.rand(6, 1, 8, 8)
    with torch.no_grad():
        wanted = network.forward_all(images).expert_logits
        assert torch.equal(loaded.forward_all(images).expert_logits, wanted)
        torch.testing.assert_close(loaded.predict(images).logits, wanted.mean(0))
        loaded.normalisation = {"mean": [0.0], "std": [1.0]}
        pixels = (images * 255).byte()
        whole = AllExperts(loaded)(pixels)[1]
        first, answer, _, *maps = FirstExpert(loaded)(pixels)
        _, both, _ = LaterExpert(loaded, 1)(first[:, None], *maps)
        torch.testing.assert_close(answer, loaded.forward_all(pixels / 255).expert_logits[0])
        torch.testing.assert_close(both, whole)
