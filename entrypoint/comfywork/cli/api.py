"""comfyrun api, comfyrun api token TENANT"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from comfywork import names
from comfywork.cli.app import consoles, json_option, show_json
from comfywork.errors import ConfigError, QueueError

if TYPE_CHECKING:
    from comfywork.api.settings import ApiSettings
    from comfywork.settings import Settings


_tokens_option = click.option(
    "--tokens-file", type=click.Path(path_type=Path), envvar="TOKENS_FILE", help="Who may ask (TOKENS_FILE)."
)


@click.group(invoke_without_command=True)
@click.option("--listen", metavar="ADDRESS:PORT", help="Default: API_LISTEN, or 127.0.0.1:8190.")
@_tokens_option
@click.pass_context
def command(ctx: click.Context, listen: str | None, tokens_file: Path | None) -> int:
    """Serve the HTTP API and the queue's page.

    The API is described at /docs, the page is at /. Every token is a tenant's; `comfyrun api token` makes them.
    """
    if ctx.invoked_subcommand is not None:
        return 0
    from comfywork.api.settings import ApiSettings
    from comfywork.settings import Settings

    settings = Settings.from_environment()
    return _serve(ApiSettings.from_environment(listen=listen, tokens_file=tokens_file), settings)


def _serve(api: ApiSettings, settings: Settings) -> int:
    import asyncio

    import uvicorn

    from comfywork.api.app import create_app
    from comfywork.api.events import Hub
    from comfywork.api.front import Front
    from comfywork.api.tokens import Tokens
    from comfywork.broker import Broker
    from comfywork.link import connect
    from comfywork.storage import StorageSettings, open_storage

    connection = connect(settings.redis)
    storage = StorageSettings.from_environment()
    front = Front(
        Broker(connection, settings),
        Tokens(api.tokens_file),
        lambda: open_storage(storage, connection),
        Hub(connect(settings.redis)),
    )
    app = create_app(front, metrics_token=api.metrics_token, max_input=storage.max_input)
    listening = _bound(api)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level=settings.log_level.lower(),
            access_log=settings.verbose,
            server_header=False,
            timeout_graceful_shutdown=5,
            timeout_keep_alive=20,
            h11_max_incomplete_event_size=32_768,
            ssl_certfile=api.certificate,
            ssl_keyfile=api.key,
        )
    )
    _, talk = consoles()
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if api.certificate else "http"
    talk.print(f"{scheme}://{shown}:{port}/ is the queue's page, /docs the API", markup=False)
    if api.certificate is None and host not in ("127.0.0.1", "::1"):
        talk.print(
            "tokens cross the network unencrypted: put a proxy with TLS before it, or set API_TLS_CERTIFICATE and"
            " API_TLS_KEY"
        )
    asyncio.run(server.serve(sockets=[listening]))
    return 0


def _bound(api: ApiSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in api.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((api.host, api.port))
    except OSError as error:
        found.close()
        raise QueueError(
            f"{api.host}:{api.port}: {error.strerror}",
            hint="another port: comfyrun api --listen 127.0.0.1:8191",
        ) from None
    found.listen(2048)
    found.setblocking(False)
    return found


@command.command("token")
@click.argument("tenant")
@_tokens_option
@click.option("--priority", type=click.Choice(names.PRIORITIES), help="The highest that it may ask for.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Jobs a minute.")
@click.option("--depth", type=click.IntRange(1), help="Jobs that may wait.")
@click.option("--admin", is_flag=True, help="Sees and changes what is any tenant's.")
@click.option("--replace", is_flag=True, help="Another token for a tenant that has one; the one before ends.")
@json_option
def token(
    *,
    tenant: str,
    tokens_file: Path | None,
    priority: str | None,
    rate: float | None,
    depth: int | None,
    admin: bool,
    replace: bool,
    as_json: bool,
) -> int:
    """Make a tenant's token.

    It is shown once: the file holds its hash. A server that runs takes it up by itself.
    """
    from comfywork.api.tokens import make

    if tokens_file is None:
        raise ConfigError("which file?", hint="--tokens-file tokens.yaml, or TOKENS_FILE")
    more = {"priority": priority, "rate": rate, "depth": depth, "admin": admin or None}
    given = {name: value for name, value in more.items() if value is not None}
    made = make(tokens_file, tenant, given, replace=replace)
    if as_json:
        show_json({"tenant": tenant, "token": made, "file": os.fspath(tokens_file)})
        return 0
    print(made)
    _, talk = consoles()
    talk.print(f"{tenant}'s token; it is shown this once, and {tokens_file} holds its hash", markup=False)
    return 0
