"""Rules that services have to keep, one a line.

    backup != none                          # of an answer
    workers <= 4
    version >= 0.2                          # of the template's version
    oauth in features                       # of an answer that is a list
    builder in [dockerfile, railpack]       # one of several
    backup == litestream if profile == production

A value is a word, a number or a text in double quotes. # starts a comment.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from trackbed.errors import FleetError
from trackbed.inventory import comparable
from trackbed.model import Inventory, Policy, Violation
from trackbed.releases import as_version

VALUE = r'"[^"]*"|[\w./:+-]+'
LIST = rf"\[\s*(?:(?:{VALUE})\s*(?:,\s*(?:{VALUE})\s*)*)?\]"
NAME = r"(?P<name>[A-Za-z]\w*)"
COMPARISON = re.compile(rf"{NAME}\s*(?P<operator>==|!=|<=|>=|<|>)\s*(?P<value>{VALUE})")
CHOICE = re.compile(rf"{NAME}\s+(?P<operator>in|not\s+in)\s+(?P<value>{LIST})")
MEMBER = re.compile(rf"(?P<value>{VALUE})\s+(?P<operator>in|not\s+in)\s+{NAME}")
ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
# These operators are for any answer, and the others of ORDER only for numbers and versions
EQUALITY = {"==", "!="}


@dataclass(frozen=True)
class Condition:
    """Condition, made of a question or `version`, an operator, and the values to compare with."""

    name: str
    operator: str
    values: tuple[str, ...]

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """Return whether the condition is met. A missing answer equals and holds nothing."""
        answer = facts.get(self.name)
        if self.name == "version" or self.operator in ORDER.keys() - EQUALITY:
            return self.in_order(answer)
        match self.operator:
            case "==":
                return answer is not None and same(answer, self.values[0])
            case "!=":
                return answer is None or not same(answer, self.values[0])
            case "one of":
                return answer is not None and text(answer) in self.values
            case "none of":
                return answer is None or text(answer) not in self.values
            case "in":
                return isinstance(answer, list) and self.values[0] in map(text, answer)
            case _:
                return not isinstance(answer, list) or self.values[0] not in map(text, answer)

    def in_order(self, answer: Any) -> bool:
        found = as_version(text(answer))
        return found is not None and ORDER[self.operator](found, Version(self.values[0]))


@dataclass(frozen=True)
class Rule:
    text: str
    line: int
    condition: Condition
    only_if: Condition | None = None


def text(value: Any) -> str:
    """Return an answer as YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def same(answer: Any, value: str) -> bool:
    if isinstance(answer, list):
        return [text(item) for item in answer] == [value]
    if text(answer) == value:
        return True
    if isinstance(answer, str):
        return False
    found = as_version(text(answer))
    return found is not None and found == as_version(value)


def read_rules(file: Path) -> list[Rule]:
    """Read the rules of a file.

    Raises:
        FleetError: a rule cannot be read. The message has the line of the first one.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FleetError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FleetError(f"{file}: is not UTF-8") from None
    rules = []
    for number, line in enumerate(lines, 1):
        rule = without_comment(line)
        if rule:
            try:
                rules.append(read_rule(rule, number))
            except ValueError as error:
                raise FleetError(f"{file}, line {number}: {error}: {rule}") from None
    if not rules:
        raise FleetError(f"{file}: there are no rules")
    return rules


def without_comment(line: str) -> str:
    return re.sub(r'^((?:[^"#]|"[^"]*")*)#.*$', r"\1", line).strip()


def read_rule(rule: str, number: int) -> Rule:
    condition, separator, only_if = rule.partition(" if ")
    return Rule(
        rule,
        number,
        read_condition(condition.strip()),
        read_condition(only_if.strip()) if separator else None,
    )


def read_condition(condition: str) -> Condition:
    if match := COMPARISON.fullmatch(condition):
        value = unquoted(match["value"])
        if match["name"] == "version" or match["operator"] in ORDER.keys() - EQUALITY:
            try:
                Version(value)
            except InvalidVersion:
                raise ValueError(f"{value} is no number or version") from None
        return Condition(match["name"], match["operator"], (value,))
    if match := CHOICE.fullmatch(condition):
        values = tuple(unquoted(value) for value in re.findall(VALUE, match["value"]))
        if not values:
            raise ValueError("the list is empty")
        choice = "one of" if match["operator"] == "in" else "none of"
        return Condition(match["name"], choice, values)
    if match := MEMBER.fullmatch(condition):
        member = "in" if match["operator"] == "in" else "not in"
        return Condition(match["name"], member, (unquoted(match["value"]),))
    raise ValueError("this is no rule")


def unquoted(value: str) -> str:
    return value[1:-1] if value.startswith('"') else value


def require_known(rules: Sequence[Rule], known: set[str], file: Path) -> None:
    """Refuse rules about questions that the template does not ask. Raises FleetError."""
    for rule in rules:
        for condition in (rule.condition, rule.only_if):
            if condition and condition.name not in known | {"version"}:
                place = f"{file}, line {rule.line}"
                raise FleetError(f"{place}: there is no question {condition.name}: {rule.text}")


def judge(items: Sequence[Inventory], rules: Sequence[Rule]) -> list[Policy]:
    return [
        Policy(
            name=item.name,
            where=item.where,
            problem=item.problem,
            violations=[] if item.problem else violations(item, rules),
        )
        for item in items
    ]


def violations(item: Inventory, rules: Sequence[Rule]) -> list[Violation]:
    facts = {**item.answers, "version": comparable(item)}
    return [
        Violation(rule=rule.text, found=found(rule.condition, facts, item))
        for rule in rules
        if (rule.only_if is None or rule.only_if.holds(facts)) and not rule.condition.holds(facts)
    ]


def found(condition: Condition, facts: Mapping[str, Any], item: Inventory) -> str:
    answer = facts.get(condition.name)
    if condition.name == "version" and answer is None:
        return f"version is unknown: {item.unknown}"
    if answer is None:
        return f"{condition.name} is not answered"
    value = f"[{', '.join(map(text, answer))}]" if isinstance(answer, list) else text(answer)
    return f"{condition.name} is {value}"
