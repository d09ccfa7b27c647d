"""``{gallery-brief} HASH``: one small table of one protocol, a row per configuration, seeds taken together."""

from __future__ import annotations

from typing import Any, ClassVar

from docutils import nodes
from gallery import AVERAGE, LAST, LAST_FEW, PAGES, Shown, runs
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from incrlt.report.seeds import Estimate, estimate, options
from incrlt.written import written

NUMBERS = {AVERAGE: "average", LAST: "last", LAST_FEW: "last, few classes"}


def rows(hash: str) -> list[tuple[str, str, list[Estimate], Estimate, list[str]]]:
    """Return per configuration: name, page, :data:`NUMBERS`, what few classes lost of their best, and seeds.

    Args:
        hash: Beginning of a protocol hash.

    Raises:
        ExtensionError: No run of the gallery has it.
    """
    own = [one for one in runs() if (one.run.protocol_hash or "").startswith(hash)]
    if not own:
        raise ExtensionError(f"gallery-brief: no run under protocol hash {hash!r}")
    found = [_row(group, name) for name, group in _by_options(own).items()]
    return sorted(found, key=lambda row: -(row[2][0].mean or 0))


def _by_options(own: list[Shown]) -> dict[str, list[Shown]]:
    """Return the runs by name: the method, and what differs within it but for the seed; each seed once.

    Older files name fewer options; only those that all files name tell runs apart.
    """
    of_method: dict[str, list[dict[str, str]]] = {}
    for one in own:
        of_method.setdefault(one.run.method, []).append(options(one.run))
    found: dict[str, dict[int, Shown]] = {}
    for one in own:
        rivals, mine = of_method[one.run.method], options(one.run)
        told = {
            name: mine[name] for name in mine if len({other.get(name, mine[name]) for other in rivals}) > 1
        }
        words = [f"{name.split('.')[-1].replace('_', ' ')} {value}" for name, value in told.items()]
        found.setdefault(", ".join([one.run.method, *words]), {}).setdefault(one.seed, one)
    return {name: list(seeds.values()) for name, seeds in found.items()}


def _row(group: list[Shown], name: str) -> tuple[str, str, list[Estimate], Estimate, list[str]]:
    numbers = [
        estimate([value for one in group if (value := one.numbers[key]) is not None]) for key in NUMBERS
    ]
    lost = [one.lost["few"]["relative"] for one in group]
    relative = estimate([value for value in lost if value is not None])
    return name, group[0].page, numbers, relative, sorted(str(one.seed) for one in group)


def told(found: Estimate, digits: int = 1) -> str:
    """Return a mean with its standard error where there are several seeds."""
    error = "" if found.error is None else f" ± {written(found.error, digits)}"
    return f"{written(found.mean, digits)}{error}"


class Brief(SphinxDirective):
    """The small table."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        up = "../" * self.env.docname.count("/")
        lines = [
            f"| method | {' | '.join(NUMBERS.values())} | few lost, % of best | seeds |",
            "|---|--:|--:|--:|--:|---|",
        ]
        for name, page, numbers, lost, seeds in rows(self.arguments[0]):
            cells = [f'<a href="{up}{PAGES}/{page}#verdict">{name}</a>', *map(told, numbers), told(lost, 0)]
            lines.append(f"| {' | '.join(cells)} | {', '.join(seeds)} |")
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("gallery-brief", Brief)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
