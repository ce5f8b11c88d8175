"""`python -m app check`: every known way to go wrong on the platform, looked for beforehand."""
