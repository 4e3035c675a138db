"""Option chains of the simulated Fyers, and orders in what they list."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import aiohttp
import pytest
from fyers_account import AMPLE, Account, an_order

from actors.messages import OptionChain
from daemon.brokers.fyers.ledger import RateLedger
from daemon.brokers.fyers_simulator import FyersSimulator, SimulatorSettings
from daemon.brokers.fyers_simulator.instruments import IST
from daemon.clock import NS_PER_SECOND, SystemClock
from daemon.errors import BrokerRejected, BrokerUnavailable
from daemon.option_chains import STRIKES, OptionChains
from daemon.settings import load_instruments, load_sessions
from daemon.symbol_master import rows_about

CATALOGUE, CALENDAR = load_instruments(None).catalogue, load_sessions(None)
MONDAY = datetime(2026, 11, 16, 10, 30, tzinfo=IST)
TUESDAY = datetime(2026, 11, 17, 10, 30, tzinfo=IST)  # NIFTY's expiry
NIGHT = datetime(2026, 11, 16, 22, 0, tzinfo=IST)


@pytest.fixture
async def account(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Account]:
    start = getattr(request, "param", MONDAY)
    settings = SimulatorSettings(seed=3, limits=None, start=start)
    async with FyersSimulator(settings) as simulator, aiohttp.ClientSession() as http:
        with RateLedger(tmp_path / "calls", SystemClock(), AMPLE) as ledger:
            account = Account(simulator, http, ledger)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(account.broker.run())
                collecting = tasks.create_task(account.collect())
                await account.listening()
                yield account
                await account.broker.close()
                await running
                collecting.cancel()


def chains_of(account: Account, *names: str) -> OptionChains:
    return OptionChains(account.rest, [CATALOGUE[name] for name in names], CALENDAR)


async def nifty(account: Account) -> OptionChain:
    (chain,) = await chains_of(account, "Nifty").read(account.simulator.now_ns)
    return chain


async def test_a_chain_joins_quotes_with_the_facts_of_the_symbol_master(account: Account) -> None:
    chain = await nifty(account)

    market = account.simulator.market
    spot = Decimal(market.quote("NSE:NIFTY50-INDEX").last) / 100
    strikes = sorted({quote.contract.strike for quote in chain.quotes})
    assert (chain.underlying, chain.read_ns) == ("Nifty", account.simulator.now_ns)
    assert len(chain.quotes) == 2 * len(strikes) == 2 * (2 * STRIKES + 1)
    assert strikes[0] < spot < strikes[-1]
    for quote in chain.quotes:
        listed = market.quote(quote.contract.symbol)
        assert quote.bid is not None
        assert quote.ask is not None
        assert quote.bid < quote.ask
        assert quote.last_price == Decimal(listed.last) / 100
        assert quote.contract.lot_size == listed.contract.lot == 65
        assert quote.contract.freeze_quantity == 1800
        assert quote.contract.expiry == date(2026, 11, 17)
        assert quote.contract.updated == date(2026, 11, 16)


@pytest.mark.parametrize("account", [TUESDAY], indirect=True)
async def test_on_an_expiry_day_the_next_expiry_is_read_too(account: Account) -> None:
    chain = await nifty(account)

    # Tuesday the 24th is a holiday: the next contracts expire on Monday.
    expiries = {quote.contract.expiry for quote in chain.quotes}
    assert expiries == {date(2026, 11, 17), date(2026, 11, 23)}


@pytest.mark.parametrize("account", [NIGHT], indirect=True)
async def test_nothing_is_asked_while_the_market_is_closed(account: Account) -> None:
    calls = account.ledger.calls_today

    assert await chains_of(account, "Nifty", "Reliance").read(account.simulator.now_ns) == []
    assert account.ledger.calls_today == calls


async def test_the_symbol_master_is_read_once_a_day(account: Account) -> None:
    chains = chains_of(account, "Nifty")
    calls: list[str] = []
    read = account.rest.symbol_master

    async def counted(name: str) -> bytes:
        calls.append(name)
        return await read(name)

    account.rest.symbol_master = counted  # type: ignore[method-assign]
    await chains.read(account.simulator.now_ns)
    await chains.read(account.simulator.now_ns)
    await account.simulator.move_to(round(TUESDAY.timestamp()) * 10**9, step_s=86_400.0)
    account.token = account.simulator.token()
    await chains.read(account.simulator.now_ns)

    assert calls == ["NSE_CM", "NSE_FO"] * 2


async def test_a_broker_that_does_not_answer_is_no_chain(account: Account) -> None:
    account.simulator.faults.inject("server_error", count=9, path="GET /data/options-chain-v3")

    assert await chains_of(account, "Nifty").read(account.simulator.now_ns) == []


async def test_a_master_that_cannot_be_had_or_read_is_no_chain(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    chains = chains_of(account, "Nifty")

    async def broken(name: str) -> bytes:
        return b"[]"

    with pytest.raises(BrokerUnavailable, match="HTTP 404"):
        await account.rest.symbol_master("NSE_XX")
    account.rest.symbol_master = broken  # type: ignore[method-assign]

    assert await chains.read(account.simulator.now_ns) == []
    assert "no symbol master" in capsys.readouterr().out


async def test_one_index_without_options_does_not_hide_the_others(account: Account) -> None:
    unlisted = replace(CATALOGUE["Bankex"], exchange_symbol="NSE:NOWHERE-INDEX", session="NSE")
    chains = OptionChains(account.rest, [unlisted, CATALOGUE["Bank_Nifty"]], CALENDAR)

    read = await chains.read(account.simulator.now_ns)

    assert [chain.underlying for chain in read] == ["Bank_Nifty"]


async def test_a_master_of_yesterday_is_asked_for_again_after_half_an_hour(
    account: Account,
) -> None:
    chains, calls = chains_of(account, "Nifty"), []
    now_ns = account.simulator.now_ns
    files = {name: await account.rest.symbol_master(name) for name in ("NSE_CM", "NSE_FO")}

    async def of_yesterday(name: str) -> bytes:
        calls.append(name)
        return files[name].replace(b"2026-11-16", b"2026-11-13")

    account.rest.symbol_master = of_yesterday  # type: ignore[method-assign]
    for minutes in (0, 29, 30):
        await chains.read(now_ns + minutes * 60 * NS_PER_SECOND)

    assert calls == ["NSE_CM", "NSE_FO"] * 2


def test_rows_that_are_not_wanted_are_passed_over() -> None:
    cash = b'{"A": {"fyToken": "1"}, "B": {"fyToken": "2"}}'
    derived = b'{"AC": {"underFyTok": "1", "strikePrice": 10.5}, "BC": {"underFyTok": "2"}}'

    rows = rows_about([cash, derived], {"A", "Z"})

    assert rows == {
        "A": {"fyToken": "1"}, "AC": {"underFyTok": "1", "strikePrice": Decimal("10.5")},
    }  # fmt: skip


async def test_an_option_is_bought_and_known_by_its_symbol(account: Account) -> None:
    chain = await nifty(account)
    call = next(quote.contract for quote in chain.quotes if quote.contract.kind == "CE")

    order = an_order(instrument=call.symbol, quantity=65)
    await account.broker.place(order)
    await account.trade()
    await account.until(lambda: account.filled() == 65)

    assert {report.instrument for report in account.told} == {call.symbol}
    assert await account.broker.positions() == {call.symbol: 65}
    assert account.problems == []


async def test_after_a_restart_the_fills_of_an_option_are_still_known(account: Account) -> None:
    chain = await nifty(account)
    call = next(quote.contract for quote in chain.quotes if quote.contract.kind == "CE")
    order = an_order(instrument=call.symbol, quantity=65)
    await account.broker.place(order)
    await account.trade()
    account.written["a1"] = order
    restarted = account.new_broker()

    found = await restarted.find("a1")

    assert found is not None
    assert sum(report.last_quantity for report in found) == 65
    assert account.problems == []


async def test_what_is_neither_an_instrument_nor_an_option_has_no_symbol(account: Account) -> None:
    with pytest.raises(BrokerRejected, match="has no symbol at the broker"):
        await account.broker.place(an_order(instrument="NSE:TCS-EQ"))
