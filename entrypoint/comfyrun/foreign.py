"""Names that users of other images know: understood, or answered with today's way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Their variable → the setting that it is understood as.
UNDERSTOOD: Mapping[str, str] = {
    "BASE_DIRECTORY": "data",  # mmartial/comfyui-nvidia-docker
    "CLI_ARGS": "args",  # yanwk/comfyui-boot
    "COMFYUI_ARGS": "args",  # HurbaLurba/DGX-SPARK-COMFYUI-DOCKER, and others
    "COMFYUI_FLAGS": "args",  # ai-dock/comfyui
    "COMFYUI_PORT": "port",  # HurbaLurba
    "COMFYUI_PORT_HOST": "port",  # ai-dock
    "COMFY_CMDLINE_EXTRA": "args",  # mmartial
    # HurbaLurba: a models folder (checkpoints, loras, ... right in it), for an extra-model-paths file.
    "MODEL_BASE_PATH": "models",
}

_INSTALLED = "nothing is installed at a start: every package is in the image, at its version"
_USER = "the container stays the user it is started as"


@dataclass(frozen=True)
class Answer:
    names: tuple[str, ...]
    today: str


ANSWERED = (
    Answer(("WANTED_UID", "WANTED_GID", "PUID", "PGID"), f"{_USER}: docker run --user UID:GID"),
    Answer(("FORCE_CHOWN",), "ownership is never changed: docker run --user with the owner's UID:GID"),
    Answer(
        ("SECURITY_LEVEL",),
        "it is ComfyUI-Manager's: security_level in its config.ini in /data/user (in __manager, or with an older one in "
        "default/ComfyUI-Manager), once that node is installed",
    ),
    Answer(
        ("USE_NEW_MANAGER", "USE_MANAGER_LEGACY_UI", "ENABLE_MANAGER_LEGACY_UI"),
        "the manager is not in the image; a ComfyUI that has its own is told with COMFY_ARGS=--enable-manager",
    ),
    Answer(
        ("INPUT_DIR", "OUTPUT_DIR", "TEMP_DIR"),
        "mount the folder at /data/input, /data/output, /data/temp, or name it in COMFY_ARGS (--input-directory, …)",
    ),
    Answer(("COMFY_CMDLINE_BASE",), "the command line is made here; COMFY_ARGS adds to it, and wins"),
    Answer(("USE_SOCAT",), "publish on loopback instead: --publish 127.0.0.1:8188:8188"),
    Answer(
        (
            "USE_UV",
            "UPDATE_UV",
            "USE_PIPUPGRADE",
            "DISABLE_UPGRADES",
            "PREINSTALL_TORCH",
            "PREINSTALL_TORCH_CMD",
            "TORCH_LOCK",
        ),
        _INSTALLED,
    ),
)

NAMES = frozenset((*UNDERSTOOD, *(name for answer in ANSWERED for name in answer.names)))


def answers(environment: Mapping[str, str], *, uid: int, gid: int) -> Iterator[str]:
    """One line for each kind of name that is set and means nothing here."""
    ours = {"WANTED_UID": uid, "PUID": uid, "WANTED_GID": gid, "PGID": gid}
    for answer in ANSWERED:
        # Who asks for the UID that it runs as already has what they want.
        found = [n for n in answer.names if environment.get(n) and environment[n] != str(ours.get(n))]
        if found:
            yield f"{', '.join(found)} {'is' if len(found) == 1 else 'are'} ignored: {answer.today}"
