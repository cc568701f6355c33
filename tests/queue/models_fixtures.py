"""Servers that misbehave on demand, stopped after each test."""

from __future__ import annotations

import pytest
from badserver import Server


@pytest.fixture(name="server")
def a_server():
    found = Server()
    yield found
    found.stop()


@pytest.fixture(name="hub")
def a_hub():
    """A hub that sends on to another host, as the real one does."""
    found = Server()
    found.cdn = Server()
    yield found
    found.cdn.stop()
    found.stop()
