"""`imgbuild push`: publish under the name that docker's users look for."""

from __future__ import annotations

import copy

from imgbuild.cli.publish import command as publish

command = copy.copy(publish)
command.name = "push"
