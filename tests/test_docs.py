"""The documentation names what is there, and its examples are Python."""

import ast
import importlib
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from django.test import override_settings

import django_tasks_local
from django_tasks_local import options
from django_tasks_local.executors.threads import ThreadExecutor
from django_tasks_local.options import parse_options
from django_tasks_local.setting_types import (
    EventLoopOptions,
    PoolOptions,
    ProcessPoolOptions,
    ThreadPoolOptions,
)

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
each_page = pytest.mark.parametrize(
    "page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES]
)

FENCE = re.compile(r"^( *)(`{3,})(\w*)[^\n]*\n(.*?)^\1\2$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Block(NamedTuple):
    line: int
    """Where its code begins, in its page."""
    code: str


def python_blocks(page: Path) -> list[Block]:
    text = page.read_text()
    blocks: list[Block] = []
    for found in FENCE.finditer(text):
        indent, _, language, code = found.groups()
        if language == "python":
            lines = [line.removeprefix(indent) for line in code.splitlines()]
            line = text.count("\n", 0, found.start(4)) + 1
            blocks.append(Block(line, "\n".join(lines)))
    return blocks


def parse(page: Path, block: Block) -> ast.Module:
    """The block's syntax tree, with the page's line numbers."""
    return ast.parse("\n" * (block.line - 1) + block.code, page.name)


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text())
    return {
        re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title).lower())
        for title in HEADING.findall(text)
    }


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its own heading."""
    text = (ROOT / "docs" / page).read_text()
    (_, below) = text.split(f"\n## {heading}\n")
    lines = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert lines is not None
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines[0].splitlines()[2:]
    ]


@each_page
def test_examples_compile(page: Path) -> None:
    for block in python_blocks(page):
        compile(parse(page, block), page.name, "exec")


@each_page
def test_examples_import_what_is_there(page: Path) -> None:
    missing = [
        f"line {node.lineno}: {node.module}.{alias.name}"
        for block in python_blocks(page)
        for node in ast.walk(parse(page, block))
        if isinstance(node, ast.ImportFrom) and not node.level and node.module
        if node.module.partition(".")[0] in ("django", "django_tasks_local")
        for alias in node.names
        if not hasattr(importlib.import_module(node.module), alias.name)
    ]
    assert missing == []


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = CODE.sub("", FENCE.sub("", page.read_text()))
    broken: list[str] = []
    for target in LINK.findall(text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_index_names_all_that_is_public() -> None:
    cells = [row[0] for row in rows("index.md", "The names")]
    names = re.findall(r"`(\w+)`", " ".join(cells))
    assert sorted(names) == sorted(django_tasks_local.__all__)


def test_settings_names_all_options() -> None:
    for heading, kind, others in (
        ("OPTIONS", PoolOptions, ()),
        ("OPTIONS of threads", ThreadPoolOptions, PoolOptions.__annotations__),
        ("OPTIONS of processes", ProcessPoolOptions, PoolOptions.__annotations__),
        ("OPTIONS of an event loop", EventLoopOptions, PoolOptions.__annotations__),
    ):
        keys = [row[0].strip("`") for row in rows("settings.md", heading)]
        assert keys == [key for key in kind.__annotations__ if key not in others]


ERRORS = [
    tuple(cell.strip("`") for cell in row) for row in rows("settings.md", "Errors")
]


def test_settings_names_all_errors() -> None:
    known = {
        value
        for value in vars(options).values()
        if isinstance(value, str) and re.fullmatch(r"django_tasks_local\.E\d+", value)
    }
    assert {row[0] for row in ERRORS} == known


@pytest.mark.parametrize("error_id, given, message", ERRORS)
def test_errors_say_what_settings_says(error_id: str, given: str, message: str) -> None:
    with override_settings(INSTALLED_APPS=["django_tasks_local"]):
        findings = parse_options(
            "mail",
            ast.literal_eval(given),
            backend_name="ThreadPoolBackend",
            default_max_workers=10,
            default_executor=ThreadExecutor,
        )
    assert isinstance(findings, list)
    (finding,) = findings
    assert finding.id == error_id
    assert " ".join(filter(None, finding[1:])) == message


def test_architecture_names_all_modules() -> None:
    source = Path(django_tasks_local.__file__).parent
    modules = {
        ".".join(path.relative_to(source).with_suffix("").parts)
        for path in source.rglob("*.py")
        if path.stem != "__init__"
    }
    cells = [row[0] for row in rows("architecture.md", "Modules")]
    assert set(re.findall(r"`([\w.]+)`", " ".join(cells))) == modules
