"""One list of cases for every backend: terms, shapes, precisions, layouts and edges, with seeded inputs.

Inputs are drawn in float64 on the CPU and then rounded, so that a case holds the same numbers in every precision and on
every device. Cosines of a row are distinct, so that a backend's hardest negatives are those of any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from incrlt.kernels.spec import TermSpec
from incrlt.kernels.tensors import TermTensors
from incrlt.losses import class_balanced_weights, class_temperatures, ldam_margins

NCL = TermSpec(classification=1.0, mutual=0.6, hard_classification=0.9, hard_mutual=0.7, num_hard=3)
RIDE = TermSpec(classification=1.0, diversity=-0.45)
SHIKE = TermSpec(classification=1.0, mutual=0.02, transfer=0.1, mutual_prior=False)
LUCIR = TermSpec(classification=1.0, distillation=1.5, ranking=1.25)
EVERY = TermSpec(
    classification=1.0,
    mutual=0.6,
    hard_classification=0.9,
    hard_mutual=0.7,
    diversity=-0.45,
    transfer=0.3,
    distillation=1.5,
    ranking=1.25,
    num_hard=3,
)


@dataclass(frozen=True)
class Case:
    """A call of a backend.

    Attributes:
        name: Unique, the id of the parametrised tests.
        spec: Terms to compute.
        shape: Experts K, batch B, classes C.
        dtype: Precision of logits, teacher and cosines; the small tensors are float32, or float64 with float64.
        given: Which of prior, margins, scales, weights and temperatures are there; the rest is None.
        num_old: Old classes: columns O of the teacher; the spec says which the ranking and the diversity see.
        unseen: Classes at the end of the prior that were not seen: ``-inf``. No label is among them.
        ignored: Rows with a negative label: ``none``, ``some`` or ``all``.
        labels: Classes the labels come from: ``any``, ``old`` or ``new``.
        spread: Standard deviation of the logits.
        limit: Largest magnitude of a logit.
        grid: Logits are rounded to multiples of this, so that some are equal; 0 leaves them.
        layout: Memory of logits, teacher and cosines: ``contiguous``; ``transposed``, a view of [B, K, C];
            ``sliced``, columns of a wider buffer; ``strided``, every other column; ``expanded``, one expert seen K
            times at stride 0.
        upstream: Upstream gradients differ from term to term, one of them 0.
        seed: Of the inputs.
    """

    name: str
    spec: TermSpec
    shape: tuple[int, int, int]
    dtype: torch.dtype = torch.float32
    given: frozenset[str] = frozenset({"prior", "margins", "scales", "weights", "temperatures"})
    num_old: int = 0
    unseen: int = 0
    ignored: str = "none"
    labels: str = "any"
    spread: float = 1.5
    limit: float = float("inf")
    grid: float = 0.0
    layout: str = "contiguous"
    upstream: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """Arguments of a backend's ``terms_and_gradients``."""

    logits: Tensor
    labels: Tensor
    spec: TermSpec
    tensors: TermTensors
    upstream: Tensor | None


def build(case: Case, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Inputs:
    """Return the case's inputs.

    Args:
        case: What to build.
        device: Where the tensors go.
        dtype: Replaces ``case.dtype``. With float64 the numbers are still those of ``case.dtype``, so that the
            result is the exact one for a backend that is given the rounded numbers.
    """
    generator = torch.Generator().manual_seed(case.seed)
    num_experts, batch, num_classes = case.shape
    dtype = dtype or case.dtype

    def placed(tensor: Tensor) -> Tensor:
        return _laid_out(tensor.to(case.dtype).to(dtype).to(device), case.layout)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    logits = (case.spread * normal(num_experts, batch, num_classes)).clamp(-case.limit, case.limit)
    if case.grid:
        logits = (logits / case.grid).round() * case.grid
    labels = _labels(case, generator)
    counts = (2000 * torch.rand(num_classes, generator=generator).double().pow(4)).ceil()
    teacher = placed(logits[..., : case.num_old] + normal(num_experts, batch, case.num_old))
    cosines = placed(_distinct_cosines(case.shape, generator))
    small = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = TermTensors(
        **{name: value.float().to(device, small) for name, value in _small(case, counts).items()},
        teacher_logits=teacher if case.spec.distillation else None,
        cosines=cosines if case.spec.ranking else None,
    )
    upstream = (torch.arange(len(case.spec.names)) - 1.0).to(device, small) if case.upstream else None
    return Inputs(placed(logits), labels.to(device), case.spec, tensors, upstream)


def _labels(case: Case, generator: torch.Generator) -> Tensor:
    _, batch, num_classes = case.shape
    low = case.num_old if case.labels == "new" else 0
    high = case.num_old if case.labels == "old" else num_classes - case.unseen
    labels = torch.randint(low, high, (batch,), generator=generator)
    if case.ignored == "all":
        return torch.full_like(labels, -1)
    if case.ignored == "some":
        labels[1::3] = -100
    return labels


def _small(case: Case, counts: Tensor) -> dict[str, Tensor]:
    """Tensors of classes and experts, from the functions that training uses."""
    prior = counts.log()
    prior[len(prior) - case.unseen :] = -torch.inf
    everything = {
        "prior": ("prior", prior),
        "margins": ("margins", ldam_margins(counts, smallest=5)),
        "scales": ("scales", torch.linspace(0.5, 2.0, case.shape[0]).double()),
        "weights": ("class_weights", class_balanced_weights(counts, 0.999)),
        "temperatures": ("temperatures", class_temperatures(counts, 0.05)),
    }
    return {field: value for key, (field, value) in everything.items() if key in case.given}


def _distinct_cosines(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    num_experts, batch, num_classes = shape
    order = torch.rand(num_experts, batch, num_classes, generator=generator).argsort(-1)
    return torch.linspace(-0.9371, 0.9371, num_classes, dtype=torch.float64)[order]


def _laid_out(tensor: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "sliced":
        wider = torch.full((*tensor.shape[:2], tensor.shape[2] + 5), torch.nan).to(tensor)
        wider[..., 2 : 2 + tensor.shape[2]] = tensor
        return wider[..., 2 : 2 + tensor.shape[2]]
    if layout == "strided":
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]
    return tensor[:1].expand(tensor.shape) if layout == "expanded" else tensor


# ---------------------------------------------------------------------------------------------------- the list


def _named(prefix: str, base: Case, **variants: dict[str, object]) -> list[Case]:
    return [replace(base, name=f"{prefix}-{name}", **changes) for name, changes in variants.items()]  # type: ignore[arg-type]


def _with_old(spec: TermSpec, num_old: int, **changes: object) -> TermSpec:
    return replace(spec, num_old=num_old, first_class=num_old, **changes)  # type: ignore[arg-type]


NOTHING: frozenset[str] = frozenset()
PRIOR = frozenset({"prior"})
LDAM = frozenset({"margins", "scales", "weights", "temperatures"})

METHODS = [
    Case("ncl", NCL, (3, 6, 20), given=PRIOR),
    Case("ncl-100", replace(NCL, num_hard=30), (3, 8, 100), given=PRIOR),
    Case("ride", _with_old(RIDE, 8), (3, 7, 20), given=LDAM, num_old=8),
    Case("ride-all-classes", RIDE, (3, 7, 20), given=LDAM),
    Case("ride-early", RIDE, (3, 7, 20), given=frozenset({"margins", "scales"})),
    Case("shike", SHIKE, (3, 6, 20), given=NOTHING),
    Case("shike-balanced", SHIKE, (3, 6, 20), given=PRIOR),
    Case("lucir", _with_old(LUCIR, 12), (1, 9, 20), given=NOTHING, num_old=12),
    Case(
        "lucir-ride",
        _with_old(replace(LUCIR, diversity=-0.45), 12, negatives="all", temperature=1.0),
        (3, 9, 20),
        given=LDAM,
        num_old=12,
    ),
]

ONE_TERM = [
    Case(f"only-{name}", _with_old(TermSpec(**{name: 0.7}, num_hard=4), 5), (3, 12, 17), num_old=5)
    for name in (
        "classification",
        "mutual",
        "hard_classification",
        "hard_mutual",
        "diversity",
        "transfer",
        "distillation",
        "ranking",
    )
]

_EVERY = Case("every", _with_old(EVERY, 6), (3, 7, 19), num_old=6)
SHAPES = [
    _EVERY,
    *_named(
        "every",
        _EVERY,
        k1={"shape": (1, 7, 19)},
        k2={"shape": (2, 7, 19)},
        k6={"shape": (6, 5, 19)},
        k8={"shape": (8, 3, 19)},
        b1={"shape": (3, 1, 19)},
        c1={"shape": (3, 5, 1), "num_old": 1, "spec": _with_old(EVERY, 1)},
        c2={"shape": (3, 5, 2), "num_old": 1, "spec": _with_old(EVERY, 1)},
        c3={"shape": (3, 5, 3), "num_old": 1, "spec": _with_old(EVERY, 1)},
        c32={"shape": (3, 4, 32)},
        c100={"shape": (3, 4, 100), "num_old": 50, "spec": _with_old(EVERY, 50, num_hard=30)},
        c130={"shape": (3, 4, 130), "num_old": 129, "spec": _with_old(EVERY, 129, num_hard=30)},
        c1000={"shape": (3, 2, 1000), "num_old": 400, "spec": _with_old(EVERY, 400, num_hard=300)},
        bare={"given": NOTHING},
        balanced={"given": PRIOR},
        plain_mutual={"spec": _with_old(replace(EVERY, mutual_prior=False), 6)},
        all_negatives={"spec": _with_old(EVERY, 6, negatives="all")},
        more_negatives={"spec": _with_old(EVERY, 6, num_negatives=4, margin=0.9)},
        negatives_beyond={"spec": _with_old(EVERY, 17, num_negatives=4), "num_old": 17},
        one_hard={"spec": _with_old(EVERY, 6, num_hard=1)},
        all_hard={"spec": _with_old(EVERY, 6, num_hard=19)},
        beyond_hard={"spec": _with_old(EVERY, 6, num_hard=50)},
        no_hard={"spec": _with_old(EVERY, 6, num_hard=0)},
        upstream={"upstream": True},
    ),
]

_NATURE = 8142
_NATURE_EVERY = Case("nature", _with_old(EVERY, 4000, num_hard=2442), (3, 2, _NATURE), num_old=4000)
NATURE = [  # as many classes as iNaturalist 2018 has: no row of three experts fits into registers
    _NATURE_EVERY,
    Case("nature-ncl", replace(NCL, num_hard=2442), (3, 2, _NATURE), given=PRIOR),
    Case("nature-ride", RIDE, (3, 2, _NATURE), given=LDAM),
    Case("nature-shike", SHIKE, (3, 2, _NATURE), given=PRIOR),
    Case("nature-lucir", _with_old(LUCIR, 4000), (1, 2, _NATURE), given=NOTHING, num_old=4000),
    *_named(
        "nature",
        _NATURE_EVERY,
        unseen={"unseen": 4071},
        ties={"grid": 1.0},
        upstream={"upstream": True, "ignored": "some", "shape": (3, 3, _NATURE)},
        bf16={"dtype": torch.bfloat16},
    ),
]

EDGES = _named(
    "edge",
    _EVERY,
    unseen={"unseen": 7},
    one_seen={"unseen": 18, "labels": "any"},
    some_ignored={"ignored": "some"},
    all_ignored={"ignored": "all"},
    unseen_ignored={"ignored": "some", "unseen": 7, "upstream": True},
    no_old={"num_old": 0, "spec": _with_old(EVERY, 0)},
    all_old={"num_old": 19, "spec": _with_old(EVERY, 19)},
    one_new={"num_old": 18, "spec": _with_old(EVERY, 18)},
    old_labels={"labels": "old"},
    new_labels={"labels": "new"},
    ties={"grid": 1.0},
    all_equal={"grid": 1e9},
    large={"spread": 25.0},
    huge={"spread": 4e3, "limit": 1e4},
    transposed={"layout": "transposed"},
    sliced={"layout": "sliced"},
    strided={"layout": "strided"},
    expanded={"layout": "expanded"},
)

HALVES = [
    replace(case, name=f"{case.name}-{short}", dtype=dtype)
    for short, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))
    for case in (
        METHODS[1],
        METHODS[2],
        METHODS[5],
        METHODS[7],
        _EVERY,
        next(case for case in EDGES if case.name == "edge-unseen_ignored"),
        next(case for case in EDGES if case.name == "edge-sliced"),
        next(case for case in EDGES if case.name == "edge-huge"),
    )
] + [replace(_EVERY, name="every-limit-fp16", dtype=torch.float16, spread=4e4, limit=6e4)]

CASES: list[Case] = [*METHODS, *ONE_TERM, *SHAPES, *NATURE, *EDGES, *HALVES]
"""All of them; every backend that runs on the device at hand agrees with ``reference`` on each."""
