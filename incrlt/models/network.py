"""A stem, K branches and K growing heads: every network of the package, the plain one with K = 1."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from incrlt.errors import UserError
from incrlt.files import Plain
from incrlt.losses.discriminant import Discriminant, tukey
from incrlt.models.agreement import check_architecture, classes_of, written
from incrlt.models.contrast import MomentumContrast
from incrlt.models.facts import SUFFIX, Facts, facts_alone, read, tensors_alone
from incrlt.models.grouped import GroupedRun
from incrlt.models.heads import CosineHead, GrowingHead, Replaced
from incrlt.models.inference import Prediction, Shared
from incrlt.models.inference import predict as routed_answer
from incrlt.models.maps import Maps, of_experts, with_maps
from incrlt.models.precision import at_least_float
from incrlt.models.router import SETTINGS, Router
from incrlt.models.standing import Standing
from incrlt.roles import State
from incrlt.types import Combine, ModelOutput

KEPT = "kept_"
"""First letters of buffers that hold what a method remembers, see :meth:`ExpertNetwork.remember`."""

OFFSETS = "class_offsets"
"""Under this name a stage keeps what evaluation adds to the logit of each class ``[C]``."""

DISCRIMINANT = "discriminant"
"""Under this name a stage keeps what answers in the place of the heads ``[K, C, D + 1]``, the last column offsets."""

DISCRIMINANT_POWER = "discriminant_power"
"""Under this name the power of Tukey's transform before it ``[]``."""

UNSEEN_LOGIT = -1000.0
"""Logit of a class that has not arrived: finite, so that losses and metrics of users' plugins stay so."""


class Noted:
    """What the last pass left behind; copies and pickles of a network begin without it, as it may hang on a graph."""

    features: Tensor | None = None

    def __reduce__(self) -> tuple[type[Noted], tuple[()]]:
        """Copy as a new one."""
        return Noted, ()


class ExpertNetwork(Facts):
    """Shared stem, one branch and one growing head per expert.

    Inside, classes stand in arrival order; :meth:`forward` answers in the label ids of the benchmark.

    Its ``state_dict`` also says which classes have arrived, under which names, how images are normalised, and the
    settings of the router: ``load_state_dict`` into a network of the same architecture, fresh or not, grows it and
    attaches or drops the router. Parameters stay the objects that they were; momentum in an optimizer does not grow.

    Args:
        stem: Maps images ``[B, c, H, W]`` to what branches take: a map, or a tuple of maps.
        branches: K modules that map the stem's output to features ``[B, D]``.
        heads: K growing heads.
        second_heads: K more heads on the same features, which a rebalancing stage trains (SHIKE); they grow, freeze
            and are imprinted like the first ones, and answer where rebalanced logits are asked for.
        contrast: Momentum copies of the branches and their queue (NCL).
        combination: Makes one answer of the logits of the first k experts, for any k; None takes their mean.

    Attributes:
        class_ids: Label id of each class, in arrival order.
        normalisation: ``mean`` and ``std`` per channel of the images it was trained on, scaled to [0, 1]; None where
            nobody said.
        class_names: Name of each class by label id, where the benchmark tells it; otherwise None.
        architecture: Arguments of :func:`incrlt.models.build` as plain data, so that a checkpoint can be rebuilt.
        router: Decides when the experts so far are enough; None until a stage attaches one.
        pretrained: Which weights it began with, None where they were drawn; not part of its state.
        standing: What does not train; not part of its state.
        kept_features: Keeps what a standing stem gives of each picture; None computes it each time.
        tells_maps: Outputs hold the maps of each stage; off unless a method needs them.
        grouped: Run the branches as one module of grouped convolutions: the same numbers up to rounding, from the
            same parameters, with fewer and larger kernels. Branches must have equal shapes.
    """

    def __init__(
        self,
        stem: nn.Module,
        branches: Sequence[nn.Module],
        heads: Sequence[GrowingHead],
        second_heads: Sequence[GrowingHead] | None = None,
        contrast: MomentumContrast | None = None,
        combination: Combine | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.branches = nn.ModuleList(branches)
        self.heads = nn.ModuleList(heads)
        self.second_heads = None if second_heads is None else nn.ModuleList(second_heads)
        self.contrast = contrast
        self.router: Router | None = None
        self.combination = combination
        self.tells_maps = False
        self.grouped = False
        self.class_ids: list[int] = []
        self.class_names: dict[int, str] | None = None
        self.architecture: Plain = {}
        self.normalisation: dict[str, list[float]] | None = None
        self.pretrained: Plain | None = None
        self.standing = Standing()
        self.kept_features: Callable[[nn.Module, Tensor], Any] | None = None
        self._run_grouped = GroupedRun()
        self._noted = Noted()

    @property
    def num_classes(self) -> int:
        """Number of classes that have arrived."""
        return len(self.class_ids)

    @property
    def num_experts(self) -> int:
        """Number K of experts."""
        return len(self.heads)

    @property
    def all_heads(self) -> list[GrowingHead]:
        """First and second heads, K or 2 K of them."""
        return [cast(GrowingHead, head) for head in (*self.heads, *(self.second_heads or ()))]

    @property
    def final_heads(self) -> nn.ModuleList:
        """Heads that evaluation reads: the second ones where there are any."""
        return self.heads if self.second_heads is None else self.second_heads

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """Parameters that serve a single expert: all but the stem's and the router's."""
        parts = (self.branches, self.heads, self.second_heads, self.contrast)
        return [p for part in parts if part is not None for p in part.parameters()]

    @property
    def has_cosine_heads(self) -> bool:
        """True when every head is a cosine head."""
        return all(isinstance(head, CosineHead) for head in self.heads)

    def grow(self, new_class_ids: Sequence[int]) -> Replaced:
        """Append classes to every head.

        Args:
            new_class_ids: Label ids in the order in which they are to stand; none may be known already.

        Returns:
            Parameters that growth replaced.
        """
        known = set(self.class_ids) & set(new_class_ids)
        assert not known, f"classes {sorted(known)} have arrived already"
        self.class_ids = [*self.class_ids, *(int(label) for label in new_class_ids)]
        return [pair for head in self.all_heads for pair in head.grow(len(new_class_ids))]

    def imprint(self, prototypes: Tensor) -> None:
        """Imprint the newest rows of every head, second heads included.

        Args:
            prototypes: One unit vector per expert and new class ``[K, N, D]``.
        """
        for position, head in enumerate(self.all_heads):
            head.imprint(prototypes[position % self.num_experts])

    def shared(self, x: Tensor) -> Shared:
        """Map images ``[B, c, H, W]`` to what every branch takes."""
        if self.kept_features is None:
            return self.stem(x)
        return self.kept_features(self.stem, x)

    def extract(self, x: Tensor) -> Tensor:
        """Map images ``[B, c, H, W]`` to the features of each expert ``[K, B, D]``."""
        shared = self.shared(x)
        if self.grouped and self.num_experts > 1:
            return self._run_grouped(list(self.branches), shared)
        return torch.stack([branch(shared) for branch in self.branches])

    def extract_maps(self, x: Tensor) -> tuple[Tensor, Maps]:
        """Do what :meth:`extract` does, and return the map of each stage of each expert beside the features.

        Returns:
            Features ``[K, B, D]``, the same to the bit, and maps ``[K, B, c, h, w]`` in the order of the stages.

        Raises:
            UserError: The backbone tells no maps, or its experts tell maps of different shapes.
        """
        shared, common = with_maps(self.stem, x)
        pairs = [with_maps(branch, shared) for branch in self.branches]
        return torch.stack([features for features, _ in pairs]), of_experts(common, [own for _, own in pairs])

    def combine(self, expert_logits: Tensor) -> Tensor:
        """Make one answer ``[B, C]`` of the logits of the first k experts ``[k, B, C]``."""
        return expert_logits.mean(0) if self.combination is None else self.combination(expert_logits)

    def classify(self, features: Tensor, rebalanced: bool, maps: Maps | None = None) -> ModelOutput:
        """Map features ``[K, B, D]`` to the output of all experts.

        Args:
            features: Input of the heads.
            rebalanced: Read the second heads where there are any, and apply the learnable class scales.
            maps: Passed on with the output.
        """
        self._noted.features = features
        self._check_features(features)
        heads = self.final_heads if rebalanced else self.heads
        experts = range(self.num_experts)
        outputs = [(self.answer(k, features[k]) if rebalanced else heads[k](features[k])) for k in experts]
        expert_logits = torch.stack([logits for logits, _ in outputs])
        cosines, scales = None, None
        if self.has_cosine_heads:
            cosines = torch.stack([cast(Tensor, c) for _, c in outputs])
            scales = torch.cat([head.scale.detach() for head in heads])
        combined = self.combine(expert_logits)
        if combined.shape != expert_logits.shape[1:]:
            raise UserError(
                f"combine of the experts gave {list(combined.shape)} of logits {list(expert_logits.shape)}; it must "
                f"give one answer per image, {list(expert_logits.shape[1:])}."
            )
        return ModelOutput(combined, expert_logits, features, cosines, scales, self.combination, maps)

    def _check_features(self, features: Tensor) -> None:
        """Refuse features that are not what the backbone's ``num_features`` says, before a product refuses them."""
        wanted = cast(GrowingHead, self.heads[0]).num_features
        if features.dim() != 3 or features.shape[-1] != wanted:
            raise UserError(
                f"branches must give features [B, {wanted}], as their num_features says; got "
                f"{list(features.shape[1:])}. Pool maps, or mend num_features."
            )

    def answer(self, k: int, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what evaluation reads of expert k: its final head, and what stages leave to evaluation.

        That is a discriminant in the place of the head, where there is one that knows all classes; class scales;
        offsets.

        Args:
            k: The expert, from 0.
            features: Input of its heads ``[B, D]``.

        Returns:
            Logits ``[B, C]``, and the head's cosines ``[B, C]`` where it has some.
        """
        head = cast(GrowingHead, self.final_heads[k])
        logits, cosines = head(features)
        fitted = self.recall(DISCRIMINANT)
        if fitted is not None and fitted.shape[1] == self.num_classes:
            power = cast(Tensor, self.recall(DISCRIMINANT_POWER))
            units = nn.functional.normalize(features, dim=-1)
            logits = Discriminant(fitted[k, :, :-1], fitted[k, :, -1]).scores(tukey(units, power))
        logits = head.rebalance(logits)
        if (offsets := self.recall(OFFSETS)) is not None:
            logits = logits + nn.functional.pad(offsets, (0, self.num_classes - len(offsets)))
        return logits, cosines

    def forward_all(
        self,
        x: Tensor,
        *,
        rebalanced: bool | None = None,
        extract: Callable[[Tensor], Any] | None = None,
        maps: bool | None = None,
    ) -> ModelOutput:
        """Run the whole network, classes in arrival order.

        Args:
            x: Images ``[B, c, H, W]``.
            rebalanced: As in :meth:`classify`; by default in evaluation mode only.
            extract: Stands in for :meth:`extract`, e.g. compiled or under autocast; where maps are told, for
                :meth:`extract_maps`.
            maps: Tell the maps of each stage too; by default as :attr:`tells_maps` says.
        """
        rebalanced = not self.training if rebalanced is None else rebalanced
        wanted = self.tells_maps if maps is None else maps
        with _explained(x):
            found: Any = (extract or (self.extract_maps if wanted else self.extract))(x)
        if not wanted:
            return self.classify(at_least_float(found), rebalanced)
        if isinstance(found, Tensor):
            raise UserError(
                "maps are asked for, and extract gives features alone; let it stand in for extract_maps."
            )
        features, told = found
        return self.classify(at_least_float(features), rebalanced, tuple(map(at_least_float, told)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, c, H, W]`` to logits ``[B, L]`` whose column is the label id.

        Raises:
            UserError: No class has arrived.
        """
        if not self.class_ids:
            raise UserError(
                "this network knows no classes yet: strategies of incrlt grow it as classes arrive; with another "
                "strategy, or in a loop of your own, first call network.grow(range(num_classes))."
            )
        return self.to_labels(self.forward_all(x).logits)

    def prepare(self, images: Tensor) -> Tensor:
        """Bring images to what the network was trained on.

        Args:
            images: uint8 ``[B, c, H, W]``, or floats in [0, 1].

        Returns:
            Normalised float32 ``[B, c, H, W]``; double for a double network.

        Raises:
            UserError: The network does not know its normalisation.
        """
        if self.normalisation is None:
            raise UserError(
                "this network does not know how its images were normalised; set network.normalisation = "
                "{'mean': [...], 'std': [...]}, one number per channel."
            )
        double = next(self.parameters()).dtype == torch.float64
        dtype = torch.float64 if double else torch.float32
        x = images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
        mean, std = (x.new_tensor(self.normalisation[key]).view(-1, 1, 1) for key in ("mean", "std"))
        return (x - mean) / std

    def predict(self, x: Tensor, **options: Any) -> Prediction:
        """Classify images, running later experts only where the router asks for them.

        Args:
            x: Images ``[B, c, H, W]``, normalised as in training (see :meth:`prepare`).
            options: Of :func:`incrlt.models.inference.predict`: how much computation may be spent.
        """
        return routed_answer(self, x, **options)

    def get_features(self, x: Tensor) -> Tensor:
        """Return the features of all experts side by side ``[B, K * D]`` (Avalanche's name for it)."""
        return self.extract(x).transpose(0, 1).flatten(1)

    @property
    def features(self) -> Tensor | None:
        """Features of all experts side by side ``[B, K * D]`` in the last pass, as Avalanche's plugins read them.

        None before the first pass, and in copies: a plugin that keeps a copy of the network runs it.
        """
        noted = self._noted.features
        return None if noted is None else noted.transpose(0, 1).flatten(1)

    @features.setter
    def features(self, value: None) -> None:
        """Forget them; Avalanche's plugins write None before they copy a model."""
        self._noted.features = value

    def with_floor(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Make the loss of classes that have not arrived a number of ordinary size.

        Such a class counts as much as the least likely one of those that have arrived. Its column alone, of images of
        its own, is changed: what is said of seen classes stays, to the bit.

        Args:
            logits: By label id ``[B, L]``, as :meth:`forward` gives them.
            labels: Label ids ``[B]``, below L.

        Returns:
            ``[B, L]``.
        """
        true, seen = logits.gather(1, labels[:, None]), logits > UNSEEN_LOGIT
        least = logits.masked_fill(~seen, torch.inf).amin(1, keepdim=True).nan_to_num(posinf=UNSEEN_LOGIT)
        return logits.scatter(1, labels[:, None], torch.where(true <= UNSEEN_LOGIT, least, true))

    def to_labels(self, logits: Tensor, width: int = 0) -> Tensor:
        """Move columns from arrival order to label ids.

        Args:
            logits: ``[B, C]``.
            width: Smallest number of columns wanted; those of unseen classes hold :data:`UNSEEN_LOGIT`.

        Returns:
            ``[B, max(largest label id + 1, width)]``.
        """
        width = max(width, max(self.class_ids, default=-1) + 1)
        if width == self.num_classes and self.class_ids == list(range(width)):
            return logits
        out = logits.new_full((len(logits), width), UNSEEN_LOGIT)
        out[:, self.class_ids] = logits
        return out

    def positions(self, labels: Tensor) -> Tensor:
        """Map label ids ``[B]`` to arrival positions ``[B]``; -1 for classes that have not arrived."""
        size = max([*self.class_ids, int(labels.max()) if labels.numel() else 0]) + 1
        table = torch.full((size,), -1, dtype=torch.long)
        table[self.class_ids] = torch.arange(self.num_classes)
        return table.to(labels.device)[labels]

    def freeze_old(self, num_rows: int) -> None:
        """Freeze the first ``num_rows`` rows of every head."""
        for head in self.all_heads:
            head.freeze(num_rows)

    def restore_frozen(self) -> None:
        """Put the frozen rows of every head back."""
        for head in self.all_heads:
            head.restore_frozen()

    def stand(self, standing: Standing) -> None:
        """Let parts stand still from now on: they take no gradients, and training mode passes them over."""
        self.standing = standing
        for module in standing.modules(self.stem, self.branches):
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> ExpertNetwork:
        """Set the mode (torch's name for it); what stands still stays in evaluation mode."""
        super().train(mode)
        if mode:
            for module in self.standing.modules(self.stem, self.branches):
                module.eval()
        return self

    def freeze_backbone(self) -> None:
        """Put stem and branches in evaluation mode: their batch-norm statistics stay."""
        self.stem.eval()
        self.branches.eval()

    def remember(self, name: str, value: Tensor) -> None:
        """Keep a tensor for a method, such as a running statistic, with the network and in its checkpoints.

        Args:
            name: Known to that method alone; what was kept under it is replaced.
            value: Moved to where the parameters are.
        """
        self.register_buffer(KEPT + name, value.to(next(self.parameters()).device))

    def forget(self, name: str) -> None:
        """Drop what :meth:`remember` keeps under a name; nothing happens where nothing is."""
        self._buffers.pop(KEPT + name, None)

    def recall(self, name: str) -> Tensor | None:
        """Return what :meth:`remember` keeps under a name, None where nothing is; it may be changed in place."""
        return self._buffers.get(KEPT + name)

    def facts(self) -> Plain:
        """Classes with their names, normalisation and architecture; heads and router tell their own."""
        names = None if self.class_names is None else sorted(self.class_names.items())
        return {
            "class_ids": self.class_ids,
            "class_names": names,
            "normalisation": self.normalisation,
            "architecture": self.architecture,
        }

    def take_facts(self, facts: Plain, state: State, prefix: str) -> None:
        """Know the classes of the state and attach its router; heads grow by themselves."""
        class_ids, names = classes_of(facts.get("class_ids")), facts.get("class_names")
        check_architecture(facts.get("architecture"), self.architecture)
        told = state.get(f"{prefix}router.{SUFFIX}")
        settings = None if told is None else read(told, "Router")
        if self.router is None or self.router.settings != settings:
            self.router = self._router_of(settings)
        self._know(class_ids, None if names is None else {int(label): name for label, name in names})
        self._keep_what(state, prefix)
        self.normalisation = facts.get("normalisation") or self.normalisation

    def take_older(self, state: State, prefix: str) -> None:
        """Refuse heads of classes that nobody has named."""
        if not self.class_ids and any(name.startswith(prefix + "heads.") for name in state):
            raise UserError(
                "this state is of an older incrlt and does not say which classes it knows; first call "
                "network.grow(class_ids) with their label ids in the order of training, or load the run folder: "
                "incrlt.models.load."
            )

    def state(self) -> State:
        """Return classes, tensors and the settings of the router, plain data only."""
        names = {} if self.class_names is None else {"class_names": dict(self.class_names)}
        return {
            "architecture": written(self.architecture),
            "normalisation": self.normalisation,
            "class_ids": list(self.class_ids),
            **names,
            "router": None if self.router is None else self.router.settings,
            "tensors": tensors_alone(self.state_dict()),
        }

    def load_state(self, state: State) -> None:
        """Restore :meth:`state`: grow or shrink the heads to it, attach or drop the router.

        Raises:
            UserError: The state is of a network that answers otherwise, which its tensors do not tell.
        """
        class_ids = classes_of(state["class_ids"])
        check_architecture(state.get("architecture"), self.architecture)
        self._know(class_ids, state.get("class_names"))
        self.normalisation = state.get("normalisation", self.normalisation)
        for head in self.all_heads:
            head.resize(self.num_classes)
            head.freeze(0)
        self.router = self._router_of(state.get("router"))
        self.load_state_dict({**facts_alone(self.state_dict()), **state["tensors"]})

    def _keep_what(self, state: State, prefix: str) -> None:
        """Make room for what the methods of the state remember, and forget what it does not hold."""
        start = prefix + KEPT
        told = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        for name in [name for name in self._buffers if name.startswith(KEPT)]:
            del self._buffers[name]
        for name, value in told.items():
            self.remember(name, torch.empty_like(value))

    def _know(self, class_ids: list[int], names: dict[int, str] | None) -> None:
        """Take the classes of a state; names that it does not tell stay while the classes do."""
        self.class_names = self.class_names if names is None and class_ids == self.class_ids else names
        self.class_ids = class_ids

    def _router_of(self, settings: Plain | None) -> Router | None:
        """Build a router where the network's parameters are, without touching the global random state."""
        if settings is None:
            return None
        if set(settings) != set(SETTINGS):
            raise UserError(
                f"the state of this network is damaged: its router has the settings {sorted(settings)}."
            )
        with torch.random.fork_rng(devices=[]):
            return Router(**settings).to(next(self.parameters()))


@contextlib.contextmanager
def _explained(x: Tensor) -> Iterator[None]:
    """Say what torch does not about a batch of one image whose maps have shrunk to one pixel."""
    try:
        yield
    except ValueError as error:
        if len(x) != 1 or "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"one image of {x.shape[-2]} x {x.shape[-1]} pixels cannot be normalised by its batch: its last maps are a "
            "single pixel. Give batches of two images or more (another train_mb_size), or larger images."
        ) from error
