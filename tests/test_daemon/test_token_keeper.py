"""The keeper of the token: read, refused, renewed, and a person asked when nothing else helps."""

import asyncio
from contextlib import suppress

import pytest

from actors.messages import Alert
from daemon.brokers.fyers.login import Token
from daemon.brokers.fyers.token_keeper import TokenKeeper
from daemon.clock import NS_PER_SECOND, SimulatedClock
from daemon.errors import BrokerUnavailable, LoginNeeded

DAY_S = 86_400
WAIT_S = 20.0


def a_token(name: str, expires_s: int = DAY_S) -> Token:
    return Token(app_id="APP-100", access_token=name, hsm_key=f"key of {name}", expires_s=expires_s)


class Desk:
    """What is kept in the state folder, and a login that gives one token after the other."""

    def __init__(self, kept: Token | None = None) -> None:
        self.kept = kept
        self.problem: Exception | None = None
        self.loads = 0
        self.logins = 0
        self.alerts: list[Alert] = []
        self.clock = SimulatedClock(0)

    def load(self) -> Token:
        self.loads += 1
        if self.kept is None:
            raise LoginNeeded("nobody has logged in yet")
        return self.kept

    async def log_in(self) -> Token:
        self.logins += 1
        if self.problem is not None:
            raise self.problem
        return a_token(f"login {self.logins}", 2 * DAY_S)

    def keeper(self, *, can_log_in: bool = True) -> TokenKeeper:
        log_in = self.log_in if can_log_in else None
        return TokenKeeper(
            self.load, log_in, self.clock, on_alert=self.alerts.append, retry_s=0.001
        )


async def test_a_kept_token_is_used_without_a_login() -> None:
    desk = Desk(a_token("kept"))
    keeper = desk.keeper()

    await keeper.renew()

    assert (keeper.access_token(), keeper.hsm_key()) == ("kept", "key of kept")
    assert (keeper.app_id, desk.logins) == ("APP-100", 0)


async def test_a_refused_token_is_replaced_by_a_login_once() -> None:
    desk = Desk(a_token("kept"))
    keeper = desk.keeper()
    await keeper.renew()

    keeper.refuse("kept")
    with pytest.raises(LoginNeeded, match="no good access token"):
        keeper.access_token()
    await asyncio.gather(keeper.renew(), keeper.renew())

    assert (keeper.access_token(), desk.logins) == ("login 1", 1)


async def test_a_token_whose_day_is_over_is_not_handed_out() -> None:
    desk = Desk(a_token("kept"))
    keeper = desk.keeper()
    await keeper.renew()

    desk.clock.advance_to(DAY_S * NS_PER_SECOND)

    with pytest.raises(LoginNeeded):
        keeper.access_token()


async def test_a_late_refusal_of_an_older_token_changes_nothing() -> None:
    desk = Desk()
    keeper = desk.keeper()
    await keeper.renew()

    keeper.refuse("a token of yesterday")
    await keeper.renew()

    assert (keeper.access_token(), desk.logins) == ("login 1", 1)


async def test_without_the_fields_of_a_login_a_person_is_asked_once_and_waited_for() -> None:
    desk = Desk(a_token("kept"))
    keeper = desk.keeper(can_log_in=False)
    await keeper.renew()
    keeper.refuse("kept")

    keeping = asyncio.create_task(keeper.keep())
    async with asyncio.timeout(WAIT_S):
        while desk.loads < 5:  # noqa: ASYNC110 - a count has no event
            await asyncio.sleep(0.001)
    desk.kept = a_token("of a person", 2 * DAY_S)
    async with asyncio.timeout(WAIT_S):
        while True:
            with suppress(LoginNeeded):
                token = keeper.access_token()
                break
            await asyncio.sleep(0.001)
    keeping.cancel()

    assert token == "of a person"
    (alert,) = desk.alerts
    assert alert.severity == "critical"
    assert "run hrm-trader login" in alert.text


async def test_refused_logins_end_before_the_account_is_locked() -> None:
    desk = Desk()
    desk.problem = LoginNeeded("wrong PIN")
    keeping = asyncio.create_task(desk.keeper().keep())

    async with asyncio.timeout(WAIT_S):
        while desk.loads < 10:  # noqa: ASYNC110 - a count has no event
            await asyncio.sleep(0.001)
    keeping.cancel()

    assert desk.logins == 3
    assert len(desk.alerts) == 1


async def test_a_login_without_an_answer_is_tried_again() -> None:
    desk = Desk()
    desk.problem = BrokerUnavailable("no answer")
    keeper = desk.keeper()
    keeping = asyncio.create_task(keeper.keep())

    async with asyncio.timeout(WAIT_S):
        while desk.logins < 5:  # noqa: ASYNC110 - a count has no event
            await asyncio.sleep(0.001)
    desk.problem = None
    async with asyncio.timeout(WAIT_S):
        while not keeper.logins:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    keeping.cancel()

    assert keeper.access_token().startswith("login ")
    assert desk.alerts == []
