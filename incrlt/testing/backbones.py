"""What every backbone promises: to be cut where it says, to be made anew, copied, saved, and to learn."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrlt.errors import UserError
from incrlt.models import ExpertNetwork, Layout, build
from incrlt.models.backbone import Backbone, backbone_of
from incrlt.models.layout import Shared
from incrlt.models.named import name_of
from incrlt.plugins.features import evaluation
from incrlt.testing import digits
from incrlt.testing.learners import has_a_file
from incrlt.testing.promises import Promise, check_all, expect, promise

STEPS = 100
"""Of SGD on four classes, where they are to be learned."""


def check_backbone(cls: type, *, pixels: int = 8, width: int = 8) -> None:
    """Check on digits that a backbone of yours does what every backbone here does; some ten seconds of one core.

    Args:
        cls: Its class; it is given images of one channel.
        pixels: Height and width of the images that it takes; the digits are enlarged to them.
        width: Channels to start with.

    Raises:
        BrokenPromiseError: The promises that it breaks, what was found, and what to do.

    Example::

        def test_my_network():
            check_backbone(MyNet, pixels=32)
    """
    check_all(PROMISES, BackboneCase(cls, pixels, width))


class BackboneCase:
    """A class of backbones, networks of it, and digits as large as it wants them.

    Args:
        cls: Its class.
        pixels: Height and width of images.
        width: Channels to start with.
    """

    def __init__(self, cls: type, pixels: int = 8, width: int = 8) -> None:
        self.cls, self.pixels, self.width = cls, pixels, width

    @property
    def subject(self) -> str:
        """How messages call it."""
        return f"backbone {self.cls.__name__}"

    @functools.cached_property
    def backbone(self) -> Backbone:
        """One that nothing was made of yet."""
        return self.made(last_relu=True)

    def made(self, *, last_relu: bool) -> Backbone:
        """Make the backbone alone."""
        return backbone_of(self.cls, in_channels=1, width=self.width, last_relu=last_relu)[1]

    def network(
        self, layout: Layout | None = None, *, seed: int = 0, last_relu: bool = True
    ) -> ExpertNetwork:
        """Make a network that knows four classes."""
        layout = self.layouts()[0] if layout is None else layout
        torch.manual_seed(seed)
        made = build(self.cls, layout=layout, in_channels=1, width=self.width, last_relu=last_relu)
        made.grow(range(4))
        return made

    def layouts(self, num_experts: int = 1) -> list[Layout]:
        """Return a layout for each way in which it can be cut."""
        return [Layout(num_experts=num_experts, shared=share) for share in self.shares]

    @property
    def shares(self) -> tuple[Shared, ...]:
        """Where it can be cut."""
        return tuple(self.backbone.shares)  # type: ignore[arg-type]

    def images(self, train: bool = True, per_class: int = 24) -> tuple[Tensor, Tensor]:
        """Return images of four classes ``[N, 1, pixels, pixels]`` and their positions ``[N]``."""
        index = digits.chosen(train, per_class, range(4))
        images = (digits.digits()[0][index].float() / 255 - 0.3) / 0.4
        return F.interpolate(images, size=(self.pixels, self.pixels)), torch.arange(4).repeat_interleave(
            per_class
        )

    @functools.cached_property
    def trained(self) -> ExpertNetwork:
        """A network after a hundred steps."""
        network = self.network()
        images, labels = self.images()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        order = torch.Generator().manual_seed(0)
        network.train()
        for _ in range(STEPS):
            rows = torch.randint(len(images), (32,), generator=order)
            optimizer.zero_grad()
            F.cross_entropy(10 * network(images[rows]), labels[rows]).backward()
            optimizer.step()
        return network.eval()


def answers(network: ExpertNetwork, images: Tensor) -> Tensor:
    """Return what a network says in evaluation ``[B, C]``."""
    with torch.no_grad(), evaluation(network):
        told: Tensor = network(images)
    return told


@promise("look at what stem and branch return for a few images, and that nothing is detached between them.")
def it_learns_four_classes(case: BackboneCase) -> None:
    """Half of the images of four classes are known after 100 steps."""
    images, labels = case.images(train=False, per_class=10)
    accuracy = float((answers(case.trained, images).argmax(1) == labels).float().mean())
    expect(accuracy > 0.5, f"accuracy {accuracy:.2f}; chance is 0.25")


@promise(
    "name in shares those of 'stem', 'two_stages', 'nothing' and 'all' that stem and branch read of the layout."
)
def it_can_be_cut_where_it_says(case: BackboneCase) -> None:
    """One and two experts answer for each word of shares; where they share nothing, the stem has no weights."""
    images, _ = case.images(per_class=1)
    for layout in case.layouts() + case.layouts(2):
        network = case.network(layout)
        told = network.forward_all(images).known_features
        count = layout.num_experts
        expect(
            told.shape[:2] == (count, 4),
            f"features {list(told.shape)} of {count} experts and 4 images, {layout}",
        )
        if layout.shared == "nothing":
            expect(not list(network.stem.parameters()), "a stem with weights where nothing is shared")


@promise("make every module inside stem and branch, none in __init__ or beside the class.")
def each_call_makes_new_modules(case: BackboneCase) -> None:
    """Two stems, and two branches, share no memory."""
    for layout in case.layouts(2):
        for part, made in (
            ("stem", [case.backbone.stem(layout) for _ in range(2)]),
            ("branch", [case.backbone.branch(layout, expert) for expert in range(2)]),
        ):
            first, second = ({p.data_ptr() for p in module.parameters()} for module in made)
            expect(
                not first & second, f"two calls of {part} gave the same weights, sharing {layout.shared!r}"
            )


@promise("draw first weights from torch's global generator alone.")
def equal_seeds_give_equal_weights(case: BackboneCase) -> None:
    """Two networks of one seed begin in the same bits."""
    first, second = (digits.weights(case.network()) for _ in range(2))
    expect(not (moved := digits.changed(first, second)), f"they differ in {sorted(moved)}")


@promise("leave the batch's axis alone in evaluation: normalise by running statistics.")
def an_image_is_answered_alone_as_in_a_batch(case: BackboneCase) -> None:
    """In evaluation an answer does not depend on the images beside it."""
    images, _ = case.images(per_class=2)
    together = answers(case.trained, images)
    alone = torch.cat([answers(case.trained, image[None]) for image in images])
    expect(
        torch.allclose(alone, together, rtol=1e-3, atol=1e-4),
        f"answers differ by {(alone - together).abs().max()}",
    )


@promise("use every module that you make, and nothing under no_grad or of .data.")
def every_weight_is_trained(case: BackboneCase) -> None:
    """Each parameter of stem and branches gets a gradient."""
    images, labels = case.images(per_class=4)
    for layout in case.layouts(2):
        network = case.network(layout).train()
        F.cross_entropy(network(images), labels).backward()
        idle = [
            name
            for name, p in network.named_parameters()
            if name.startswith(("stem", "branches")) and p.requires_grad and p.grad is None
        ]
        expect(not idle, f"no gradient for {', '.join(idle[:5])}, sharing {layout.shared!r}")


@promise("leave the last ReLU out where last_relu is False.")
def features_carry_a_sign_without_the_last_relu(case: BackboneCase) -> None:
    """With last_relu=False some features are negative, as cosine heads want them."""
    images, _ = case.images()
    network = case.network(last_relu=False)
    with torch.no_grad(), evaluation(network):
        least = float(network.extract(images).min())
    expect(least < 0, f"the least feature is {least}")


@promise("let forward return with_maps(x)[0], and maps [B, c, h, w]; or leave with_maps out.")
def maps_are_those_of_the_forward_pass(case: BackboneCase) -> None:
    """Where its parts tell maps, features with them are features without them, to the bit."""
    images, _ = case.images(per_class=2)
    for layout in case.layouts(2):
        network = case.network(layout)
        parts = [part for part in (network.stem, *network.branches) if not isinstance(part, nn.Identity)]
        telling = [hasattr(part, "with_maps") for part in parts]
        if not any(telling):
            continue
        expect(all(telling), f"some parts tell maps and some do not, sharing {layout.shared!r}")
        with torch.no_grad(), evaluation(network):
            (features, maps), plain = network.extract_maps(images), network.extract(images)
        expect(torch.equal(features, plain), "other features")
        shapes = [list(level.shape) for level in maps]
        expect(
            bool(maps) and all(len(shape) == 5 and shape[:2] == [2, 8] for shape in shapes), f"maps {shapes}"
        )


@promise("read layout.width_factor in branch, or do not name it in wishes.")
def a_width_that_is_read_changes_the_branches(case: BackboneCase) -> None:
    """Where wishes name width_factor, half of it makes a smaller branch, or is refused with a sentence."""
    if "width_factor" not in getattr(case.backbone, "wishes", ()):
        return
    layout = case.layouts()[0]
    whole = sum(p.numel() for p in case.network(layout).branches.parameters())
    try:
        half = sum(p.numel() for p in case.network(replace(layout, width_factor=0.5)).branches.parameters())
    except UserError:
        return
    expect(half < whole, f"{half} numbers at half the width, {whole} at the whole")


@promise(
    "keep what runs over in parameters and register_buffer, in no other attribute, and nothing that is not copied."
)
def its_state_and_its_copy_bring_it_back(case: BackboneCase) -> None:
    """The state of a trained network in a fresh one, and a copy of it (a teacher is one), answer alike to the bit."""
    images, _ = case.images(train=False, per_class=2)
    wanted, fresh = answers(case.trained, images), case.network(seed=1)
    fresh.load_state_dict(case.trained.state_dict())
    expect(torch.equal(answers(fresh, images), wanted), "a fresh network with its state answers otherwise")
    expect(torch.equal(answers(copy.deepcopy(case.trained), images), wanted), "a copy answers otherwise")
    if has_a_file(case.cls):
        again = build(
            name_of(case.cls), layout=case.layouts()[0], in_channels=1, width=case.width, last_relu=True
        )
        expect(again.num_classes == 0, "a network made from its name knows classes")


PROMISES: tuple[Promise[BackboneCase], ...] = (
    it_can_be_cut_where_it_says,
    it_learns_four_classes,
    each_call_makes_new_modules,
    equal_seeds_give_equal_weights,
    an_image_is_answered_alone_as_in_a_batch,
    every_weight_is_trained,
    features_carry_a_sign_without_the_last_relu,
    maps_are_those_of_the_forward_pass,
    a_width_that_is_read_changes_the_branches,
    its_state_and_its_copy_bring_it_back,
)
"""In the order in which they are checked; the others build on the first."""
