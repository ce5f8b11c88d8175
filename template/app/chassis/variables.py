# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Environment variables of the settings, as people write and read them."""

import re
from collections.abc import Iterator
from typing import Any

from pydantic import AliasChoices, Secret, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from app.chassis.settings import PROJECT_ROOT, InProduction


def variable(settings: type[BaseSettings], name: str) -> str:
    """Return the variable that a field is read from, or the first one of several names."""
    alias = settings.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        alias = next((choice for choice in alias.choices if isinstance(choice, str)), None)
    if isinstance(alias, str):
        return alias.upper()
    return f"{settings.model_config.get('env_prefix', '')}{name}".upper()


def description(variable: str, field: FieldInfo) -> str:
    """Return a field's own description, or else the comment above it in .env.example."""
    if field.description:
        return field.description
    example = PROJECT_ROOT / ".env.example"
    text = example.read_text(encoding="utf-8") if example.exists() else ""
    above = re.search(rf"((?:^#.*\n)+){re.escape(variable)}=", text, re.MULTILINE)
    return " ".join(line.lstrip("# ") for line in above[1].splitlines()) if above else ""


def is_secret(annotation: Any) -> bool:
    """Return whether a type is one of Pydantic's secrets, or made of one."""
    if isinstance(annotation, type) and issubclass(annotation, SecretStr | SecretBytes | Secret):
        return True
    return any(is_secret(part) for part in getattr(annotation, "__args__", ()))


def default(field: FieldInfo) -> str:
    """Return the default that a field declares, but never that of a secret."""
    if field.is_required():
        return "(required)"
    if is_secret(field.annotation):
        return "(secret)"
    return "(computed)" if field.default_factory is not None else written(field.default)


def written(value: Any) -> str:
    """Return a value as a variable has it."""
    if isinstance(value, tuple | list | set | frozenset):
        return ",".join(map(str, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def lines(settings: type[BaseSettings]) -> Iterator[str]:
    """Yield each variable with the default that it declares, and its purpose below it.

    Values that the environment sets are not shown, and neither is what is derived from them.
    """
    for name, field in settings.model_fields.items():
        shown = variable(settings, name)
        yield f"{shown}={default(field)}"
        there = [one.default for one in field.metadata if isinstance(one, InProduction)]
        more = "".join(f"; in production {written(value)}" for value in there if value != ())
        yield f"    {description(shown, field)}{more}"
