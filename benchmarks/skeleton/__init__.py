"""The usual skeleton: async SQLAlchemy with aiosqlite, as tutorials and most templates have it."""
