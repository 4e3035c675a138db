"""Health, configuration, metrics: what needs no log-in."""

import json
from functools import lru_cache
from typing import Any

import yaml
from fastapi import APIRouter, HTTPException, Request

from backend.context import backend_of
from backend.files import metrics_on
from backend.responses import iso_utc
from daemon.market_files import INSTRUMENTS_FILE

router = APIRouter(prefix="/api")


@router.get("/health")
async def health(request: Request) -> dict[str, str]:
    """Say that the backend itself is up."""
    return {"status": "ok", "timestamp": iso_utc(backend_of(request).wall_ns())}


@router.get("/config")
async def config(request: Request) -> dict[str, Any]:
    """Return instruments and timeframes as the file has them now."""
    path = backend_of(request).config_dir / INSTRUMENTS_FILE
    try:
        document = _document(path.read_text())
    except FileNotFoundError as error:
        raise HTTPException(500, "Configuration file not found") from error
    except yaml.YAMLError as error:
        raise HTTPException(500, f"Invalid YAML configuration: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise HTTPException(500, f"Failed to read configuration: {error}") from error
    for key in ("instruments", "timeframes"):
        if not isinstance(document, dict) or key not in document:
            raise HTTPException(
                500,
                "Failed to read configuration: 500: Invalid configuration: "
                f"'{key}' key missing from config file",
            )
    return {"instruments": document["instruments"], "timeframes": document["timeframes"]}


@lru_cache(maxsize=2)
def _document(text: str) -> Any:
    """Return what a YAML text says: parsing it holds the event loop up, and it seldom changes.

    Only to be read: every caller gets the same object.
    """
    return yaml.safe_load(text)


@router.get("/metrics")
async def metrics(request: Request) -> dict[str, Any]:
    """Return the contents of metrics.json, today's result as of the market's date."""
    reader = backend_of(request).reader
    try:
        return metrics_on(reader.place, reader.now_ns)
    except FileNotFoundError as error:
        raise HTTPException(404, "metrics.json not found") from error
    except json.JSONDecodeError as error:
        raise HTTPException(500, "Error decoding metrics.json") from error
    except (OSError, ValueError) as error:
        raise HTTPException(500, f"Failed to read metrics: {error}") from error
