"""Every known way to go wrong on the platform, looked for by `python -m app check`."""
