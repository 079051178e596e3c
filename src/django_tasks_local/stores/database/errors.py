"""What a database says that cannot be used, in the user's words."""

from collections.abc import Generator
from contextlib import contextmanager

from django.db import DatabaseError, InterfaceError, ProgrammingError
from django.db.transaction import TransactionManagementError

from ...errors import StoreError

__all__ = ["explaining"]


@contextmanager
def explaining(using: str, /) -> Generator[None]:
    """Raise StoreError where the database raises."""
    try:
        yield
    except (DatabaseError, InterfaceError) as err:
        has_no_table = "no such table" in str(err) or (
            isinstance(err, ProgrammingError)
            and not isinstance(err, TransactionManagementError)
        )
        hint = " Has 'manage.py migrate' been run for it?" if has_no_table else ""
        raise StoreError(
            f"Database {using!r} of DATABASES cannot keep results: "
            f"{type(err).__name__}: {str(err).strip().rstrip('.')}.{hint}"
        ) from err
