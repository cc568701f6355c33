"""Which GPU it is, whether the image fits it, and what is said when none does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preflightkit import GIB, gpu, holder, image_of

from comfyrun.errors import ConfigError
from comfyrun.preflight import device, version, vram
from comfyrun.preflight.finding import Cause, Severity
from comfyrun.preflight.gpus import Answer
from comfyrun.preflight.hostside import HostSide

if TYPE_CHECKING:
    from comfyrun.preflight.device import Choice
    from comfyrun.preflight.finding import Finding
    from comfyrun.preflight.gpus import Gpu

ADA = image_of("ada")
OLD = gpu("8.6", name="NVIDIA GeForce RTX 3090", uuid="GPU-aaaa0001")
ONE = gpu("8.9", uuid="GPU-bbbb0001", free=3 * GIB)
TWO = gpu("8.9", uuid="GPU-bbbb0002", free=20 * GIB)
SLICE = gpu("9.0", name="H100 MIG 1g.10gb", uuid="MIG-cccc0001", mig=True)
OTHER_SLICE = gpu("9.0", name="H100 MIG 1g.10gb", uuid="MIG-cccc0002", mig=True, free=None)


def only(choice: Choice) -> Finding:
    (found,) = choice.findings
    return found


# --- choosing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "chosen", "visible"),
    [
        ([ONE], ONE, None),
        ([OLD, ONE], ONE, "GPU-bbbb0001"),  # the fitting one of two
        ([ONE, OLD], ONE, "GPU-bbbb0001"),  # CUDA's own order is not the bus's
        ([ONE, TWO], TWO, "GPU-bbbb0002,GPU-bbbb0001"),  # the one with room; the other stays visible
        ([TWO, ONE], TWO, None),
        ([OLD, ONE, TWO], TWO, "GPU-bbbb0002,GPU-bbbb0001"),
        ([gpu(uuid="GPU-1", free=None), gpu(uuid="GPU-2", free=None)], gpu(uuid="GPU-1", free=None), None),
        (
            [gpu(uuid="GPU-1", free=10 * GIB), gpu(uuid="GPU-2", free=10 * GIB + 5)],
            gpu(uuid="GPU-1", free=10 * GIB),
            None,
        ),
    ],
)
def test_of_several_the_one_that_fits(gpus: list[Gpu], chosen: Gpu, visible: str | None) -> None:
    choice = device.choose(ADA, gpus, None)
    assert (choice.device, choice.visible) == (chosen, visible)
    assert only(choice).severity in (Severity.OK, Severity.INFO)


def test_what_is_left_out_is_said() -> None:
    assert only(device.choose(ADA, [OLD, ONE], None)).message == (
        "NVIDIA GeForce RTX 4090 (8.9), GPU-bbbb0001; left out, since the image is not built for them: "
        "NVIDIA GeForce RTX 3090 (8.6)"
    )


def test_of_slices_one_only() -> None:
    # CUDA would see the first of several in any case.
    choice = device.choose(image_of("h100"), [OTHER_SLICE, SLICE], None)
    assert (choice.device, choice.visible) == (SLICE, "MIG-cccc0001")
    assert device.choose(image_of("h100"), [SLICE], None).visible is None


@pytest.mark.parametrize(
    ("asked_for", "chosen"),
    [
        ("1", ONE),
        ("1,2", ONE),
        ("2", TWO),
        (" 2 , 1 ", TWO),
        ("GPU-bbbb0002", TWO),
        ("GPU-bbbb", ONE),  # CUDA takes a beginning too
        ("2,9,1", TWO),
        ("2,2", TWO),
    ],
)
def test_whoever_names_gpus_means_the_first(asked_for: str, chosen: Gpu) -> None:
    choice = device.choose(ADA, [OLD, ONE, TWO], asked_for)
    assert (choice.device, choice.visible) == (chosen, None)


def test_cuda_knows_what_its_numbers_mean() -> None:
    assert device.needs_order([OLD, ONE], "0")
    assert not device.needs_order([ONE, TWO], "0")
    assert not device.needs_order([OLD, ONE], "GPU-bbbb0001")
    assert not device.needs_order([OLD, ONE], None)
    assert not device.needs_order([OLD, ONE], "-1")
    # The faster one is CUDA's 0, and the second on the bus.
    assert device.choose(ADA, [OLD, ONE], "0", order=[gpu(uuid="bbbb0001")]).device == ONE


def test_the_named_one_does_not_fit_and_another_would() -> None:
    found = only(device.choose(ADA, [OLD, ONE], "0,1"))
    assert found.cause is Cause.HARDWARE
    assert found.message == (
        "CUDA_VISIBLE_DEVICES='0,1' puts NVIDIA GeForce RTX 3090 (8.6) first, and this image (ada) is built for "
        "compute capability 8.9"
    )
    assert "CUDA_VISIBLE_DEVICES=GPU-bbbb0001 is NVIDIA GeForce RTX 4090 (8.9)" in found.remedy[0]


@pytest.mark.parametrize("asked_for", ["", "-1", "none", "void", "NoDevFiles", ",0"])
def test_all_gpus_hidden(asked_for: str) -> None:
    choice = device.choose(ADA, [ONE], asked_for)
    assert choice.device is None
    assert "hides every GPU" in only(choice).message


@pytest.mark.parametrize("asked_for", ["7", "GPU-dddd", "x", "99999999999999999999", "²"])
def test_a_gpu_that_is_not_there(asked_for: str) -> None:
    choice = device.choose(ADA, [ONE], asked_for)
    assert choice.device is None
    assert (
        "names no GPU of this container, which has NVIDIA GeForce RTX 4090 GPU-bbbb0001"
        in only(choice).message
    )


def test_an_unknown_capability_is_tried() -> None:
    unknown = gpu(None)
    choice = device.choose(ADA, [OLD, unknown], None)
    assert choice.device == unknown
    assert only(choice).severity is Severity.WARNING
    assert "its compute capability is not known; the image is built for 8.9" in only(choice).message


@given(st.text())
def test_no_variable_is_too_strange(asked_for: str) -> None:
    device.choose(ADA, [OLD, ONE, TWO], asked_for)
    device.needs_order([OLD, ONE], asked_for)


# --- the wrong one ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "capability", "use"),
    [
        ("gb10", "8.9", "use comfyui:0.33.0-cu130-ada (target ada, linux/amd64)"),
        ("ada", "9.0", "use comfyui:0.33.0-cu130-h100 (target h100, linux/amd64)"),
        ("ada", "12.1", "use comfyui:0.33.0-cu130-gb10 (target gb10, linux/arm64)"),
        (
            "h100",
            "12.0",
            "no image is built for it yet: add a target with its compute_capability to images/targets",
        ),
    ],
)
def test_the_tag_that_fits(target: str, capability: str, use: str) -> None:
    found = only(device.choose(image_of(target), [gpu(capability, name="NVIDIA X")], None))
    built = image_of(target).compute_capability
    assert found.message == (
        f"this image ({target}) is built for compute capability {built}; found: NVIDIA X ({capability})"
    )
    assert found.remedy[0].startswith(use)
    assert found.cause is Cause.HARDWARE


def test_several_that_do_not_fit_are_named_once() -> None:
    found = only(device.choose(image_of("gb10"), [OLD, OLD, ONE, TWO], None))
    assert found.message.endswith("found: NVIDIA GeForce RTX 3090 (8.6), NVIDIA GeForce RTX 4090 (8.9)")


def test_an_image_of_before_siblings_were_baked() -> None:
    found = only(device.choose(image_of("gb10", siblings=[]), [ONE], None))
    assert found.remedy[0].startswith("no image is built for it yet")


@pytest.mark.parametrize(
    ("siblings", "words"),
    [
        ({}, "siblings must be a list of objects"),
        ([3], "siblings must be"),
        ([{}], "siblings[0].tag must be a text"),
    ],
)
def test_siblings_that_are_none(siblings: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        image_of("gb10", siblings=siblings)
    assert words in str(caught.value)


# --- none -------------------------------------------------------------------------------------------


def none(
    *failed: Answer, given: bool = False, driver: str | None = None, asked_for: str | None = None
) -> Finding:
    models = ("NVIDIA GB10", "NVIDIA GB10") if driver else ()
    host = HostSide(driver=driver, models=models, given=given)
    found = device.without_gpu(ADA, failed, host, asked_for)
    assert found.cause is Cause.HARDWARE
    return found


def test_no_driver() -> None:
    found = none()
    assert "no GPU in this container, and no sign of NVIDIA's driver on this machine" in found.message
    assert "docker run --gpus all" in found.remedy[0]
    assert "podman run --device nvidia.com/gpu=all" in found.remedy[0]
    assert "nvidia-container-toolkit" in found.remedy[1]
    assert found.remedy[2] == "or start without one: serve --cpu"


def test_the_machine_has_one_and_the_container_has_not() -> None:
    found = none(driver="580.95.05")
    assert "though the machine has NVIDIA's driver 580.95.05 (NVIDIA GB10)" in found.message
    assert "docker run --gpus all" in found.remedy[0]
    assert "podman run --device nvidia.com/gpu=all" in found.remedy[0]
    assert "--cpu" in found.remedy[1]


def test_the_driver_shows_none() -> None:
    found = none(
        Answer(source="NVML", problem="a"), Answer(source="CUDA", problem="b"), given=True, driver="580.1"
    )
    assert "the driver shows no GPU (NVML: a; CUDA: b)" in found.message
    assert "the driver shows no GPU (it gives no reason)" in none(given=True).message
    late = none(Answer(source="NVML", problem="no answer in 20 s", late=True), given=True)
    assert "the driver hangs" in late.remedy[0]
    stale = none(
        Answer(source="NVML", problem="nvmlInit_v2: Driver/library version mismatch (18)"), given=True
    )
    assert stale.remedy == ("the driver was updated while it ran: reboot the host",)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(999, "nvidia-modprobe"), (802, "nvidia-fabricmanager"), (4711, "on the host: nvidia-smi")],
)
def test_what_cuda_says_has_its_remedy(code: int, remedy: str) -> None:
    found = none(Answer(source="CUDA", problem="cuInit: in words", code=code), given=True)
    assert remedy in found.remedy[0]
    assert "--cpu" in found.remedy[-1]


def test_no_slice() -> None:
    found = none(Answer(source="NVML", unsliced=("NVIDIA H100",)), given=True)
    assert found.message == "NVIDIA H100 is in MIG mode, and this container has no slice of it"
    assert "mig -cgi" in found.remedy[0]


def test_hidden_from_cuda() -> None:
    found = none(Answer(source="CUDA", problem="no device"), given=True, asked_for="")
    assert "CUDA_VISIBLE_DEVICES='' hides every GPU" in found.message


# --- the driver's age -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "cuda", "needed", "severity", "words"),
    [
        (
            "580.82.07",
            (13, 0),
            "13.0",
            Severity.OK,
            "driver 580.82.07 speaks CUDA 13.0; the image needs 13.0",
        ),
        ("590.10", (13, 1), "13.0", Severity.OK, "speaks CUDA 13.1"),
        ("610.1", (14, 0), "13.2", Severity.OK, "speaks CUDA 14.0"),
        ("580.82.07", (13, 0), "13.2", Severity.INFO, "compiled code runs, PTX of 13.2 does not"),
        (
            "570.133.20",
            (12, 8),
            "13.0",
            Severity.ERROR,
            "driver 570.133.20 speaks CUDA 12.8, and the image needs 13.0",
        ),
        ("570.133.20", (13, 0), "13.0", Severity.OK, "speaks CUDA 13.0"),  # a compatibility package
        ("570.133.20", None, "13.0", Severity.ERROR, "is too old: CUDA 13.0 needs 580 or newer"),
        ("580.65.06", None, "13.0", Severity.OK, "CUDA 13.0 needs 580 or newer"),
        (
            None,
            None,
            "13.0",
            Severity.WARNING,
            "the driver: whether it is new enough for CUDA 13.0 is not known",
        ),
        ("700.1", None, "15.0", Severity.WARNING, "is not known"),
        (None, (14, 0), "15.0", Severity.ERROR, "the driver speaks CUDA 14.0, and the image needs 15.0"),
    ],
)
def test_new_enough(
    driver: str | None, cuda: tuple[int, int] | None, needed: str, severity: Severity, words: str
) -> None:
    found = version.check(needed, driver, cuda)
    assert found.severity is severity
    assert words in found.message
    if severity is Severity.ERROR:
        assert found.cause is Cause.HARDWARE
        assert found.remedy[0].startswith("on the host, install")


# --- its memory -------------------------------------------------------------------------------------


def test_room_enough() -> None:
    assert vram.check(gpu()).message == "23.0 GiB of 24.0 GiB free"
    held = vram.check(gpu(holders=(holder(7, 300 << 20, "Xorg"),)))
    assert (held.severity, held.message) == (
        Severity.OK,
        "23.0 GiB of 24.0 GiB free; held by PID 7 (Xorg, 300 MiB)",
    )


def test_who_holds_it() -> None:
    many = (*(holder(pid, pid * GIB) for pid in range(1, 7)), holder(9), holder(10, None, "python3"))
    found = vram.check(gpu(free=2 * GIB, holders=many))
    assert found.severity is Severity.WARNING
    assert found.message == (
        "2.0 GiB of 24.0 GiB free; held by PID 6 (6.0 GiB), PID 5 (5.0 GiB), PID 4 (4.0 GiB), PID 3 (3.0 GiB) "
        "and 4 more"
    )
    assert (
        vram.holders(gpu(holders=(holder(9), holder(10, None, "python3"))))
        == "held by PID 9, PID 10 (python3)"
    )
    unseen = vram.check(gpu(free=2 * GIB))
    assert "by whom the rest is held, a container cannot see" in unseen.message
    assert "nvidia-smi" in unseen.remedy[0]


def test_memory_that_the_driver_does_not_tell() -> None:
    assert vram.check(gpu(total=None)).severity is Severity.INFO
    assert "how much of it is free, the driver does not say" in vram.check(gpu(free=None)).message


@pytest.mark.parametrize(
    ("total", "free", "available", "severity", "words"),
    [
        (120, 48, 117, Severity.OK, "117.0 GiB available (MemAvailable); CUDA counts 48.0 GiB as free"),
        (120, 48, 40, Severity.WARNING, "40.0 GiB available"),
        (
            120,
            20,
            None,
            Severity.WARNING,
            "one pool of 120.0 GiB for CPU and GPU: CUDA counts 20.0 GiB as free",
        ),
        (120, None, 117, Severity.OK, "117.0 GiB available"),
        (120, None, None, Severity.OK, "how much is free is not known"),
        (None, None, 117, Severity.OK, "one pool: 117.0 GiB available"),
    ],
)
def test_one_pool(
    total: int | None, free: int | None, available: int | None, severity: Severity, words: str
) -> None:
    sizes = {"total": total and total * GIB, "free": free and free * GIB}
    found = vram.unified(gpu("12.1", **sizes), available and available * GIB)
    assert found.severity is severity
    assert words in found.message
