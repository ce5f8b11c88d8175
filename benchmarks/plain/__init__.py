"""The plain right way: synchronous SQLAlchemy, with SQLite's lock taken at the begin of a write."""
