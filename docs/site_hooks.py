"""Generate the pages of the site that must not drift from the code, and show the files of the repository's root."""

from __future__ import annotations

import ast
import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from daycap.cli.main import cli
from daycap.settings import Settings

ROOT = Path(__file__).resolve().parent.parent

ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security-policy.md"}
"""Files that a code host expects in the root, and their names in the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages before mkdocs checks the navigation and the links."""
    pages = {name: root_page(path) for path, name in ROOT_PAGES.items()}
    pages["reference/settings.md"] = settings_page()
    pages["reference/cli.md"] = command_page()
    pages["layout.md"] = layout_page()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links to files of the repository's root at their pages in the site."""
    for path, name in ROOT_PAGES.items():
        markdown = re.sub(rf"\]\(((?:\.\./)*)\.\./{path}", rf"](\g<1>{name}", markdown)
    return markdown


def on_post_page(output: str, **_: object) -> str:
    """Refuse a page that makes a browser fetch something from another host."""
    if found := re.search(r'<(script|link|img|iframe|source)\b[^>]*\b(src|href)="(https?:)?//[^"]*"', output):
        raise PluginError(f"a page fetches from another host: {found[0]}")
    return output


def root_page(path: str) -> str:
    """Return a file of the root with its links rewritten for the site."""
    text = (ROOT / path).read_text().replace("](docs/", "](")
    for other, name in ROOT_PAGES.items():
        text = text.replace(f"]({other}", f"]({name}")
    return text


# --- settings -----------------------------------------------------------------------------------------------


def settings_page() -> str:
    """Return all settings, by the sections of `Settings`, in the order of the source."""
    introduction = (ROOT / "docs" / "includes" / "settings.md").read_text()
    sections = list(settings_by_section())
    shown = [name for _, rows in sections for name, _, _ in rows]
    if shown != [each.name for each in dataclasses.fields(Settings)]:
        raise PluginError("daycap/settings.py: each setting needs a docstring and stands below a section's comment")
    return introduction + "".join(
        f"\n## {title}\n"
        + "".join(f"\n`DAYCAP_{name.upper()}`{default}\n:   {meaning}\n" for name, default, meaning in rows)
        for title, rows in sections
    )


def settings_by_section() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield each section's title and its settings: name, default and docstring."""
    source = (ROOT / "daycap" / "settings.py").read_text()
    titles = {
        number: line.strip("# -\n")
        for number, line in enumerate(source.splitlines(), 1)
        if line.startswith("    # --- ")
    }
    (settings,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Settings"
    )
    starts = sorted(titles)
    for start, end in zip(starts, [*starts[1:], settings.end_lineno or 0], strict=True):
        rows = [
            (field.target.id, _default(field.value), _line(doc.value.value))
            for field, doc in zip(settings.body, settings.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(doc, ast.Expr)
            and isinstance(doc.value, ast.Constant)
            and start < field.lineno < end
        ]
        yield titles[start], rows


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Call):  # field(default=..., repr=False)
        value = next(each.value for each in value.keywords if each.arg == "default")
    default = ast.literal_eval(value) if value is not None else ""
    return f" (default `{int(default) if isinstance(default, bool) else default}`)" if default != "" else ""


def _line(text: object) -> str:
    return re.sub(r"\s+", " ", str(text)).strip()


# --- the command line ----------------------------------------------------------------------------------------


def command_page() -> str:
    """Return every command with its arguments and options, as its own `--help` gives them."""
    introduction = (ROOT / "docs" / "includes" / "cli.md").read_text()
    return introduction + "".join(_command(command, path) for path, command in _commands(cli, ("daycap",)))


def _commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, each in command.commands.items():
        if not each.hidden:
            yield from _commands(each, (*path, name))


def _command(command: click.Command, path: tuple[str, ...]) -> str:
    context = click.Context(command, info_name=" ".join(path))
    usage = " ".join([*path, *command.collect_usage_pieces(context)])
    text = re.sub(r"\s*\n\s*\n\s*", "\n\n", re.sub(r"[ \t]*\n[ \t]*", "\n", (command.help or "").replace("\b", "")))
    records = filter(None, (each.get_help_record(context) for each in command.params))
    options = "".join(f"\n`{names}`\n:   {_line(meaning) or '&nbsp;'}\n" for names, meaning in records)
    return f"\n## {' '.join(path)}\n\n    {usage}\n\n{text.strip()}\n{options}"


# --- the layout ---------------------------------------------------------------------------------------------


def layout_page() -> str:
    """Return a drawing of the import contract, and what each module is for, from `pyproject.toml` and docstrings."""
    introduction = (ROOT / "docs" / "includes" / "layout.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    library, worker = (
        next(each for each in project["tool"]["importlinter"]["contracts"] if each["name"].startswith(name))
        for name in ("The library", "The worker")
    )
    outer = [(layer, ROOT) for layer in worker["layers"] if layer != "daycap"]
    inner = [(layer, ROOT / "daycap") for layer in library["layers"] if layer != "__main__"]
    layers = [[folder / name for name in re.split(r" *[|:] *", layer)] for layer, folder in outer + inner]
    drawing = "".join(f'<div class="layer">{"".join(map(_room, layer))}</div>\n' for layer in layers)
    rooms = "".join(_modules(room) for layer in layers for room in layer if room.is_dir())
    return f'{introduction}\n<div class="layers">\n{drawing}</div>\n{rooms}'


def _room(path: Path) -> str:
    init = path / "__init__.py"
    summary = _summary(init if init.exists() else path.with_suffix(".py")).replace("`", "")
    return f'<div class="room"><b>{path.name}</b><span>{summary}</span></div>'


def _modules(room: Path) -> str:
    modules = [path for path in sorted(room.glob("*.py")) if path.stem != "__init__"]
    rows = "".join(f"\n`{path.name}`\n:   {_summary(path)}\n" for path in modules)
    return f"\n## {room.relative_to(ROOT)}/\n{rows}"


def _summary(path: Path) -> str:
    """Return the first sentence of a module's docstring."""
    text = _line(ast.get_docstring(ast.parse(path.read_text())) or "")
    return re.split(r"(?<=\.) ", text)[0]
