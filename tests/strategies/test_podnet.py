"""PODNet in training: its whole loss and its heads against arrays of both codes, and what it trains when."""

from __future__ import annotations

import pytest
import torch
import toy

from incrlt.errors import UserError
from incrlt.experts.ride import RIDE
from incrlt.experts.shike import SHIKE
from incrlt.experts.single import Single
from incrlt.losses.proxies import proxy_similarities
from incrlt.models.heads import ProxyHead
from incrlt.strategies.podnet import PODNet
from incrlt.types import ModelOutput

OFFICIAL = {
    "podnet_total_a": {"spatial": 3.0, "flat": 1.0, "scale": 1.0, "proxies": 3, "new": 2},
    "podnet_total_b": {"spatial": 8.0, "flat": 10.0, "scale": 4.5, "proxies": 10, "new": 5},
}
LTCIL = {
    "podnet_ltcil_total_t1": {"spatial": 3.0, "flat": 1.0, "scale": 2.5, "proxies": 10, "new": 2},
    "podnet_ltcil_total_t2": {
        "spatial": 5.0, "flat": 2.0, "scale": 6.0, "proxies": 4, "new": 3, "pool": "width",
    },
}  # fmt: skip


def leaf(array):
    return torch.as_tensor(array, dtype=torch.float64).clone().requires_grad_()


def close(value, wanted, rtol=1e-9):
    torch.testing.assert_close(value, torch.as_tensor(wanted).to(value), rtol=rtol, atol=1e-11)


def head_of(rows, proxies, scale):
    """A head that holds rows ``[C P, D]``."""
    classes, width = len(rows) // proxies, rows.shape[1]
    head = ProxyHead(width, num_proxies=proxies).double()
    head.resize(classes)
    head.weight.data[:classes] = torch.as_tensor(rows).reshape(classes, -1)
    head.scale.data.fill_(scale)
    return head


class Stored:
    """A strategy whose network has said what is stored, and its teacher too."""

    def __init__(self, arrays, setting, objective):
        self.arrays, self.setting = arrays, setting
        self.head = head_of(arrays["weights"], setting["proxies"], setting["scale"])
        weights = {name: setting[name] for name in ("spatial", "flat", "pool") if name in setting}
        self.strategy = strategy = toy.make(PODNet, memory=0, objective=objective, **weights)
        strategy.model.heads[0] = self.head
        strategy.model.class_ids = list(range(self.head.num_classes))
        strategy.num_old = self.head.num_classes - setting["new"]
        names = sorted(name for name in arrays if name.startswith("map_new_") and not name.endswith("_f32"))
        self.maps = [leaf(arrays[name]) for name in names]
        olds = [torch.as_tensor(arrays[name.replace("new", "old")])[None] for name in names]
        self.features, empty = leaf(arrays["features"]), torch.zeros(1, 1, 1)
        reference = torch.as_tensor(arrays["ref_features"])[None]
        teacher = ModelOutput(empty[0], empty, reference, maps=tuple(olds))
        strategy.teacher_output = lambda: teacher

    def terms(self, cosines):
        logits = self.head.scale * cosines
        maps = tuple(one[None] for one in self.maps)
        output = ModelOutput(logits, logits[None], self.features[None], cosines[None], maps=maps)
        return self.strategy.loss_terms(output, torch.as_tensor(self.arrays["labels"]).long())

    def check_gradients(self, total):
        moved = [self.features, self.head.weight, self.head.scale, *self.maps]
        features, weight, scale, *maps = torch.autograd.grad(total, moved)
        close(features, self.arrays["grad_features"], 1e-8)
        rows = weight[: self.head.num_classes].reshape(-1, features.shape[1])
        close(rows, self.arrays["grad_weights"], 1e-8)
        name = "grad_sigma" if "grad_sigma" in self.arrays else "grad_scale"
        close(scale.reshape(-1), self.arrays[name].reshape(-1), 1e-8)
        for level, gradient in enumerate(maps):
            close(gradient, self.arrays[f"grad_map_new_{level}"], 1e-8)


@pytest.mark.parametrize("case", LTCIL)
def test_the_whole_loss_is_that_of_long_tailed_cil(golden, case):
    stored = Stored(golden(case), LTCIL[case], "experts")
    logits, cosines = stored.head(stored.features)
    close(logits.detach(), stored.arrays["logits"])
    terms = stored.terms(cosines)
    close(terms["cross_entropy"].detach(), stored.arrays["loss_cls"])
    close(terms["pod_flat"].detach(), stored.arrays["loss_flat"])
    close(terms["pod_spatial"].detach(), stored.arrays["loss_spatial"])
    total = sum(terms.values())
    close(total.detach(), stored.arrays["loss_total"])
    stored.check_gradients(total)


@pytest.mark.parametrize("case", OFFICIAL)
def test_the_whole_loss_is_that_of_the_authors(golden, case):
    """Their similarities are minus squared distances, which our heads do not have: they are made here."""
    stored = Stored(golden(case), OFFICIAL[case], "published")
    rows = stored.head.rows().reshape(-1, stored.features.shape[1])
    raw = proxy_similarities(stored.features, rows, distance=True)
    reduced = raw.unflatten(-1, (-1, stored.head.num_proxies))
    similarities = (reduced.softmax(-1) * reduced).sum(-1)
    close(similarities.detach(), stored.arrays["logits"])
    terms = stored.terms(similarities)
    for name, key in (("nca", "nca"), ("pod_flat", "flat"), ("pod_spatial", "spatial")):
        close(terms[name].detach(), stored.arrays[f"loss_{key}"])
    stored.check_gradients(sum(terms.values()))


def test_the_head_is_that_of_long_tailed_cil(golden):
    arrays = golden("podnet_ltcil_head")
    head, features = head_of(arrays["weights"], 10, 2.5), leaf(arrays["features"])
    logits, cosines = head(features)
    close(logits.detach(), arrays["logits_train"])
    close(cosines.detach(), arrays["logits_eval"])
    pulled = (torch.as_tensor(arrays["logit_cotangent"]) * logits).sum()
    gradients = torch.autograd.grad(pulled, (features, head.weight, head.scale))
    close(gradients[0], arrays["grad_features"])
    close(gradients[1][:4].reshape(-1, 7), arrays["grad_weights"])
    close(gradients[2], arrays["grad_sigma"])


def test_an_imprinted_class_has_proxies_around_its_prototype():
    head = ProxyHead(16, num_proxies=4)
    head.grow(3)
    length = head.weight[:3].unflatten(1, (4, 16)).norm(dim=-1).mean()
    head.grow(2)
    prototypes = torch.nn.functional.normalize(torch.randn(2, 16), dim=-1)
    head.imprint(prototypes)
    proxies = head.weight[3:5].unflatten(1, (4, 16)).detach()
    torch.testing.assert_close(proxies.norm(dim=-1), length.expand(2, 4))
    cosines = (proxies / length) @ prototypes.T
    own = torch.stack([cosines[0, :, 0], cosines[1, :, 1]])
    assert (own > 0.85).all() and own.unique().numel() == 8, "equal proxies would stay equal"
    head.imprint(proxies / length)
    torch.testing.assert_close(head.weight[3:5].unflatten(1, (4, 16)).detach(), proxies * (
        head.weight[:3].unflatten(1, (4, 16)).norm(dim=-1).mean() / length
    ))  # fmt: skip


# ---------------------------------------------------------------------------- in training


def trained(count=2, watch=None, head="proxies", **options):
    strategy = toy.make(PODNet, head=head, **{"train_epochs": 1, **options})
    strategy.on_epoch_end = watch
    torch.manual_seed(1)
    toy.train(strategy, toy.stream().train_stream[:count])
    return strategy


def test_maps_are_told_in_training_and_to_nobody_in_evaluation():
    seen = []

    class Watched(PODNet):
        def loss_terms(self, output, labels):
            teacher = self.teacher_output()
            seen.append((self.experience_index, len(output.known_maps), teacher and len(teacher.known_maps)))
            return super().loss_terms(output, labels)

    strategy = toy.make(Watched, train_epochs=1, head="proxies")
    toy.train(strategy, toy.stream().train_stream[:2])
    assert set(seen) == {(0, 3, None), (1, 3, 3)}
    output = strategy.compute.run(strategy.network, torch.rand(2, 1, 8, 8), rebalanced=True)
    assert output.maps is None


def test_terms_and_their_growth():
    terms, growth = {}, {}

    def watch(s):
        terms[s.experience_index], growth[s.experience_index] = dict(s.epoch_terms), s.growth

    trained(3, watch)
    assert set(terms[0]) == {"cross_entropy"}
    assert set(terms[2]) == {"cross_entropy", "pod_flat", "pod_spatial"}
    assert growth[1] == pytest.approx((7 / 3) ** 0.5) and growth[2] == pytest.approx((10 / 3) ** 0.5)
    assert terms[2]["pod_spatial"] > 0


def test_the_spatial_term_reaches_every_stage_of_the_backbone():
    reached = set()

    class Watched(PODNet):
        def loss_terms(self, output, labels):
            terms = super().loss_terms(output, labels)
            if "pod_spatial" in terms:
                named = dict(self.model.named_parameters())
                found = torch.autograd.grad(
                    terms["pod_spatial"], list(named.values()), retain_graph=True, allow_unused=True
                )
                reached.update(
                    name for name, g in zip(named, found, strict=True) if g is not None and g.any()
                )
            return terms

    toy.train(toy.make(Watched, train_epochs=1, head="proxies"), toy.stream().train_stream[:2])
    for part in ("stem.conv", "stem.stage1", "branches.0.stage2", "branches.0.stage3"):
        assert any(name.startswith(part) for name in reached), part
    assert not any(name.startswith("heads") for name in reached)


@pytest.mark.parametrize("freeze", [True, False])
def test_old_rows_stay_until_the_finetune_trains_rows_alone(freeze):
    kept, moved, rows = {}, {}, {}

    def watch(s):
        now = toy.weights(s.model)
        key = s.experience_index, s.stage.name
        if "before" in kept and s.experience_index == 1:
            moved[key] = toy.changed(kept["before"], now)
            rows[key] = not torch.equal(kept["before"]["heads.0.weight"][:4], now["heads.0.weight"][:4])
        kept["before"] = now

    trained(2, watch, class_balanced_finetune=1, freeze_old_rows=freeze)
    assert rows[1, "train"] is not freeze
    assert rows[1, "class_balanced_finetune"]
    parameters = {
        name
        for name in moved[1, "class_balanced_finetune"]
        if "running" not in name and "num_batches" not in name
    }
    assert parameters == {"heads.0.weight"}


@pytest.mark.parametrize("objective", ["published", "paper"])
def test_nca_takes_the_place_of_cross_entropy(objective):
    strategy = trained(2, objective=objective, experts=Single(num_experts=2))
    assert set(strategy.epoch_terms) == {"nca", "pod_flat", "pod_spatial"}
    assert strategy.epoch_terms["nca"] > 0


def test_one_proxy_is_a_cosine_head():
    one, plain = (
        ProxyHead(8, scale=2.0, num_proxies=1),
        toy.network("cosine").heads[0].__class__(8, scale=2.0),
    )
    for head in (one, plain):
        head.resize(3)
        head.weight.data[:3] = torch.arange(24.0).reshape(3, 8) - 12
    x = torch.randn(4, 8)
    torch.testing.assert_close(one(x)[0], plain(x)[0])


def test_what_it_refuses():
    with pytest.raises(UserError, match="cosine head"):
        toy.make(PODNet, head="linear")
    with pytest.raises(UserError, match="in the place of the loss of experts 'ride'"):
        toy.make(PODNet, experts=RIDE(num_experts=2), objective="paper")
    with pytest.raises(UserError, match="exemplars"):
        toy.make(PODNet, memory=0, class_balanced_finetune=1)


def test_a_finetune_of_heads_that_do_not_answer_is_refused():
    """YAML refused it, Python did not."""
    experts = SHIKE(num_experts=2, classifier_epochs=1, classifier_warmup=0)
    with pytest.raises(UserError, match="do not answer with"):
        toy.make(PODNet, experts=experts, class_balanced_finetune=2)
