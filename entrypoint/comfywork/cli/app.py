"""What the verbs share: the way into the queue, its options, and how things are shown."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape

from comfywork.errors import ComfyworkError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfywork.door import Direct, Door
    from comfywork.views import JobView

TOKEN_HINT = "give --token-file FILE, or set COMFYWORK_TOKEN_FILE"  # noqa: S105 - no token
_WIDE = 240
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def consoles() -> tuple[Console, Console]:
    """For data and for talk."""
    # Where nobody looks, a table folds no cell: a program reads lines.
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    return (
        Console(highlight=False, soft_wrap=True, width=wide),
        Console(stderr=True, highlight=False, soft_wrap=True),
    )


def tell(error: ComfyworkError) -> int:
    _, talk = consoles()
    first, *more = error.messages or (str(error),)
    talk.print(f"[bold red]error:[/] {escape(first)}")
    for message in more:
        talk.print(f"       {escape(message)}")
    if error.hint:
        talk.print(f"[dim] next:[/] {escape(error.hint)}")
    return error.exit_code


def show_json(found: object) -> None:
    print(json.dumps(found, indent=2, ensure_ascii=not (sys.stdout.encoding or "").lower().startswith("utf")))


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")(function)


def door_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`door`: Redis and the storage by the environment, or with --server the HTTP API."""

    @click.option("--server", metavar="URL", envvar="COMFYWORK_API", help="HTTP API (default: Redis itself).")
    @click.option(
        "--token-file", type=click.Path(path_type=Path), envvar="COMFYWORK_TOKEN_FILE", help="For --server."
    )
    @functools.wraps(function)
    def wrapped(*args: Any, server: str | None, token_file: Path | None, **kwargs: Any) -> Any:
        return function(*args, door=door_of(server, token_file), **kwargs)

    return wrapped


def tenant_option(**more: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--tenant", envvar="COMFYWORK_TENANT", metavar="NAME", **more)


def door_of(server: str | None, token_file: Path | None) -> Door:
    if server is None:
        return direct()
    from comfywork.client import Client, read_token

    token = read_token(token_file) if token_file else os.environ.get("COMFYWORK_TOKEN", "")
    if not token:
        raise ConfigError(f"{server} wants a token", hint=TOKEN_HINT)
    return Client(server, token)


def direct() -> Direct:
    from comfywork.broker import Broker
    from comfywork.door import Direct

    return Direct(Broker.of_environment())


def span(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < _MINUTE:
        return f"{max(0.0, seconds):.1f} s"
    whole = int(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def state_of(job: JobView) -> str:
    """One phrase: where the job is."""
    match job.state:
        case "pending":
            place = "" if job.position is None else f", {job.position} before it in its queue"
            note = f" ({job.note})" if job.note else ""
            return f"pending{place}{note}"
        case "processing":
            how = f"processing {job.progress.fraction:.0%}"
            node = f", node {job.progress.node}" if job.progress.node else ""
            return f"{how}{node} on {job.worker}" + (", being cancelled" if job.cancelling else "")
        case "completed":
            took = "" if job.started is None or job.ended is None else f" in {span(job.ended - job.started)}"
            return f"completed{took}, {len(job.outputs)} output{'' if len(job.outputs) == 1 else 's'}"
        case "failed":
            return f"failed: {job.failure.message}" if job.failure else "failed"
        case _:
            return job.state


def age(since: float) -> str:
    return span(time.time() - since)
