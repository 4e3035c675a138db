"""What an option is worth: Black-Scholes on the underlying, with a documented smile.

The implied volatility of a strike K at forward F with t years to go is

    m = ln(K / F) / sqrt(t)
    volatility = at the money x (1 - 0.25 m / (1 + |m|) + 0.40 m² / (1 + m²))

so that a strike below the forward costs more than one as far above it, and far from it both wings
cost more than the middle; within [0.7, 1.7] of the volatility at the money. It is a shape, not a
fit to any market. The rate is 6.5 % a year, without dividends. Time counts calendar seconds to
15:30 IST of the expiry day.
"""

import math
from dataclasses import dataclass
from typing import Final

RATE: Final = 0.065
_SECONDS_PER_YEAR: Final = 365 * 86_400
_LEAST_YEARS: Final = (
    1 / _SECONDS_PER_YEAR
)  # one second: the value at expiry, without dividing by 0


@dataclass(frozen=True, slots=True)
class Valuation:
    """Price in the unit of the spot; theta is per day, vega per point of volatility."""

    price: float
    volatility: float
    delta: float
    gamma: float
    theta: float
    vega: float


def years_between(now_ns: int, expiry_ns: int) -> float:
    """Return the time to expiry, at least one second."""
    return max((expiry_ns - now_ns) / 1e9 / _SECONDS_PER_YEAR, _LEAST_YEARS)


def smile(spot: float, strike: float, years: float, at_the_money: float) -> float:
    """Return the volatility of a strike by the formula above."""
    forward = spot * math.exp(RATE * years)
    m = math.log(strike / forward) / math.sqrt(years)
    shape = 1 - 0.25 * m / (1 + abs(m)) + 0.40 * m * m / (1 + m * m)
    return at_the_money * min(max(shape, 0.7), 1.7)


def value(
    spot: float, strike: float, years: float, at_the_money: float, *, is_call: bool
) -> Valuation:
    """Value a European option on a spot without dividends."""
    volatility = smile(spot, strike, years, at_the_money)
    spread = volatility * math.sqrt(years)
    d1 = (math.log(spot / strike) + (RATE + volatility**2 / 2) * years) / spread
    d2 = d1 - spread
    discounted = strike * math.exp(-RATE * years)
    density = math.exp(-d1 * d1 / 2) / math.sqrt(2 * math.pi)
    sign = 1 if is_call else -1
    price = sign * (spot * _normal(sign * d1) - discounted * _normal(sign * d2))
    decay = spot * density * volatility / (2 * math.sqrt(years))
    theta = -decay - sign * RATE * discounted * _normal(sign * d2)
    return Valuation(
        price=max(price, 0.0),
        volatility=volatility,
        delta=sign * _normal(sign * d1),
        gamma=density / (spot * spread),
        theta=theta / 365,
        vega=spot * density * math.sqrt(years) / 100,
    )


def _normal(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2
