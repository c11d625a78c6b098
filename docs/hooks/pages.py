"""Pages that are made when the documentation is built: every verb with its flags, and every public module.

A hook of MkDocs (`hooks:` in mkdocs.yml). The verbs are read from their own dataclasses, so the page can't say what the
command line doesn't do.
"""

import ast
import dataclasses
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

SOURCE = Path(__file__).parents[2] / "src" / "vadis"
ROOMS = {
    "motion": "Motion, skeletons, rotations",
    "io": "Files",
    "representations": "Representations",
    "retargeting": "Other skeletons",
    "motion_editing": "Editing motion",
    "tokenizers": "Tokenizers",
    "generators": "Generators",
    "language": "Language models that speak motion",
    "pipelines": "Pipelines",
    "evaluators": "Evaluators",
    "metrics": "Metrics",
    "evaluation": "Evaluation",
    "data": "Data",
    "training": "Training",
    "viewer": "Viewer",
    "server": "Server",
    "loading": "Saving and loading",
    "foundations": "Foundations",
}
"""Page of the Python reference → its title."""
OF_A_PAGE = {
    "motion": ("motion", "skeleton", "rotation", "kinematics"),
    "loading": ("loading", "component", "component_files", "hub", "importing", "catalog", "plugins", "text_encoders"),
    "viewer": ("viewer", "body"),
    "foundations": ("errors", "config", "records", "files", "locks", "places", "sizes", "foreign", "access", "cancel",
                    "checkpoint", "devices", "images", "inspect"),
}  # fmt: skip


def on_files(files: Files, config: Any) -> Files:
    """Add the made pages."""
    made = {"reference/cli.md": cli_page()}
    made |= {f"reference/python/{page}.md": python_page(page) for page in ROOMS}
    made["reference/recipes.md"] = recipes_page()
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


# ---- the command line


def cli_page() -> str:
    """Every verb: what it does, examples, arguments."""
    from vadis.cli import VERBS

    parts = ["# Command line\n", "`vadis VERB --help` shows the same. `-q` leaves out progress, `--debug` shows tracebacks.\n"]
    for verb, (target, line) in VERBS.items():
        module, name = target.split(":")
        parts.append(_verb(verb, line, getattr(import_module(module), name)))
    return "\n".join(parts)


def _verb(verb: str, line: str, kind: type) -> str:
    text = inspect.getdoc(kind) or line
    about = [row for row in text.splitlines() if not row.strip().startswith(("vadis ", "curl "))]
    examples = [row.strip() for row in text.splitlines() if row.strip().startswith(("vadis ", "curl "))]
    rows = [f"## vadis {verb}\n", " ".join(" ".join(about).split()) + "\n"]
    if examples:
        rows += ["```sh", *examples, "```\n"]
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    table = ["| argument | default | |", "| --- | --- | --- |"]
    for name, annotation, words in _documented(kind):
        if name in fields:
            table.append(f"| {_flag(name, annotation)} | {_default(fields[name])} | {_cell(words)} |")
    return "\n".join([*rows, *table, ""])


def _documented(kind: type) -> list[tuple[str, str, str]]:
    """(name, annotation, docstring) of every field, those of base classes first."""
    found: dict[str, tuple[str, str, str]] = {}
    for base in reversed(kind.__mro__[:-1]):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(inspect.cleandoc(f"\n{inspect.getsource(base)}")).body
        body = tree.body  # type: ignore[attr-defined]
        for here, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name):
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                words = after.value.value if said else found.get(here.target.id, ("", "", ""))[2]  # type: ignore[union-attr]
                found[here.target.id] = (here.target.id, ast.unparse(here.annotation), words)
    return list(found.values())


def _flag(name: str, annotation: str) -> str:
    if "Positional" in annotation or annotation in ("Target", "Sources"):
        label = re.search(r"metavar='([^']+)'", annotation)
        return f"`{label[1] if label else name.upper()}`"
    aliases = re.findall(r"'(-{1,2}[\w-]+)'", annotation) + (["-o"] if annotation == "Out" else [])
    return ", ".join(f"`{flag}`" for flag in (f"--{name.replace('_', '-')}", *aliases))


def _default(field: Any) -> str:
    if field.default is dataclasses.MISSING or field.default is None or field.default == ():
        return ""
    value = field.default
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|").replace("<", "&lt;")


# ---- Python


def python_page(page: str) -> str:
    """The public modules of a part of the package."""
    parts = [f"# {ROOMS[page]}\n"]
    for room in OF_A_PAGE.get(page, (page,)):
        parts += [f"::: {module}\n" for module in _modules(room)]
    return "\n".join(parts)


def _modules(room: str) -> list[str]:
    path = SOURCE / f"{room}.py"
    files = [path] if path.is_file() else sorted((SOURCE / room).rglob("*.py"))
    found = []
    for file in files:
        names = [part for part in file.relative_to(SOURCE).with_suffix("").parts if part != "__init__"]
        empty = file.name == "__init__.py" and not re.search(r"^(def|class|from) ", file.read_text("utf-8"), re.MULTILINE)
        if not empty and not any(name.startswith("_") for name in names):
            found.append(".".join(("vadis", *names)))
    return found


# ---- recipes


def recipes_page() -> str:
    """The recipes that come with vadis, with what they say of themselves."""
    folder = next(path for path in (SOURCE / "recipes", SOURCE.parents[1] / "recipes") if path.is_dir())
    rows = ["# Recipes\n", "`vadis train NAME key=value …` trains one. How a recipe is read: [training](../training.md).\n"]
    rows += ["| recipe | task | |", "| --- | --- | --- |"]
    for file in sorted(folder.rglob("*.yaml")):
        text = file.read_text("utf-8")
        task = re.search(r"^task:\s*(\S+)", text, re.MULTILINE)
        words = " ".join(line.lstrip("# ") for line in _first_comment(text))
        name = file.relative_to(folder).with_suffix("").as_posix()
        rows.append(f"| `{name}` | {task[1] if task else 'study'} | {_cell(words)} |")
    return "\n".join(rows) + "\n"


def _first_comment(text: str) -> list[str]:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return lines
