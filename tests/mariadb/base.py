from django.db.backends.mysql.base import DatabaseWrapper

__all__ = ["DatabaseWrapper"]
