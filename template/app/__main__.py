# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Start command of the service, `python -m app`. See app/chassis/cli.py."""

import sys

from app.chassis.cli import main

if sys.platform == "win32":
    sys.exit("This service runs on Linux and macOS; on Windows, use WSL.")

try:
    sys.exit(main())
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] == "app":
        raise
    sys.exit(
        f"The dependencies are not installed: {error.name} is missing. "
        "Run `uv sync` here; for a deployment, commit the uv.lock that it writes."
    )
