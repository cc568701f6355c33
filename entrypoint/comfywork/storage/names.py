r"""Names of objects. A key is `{tenant}/{job}/{node}_{n}.ext` for an output, `{tenant}/inputs/{hash}-{name}` for an input.

Lower-case ASCII only: two keys that differ also differ on a file system that ignores case or normalises Unicode, and no
part can be empty, `.`, `..`, absolute, or begin with a dot.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

from comfywork.errors import ConfigError
from comfywork.names import check_job, check_tenant
from comfywork.storage.errors import KeyNameError

STAGING = ".staging"
INPUTS = "inputs"

_OUTPUT = re.compile(r"[a-z0-9][a-z0-9-]{0,79}_[0-9]{1,6}\.[a-z0-9]{1,16}")
_INPUT = re.compile(r"[0-9a-f]{16}-[a-z0-9][a-z0-9._-]{0,99}")
_PLAIN_NODE = re.compile(r"[a-z0-9]+(:[a-z0-9]+)*")
_MOST_NODE = 64
_MOST_EXTENSION = 16
_MOST_INPUT = 100


def check_output(name: str) -> str:
    if not _OUTPUT.fullmatch(name):
        raise KeyNameError(
            f"{_shown(name)} is no output's name: {{node}}_{{number}}.{{extension}}, lower case"
        )
    return name


def output_name(node: str, number: int, filename: str) -> str:
    """`{node}_{n}.ext` for any node id that ComfyUI takes; different ids give different names.

    `number` counts a node's outputs from 0; of `filename` (what ComfyUI called it) only the extension is taken. Ids
    with other characters than a to z, 0 to 9 and the `:` of subgraphs get a hash at their end.
    """
    if _PLAIN_NODE.fullmatch(node) and len(node) <= _MOST_NODE:
        label = node.replace(":", "-")
    else:
        slug = re.sub(r"[^a-z0-9]+", "-", node.lower())[:_MOST_NODE].strip("-") or "node"
        label = f"{slug}--{hashlib.sha256(node.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
    _, dot, extension = filename.rpartition(".")
    extension = extension.lower()
    if not dot or not re.fullmatch(r"[a-z0-9]+", extension) or len(extension) > _MOST_EXTENSION:
        extension = "bin"
    return check_output(f"{label}_{number}.{extension}")


def input_name(name: str) -> str:
    """What of a person's file name goes into a key. Raises KeyNameError for a path, or for nothing."""
    if "/" in name or "\\" in name or "\0" in name:
        raise KeyNameError(f"{_shown(name)} is a path: give a file's name alone")
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"[^a-z0-9._-]+", "-", plain).strip("._-")
    if not plain:
        if not any(c.isalnum() for c in name):
            raise KeyNameError(f"{_shown(name)} is no file's name")
        plain = "file"
    stem, dot, extension = plain.rpartition(".")
    if dot and len(extension) <= _MOST_EXTENSION:
        return f"{stem[: _MOST_INPUT - len(extension) - 1].rstrip('._-') or 'file'}.{extension}"
    return plain[:_MOST_INPUT].rstrip("._-")


def input_key(tenant: str, sha256: str, name: str) -> str:
    return check_key(f"{check_tenant(tenant)}/{INPUTS}/{sha256[:16]}-{input_name(name)}")


def check_key(key: str) -> str:
    """`key`, which must be that of an output or an input. Raises ConfigError (KeyNameError is one)."""
    tenant, slash, rest = key.partition("/")
    second, slash2, name = rest.partition("/")
    if not slash or not slash2:
        raise KeyNameError(f"{_shown(key)} is no key: tenant/job/name, or tenant/{INPUTS}/name")
    check_tenant(tenant)
    if second == INPUTS:
        if not _INPUT.fullmatch(name):
            raise KeyNameError(f"{_shown(name)} is no input's name: {{16 digits of its hash}}-{{name}}")
    else:
        check_job(second)
        check_output(name)
    return key


def is_key(key: str) -> bool:
    try:
        check_key(key)
    except ConfigError:
        return False
    return True


def job_of(key: str) -> str | None:
    """The job that an output's key belongs to; None for an input's."""
    second = check_key(key).split("/")[1]
    return None if second == INPUTS else second


def staging_of(tenant: str, job: str, token: int) -> str:
    """The folder of what one lease of a job has staged, with a slash at its end."""
    check_tenant(tenant)
    if job != INPUTS:
        check_job(job)
    if not 0 <= token < 1 << 63:
        raise KeyNameError(f"{token} is no fencing token: a whole number from 0")
    return f"{STAGING}/{tenant}/{job}/{token}/"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")  # noqa: PLR2004
