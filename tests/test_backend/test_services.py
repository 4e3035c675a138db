"""The old service classes: their names, their methods, and what they do over the daemon."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from backend_server import SECRET, KnownAccounts, Site, a_daemon, check_frame
from command_line import CONFIG, HEADER, a_sandbox, candle_rows

from backend.build import Options, build_backend
from backend.context import Backend
from backend.hub import ready
from backend.services import (
    BacktestService,
    FyersClient,
    LiveTradingService,
    RealtimeDataLoader,
    ServiceFailed,
)
from daemon.brokers.fyers.rest import simulated
from daemon.brokers.fyers_simulator import FyersSimulator, SimulatorSettings
from daemon.settings import load_settings


class HeardSocket:
    """A socket that notes what it is sent."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.close_code = 0
        self.is_closed = asyncio.Event()

    async def close(self, code: int = 1000) -> None:
        self.close_code = code
        self.is_closed.set()

    async def send_text(self, data: str) -> None:
        self.frames.append(json.loads(data))

    async def until(self, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while True:
                for frame in self.frames:
                    if frame["type"] == kind:
                        return frame
                await asyncio.sleep(0.02)


class StuckSocket(HeardSocket):
    """A socket whose client takes nothing."""

    async def send_text(self, data: str) -> None:
        await asyncio.Event().wait()


def a_backend(state: Path, **more: str) -> Backend:
    environment = {"JWT_SECRET": SECRET, "HRM_TRADER__SESSION__STATE_DIR": str(state)} | more
    environment["HRM_TRADER__BACKEND__BACKTEST_PACE_SECONDS"] = "0"
    settings = load_settings(CONFIG, environment)
    return build_backend(
        settings, Options(config=CONFIG), environment, KnownAccounts(), lambda: SECRET
    )


@pytest.mark.integration
async def test_a_live_service_starts_shows_and_stops_a_session() -> None:
    with (
        a_sandbox() as sandbox,
        a_daemon(sandbox, sandbox.folder / "no-models") as state,  # it holds for ever
    ):
        backend = a_backend(state)
        service = LiveTradingService("FA1", "token", "app", "Nifty", "1", "atm", backend=backend)
        running = asyncio.create_task(service.run())
        socket = HeardSocket()
        service.add_websocket_client(socket)

        await socket.until("started")
        await socket.until("tick")
        price = float(backend.reader.view.ticks["Nifty"].last_price)  # type: ignore[union-attr]
        traded = await service.initiate_manual_trade("Nifty", "BUY", 1, price - 500, price + 500)
        opened = await socket.until("position_update")
        status = service.get_status()
        await service.stop()
        await socket.until("stopped")
        service.remove_websocket_client(socket)
        await running

    assert traded == {"status": "success", "trading_mode": "PAPER"}
    assert opened["data"]["tradeType"] == "Manual"
    assert (status["is_running"], status["option_strategy"]) == (True, "ATM")


async def test_a_live_service_without_a_daemon_says_so(tmp_path: Path) -> None:
    service = LiveTradingService("FA1", backend=a_backend(tmp_path))

    assert service.get_status()["is_active"] is False
    with pytest.raises(ServiceFailed, match="no sign of life"):
        await service.stop()
    with pytest.raises(ServiceFailed, match="400: Live trading session not active"):
        await service.initiate_manual_trade("Nifty", "buy", 1)


async def test_a_start_that_fails_is_told_to_the_sockets_and_stays_failed_until_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.services._DAEMON_WAIT_S", 0.1)
    service = LiveTradingService("FA1", backend=a_backend(tmp_path))
    socket = HeardSocket()
    service.add_websocket_client(socket)

    with pytest.raises(ServiceFailed, match=r"Failed to start live trading: .* no sign of life"):
        await service.run()
    error, failed = await socket.until("error"), service.get_status()
    await service.stop()
    service.remove_websocket_client(socket)

    assert error["message"].startswith("Failed to start live trading: the daemon gives no sign")
    check_frame("/ws/live/{user_id}", error)
    check_frame("/ws/live/{user_id}", {"type": "status", "data": failed})
    assert failed["status"] == "failed"
    assert service.get_status()["is_active"] is False


async def test_a_socket_that_takes_nothing_is_closed_and_forgotten(tmp_path: Path) -> None:
    backend = a_backend(tmp_path, HRM_TRADER__BACKEND__WAITING_MESSAGES="16")
    service = LiveTradingService("FA1", backend=backend)
    socket = StuckSocket()
    service.add_websocket_client(socket)

    for number in range(30):
        backend.hub.send("FA1", ready({"number": number}))
    async with asyncio.timeout(60):
        await socket.is_closed.wait()

    assert socket.close_code == 1001
    assert len(backend.hub) == 0


@pytest.mark.parametrize("word", ["real", "REAL", "Real"])
@pytest.mark.integration
async def test_a_real_session_in_any_spelling_is_never_simulated(
    trading_site: Site, word: str
) -> None:
    backend = a_backend(trading_site.backend.files.folder.parent)
    service = LiveTradingService("FA1", "", "", "Nifty", "1", None, word, backend=backend)

    with pytest.raises(ServiceFailed, match="trades paper, the request asks for real"):
        await service.run()


@pytest.mark.parametrize("word", ["", "live", "paper "])
async def test_a_mode_that_is_not_known_is_refused_by_name(tmp_path: Path, word: str) -> None:
    backend = a_backend(tmp_path)
    service = LiveTradingService("FA1", trading_mode=word, backend=backend)

    with pytest.raises(ServiceFailed, match=f"must be paper or real, was '{word}'"):
        await service.run()
    with pytest.raises(ServiceFailed, match="must be paper or real, was 'live'"):
        await service.initiate_manual_trade("Nifty", "buy", 1, trading_mode="live")


async def test_a_user_who_is_not_named_may_not_trade_through_the_facade(tmp_path: Path) -> None:
    backend = a_backend(tmp_path, HRM_TRADER__BACKEND__USERS="[FA2]")
    service = LiveTradingService("FA1", backend=backend)

    with pytest.raises(ServiceFailed, match="FA1 is not among the setting"):
        await service.initiate_manual_trade("Nifty", "buy", 1)
    with pytest.raises(ServiceFailed, match="FA1 is not among the setting"):
        await service.run()


@pytest.mark.integration
async def test_a_back_test_service_returns_the_results_and_feeds_sockets(tmp_path: Path) -> None:
    (tmp_path / "Nifty_1.csv").write_text("\n".join([HEADER, *candle_rows(40)]) + "\n")
    backend = a_backend(tmp_path / "state", HRM_TRADER__PATHS__RAW_DATA_DIR=str(tmp_path))
    service = BacktestService("FA1", "Nifty", "1", 1, 50_000.0, backend=backend)
    socket = HeardSocket()
    service.add_websocket_client(socket)

    results = await service.run()
    await socket.until("completed")
    service.remove_websocket_client(socket)
    await backend.jobs.close()

    assert results["initial_capital"] == 50_000.0
    assert socket.frames[0]["type"] == "started"


async def test_a_back_test_that_finds_no_place_is_told_to_who_asked_and_to_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = a_backend(tmp_path)
    monkeypatch.setattr(backend.jobs, "_most", 0)
    service = BacktestService("FA1", "Nifty", "1", 1, backend=backend)
    socket = HeardSocket()
    service.add_websocket_client(socket)

    with pytest.raises(ServiceFailed, match="Failed to start backtest: 0 back-tests are under way"):
        await service.run()
    error = await socket.until("error")

    assert error["message"].startswith("Failed to start backtest: ")


async def test_the_client_and_the_loader_ask_the_broker(tmp_path: Path) -> None:
    async with FyersSimulator(SimulatorSettings(seed=7, limits=None)) as simulator:
        account = simulator.account
        client = FyersClient(urls=simulated(simulator.urls.base))
        await client.login(
            app_id=account.app_id,
            secret_key=account.secret,
            redirect_uri=account.redirect_uri,
            fy_id=account.client_id,
            pin=account.pin,
            totp_secret=account.totp_secret,
        )
        profile = await client.get_profile()
        funds = await client.get_funds()
        await client.close()
    loader = RealtimeDataLoader("FA1", "token", "app", backend=a_backend(tmp_path))
    candles = await loader.fetch_historical_data("Reliance", "5")

    assert (profile["name"], profile["capital"]) == (account.name, funds["totalFunds"])
    assert len(candles) == 51
    assert candles[0].keys() == {"time", "open", "high", "low", "close", "volume"}
