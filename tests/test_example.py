"""The example, as a newcomer runs it: from the command line and in a browser."""

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tokenize
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, expect

from .conftest import script_environ

EXAMPLE = Path(__file__).parent.parent / "example.py"
STDLIB = Path(sysconfig.get_path("stdlib"))
TIMEOUT_S = 60.0

MISTAKES = {
    "not_utf8.py": b"name = 1\nb = '\xff'\n",
    "unknown_encoding.py": b"# coding: no-such-thing\n",
    "unclosed.py": b"x = (1,\n",
    "unclosed_string.py": b'x = """\n',
    "null.py": b"x = 1\n\0\n",
    "dedent.py": b"if x:\n        a\n    b\n",
    "empty.py": b"",
}


class Figures(NamedTuple):
    files: int
    tokens: int
    size: int


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Packages of the standard library, and what an example must live with."""
    tree = tmp_path / "<b>tree"
    for name in ("email", "json", "tomllib"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(STDLIB / name, tree / name, ignore=ignored)
    for name in ("ast.py", "cmd.py"):
        shutil.copy(STDLIB / name, tree)
    shutil.copytree(tree / "json", tree / "a<i>copy")
    (tree / "mistakes").mkdir()
    for name, content in MISTAKES.items():
        (tree / "mistakes" / name).write_bytes(content)
    for name in ("json/__pycache__", "site-packages/json"):
        (tree / name).mkdir(parents=True)
        shutil.copy(STDLIB / "ast.py", tree / name)
    (tree / "json" / "dangling.py").symlink_to("nowhere")
    return tree


def source_files(folder: Path) -> list[Path]:
    """The files that count: no broken link, nothing installed or cached."""
    return [
        path
        for path in folder.rglob("*.py")
        if path.is_file() and not {"__pycache__", "site-packages"} & {*path.parts}
    ]


def figures_of(*files: Path) -> Figures:
    """What is on the disk, of files that are valid Python."""
    tokens = 0
    for path in files:
        with path.open("rb") as file:
            tokens += sum(1 for _ in tokenize.tokenize(file.readline))
    return Figures(len(files), tokens, sum(path.stat().st_size for path in files))


def expected_packages(tree: Path) -> dict[str, Figures]:
    packages = ("email", "json", "a<i>copy", "tomllib")
    return {
        "(single modules)": figures_of(tree / "ast.py", tree / "cmd.py"),
        **{name: figures_of(*source_files(tree / name)) for name in packages},
    }


def number(text: str) -> int:
    return int(text.replace(",", ""))


def run_example(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        env=script_environ(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


class Server(NamedTuple):
    process: subprocess.Popen[str]
    url: str

    def end(self) -> str:
        """Press Ctrl-C; returns what it wrote to stderr."""
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=10)
        assert self.process.returncode == 0, errors
        return errors


@contextmanager
def serving(path: Path) -> Generator[Server]:
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), "--port", "0", "--path", str(path)],
        env=script_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            url = re.fullmatch(r"Serving on (http://127\.0\.0\.1:\d+) .*\n", said)
            assert url is not None, said
            yield Server(process, url[1])
        finally:
            process.kill()  # does nothing to one that has ended


class Client:
    """A browser's part of the conversation, without the browser."""

    def __init__(self, server: Server) -> None:
        self._address = server.url.removeprefix("http://")
        page = self._request("GET", "/")
        self._cookie = page.headers["Set-Cookie"].partition(";")[0]
        token = re.search(
            r'name="csrfmiddlewaretoken" value="(\w+)"', page.read().decode()
        )
        assert token is not None
        self._token = token[1]

    def _request(
        self, method: str, path: str, body: str = "", cookie: str = ""
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Cookie": cookie,
            "Connection": "close",
        }
        connection.request(method, path, body, headers)
        return connection.getresponse()

    def post(
        self, path: str, *fields: tuple[str, str], token: str | None = None
    ) -> http.client.HTTPResponse:
        token = self._token if token is None else token
        body = urlencode([("csrfmiddlewaretoken", token), *fields])
        return self._request("POST", path, body, self._cookie)

    def start(self) -> list[tuple[str, str]]:
        with self.post("/start") as response:
            ids: dict[str, list[str]] = json.load(response)
        return [(kind, result_id) for kind, of in ids.items() for result_id in of]


class TestOnce:
    def test_table_says_what_is_on_disk_and_how_long_each_pool_took(
        self, tree: Path
    ) -> None:
        done = run_example("--once", "--path", str(tree))

        assert (done.returncode, done.stderr) == (0, "")
        rows = {
            match["name"]: Figures(*map(number, match["figures"].split()[:3]))
            for match in re.finditer(
                r"^(?P<name>\S.*?)(?P<figures>(?: +[\d,]+){4})$",
                done.stdout,
                re.MULTILINE,
            )
        }
        mistakes, total = rows.pop("mistakes"), rows.pop("(total)")
        expected = expected_packages(tree)
        assert rows == expected
        assert (mistakes.files, mistakes.size) == (
            len(MISTAKES),
            sum(map(len, MISTAKES.values())),
        )
        assert total == Figures(
            *map(sum, zip(*expected.values(), mistakes, strict=True))
        )
        contents = {path.read_bytes() for path in source_files(tree)}
        copies = total.files - len(contents)
        assert f"{tree}: {total.files} files, {copies} of them copies\n" in done.stdout
        for work in ("checksums, on threads", "tokens, on newly started processes"):
            assert re.search(rf"^{work}( +\d+\.\d\d){{2}}$", done.stdout, re.MULTILINE)

    def test_folder_without_source_is_refused(self, tmp_path: Path) -> None:
        done = run_example("--once", "--path", str(tmp_path))

        assert done.returncode == 2
        assert f"no Python files in {tmp_path}" in done.stderr


class TestServer:
    def test_taken_port_is_named(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            done = run_example("--port", port)

        assert done.returncode == 1
        assert f"Port {port}" in done.stderr
        assert "in use" in done.stderr
        assert "Traceback" not in done.stderr

    def test_client_that_leaves_leaves_the_tasks_alone(self, tree: Path) -> None:
        with serving(tree) as server:
            client = Client(server)
            ids = client.start()
            with client.post("/progress", *ids) as response:
                response.readline()  # and go

            with client.post("/progress", *ids) as response:
                *progress, last = map(json.loads, response)
            errors = server.end()

        assert len(progress) == len(ids)
        assert progress[-1] == {
            kind: sum(of == kind for of, _ in ids) for kind in ("checksums", "counts")
        }
        assert "<table>" in last["table"]
        # What asyncio says where more was to be sent before it saw the client leave.
        assert set(errors.splitlines()) <= {"socket.send() raised exception."}

    def test_only_the_own_results_are_shown_and_only_to_the_own_page(
        self, tree: Path
    ) -> None:
        with serving(tree) as server:
            client = Client(server)
            kind, result_id = client.start()[0]
            other = {"checksums": "counts", "counts": "checksums"}[kind]
            statuses: list[int] = []
            for fields in ((kind, "unknown"), (other, result_id)):
                with client.post("/progress", fields) as response:
                    statuses.append(response.status)
            with client.post("/start", token="") as response:
                statuses.append(response.status)

        assert statuses == [404, 404, 403]

    def test_ctrl_c_ends_it_in_the_middle_of_the_work(self) -> None:
        with serving(STDLIB) as server:
            client = Client(server)
            with client.post("/progress", *client.start()) as response:
                response.readline()
                errors = server.end()

        assert "Traceback" not in errors


class TestPage:
    def test_one_click_shows_progress_and_then_the_chart(
        self, browser: Browser, tree: Path
    ) -> None:
        complaints: list[str] = []
        with serving(tree) as server:
            page = browser.new_page()
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(server.url)
            expect(page).to_have_title("What is in <b>tree?")

            page.get_by_role("button", name="Find out").click()
            expect(page.get_by_role("status")).to_have_text("Done.", timeout=30_000)

            for work in ("Checksums, on threads", "Tokens, on processes"):
                done = page.get_by_label(work).locator("+ span").inner_text()
                assert re.fullmatch(r"(\d+) of \1", done), done
            rows: dict[str, Figures] = {}
            widths: dict[str, str] = {}
            for row in (
                page.get_by_role("row").filter(has=page.get_by_role("rowheader")).all()
            ):
                name = row.get_by_role("rowheader").inner_text()
                files, tokens, bar, size, _ = row.get_by_role("cell").all()
                rows[name] = Figures(
                    *(number(cell.inner_text()) for cell in (files, tokens, size))
                )
                widths[name] = bar.locator("div").evaluate("bar => bar.style.width")
            errors = server.end()

        rows.pop("mistakes")
        expected = expected_packages(tree)
        assert rows == expected
        assert list(rows) == sorted(rows, key=lambda name: -rows[name].tokens)
        longest = max(figures.tokens for figures in expected.values())
        for name, figures in expected.items():
            assert widths[name] == f"{round(100 * figures.tokens / longest)}%"
        assert complaints == []
        assert errors == ""

    def test_page_can_be_used_again(self, browser: Browser, tree: Path) -> None:
        with serving(tree) as server:
            page = browser.new_page()
            page.goto(server.url)
            for _ in range(2):
                page.get_by_role("button", name="Find out").click()
                expect(page.get_by_role("button")).to_be_enabled(timeout=30_000)
                expect(page.get_by_role("status")).to_have_text("Done.")
                expect(page.get_by_role("table")).to_have_count(1)

    def test_page_says_that_the_server_has_gone(
        self, browser: Browser, tree: Path
    ) -> None:
        with serving(tree) as server:
            page = browser.new_page()
            page.goto(server.url)
            server.end()

            page.get_by_role("button", name="Find out").click()

            expect(page.get_by_role("status")).to_contain_text("Not done")
