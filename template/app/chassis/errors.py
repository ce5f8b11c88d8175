# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Errors that end the process with one clear line instead of a traceback."""


class StartupError(Exception):
    """Error that keeps the service from starting. The message says what to change."""

    exit_code = 1


class ConfigurationError(StartupError):
    """Error for settings that must not be served with. It carries every problem found."""

    exit_code = 78  # EX_CONFIG of sysexits.h

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        noun = "problem" if len(problems) == 1 else "problems"
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"Configuration: {len(problems)} {noun}\n{lines}")
