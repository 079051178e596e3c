"""When a record of Django's log lines need not be made: only if nobody can see it."""

import io
import logging
from collections.abc import Callable
from functools import partial
from typing import override

import pytest
from django.test import override_settings
from django.utils.log import AdminEmailHandler, RequireDebugFalse, RequireDebugTrue

from django_tasks_local.logs import reaches_nobody


class Tree:
    """Loggers as Django's default logging has them, with what they write."""

    def __init__(self) -> None:
        self.text = io.StringIO()
        self.console = logging.StreamHandler(self.text)
        self.console.setLevel(logging.INFO)
        self.console.addFilter(RequireDebugTrue())
        self.mail = logging.StreamHandler(self.text)
        self.mail.setLevel(logging.ERROR)
        self.root = logging.RootLogger(logging.WARNING)
        self.manager = logging.Manager(self.root)
        self.django = self.manager.getLogger("django")
        self.django.setLevel(logging.INFO)
        self.django.addHandler(self.console)
        self.django.addHandler(self.mail)
        self.tasks = self.manager.getLogger("django.tasks")

    def is_thrown_away(self) -> bool:
        """What is foretold, having made sure that it does not lie."""
        foretold = reaches_nobody(self.tasks, logging.INFO)
        self.tasks.info("a line")
        if foretold:
            assert self.text.getvalue() == ""
        return foretold


@pytest.fixture
def tree() -> Tree:
    return Tree()


def test_djangos_default_logging_throws_lines_away_unless_debug_is_on(
    tree: Tree,
) -> None:
    with override_settings(DEBUG=False):
        assert tree.is_thrown_away()
    with override_settings(DEBUG=True):
        assert not tree.is_thrown_away()
    assert tree.text.getvalue() == "a line\n"


def test_a_line_below_the_loggers_level_is_thrown_away(tree: Tree) -> None:
    tree.root.addHandler(logging.StreamHandler(tree.text))
    tree.tasks.setLevel(logging.WARNING)
    assert tree.is_thrown_away()


def test_loggers_that_do_not_propagate_hide_their_parents(tree: Tree) -> None:
    tree.root.addHandler(logging.StreamHandler(tree.text))
    assert not tree.is_thrown_away()
    tree.text.truncate(0)
    tree.text.seek(0)
    tree.django.propagate = False
    assert tree.is_thrown_away()


def add_to_root(tree: Tree) -> None:
    tree.root.addHandler(logging.StreamHandler(tree.text))


def add_a_file(tree: Tree) -> None:
    tree.tasks.addHandler(logging.StreamHandler(tree.text))


def add_for_production(tree: Tree) -> None:
    handler = logging.StreamHandler(tree.text)
    handler.addFilter(RequireDebugFalse())
    tree.django.addHandler(handler)


def filter_by_a_subclass(tree: Tree) -> None:
    class Lenient(RequireDebugTrue):
        @override
        def filter(self, record: str | logging.LogRecord) -> bool:
            return True

    tree.console.filters = [Lenient()]


def filter_in_the_logger(tree: Tree) -> None:
    def note(record: logging.LogRecord) -> bool:
        tree.text.write(record.getMessage())
        return False

    tree.tasks.addFilter(note)


def add_a_handler_that_ignores_filters(tree: Tree) -> None:
    class Greedy(logging.StreamHandler[io.StringIO]):
        @override
        def handle(self, record: logging.LogRecord) -> bool:
            self.emit(record)
            return True

    handler = Greedy(tree.text)
    handler.addFilter(RequireDebugTrue())
    tree.django.addHandler(handler)


def take_a_logger_of_ones_own(tree: Tree) -> None:
    class Noting(logging.Logger):
        @override
        def handle(self, record: logging.LogRecord) -> None:
            tree.text.write(record.getMessage())

    tree.manager.setLoggerClass(Noting)
    tree.tasks = tree.manager.getLogger("django.tasks.noting")


def put_a_filter_first(tree: Tree) -> None:
    def note(record: logging.LogRecord) -> bool:
        tree.text.write(record.getMessage())
        return False

    tree.console.filters.insert(0, note)


@pytest.mark.parametrize(
    "listen",
    [
        add_to_root,
        add_a_file,
        add_for_production,
        filter_by_a_subclass,
        filter_in_the_logger,
        put_a_filter_first,
        add_a_handler_that_ignores_filters,
        take_a_logger_of_ones_own,
    ],
)
@override_settings(DEBUG=False)
def test_whoever_takes_lines_gets_them(
    tree: Tree, listen: Callable[[Tree], None]
) -> None:
    listen(tree)
    assert not tree.is_thrown_away()
    assert "a line" in tree.text.getvalue()


@override_settings(DEBUG=False)
def test_a_tool_that_takes_over_logging_gets_lines(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
        lines.append(record.getMessage())

    monkeypatch.setattr(logging.Logger, "callHandlers", call_handlers)
    assert not tree.is_thrown_away()
    assert lines == ["a line"]


class Wrapper:
    """As tools that watch a program make them: it looks like what it wraps."""

    def __init__(self, wrapped: Callable[..., object], lines: list[str]) -> None:
        self.wrapped = wrapped
        self.lines = lines

    def __getattr__(self, name: str) -> object:
        return getattr(self.wrapped, name)

    @override
    def __eq__(self, other: object) -> bool:
        return self.wrapped == other

    @override
    def __hash__(self) -> int:
        return hash(self.wrapped)

    def __get__(self, logger: logging.Logger | None, kind: object) -> object:
        return self if logger is None else partial(self, logger)

    def __call__(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@override_settings(DEBUG=False)
def test_a_tool_that_hides_behind_what_it_wraps_gets_lines(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    wrapper = Wrapper(logging.Logger.callHandlers, lines)
    monkeypatch.setattr(logging.Logger, "callHandlers", wrapper)
    assert not tree.is_thrown_away()
    assert lines == ["a line"]


@override_settings(DEBUG=False)
def test_a_factory_of_records_gets_lines(tree: Tree) -> None:
    made: list[str] = []

    def make(*args: object, **kwargs: object) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)  # type: ignore[arg-type]  # as given
        made.append(record.getMessage())
        return record

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(make)
    try:
        assert not tree.is_thrown_away()
    finally:
        logging.setLogRecordFactory(before)
    assert made == ["a line"]


def test_errors_that_would_be_mailed_to_nobody_are_thrown_away(tree: Tree) -> None:
    tree.django.removeHandler(tree.mail)
    tree.django.addHandler(AdminEmailHandler())
    with override_settings(DEBUG=False, ADMINS=[]):
        assert reaches_nobody(tree.tasks, logging.ERROR)
    with override_settings(DEBUG=False, ADMINS=["somebody@example.com"]):
        assert not reaches_nobody(tree.tasks, logging.ERROR)


def test_python_itself_shows_errors_where_there_is_no_handler(tree: Tree) -> None:
    tree.django.removeHandler(tree.mail)
    tree.django.removeHandler(tree.console)
    assert reaches_nobody(tree.tasks, logging.INFO)
    assert not reaches_nobody(tree.tasks, logging.ERROR)
