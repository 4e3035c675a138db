"""Log lines: JSON, filtered by level, without secrets."""

import io
import json

import pytest

from daemon.logs import configure_logs, get_logger


def test_a_line_is_one_json_object_with_time_level_and_context() -> None:
    stream = io.StringIO()
    configure_logs("INFO", stream)

    get_logger(actor="risk").info("handled", entry="5-0", handled=3)

    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["actor"], line["entry"]) == (
        "handled",
        "info",
        "risk",
        "5-0",
    )
    assert line["timestamp"].endswith("Z")


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    configure_logs("WARNING", stream)

    get_logger().info("quiet")

    assert stream.getvalue() == ""


@pytest.mark.parametrize("key", ["access_token", "PIN", "totp_secret", "Authorization"])
def test_a_planted_secret_never_reaches_the_line(key: str) -> None:
    stream = io.StringIO()
    configure_logs("INFO", stream)

    get_logger().info("login", **{key: "planted-9431", "body": {key: "planted-9431"}})

    assert "planted-9431" not in stream.getvalue()


def test_a_key_that_only_contains_a_secret_word_is_kept() -> None:
    stream = io.StringIO()
    configure_logs("INFO", stream)

    get_logger().info("x", spinning=3)

    assert json.loads(stream.getvalue())["spinning"] == 3


def test_an_unknown_level_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'LOUD' is unknown"):
        configure_logs("LOUD")
