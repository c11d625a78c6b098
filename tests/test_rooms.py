"""No module of vadis takes a private name from another one; the order of imports is held by `make lint`."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "vadis"


def test_no_private_name_crosses_a_module() -> None:
    crossing = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vadis":
                private = [
                    alias.name for alias in node.names if alias.name.startswith("_") and alias.name != "__version__"
                ]
                crossing += [f"{path.relative_to(SOURCE)}: {node.module}.{name}" for name in private]
    assert not crossing
