"""A page in a real browser uses log-in, history, live socket and back-test as the frontend does."""

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from backend_server import CREDENTIALS, Site, a_daemon, a_site, start_session
from command_line import HEADER, a_sandbox, candle_rows
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or ""
PAGE = Path(__file__).parents[1] / "fixtures" / "frontend.html"
PORTS = (3000, 3001)  # the only ones whose pages the backend talks to
PATIENCE_MS = 120_000

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium here: `make browser-test` installs it"),
]


@pytest.fixture(scope="module")
def fast_site(tiny_models: Path) -> Iterator[Site]:
    """Serve a backend beside a daemon that plays two bars a second, and back-tests at once.

    Its candles last for three minutes, longer than all tests that use it.
    """
    patch = pytest.MonkeyPatch()
    with a_sandbox() as sandbox, a_daemon(sandbox, tiny_models, speed=120) as state:
        raw = sandbox.folder / "raw"
        raw.mkdir()
        (raw / "Bank_Nifty_1.csv").write_text("\n".join([HEADER, *candle_rows(90)]) + "\n")
        environment = {
            "HRM_TRADER__PATHS__RAW_DATA_DIR": str(raw),
            "HRM_TRADER__SESSION__MODEL_DIR": str(tiny_models),
            "HRM_TRADER__REASONING__WARM_UP_BARS": "33",
            "HRM_TRADER__RISK_LIMITS__MIN_CONFIDENCE": "0",
            "HRM_TRADER__BACKEND__BACKTEST_PACE_SECONDS": "0.01",
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        with a_site(state, environment=environment) as site:
            yield site
    patch.undo()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002


@pytest.fixture(scope="module")
def page_url() -> Iterator[str]:
    """Serve the page where the frontend would be."""
    for port in PORTS:
        try:
            server = ThreadingHTTPServer(
                ("127.0.0.1", port), partial(_Quiet, directory=str(PAGE.parent))
            )
        except OSError:
            continue
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{port}/{PAGE.name}"
        server.shutdown()
        thread.join()
        server.server_close()
        return
    pytest.skip(f"ports {PORTS} are in use: the page has no place to be served from")


@pytest.fixture
def page() -> Iterator[Page]:
    """Open an empty page in a headless browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser.new_page()
        browser.close()


def test_log_in_history_live_ticks_a_trade_and_a_back_test(
    page_url: str, fast_site: Site, page: Page
) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{page_url}?backend=localhost:{fast_site.port}")

    page.evaluate("fields => logIn(fields)", CREDENTIALS)
    assert page.inner_text("#name") == f"Name of {CREDENTIALS['fy_id']}"
    assert "auth_token" not in page.evaluate("document.cookie")  # HttpOnly
    page.evaluate("loadHistory('Reliance', '5')")
    assert int(page.inner_text("#candles")) == 51

    page.evaluate("openLive()")
    page.wait_for_function("state.live.includes('status')", timeout=PATIENCE_MS)
    assert start_session(fast_site).status_code == 200
    page.wait_for_function("state.isTrading", timeout=PATIENCE_MS)
    page.wait_for_function("state.prices.size > 3", timeout=PATIENCE_MS)
    page.wait_for_function("state.markers.length > 0", timeout=PATIENCE_MS)
    page.wait_for_function("state.pnl !== null", timeout=PATIENCE_MS)

    page.evaluate("runBacktest('Bank_Nifty', '1', 1)")
    page.wait_for_function("state.backtest === 'completed'", timeout=PATIENCE_MS)
    assert page.evaluate("state.portfolio.length") > 0
    page.evaluate("stopLive()")
    page.wait_for_function("!state.isTrading", timeout=PATIENCE_MS)
    assert errors == []
