"""The lines of the log: their form, and the line that tells what has none."""

import json

from app.chassis.logs import JsonFormatter, RequestRecord, tally_record
from app.chassis.output import Tally


def test_a_requests_line_is_what_an_encoder_would_write() -> None:
    record = RequestRecord("app.request", "GET", '/"quoted"\\\xe9\x7f', 404, 12.34, "::1")
    told = JsonFormatter().format(record)
    assert told == json.dumps(json.loads(told), ensure_ascii=False)
    entry = json.loads(told)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "info",
        "message": 'GET /"quoted"\\\xe9\x7f 404 12.3 ms',
        "logger": "app.request",
        "request_id": "",
        "method": "GET",
        "path": '/"quoted"\\\xe9\x7f',
        "status": 404,
        "duration_ms": 12.34,
        "client": "::1",
    }


def test_what_was_counted_is_told_in_one_line() -> None:
    tally = Tally({200: 2590, 503: 10}, 1.2, 30.0, lines=3, warnings=0, lost=0)
    entry = json.loads(JsonFormatter().format(tally_record(tally)))
    assert entry["level"] == "info"
    assert entry["message"] == (
        "Not in this log: requests 2600, other_lines 3 (p50 1.2 ms, p99 30.0 ms)"
    )
    assert entry["statuses"] == {"200": 2590, "503": 10}
    assert (entry["requests"], entry["other_lines"]) == (2600, 3)
    assert (entry["p50_ms"], entry["p99_ms"]) == (1.2, 30.0)


def test_lost_warnings_are_a_warning() -> None:
    tally = Tally({}, 0, 0, lines=0, warnings=1, lost=2)
    entry = json.loads(JsonFormatter().format(tally_record(tally)))
    assert entry["level"] == "warning"
    assert entry["message"] == "Not in this log: warnings 1, dropped 2"
