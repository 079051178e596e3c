"""The site whose streams are measured: no middleware and no database."""

from .settings import SECRET_KEY, TASKS, USE_TZ

__all__ = ["ALLOWED_HOSTS", "ROOT_URLCONF", "SECRET_KEY", "TASKS", "USE_TZ"]

ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "benchmarks.programs.streams_site"
