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
    "3": ["--editable", str(CHECKOUT), f"uvicorn=={version('uvicorn')}"],
    "2.0": ["django-tasks-local==2.0"],
    "db": ["django-tasks-db==0.13"],
}
_SAME_IN_ALL = (
    "django",
    "asgiref",
    "gunicorn",
    "psycopg",
    "psycopg-binary",
    "sqlparse",
)


class Environments:
    """Makes them, where that is not done, and runs programs in them."""

    def __init__(self) -> None:
        self._uv = os.environ.get("UV") or shutil.which("uv")
        if self._uv is None:
            raise SystemExit("The benchmarks make their environments with uv.")
        self._pythons = {name: self._make(name) for name in _LIBRARIES}
        # The bare executors are the same in either.
        self._pythons["bare"] = self._pythons["3"]

    def run(self, program: str, contender: str, arguments: str) -> str:
        """What a program prints in a fresh process of the contender's environment."""
        done = subprocess.run(
            [
                self._pythons[contender],
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
