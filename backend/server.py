"""How the application is served: one uvicorn process with the sockets' own protocol."""

import uvicorn
from fastapi import FastAPI

from backend.lines import LineProtocol
from daemon.backend_settings import BackendSettings


def server_of(application: FastAPI, settings: BackendSettings) -> uvicorn.Server:
    """Return a server; the caller hands it the socket that it listens on."""
    return uvicorn.Server(
        uvicorn.Config(
            application,
            log_config=None,
            access_log=False,
            loop="uvloop",
            http="httptools",
            ws=LineProtocol,
            ws_max_size=settings.max_body_kib * 1024,
            ws_per_message_deflate=False,  # per socket and frame: it costs more than it saves
            timeout_graceful_shutdown=5,
            server_header=False,
            proxy_headers=False,  # the log-in brake counts by address: no client may name its own
        )
    )
