"""The lines of the log: their form, and the line that tells what has none."""

import json

from app.chassis.logs import (
    DURATION,
    LINES,
    LOST,
    STATUS,
    WARNINGS,
    WIDTH,
    JsonFormatter,
    RequestRecord,
    bucket,
    report,
    request_id,
)


def test_a_requests_line_is_one_json_object() -> None:
    record = RequestRecord("app.request", "GET", '/"quoted"\\\xe9\x7f', 404, 12.34, "::1")
    token = request_id.set("r1")
    told = JsonFormatter().format(record)
    request_id.reset(token)
    assert told == json.dumps(json.loads(told), ensure_ascii=False)
    entry = json.loads(told)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "info",
        "message": 'GET /"quoted"\\\xe9\x7f 404 12.3 ms',
        "logger": "app.request",
        "request_id": "r1",
        "method": "GET",
        "path": '/"quoted"\\\xe9\x7f',
        "status": 404,
        "duration_ms": 12.34,
        "client": "::1",
    }


def counts(numbers: dict[int, int]) -> list[int]:
    return [numbers.get(place, 0) for place in range(WIDTH)]


def test_what_was_counted_is_told_in_one_line() -> None:
    answers = {STATUS + 200: 2590, STATUS + 503: 10, LINES: 3}
    durations = {DURATION + bucket(1.17): 2000, DURATION + bucket(29.0): 600}
    entry = json.loads(JsonFormatter().format(report(counts(answers | durations))))
    assert entry["level"] == "info"
    assert entry["message"] == (
        "Not in this log: requests 2600, other_lines 3 (p50 1.17 ms, p99 30.2 ms)"
    )
    assert entry["statuses"] == {"200": 2590, "503": 10}
    assert (entry["requests"], entry["other_lines"]) == (2600, 3)
    assert (entry["p50_ms"], entry["p99_ms"]) == (1.17, 30.2)


def test_lost_warnings_are_a_warning() -> None:
    entry = json.loads(JsonFormatter().format(report(counts({WARNINGS: 1, LOST: 2}))))
    assert entry["level"] == "warning"
    assert entry["message"] == "Not in this log: warnings 1, dropped 2"
