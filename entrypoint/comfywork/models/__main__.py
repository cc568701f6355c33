"""`python -m comfywork.models`: the models commands alone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from comfywork.cli.models import models
from comfywork.errors import INTERRUPTED, ComfyworkError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m comfywork.models`: the group alone, with the exit codes of the whole."""
    try:
        code = models.main(args=arguments, prog_name="comfyrun models", standalone_mode=False)
    except ComfyworkError as error:
        for message in error.messages:
            click.echo(message, err=True)
        if error.hint:
            click.echo(error.hint, err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
