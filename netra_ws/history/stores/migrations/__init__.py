"""The steps from an empty database to the tables of ``schema.py``, in order; ``migrating.py`` takes them.

Each is a revision of Alembic with four digits for a name. One that was released never changes.
"""
