"""comfyrun dashboard"""

from __future__ import annotations

import click

LISTEN = "127.0.0.1:9181"


@click.command()
@click.option("--listen", metavar="ADDRESS:PORT", default=LISTEN, show_default=True)
def command(listen: str) -> int:
    """Serve RQ's own dashboard of the queue.

    It shows every tenant's jobs and can delete them. The user is admin, the password DASHBOARD_PASSWORD_FILE's.
    """
    import os

    from werkzeug.serving import make_server

    from comfywork import dashboard
    from comfywork.api.settings import address
    from comfywork.cli.app import consoles
    from comfywork.errors import QueueError
    from comfywork.settings import Settings

    settings = Settings.from_environment()
    host, port = address(listen)
    secret = dashboard.password(os.environ, host)
    try:
        server = make_server(host, port, dashboard.make_app(settings.redis, secret), threaded=True)
    except (OSError, SystemExit) as error:
        why = error.strerror if isinstance(error, OSError) else "the address is in use"
        raise QueueError(f"{host}:{port}: {why}", hint="comfyrun dashboard --listen 127.0.0.1:9182") from None
    _, talk = consoles()
    talk.print(f"http://{host}:{port}/ is RQ's dashboard of {settings.redis.address}", markup=False)
    server.serve_forever()
    return 0
