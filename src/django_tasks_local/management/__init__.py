"""What ``manage.py`` gets of this library."""
