"""A project with Django's own apps, but for those that need more than Django."""

from .settings import SECRET_KEY, TASKS, USE_TZ

__all__ = ["INSTALLED_APPS", "SECRET_KEY", "TASKS", "TEMPLATES", "USE_TZ"]

_NAMES = (
    "admin",
    "admindocs",
    "auth",
    "contenttypes",
    "flatpages",
    "humanize",
    "messages",
    "redirects",
    "sessions",
    "sitemaps",
    "sites",
    "staticfiles",
    "syndication",
)
INSTALLED_APPS = [f"django.contrib.{name}" for name in _NAMES]
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
]
