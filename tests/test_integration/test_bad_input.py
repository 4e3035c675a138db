"""Bad input on the command line: one clear error, and never a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import (
    CONFIG,
    HEADER,
    INSTRUMENT,
    Outcome,
    Sandbox,
    candle_rows,
    decision_ids,
    write_candles,
)

from daemon.replay import Recording

pytestmark = pytest.mark.integration

BARS = 120
FILE = f"{INSTRUMENT}_1.csv"


def demo(sandbox: Sandbox, lines: list[str]) -> Outcome:
    """Run a demo on a file of these lines."""
    candles = sandbox.folder / FILE
    candles.write_text("".join(f"{line}\n" for line in lines))
    return sandbox.run("demo", "--data", candles, "--json")


def refused(outcome: Outcome, error: str, code: int, *words: str) -> None:
    """Assert that a command has said in one line each, to person and program, what is wrong."""
    outcome.assert_no_traceback()
    answer = outcome.answer
    assert (outcome.code, answer["error"]) == (code, error), answer
    assert outcome.stderr == f"hrm-trader: {answer['text']}\n"
    for word in words:
        assert word in answer["text"]


def rows() -> list[str]:
    return [HEADER, *candle_rows(BARS)]


def changed(row: str, **values: str) -> str:
    """Return a CSV row with other values in the columns named."""
    names = HEADER.split(",")
    fields = dict(zip(names, row.split(","), strict=True))
    return ",".join((fields | values)[name] for name in names)


def all_changed(**values: str) -> list[str]:
    header, *rest = rows()
    return [header, *(changed(row, **values) for row in rest)]


def test_a_missing_file(sandbox: Sandbox) -> None:
    outcome = sandbox.run("demo", "--data", sandbox.folder / "missing.csv", "--json")

    refused(outcome, "DataError", 1, "missing.csv")
    assert not sandbox.state.exists()


def test_an_empty_file(sandbox: Sandbox) -> None:
    refused(demo(sandbox, []), "DataError", 1, FILE)


def test_a_file_without_rows(sandbox: Sandbox) -> None:
    refused(demo(sandbox, [HEADER]), "DataError", 1, FILE)


def test_a_folder_instead_of_a_file(sandbox: Sandbox) -> None:
    refused(sandbox.run("demo", "--data", sandbox.folder, "--json"), "DataError", 1)


def test_a_file_that_is_neither_csv_nor_parquet(sandbox: Sandbox) -> None:
    file = sandbox.folder / "Nifty_1.parquet"
    file.write_bytes(bytes(range(256)) * 10)

    refused(sandbox.run("demo", "--data", file, "--json"), "DataError", 1, file.name)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"close": "nan"}, "missing price"),
        ({"high": "1.00"}, "high not highest"),
        ({"low": "-5.00"}, "non-positive price"),
        ({"open": "abc"}, "unreadable price"),
        ({"datetime": "yesterday"}, "yesterday"),
    ],
)
def test_rows_that_cannot_be_true(sandbox: Sandbox, values: dict[str, str], word: str) -> None:
    refused(demo(sandbox, all_changed(**values)), "DataError", 1, FILE, word)


def test_one_impossible_row_in_a_hundred_is_dropped_and_counted(sandbox: Sandbox) -> None:
    lines = rows()
    lines[60] = changed(lines[60], high="1.00")

    outcome = demo(sandbox, lines)

    assert (outcome.code, outcome.answer["lost"]) == (0, 0), outcome.stderr
    assert outcome.answer["data"][0]["repairs"] == {"high not highest": 1}
    assert outcome.answer["bars"] == outcome.answer["decisions"] == BARS - 1


def test_unsorted_and_duplicate_rows_are_put_right_and_counted(sandbox: Sandbox) -> None:
    header, *sound = rows()
    shuffled = [header, *sound[50:], *sound[:50], sound[3], sound[7]]

    outcome = demo(sandbox, shuffled)

    answer = outcome.answer
    assert (outcome.code, answer["lost"]) == (0, 0), outcome.stderr
    assert answer["data"][0]["rows"] == BARS
    assert answer["data"][0]["repairs"]["duplicate"] == 2
    assert answer["data"][0]["repairs"]["out of order"] > 0
    assert list(Recording(Path(answer["recording"])).decisions()) == decision_ids(BARS)


def test_a_time_column_without_a_zone(sandbox: Sandbox) -> None:
    header, *rest = rows()
    lines = [header.replace("datetime", "time")]
    lines += [
        changed(row, datetime=f"2026-03-02 09:{number % 60:02}:00")
        for number, row in enumerate(rest[:30], start=15)
    ]

    refused(demo(sandbox, lines), "DataError", 1, "zone")


def test_times_in_another_zone_than_the_market_are_refused_tick_by_tick(sandbox: Sandbox) -> None:
    header, *rest = rows()
    # Wall-clock time of India written as if it were UTC: half of the day lies after the close.
    shift_s = 5 * 3600 + 1800 + 2 * 3600
    late = [changed(row, datetime=str(int(row.split(",")[0]) + shift_s)) for row in rest]

    outcome = demo(sandbox, [header, *late])

    assert outcome.code == 0, outcome.stderr
    assert outcome.answer["decisions"] == outcome.answer["orders"] == 0
    assert outcome.answer["lost"] == 0
    assert outcome.answer["alerts"] > 0
    log = Path(outcome.answer["state_dir"], "log.jsonl").read_text()
    assert "outside the session" in log


def test_an_unknown_instrument(sandbox: Sandbox) -> None:
    candles = write_candles(sandbox.folder / FILE, 10)

    outcome = sandbox.run("demo", "--data", candles, "--instrument", "Nifti", "--json")

    refused(outcome, "ConfigError", 2, "Nifti", "--instrument")


def test_more_instruments_than_files(sandbox: Sandbox) -> None:
    candles = write_candles(sandbox.folder / FILE, 10)
    names = ("--instrument", "Nifty", "--instrument", "Sensex")

    outcome = sandbox.run("demo", "--data", candles, *names, "--json")

    refused(outcome, "ConfigError", 2, "1 candle files but 2 instruments")


def test_a_run_without_data(sandbox: Sandbox) -> None:
    refused(sandbox.run("run", "--json"), "ConfigError", 2, "--data")


@pytest.mark.parametrize("speed", ["0", "-1", "fast", "nan"])
def test_a_speed_that_is_none(sandbox: Sandbox, speed: str) -> None:
    outcome = sandbox.run("demo", f"--speed={speed}", "--json")

    assert outcome.code == 2
    assert outcome.answer["error"] == "ConfigError"
    assert "speed" in outcome.answer["text"]
    outcome.assert_no_traceback()


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda text: text.replace("feed:", "feed: ["), ("settings.yaml", "line")),
        (lambda text: text + "\nsurprise: 1\n", ("surprise", "unknown key")),
        (
            lambda text: text.replace("max_daily_loss: 0.03", "max_daily_loss: 3"),
            ("settings.yaml", "max_daily_loss", "3"),
        ),
        (
            lambda text: text.replace("  batch_entries: 128", "  batch_entrees: 128"),
            ("batch_entrees", "batch_entries"),
        ),
    ],
    ids=["broken YAML", "unknown section", "impossible value", "unknown key"],
)
def test_settings_that_cannot_be_used(
    sandbox: Sandbox, break_it: Callable[[str], str], words: tuple[str, ...]
) -> None:
    config = sandbox.folder / "config"
    shutil.copytree(CONFIG, config)
    settings = config / "settings.yaml"
    settings.write_text(break_it(settings.read_text()))

    outcome = sandbox.run("check", "--config", config, "--json")

    refused(outcome, "ConfigError", 2, *words)


def test_a_settings_folder_that_is_not_there(sandbox: Sandbox) -> None:
    outcome = sandbox.run("check", "--config", sandbox.folder / "nowhere", "--json")

    refused(outcome, "ConfigError", 2, "nowhere")


def test_a_changed_model_makes_every_decision_hold(sandbox: Sandbox, tiny_models: Path) -> None:
    models = sandbox.folder / "models"
    shutil.copytree(tiny_models, models)
    (weights,) = models.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    sandbox.trade_with(models)

    outcome = demo(sandbox, rows())

    answer = outcome.answer
    assert outcome.code == 0, outcome.stderr
    assert "SHA-256" in answer["no_model_reason"]
    assert answer["model_digest"] == ""
    assert answer["decisions_by_action"] == {"HOLD": BARS}
    assert answer["orders"] == 0
    decisions = Recording(Path(answer["recording"])).decisions()
    assert all(d.reason.startswith("no valid model: ") for d in decisions.values())
    assert all(weights.name in d.reason for d in decisions.values())


def test_a_session_does_not_go_on_with_another_model(sandbox: Sandbox, tiny_models: Path) -> None:
    sandbox.trade_with(tiny_models)
    candles = write_candles(sandbox.folder / FILE, BARS)
    first = sandbox.run("run", "--data", candles, "--speed", 60, "--duration", 0.5, "--json")
    sandbox.set("session.model_dir", sandbox.folder / "no-models")

    second = sandbox.run("run", "--data", candles, "--speed", 60, "--json")

    assert first.code == 0, first.stderr
    refused(second, "ConfigError", 2, first.answer["session"], "no valid model", "put")


def test_a_replay_without_the_model_of_the_session(sandbox: Sandbox, tiny_models: Path) -> None:
    models = sandbox.folder / "models"
    shutil.copytree(tiny_models, models)
    sandbox.trade_with(models)
    recorded = demo(sandbox, rows())
    shutil.rmtree(models)

    outcome = sandbox.run("replay", "--json")

    assert recorded.code == 0, recorded.stderr
    refused(outcome, "IntegrityError", 1, "manifest.json")


def test_a_replay_of_nothing(sandbox: Sandbox) -> None:
    refused(sandbox.run("replay", "--json"), "ReplayError", 1, "no session 'last'")


def test_a_state_folder_that_another_daemon_uses(sandbox: Sandbox) -> None:
    candles = write_candles(sandbox.folder / FILE, BARS)
    first = sandbox.start("run", "--data", candles, "--speed", 120, "--json")
    sandbox.wait_for("decision", 1, first)

    second = sandbox.run("run", "--data", candles, "--speed", 120, "--json")
    sandbox.wait_for("decision", sandbox.stream_length("decision") + 2, first)
    first.press_ctrl_c()
    outcome = first.wait()

    refused(second, "TraderError", 1, str(sandbox.state), f"pid {first.process.pid}", "--state")
    assert (outcome.code, outcome.answer["lost"], outcome.answer["drained"]) == (0, 0, True)
    for line in map(json.loads, outcome.stderr.splitlines()):
        assert line["event"] not in {"bus lost", "part crashed", "message server gone"}


def test_a_state_folder_that_is_a_file(sandbox: Sandbox) -> None:
    candles = write_candles(sandbox.folder / FILE, BARS)
    sandbox.state.write_text("not a folder")

    for command in ("run", "demo"):
        refused(sandbox.run(command, "--data", candles, "--json"), "ConfigError", 2, "state")


def test_a_socket_that_someone_else_listens_on(sandbox: Sandbox) -> None:
    candles = write_candles(sandbox.folder / FILE, BARS)
    redis = sandbox.state / "redis"
    redis.mkdir(parents=True)
    with (redis / "lock").open("w") as lock, sandbox.locked(lock):
        outcome = sandbox.run("run", "--data", candles, "--json")

    refused(outcome, "ConfigError", 2, str(redis / "lock"), "locked")


@pytest.mark.parametrize(
    ("url", "error", "code"),
    [
        ("unix:///nowhere/r.sock", "BusError", 1),
        ("redis://127.0.0.1:1/0", "BusError", 1),
        ("http://example.org", "ConfigError", 2),
    ],
)
def test_a_message_server_that_does_not_answer(
    sandbox: Sandbox, url: str, error: str, code: int
) -> None:
    candles = write_candles(sandbox.folder / FILE, BARS)
    sandbox.set("bus.url", url)

    outcome = sandbox.run("run", "--data", candles, "--json")

    refused_by = outcome.answer
    assert (outcome.code, refused_by["error"]) == (code, error), outcome.stderr
    assert url in refused_by["text"]
    assert f"hrm-trader: {refused_by['text']}\n" in outcome.stderr
    outcome.assert_no_traceback()
