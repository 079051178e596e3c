"""A Django project in one file: a survey of Python's own standard library.

    uv run example.py           serves a page on http://127.0.0.1:8000
    uv run example.py --once    does the same work without a server, prints a table

Threads compress and checksum every source file, processes count its tokens. One click
enqueues all of it from a sync view; an async view awaits the results and tells the
page of each that is there. Nothing else has to run: no broker, no worker, no database.
"""

import argparse
import hashlib
import json
import os
import secrets
import socket
import sys
import sysconfig
import time
import tokenize
import zlib
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from itertools import batched, chain, pairwise
from pathlib import Path
from typing import Any, TypedDict

import django
import uvicorn
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    JsonResponse,
    StreamingHttpResponse,
)
from django.tasks.exceptions import TaskResultDoesNotExist, TaskResultMismatch
from django.template import engines
from django.urls import URLPattern, path
from django.views.decorators.http import require_POST

from django_tasks_local import (
    LocalTaskResult,
    TaskFailed,
    TasksSetting,
    WorkerLost,
    as_completed,
    task,
)
from django_tasks_local.backoff import fixed, only

# A type checker reads this: a misspelt option is an error before anything runs. When
# Ctrl-C is pressed, what still runs is given a second.
TASKS: TasksSetting = {
    "default": {
        "BACKEND": "django_tasks_local.ThreadPoolBackend",
        "OPTIONS": {"MAX_WORKERS": 4, "SHUTDOWN_TIMEOUT": 1.0},
    },
    "cpu": {
        "BACKEND": "django_tasks_local.ProcessPoolBackend",
        "OPTIONS": {"SHUTDOWN_TIMEOUT": 1.0},
    },
}

# At the top level, because worker processes import this file too, to find the tasks;
# what only the script itself does stands under the guard at the end.
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    LOGGING_CONFIG=None,  # Python's own default: warnings and errors on stderr
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_urlsafe(),
    TASKS=TASKS,
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    USE_THOUSAND_SEPARATOR=True,
)


# The tasks: what they take and return is JSON ---------------------------------------


class Checksum(TypedDict):
    name: str
    bytes: int
    compressed: int
    sha256: str


@task
def checksum_files(folder: str, names: list[str]) -> list[Checksum]:
    """On threads: reading, compressing and checksumming all let others run."""
    checksums: list[Checksum] = []
    for name in names:
        content = Path(folder, name).read_bytes()
        checksum = Checksum(
            name=name,
            bytes=len(content),
            compressed=len(zlib.compress(content)),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        checksums.append(checksum)
    return checksums


@task(backend="cpu", max_attempts=2, backoff=only(WorkerLost, then=fixed(0)))
def count_tokens(folder: str, names: list[str]) -> dict[str, int]:
    """On processes: Python code that keeps a CPU busy. If one dies, once again."""
    counts = dict.fromkeys(names, 0)
    for name in names:
        # Python's own tests have files that are wrong on purpose. What comes before
        # the mistake counts.
        with (
            suppress(SyntaxError, UnicodeError, tokenize.TokenError),
            Path(folder, name).open("rb") as file,
        ):
            for _ in tokenize.tokenize(file.readline):
                counts[name] += 1
    return counts


# What goes into the tasks, and what is made of what comes out ------------------------


def find_batches(folder: Path) -> list[list[str]]:
    """The names of the source files below a folder, a list for each task."""
    names: list[str] = []
    for file in sorted(folder.rglob("*.py")):
        name = file.relative_to(folder)
        is_foreign = "site-packages" in name.parts or "__pycache__" in name.parts
        if file.is_file() and not is_foreign:
            names.append(name.as_posix())
    # Some hundred tasks: enough to see them come in, few beside what each has to do.
    return [list(batch) for batch in batched(names, len(names) // 100 + 1)]


def add_up(
    checksums: Iterable[list[Checksum]], counts: Iterable[dict[str, int]]
) -> tuple[Counter[str], list[tuple[str, Counter[str]]]]:
    """What there is in all, and in each package, the largest first."""
    tokens = {name: count for batch in counts for name, count in batch.items()}
    total: Counter[str] = Counter()
    packages: defaultdict[str, Counter[str]] = defaultdict(Counter)
    seen: set[str] = set()
    for file in chain.from_iterable(checksums):
        package, slash, _ = file["name"].partition("/")
        figures = {
            "files": 1,
            "copies": file["sha256"] in seen,
            "tokens": tokens.get(file["name"], 0),
            "bytes": file["bytes"],
            "compressed": file["compressed"],
        }
        total.update(figures)
        packages[package if slash else "(single modules)"].update(figures)
        seen.add(file["sha256"])
    return total, sorted(packages.items(), key=lambda row: -row[1]["tokens"])


# The views ---------------------------------------------------------------------------


def page(request: HttpRequest, folder: Path) -> HttpResponse:
    html = engines["django"].from_string(PAGE)
    return HttpResponse(html.render({"folder": folder.name}, request))


@require_POST
def start(request: HttpRequest, folder: Path) -> JsonResponse:
    """A sync view: enqueues everything, and answers before any of it is done."""
    batches = find_batches(folder)
    checksums = [checksum_files.enqueue(str(folder), batch) for batch in batches]
    counts = [count_tokens.enqueue(str(folder), batch) for batch in batches]
    return JsonResponse(
        {"checksums": [r.id for r in checksums], "counts": [r.id for r in counts]}
    )


@require_POST
async def progress(
    request: HttpRequest, server: uvicorn.Server
) -> StreamingHttpResponse:
    """An async view: finds the results by their ids, and streams how they come in."""
    ids = request.POST
    try:
        checksums = [
            await checksum_files.aget_result(id) for id in ids.getlist("checksums")
        ]
        counts = [await count_tokens.aget_result(id) for id in ids.getlist("counts")]
    except (TaskResultDoesNotExist, TaskResultMismatch) as err:
        raise Http404("No such results") from err
    lines = progress_lines(checksums, counts, server)
    return StreamingHttpResponse(lines, content_type="application/x-ndjson")


async def progress_lines(
    checksums: list[LocalTaskResult[list[Checksum]]],
    counts: list[LocalTaskResult[dict[str, int]]],
    server: uvicorn.Server,
) -> AsyncGenerator[str]:
    """A line of JSON whenever a task has finished, and at last the table."""
    results: list[LocalTaskResult[Any]] = [*checksums, *counts]
    try:
        async for _ in as_completed(results):  # brings each up to date
            if server.should_exit:  # on Ctrl-C, it waits for streams to end
                return
            done = {
                "checksums": sum(result.is_finished for result in checksums),
                "counts": sum(result.is_finished for result in counts),
            }
            yield json.dumps(done) + "\n"
        total, rows = add_up([await r for r in checksums], [await r for r in counts])
    except TaskFailed as err:
        yield json.dumps({"error": f"A task failed: {err.exception_class_path}"}) + "\n"
        return
    # Two thirds of the library are its own tests: beside them no bar could be seen.
    rows = [row for row in rows if row[0] != "test"][:15]
    most = {key: max((row[key] for _, row in rows), default=0) for key in total}
    table = engines["django"].from_string(TABLE)
    html = table.render({"total": total, "rows": rows, "most": most})
    yield json.dumps({"table": html}) + "\n"


urlpatterns: list[URLPattern] = []  # filled by serve(), which knows the folder


def serve(folder: Path, port: int) -> None:
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except OSError as err:
        sys.exit(f"Port {port} cannot be had; name another with --port. {err}")
    app = get_asgi_application()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    urlpatterns.append(path("", page, {"folder": folder}))
    urlpatterns.append(path("start", start, {"folder": folder}))
    urlpatterns.append(path("progress", progress, {"server": server}))
    port = listener.getsockname()[1]
    print(f"Serving on http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    with listener, suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


# The same work without a server ------------------------------------------------------


def run_once(folder: Path) -> None:
    root, batches = str(folder), find_batches(folder)
    for name in chain.from_iterable(batches):
        Path(root, name).read_bytes()  # so that all below find the disk's cache warm

    laps = [time.perf_counter()]
    checksum_results = [checksum_files.enqueue(root, batch) for batch in batches]
    checksums = [result.wait() for result in checksum_results]
    laps.append(time.perf_counter())
    count_results = [count_tokens.enqueue(root, batch) for batch in batches]
    counts = [result.wait() for result in count_results]
    laps.append(time.perf_counter())
    # A task's call() runs its function here and now: the same work on one thread.
    same_checksums = [checksum_files.call(root, batch) for batch in batches]
    laps.append(time.perf_counter())
    same_counts = [count_tokens.call(root, batch) for batch in batches]
    laps.append(time.perf_counter())
    if (checksums, counts) != (same_checksums, same_counts):
        sys.exit("The pools and the one thread disagree: has a file changed?")

    total, rows = add_up(checksums, counts)
    print(f"{folder}: {total['files']:,} files, {total['copies']:,} of them copies\n")
    columns = ("files", "tokens", "bytes", "compressed")
    print(f"{'package':20}" + "".join(f"{column:>14}" for column in columns))
    for name, row in (*rows[:15], ("(total)", total)):
        print(f"{name:20}" + "".join(f"{row[column]:14,}" for column in columns))
    threads_s, processes_s, checksums_s, counts_s = (
        end - start for start, end in pairwise(laps)
    )
    print(f"\n{len(batches)} tasks of each kind on {os.cpu_count()} CPUs, in seconds:")
    print(f"{'':36}{'pool':>6}{'one thread alone':>20}")
    print(f"{'checksums, on threads':36}{threads_s:6.2f}{checksums_s:20.2f}")
    print(
        f"{'tokens, on newly started processes':36}{processes_s:6.2f}{counts_s:20.2f}"
    )


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>What is in {{ folder }}?</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --line: light-dark(#ddd, #444) }
  body { font: 1rem/1.5 system-ui; max-width: 56rem; margin: auto; padding: 1rem }
  button { font: inherit; padding: .25rem 1rem }
  .pools { display: grid; grid-template-columns: auto 1fr 6rem; gap: .5rem 1rem;
    align-items: center; margin: 1.5rem 0 }
  .threads { --pool: light-dark(#2f6fde, #6ba1ff) }
  .processes { --pool: light-dark(#0b8a5c, #3ecf94) }
  progress { width: 100%; accent-color: var(--pool) }
  table { width: 100%; border-collapse: collapse }
  td, th { padding: .2rem .5rem; border-bottom: 1px solid var(--line) }
  th { font-weight: normal }
  td, th, span { text-align: right; font-variant-numeric: tabular-nums }
  caption, th:first-child { text-align: left; padding-left: 0 }
  .bar { width: 25%; padding-left: 0 }
  .bar div { height: .9rem; min-width: 2px; background: var(--pool) }
  @media (max-width: 36rem) { table { font-size: .75rem } .bar { min-width: 2rem } }
</style>
<h1>What is in {{ folder }}?</h1>
<p>Threads compress and checksum its source files, processes count their tokens.</p>
<form action="start">{% csrf_token %}<button>Find out</button></form>
<div class="pools">
  <label for="checksums">Checksums, on threads</label>
  <progress id="checksums" class="threads" value="0"></progress><span></span>
  <label for="counts">Tokens, on processes</label>
  <progress id="counts" class="processes" value="0"></progress><span></span>
</div>
<p role="status"></p>
<div id="chart"></div>
<script>
  const find = (selector) => document.querySelector(selector);
  const say = (text) => { find("[role=status]").textContent = text; };

  async function post(url, fields) {
    const body = new URLSearchParams(new FormData(find("form")));  // the CSRF token
    for (const [name, value] of fields) body.append(name, value);
    const response = await fetch(url, {method: "POST", body});
    if (!response.ok) throw new Error(`The server answers ${response.status}.`);
    return response;
  }

  async function run() {
    const ids = await (await post("start", [])).json();
    const fields = Object.keys(ids).flatMap((of) => ids[of].map((id) => [of, id]));
    const stream = (await post("progress", fields)).body;
    let text = "", end;
    for await (const part of stream.pipeThrough(new TextDecoderStream())) {
      text += part;
      while ((end = text.indexOf("\\n")) >= 0) {
        const {table, error, ...done} = JSON.parse(text.slice(0, end));
        text = text.slice(end + 1);
        if (error) throw new Error(error);
        if (table) find("#chart").innerHTML = table;  // Django's template escaped it
        for (const kind in done) {
          Object.assign(find("#" + kind), {max: ids[kind].length, value: done[kind]});
          find(`#${kind} + *`).textContent = `${done[kind]} of ${ids[kind].length}`;
        }
      }
    }
  }

  find("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    find("button").disabled = true;
    say("Running …");
    await run().then(() => say("Done."), (error) => say(`Not done: ${error.message}`));
    find("button").disabled = false;
  });
</script>
"""

TABLE = """
<p>{{ total.files }} files, {{ total.copies }} of them copies of another;
  {{ total.tokens }} tokens;
  {{ total.bytes }} bytes, {{ total.compressed }} when compressed.</p>
<table>
  <caption>The largest packages, but for Python’s own tests</caption>
  <tr><th scope="col">package</th><th scope="col">files</th>
    <th scope="col">tokens</th><td></td><th scope="col">bytes</th><td></td></tr>
  {% for name, row in rows %}<tr>
    <th scope="row">{{ name }}</th><td>{{ row.files }}</td>
    <td>{{ row.tokens }}</td><td class="processes bar">
      <div style="width: {% widthratio row.tokens most.tokens 100 %}%"></div></td>
    <td>{{ row.bytes }}</td><td class="threads bar">
      <div style="width: {% widthratio row.bytes most.bytes 100 %}%"></div></td>
  </tr>{% endfor %}
</table>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Surveys a tree of Python source.")
    parser.add_argument(
        "--once", action="store_true", help="print a table, serve nothing"
    )
    parser.add_argument("--port", type=int, default=8000, help="where to serve (8000)")
    stdlib = sysconfig.get_path("stdlib")
    parser.add_argument("--path", default=stdlib, help="what to read (Python's own)")
    options = parser.parse_args()
    folder = Path(options.path).resolve()
    if not find_batches(folder):
        parser.error(f"no Python files in {folder}")
    django.setup()
    if options.once:
        run_once(folder)
    else:
        serve(folder, options.port)


if __name__ == "__main__":
    main()
