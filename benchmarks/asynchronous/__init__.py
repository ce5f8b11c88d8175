"""The usual skeleton on PostgreSQL: async SQLAlchemy with asyncpg, committed by a dependency."""
