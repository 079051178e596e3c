"""For ``"STORE": "database"``: results in a table of the project's own database.

A Django app, ``"django_tasks_local.stores.database"`` in INSTALLED_APPS, with one
migration. Nothing else of the library needs a table.
"""
