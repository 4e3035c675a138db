"""python -m backend: serve the web backend on port 8000. Logs go to stderr, nothing to stdout."""

import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from backend.build import Options, build
from daemon.errors import ConfigError, TraderError
from daemon.logs import configure_logs

_NICENESS = 10  # the daemon beside it decides about money: it goes first

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    state: Annotated[Path | None, typer.Option(help="The daemon's state folder.")] = None,
    config: Annotated[Path | None, typer.Option(help="Folder with settings.yaml.")] = None,
    broker_url: Annotated[
        str | None, typer.Option(help="A Fyers simulator on loopback instead of the broker.")
    ] = None,
    demo: Annotated[bool, typer.Option(help="Follow the newest demo.")] = False,
    backtest_pace: Annotated[
        float, typer.Option(min=0.0, max=10.0, help="Seconds between two bars of a back-test.")
    ] = 0.1,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    configure_logs(log_level, sys.stderr)
    os.nice(_NICENESS)
    options = Options(
        state=state,
        config=config,
        broker_url=broker_url,
        demo=demo,
        backtest_pace_s=backtest_pace,
    )
    application = build(options, os.environ, new_secret=lambda: secrets.token_hex(32))
    try:
        listening = socket.create_server((host, port), backlog=256)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error}; another program uses the port, or choose "
            "one with --port"
        ) from error
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            log_config=None,
            access_log=False,
            loop="uvloop",
            http="httptools",
            ws="websockets-sansio",
            ws_max_size=64 * 1024,
            ws_per_message_deflate=False,  # per socket and frame: it costs more than it saves
            timeout_graceful_shutdown=5,
            server_header=False,
        )
    )
    server.run(sockets=[listening])


def main() -> None:
    """Entry point: serve, or say in one sentence why it cannot be done."""
    try:
        app()
    except TraderError as error:
        print(f"backend: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
