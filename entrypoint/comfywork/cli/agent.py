"""The worker's own process; `comfyrun worker` starts it beside ComfyUI."""

from __future__ import annotations

import click


@click.command("agent", hidden=True)
def command() -> None:
    """Take jobs from the queue for the ComfyUI beside this process."""
    import logging
    import sys

    import redis

    from comfywork.agent import Agent
    from comfywork.link import said
    from comfywork.settings import Settings

    settings = Settings.from_environment()
    logging.basicConfig(level=logging.WARNING, format="[%(levelname)s] %(message)s", stream=sys.stdout)
    logging.getLogger("comfywork").setLevel(settings.log_level)
    if settings.verbose:
        logging.getLogger().setLevel(settings.log_level)
    try:
        sys.exit(Agent(settings).run())
    except (
        redis.RedisError
    ) as error:  # before its own patience begins: RQ's worker asks Redis when it is made
        raise said(error, settings.redis) from None
