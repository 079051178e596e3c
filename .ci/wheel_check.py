"""The installed wheel works alone: run by `make wheel`, from an empty directory."""

import importlib.metadata
import importlib.util
import sys
import tempfile
from pathlib import Path

BACKENDS = {
    "default": "django_tasks_local.ThreadPoolBackend",
    "processes": "django_tasks_local.ProcessPoolBackend",
    "loop": "django_tasks_local.EventLoopBackend",
}
TASK_MODULE = """\
from django_tasks_local import task

@task
def double(number: int) -> int:
    return 2 * number
"""
DEVELOPMENT_ONLY = ("distributed", "hypothesis", "mypy", "pytest", "trio", "uvicorn")


def main() -> None:
    files = importlib.metadata.files("django-tasks-local") or []
    assert "django_tasks_local/py.typed" in map(str, files), "py.typed is not shipped"
    for name in DEVELOPMENT_ONLY:
        assert importlib.util.find_spec(name) is None, f"{name} is installed"

    import django
    from django.conf import settings

    settings.configure(
        SECRET_KEY="wheel",
        USE_TZ=True,
        TASKS={alias: {"BACKEND": path} for alias, path in BACKENDS.items()},
    )
    django.setup()

    import django_tasks_local

    (finding,) = django_tasks_local.DaskBackend("dask", {}).check()
    assert "django-tasks-local[dask]" in str(finding.hint), finding

    home = Path(django_tasks_local.__file__)
    assert home.is_relative_to(sys.prefix), f"not the installed package: {home}"

    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "wheel_check_tasks.py").write_text(TASK_MODULE)
        sys.path.insert(0, directory)
        double = importlib.import_module("wheel_check_tasks").double
        for alias, path in BACKENDS.items():
            value = double.using(backend=alias).enqueue(21).wait(timeout=60)
            assert value == 42, f"{path} returned {value!r}"
            print(f"{path}: {value}")


if __name__ == "__main__":
    main()
