"""Whether the driver is new enough for the CUDA in the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfyrun.preflight.finding import Cause, Finding, error, info, ok, warning

if TYPE_CHECKING:
    from collections.abc import Mapping

CHECK = "driver"

# CUDA's major version → the branch of the driver that came with it. A newer minor version runs on it as well
# (CUDA's minor version compatibility), an older branch runs none of that major version.
BRANCHES: Mapping[int, int] = {11: 450, 12: 525, 13: 580}


def check(needed: str, driver: str | None, cuda: tuple[int, int] | None) -> Finding:
    """`needed`: the image's CUDA, "13.0"; the driver's own version, and the newest CUDA that it speaks."""
    major, minor = (int(part) for part in needed.split("."))
    named = f"driver {driver}" if driver else "the driver"
    branch = BRANCHES.get(major)
    install = (
        f"on the host, install NVIDIA's driver {branch} or newer, then reboot it"
        if branch
        else f"on the host, install a driver that comes with CUDA {needed} or newer, then reboot it"
    )
    if cuda is not None:
        speaks = f"{named} speaks CUDA {cuda[0]}.{cuda[1]}"
        if cuda >= (major, minor):
            return ok(CHECK, f"{speaks}; the image needs {needed}")
        if cuda[0] == major:
            return info(
                CHECK,
                f"{speaks}, the image has {needed}: compiled code runs, PTX of {needed} does not",
                f"if a node fails to compile: {install}",
            )
        return error(CHECK, Cause.HARDWARE, f"{speaks}, and the image needs {needed}", install)
    if driver is None or branch is None:
        return warning(CHECK, f"{named}: whether it is new enough for CUDA {needed} is not known")
    if int(driver.split(".")[0]) >= branch:
        return ok(CHECK, f"{named}; CUDA {needed} needs {branch} or newer")
    return error(CHECK, Cause.HARDWARE, f"{named} is too old: CUDA {needed} needs {branch} or newer", install)
