"""python -m backend: serve the web backend on port 8000. Logs go to stderr, nothing to stdout."""

import gc
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from backend.build import Options, build, load_for
from backend.priority import give_way
from backend.server import server_of
from daemon.errors import ConfigError, TraderError
from daemon.logs import configure_logs

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on.")] = None,
    state: Annotated[Path | None, typer.Option(help="The daemon's state folder.")] = None,
    config: Annotated[Path | None, typer.Option(help="Folder with settings.yaml.")] = None,
    broker_url: Annotated[
        str | None, typer.Option(help="A Fyers simulator on loopback instead of the broker.")
    ] = None,
    demo: Annotated[bool, typer.Option(help="Follow the newest demo.")] = False,
    backtest_pace: Annotated[
        float | None,
        typer.Option(min=0.0, max=10.0, help="Seconds between two bars of a back-test."),
    ] = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Serve until SIGTERM or Ctrl-C. What is not given comes from the settings `backend`."""
    configure_logs(log_level, sys.stderr)
    given = {
        "backend.host": host,
        "backend.port": port,
        "backend.backtest_pace_seconds": backtest_pace,
    }
    options = Options(
        state=state,
        config=config,
        broker_url=broker_url,
        demo=demo,
        overrides={key: value for key, value in given.items() if value is not None},
    )
    settings = load_for(options, os.environ)
    serving = settings.backend
    give_way(serving.niceness)  # the daemon beside it decides about money: it goes first
    application = build(settings, options, os.environ, new_secret=lambda: secrets.token_hex(32))
    try:
        listening = socket.create_server((serving.host, serving.port), backlog=256)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {serving.host}:{serving.port}: {error}; another program uses the "
            "port, or choose one with --port"
        ) from error
    gc.collect()
    gc.freeze()  # what is there now stays: a collection that walks over it would hold up ticks
    server_of(application, serving).run(sockets=[listening])


def main() -> None:
    """Entry point: serve, or say in one sentence why it cannot be done."""
    try:
        app()
    except TraderError as error:
        print(f"backend: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
