"""What imports what, read from the files."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_name(path): path for top in ("wn", "hydra_plugins") for path in sorted((ROOT / top).rglob("*.py"))
}


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Everything that a module imports when it runs, inside its functions too, as absolute dotted names."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(found)


def reached_from(module: str) -> set[str]:
    """A module and all of ours that it imports, by way of others too."""
    reached, waiting = set(), {module}
    while waiting:
        reached |= waiting
        waiting = {name for module in waiting for name in imports(module) if name in MODULES} - reached
    return reached
