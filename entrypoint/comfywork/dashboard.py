"""RQ's own dashboard (rq-dashboard), with this queue's connection, RQ's JSON serializer, and a password.

It shows every tenant's jobs and can delete them, so that it is for whoever runs the queue, and asks for a password
wherever others could reach it.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from comfywork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfywork.settings import Redis

USER = "admin"
_SHORTEST = 8  # characters


def password(environ: Mapping[str, str], host: str) -> str | None:
    """DASHBOARD_PASSWORD or the file that DASHBOARD_PASSWORD_FILE names; on loopback none is needed."""
    found, file = environ.get("DASHBOARD_PASSWORD", ""), environ.get("DASHBOARD_PASSWORD_FILE", "")
    if not found and file:
        try:
            found = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"DASHBOARD_PASSWORD_FILE={file} cannot be read: {error}") from None
    if not found and host in ("127.0.0.1", "::1", "localhost"):
        return None
    if len(found) < _SHORTEST:
        raise ConfigError(
            f"the dashboard on {host} needs a password of at least {_SHORTEST} characters: it can delete jobs",
            hint="DASHBOARD_PASSWORD_FILE=/run/secrets/dashboard-password, or --listen 127.0.0.1:9181",
        )
    return found


def address(redis: Redis) -> str:
    """With the password in it: rq-dashboard takes nothing else, and it never leaves this process."""
    who = ""
    if redis.password is not None:
        who = f"{quote(redis.user or '', safe='')}:{quote(redis.password, safe='')}@"
    host = f"[{redis.host}]" if ":" in redis.host else redis.host
    more = {"ssl_ca_certs": os.fspath(redis.ca_file)} if redis.tls and redis.ca_file else {}
    scheme = "rediss" if redis.tls else "redis"
    query = f"?{urlencode(more)}" if more else ""
    return f"{scheme}://{who}{host}:{redis.port}/{redis.database}{query}"


def make_app(redis: Redis, secret: str | None) -> Any:
    """The WSGI application."""
    import rq_dashboard  # noqa: PLC0415  (slow to import, for one verb)
    from flask import Flask, Response, request  # noqa: PLC0415
    from rq.serializers import JSONSerializer  # noqa: PLC0415
    from rq_dashboard.web import config, setup_rq_connection  # noqa: PLC0415

    # Without it the dashboard would unpickle what it finds in Redis.
    config.serializer = JSONSerializer
    app = Flask("comfywork")
    app.config.from_object(rq_dashboard.default_settings)
    app.config["RQ_DASHBOARD_REDIS_URL"] = address(redis)
    app.config["DEPRECATED_OPTIONS"] = []

    @app.before_request
    def refuse() -> Response | None:
        given = request.authorization
        if secret is None or (
            given is not None
            and given.username == USER
            and hmac.compare_digest((given.password or "").encode(), secret.encode())
        ):
            return None
        return Response("log in\n", 401, {"WWW-Authenticate": 'Basic realm="queue"'})

    app.register_blueprint(rq_dashboard.blueprint)
    setup_rq_connection(app)
    return app
