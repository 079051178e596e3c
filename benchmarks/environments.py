"""The environments: one Python and Django, and a library each."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

__all__ = ["CHECKOUT", "Environments"]

CHECKOUT = Path(__file__).resolve().parent.parent
_CACHE = CHECKOUT / ".cache" / "benchmarks"
_LIBRARIES = {
    "3": [
        *("--editable", str(CHECKOUT)),
        *(f"{name}=={version(name)}" for name in ("distributed", "uvicorn")),
    ],
    "2.0": ["django-tasks-local==2.0"],
    "db": ["django-tasks-db==0.13"],
}
# They run in the environment of this version.
_BARE = ("bare", "dask", "dask-uuid", "sqlite3")
_SAME_IN_ALL = (
    "django",
    "asgiref",
    "gunicorn",
    "psycopg",
    "psycopg-binary",
    "sqlparse",
)


class Environments:
    """Makes them, when they are first needed, and runs programs in them."""

    def __init__(self) -> None:
        self._uv = os.environ.get("UV") or shutil.which("uv")
        if self._uv is None:
            raise SystemExit("The benchmarks make their environments with uv.")
        self._pythons: dict[str, Path] = {}

    def run(self, program: str, contender: str, arguments: str) -> str:
        """What a program prints in a fresh process of the contender's environment."""
        name = "3" if contender in _BARE else contender
        if name not in self._pythons:
            self._pythons[name] = self._make(name)
        done = subprocess.run(
            [
                self._pythons[name],
                "-m",
                f"benchmarks.programs.{program}",
                contender,
                arguments,
            ],
            cwd=CHECKOUT,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "benchmarks.programs.settings",
                "PYTHONHASHSEED": "0",
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout

    def _make(self, name: str) -> Path:
        tag = f"{name}-python{sys.version_info.major}.{sys.version_info.minor}"
        home = _CACHE / tag
        python = home / "bin" / "python"
        if not python.exists():
            self._call("venv", "--clear", "--python", sys.executable, str(home))
        same = [f"{package}=={version(package)}" for package in _SAME_IN_ALL]
        self._call("pip", "install", "--python", str(python), *_LIBRARIES[name], *same)
        return python

    def _call(self, *arguments: str) -> None:
        assert self._uv is not None
        subprocess.run([self._uv, "--quiet", *arguments], cwd=CHECKOUT, check=True)
