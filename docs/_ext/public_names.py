"""Links to a public name, such as ``incrlt.models.load``, lead to the page of the module that defines it."""

from __future__ import annotations

import importlib
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def defined_as(target: str) -> str | None:
    """Return the full name under which a public name is defined, or None where there is none.

    Example:
        >>> defined_as("incrlt.report.read_run")
        'incrlt.report.reading.read_run'
    """
    package, _, rest = target.rpartition(".")
    while package:
        try:
            found: Any = importlib.import_module(package)
        except ImportError:
            package, _, head = package.rpartition(".")
            rest = f"{head}.{rest}"
            continue
        for name in rest.split("."):
            found = getattr(found, name, None)
        module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
        return f"{module}.{name}" if module and name else None
    return None


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Node | None:
    """Resolve a reference into the package that Sphinx has not found under the name given."""
    target = str(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or not target.startswith("incrlt."):
        return None
    name = defined_as(target)
    if name is None or name == target:
        return None
    python = env.get_domain("py")
    return python.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], name, node, content)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the resolver."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
