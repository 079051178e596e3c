"""The migrations of the database store."""
