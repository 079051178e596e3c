"""What a database says that cannot be used, in the user's words."""

from collections.abc import Generator
from contextlib import contextmanager

from django.db import DatabaseError, InterfaceError, ProgrammingError

from ...errors import StoreError

__all__ = ["explaining"]


@contextmanager
def explaining(using: str, /) -> Generator[None]:
    """Raise StoreError where the database raises."""
    try:
        yield
    except (DatabaseError, InterfaceError) as err:
        has_no_table = isinstance(err, ProgrammingError) or "no such table" in str(err)
        hint = " Has 'manage.py migrate' been run for it?" if has_no_table else ""
        raise StoreError(
            f"Database {using!r} of DATABASES cannot keep results: "
            f"{type(err).__name__}: {str(err).strip()}.{hint}"
        ) from err
