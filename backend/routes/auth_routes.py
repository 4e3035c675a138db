"""Log in, log out, profile, funds."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel

from backend.auth import COOKIE, COOKIE_LIFE_S, Identity
from backend.context import backend_of, identity_of
from backend.responses import iso_utc
from daemon.brokers.fyers.login import LoginFields
from daemon.errors import BrokerError, BrokerUnavailable
from daemon.logs import get_logger

router = APIRouter(prefix="/api")
User = Annotated[Identity, Depends(identity_of)]


class LoginRequest(BaseModel):
    """The six fields of the log-in form."""

    app_id: str
    secret_key: str
    redirect_uri: str
    fy_id: str
    pin: str
    totp_secret: str


@router.post("/auth/login")
@router.post("/login")
async def login(body: LoginRequest, request: Request, response: Response) -> dict[str, bool | str]:
    """Log in at the broker and set the cookie."""
    backend = backend_of(request)
    address = request.client.host if request.client else ""
    keys = (f"address {address}", f"user {body.fy_id}")
    wait_s = backend.throttle.wait_s(*keys)
    if wait_s:
        text = f"Authentication failed: too many failed attempts, wait {wait_s:.0f} s"
        raise HTTPException(401, text, {"Retry-After": f"{wait_s:.0f}"})
    if problem := backend.exclusion(body.fy_id):
        raise HTTPException(401, f"Authentication failed: {problem}")
    tried_s = backend.throttle.count(*keys)
    try:
        identity = await backend.accounts.log_in(LoginFields(**body.model_dump()))
    except BrokerError as error:
        if isinstance(error, BrokerUnavailable):
            backend.throttle.take_back(tried_s, *keys)  # nothing was guessed
        get_logger(part="auth").warning("log-in failed", user=body.fy_id, reason=str(error))
        raise HTTPException(401, f"Authentication failed: {error}") from error
    backend.throttle.take_back(tried_s, *keys)
    response.set_cookie(
        COOKIE,
        backend.signer.issue(identity),
        max_age=COOKIE_LIFE_S,
        path="/",
        httponly=True,
        samesite="lax",
    )
    backend.note_action(identity.user_id, "LOGIN", {})
    return {"success": True, "message": "Login successful"}


@router.post("/auth/logout")
@router.post("/logout")
async def logout(user: User, request: Request, response: Response) -> dict[str, bool | str]:
    """Clear the cookie; the broker's token stays good until it expires."""
    backend_of(request).note_action(user.user_id, "LOGOUT", {})
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="lax")
    return {"success": True, "message": "Logged out successfully"}


@router.get("/auth/profile")
@router.get("/profile")
async def profile(user: User, request: Request) -> dict[str, str | float]:
    """Say who is logged in; asks the broker only now and then, and never the daemon."""
    backend = backend_of(request)
    try:
        found = await backend.profile(user)
    except BrokerError as error:
        raise HTTPException(500, f"Failed to fetch profile: {error}") from error
    return {
        "user_id": user.user_id,
        "name": found.name,
        "capital": found.capital,
        "login_time": iso_utc(backend.wall_ns()),
    }


@router.get("/funds")
async def funds(user: User, request: Request) -> dict[str, float]:
    """Return today's realised result and the total funds at the broker."""
    try:
        found = await backend_of(request).accounts.funds(user)
    except BrokerError as error:
        raise HTTPException(500, f"Failed to fetch funds: {error}") from error
    return {"todayPnL": found.today_pnl, "totalFunds": found.total}
