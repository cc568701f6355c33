from __future__ import annotations

from frontkit import _api, _world, api, own_redis, queue, worker

__all__ = ["_api", "_world", "api", "own_redis", "queue", "worker"]
