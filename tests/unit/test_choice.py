from __future__ import annotations

import pytest
from recordedgpus import seen

from imgbuild.choice import DRIVERS, candidate, choose, driver_refusal
from imgbuild.doctor.minimum import MINIMUM
from imgbuild.hardware import Gpu, Hardware

AMD64, ARM64 = "linux/amd64", "linux/arm64"


@pytest.fixture
def images(plans):
    """What this project's own plans would push."""
    return [candidate(n, f"r/comfyui:{n}", p.labels, platform=p.platform) for n, p in plans.items()]


def gpus(*capabilities, driver="580.95.05", cuda=(13, 0)):
    found = tuple(
        Gpu(name=f"NVIDIA X{i}", uuid=f"GPU-000{i}", capability=c) for i, c in enumerate(capabilities)
    )
    return Hardware(gpus=found, driver=driver, cuda=cuda)


@pytest.mark.parametrize(
    ("machine", "platform", "target"),
    [
        ("gb10", ARM64, "gb10"),
        ("h100", AMD64, "h100"),
        ("h100-mig", AMD64, "h100"),
        ("l40s", AMD64, "ada"),
        ("rtx4070", AMD64, "ada"),
        ("rtx4090", AMD64, "ada"),
        ("smi-only", AMD64, "ada"),
    ],
)
def test_each_machine_gets_its_image(images, machine, platform, target):
    choice = choose(images, seen(machine), platform)
    assert choice.chosen.candidate.target == target
    assert choice.chosen.why.startswith("made for")
    assert "sageattention sm_" in choice.chosen.why
    others = [v for v in choice.verdicts if v.candidate.target != target]
    assert all(not v.fits and v.why for v in others)


def test_of_two_gpus_the_one_that_an_image_is_made_for(images):
    choice = choose(images, seen("two"), AMD64)
    assert (choice.chosen.candidate.target, choice.chosen.gpu.name) == ("ada", "NVIDIA GeForce RTX 4090")


def test_gpus_of_two_kinds_have_to_be_chosen_from(images):
    choice = choose(images, gpus("8.9", "9.0"), AMD64)
    assert choice.chosen is None
    assert "several kinds" in choice.what
    assert "--target ada for NVIDIA X0 (8.9)" in choice.advice
    assert "--target h100 for NVIDIA X1 (9.0)" in choice.advice


def test_four_of_a_kind_are_one_question(images):
    assert choose(images, gpus(*["9.0"] * 4), AMD64).chosen.candidate.target == "h100"


def test_a_gh200_is_no_gb10(images):
    choice = choose(images, gpus("9.0"), ARM64)
    assert choice.chosen is None
    assert "no image is made for NVIDIA X0 (9.0) on linux/arm64" in choice.what
    assert "the nearest is h100 (9.0, linux/amd64)" in choice.what
    assert 'compute_capability: "9.0" and platform: linux/arm64' in choice.advice


def test_an_unknown_gpu_gets_the_nearest_and_a_way(images):
    choice = choose(images, gpus("12.0"), AMD64)
    assert choice.chosen is None
    assert "the nearest is gb10 (12.1), and its code does not run on 12.0" in choice.what
    assert "imgbuild build --target NAME" in choice.advice
    assert "--target cpu" in choice.advice


def test_a_gpu_of_unknown_capability(images):
    choice = choose(images, gpus(None), AMD64)
    assert choice.chosen is None
    assert "compute capability unknown" in choice.what


@pytest.mark.parametrize(
    ("machine", "says", "advice"),
    [
        ("none", "no NVIDIA GPU", "--target cpu"),
        ("hanging", "did not answer NVML within 20 s", "the driver hangs"),
        ("mismatch", "Driver/library version mismatch", "dmesg"),
        ("h100-mig-unsliced", "is in MIG mode and has no slice", "nvidia-smi mig"),
    ],
)
def test_without_a_gpu_nothing_is_guessed(images, machine, says, advice):
    choice = choose(images, seen(machine), AMD64)
    assert choice.chosen is None
    assert says in choice.what
    assert advice in choice.advice
    assert "--target cpu" in choice.advice
    assert [v.candidate.target for v in choice.verdicts if v.fits] == ["cpu"]


def test_a_driver_that_is_too_old(images):
    choice = choose(images, seen("old-driver"), AMD64)
    assert choice.chosen is None
    assert "driver 570.133.20 speaks CUDA 12.8, CUDA 13.0 needs 580 or newer" in choice.what
    assert choice.advice.startswith("install NVIDIA's driver 580 or newer")


@pytest.mark.parametrize(
    ("cuda", "driver", "speaks", "refused"),
    [
        ("13.0", "580.1", None, False),
        ("13.0", "570.1", None, True),
        ("13.2", "580.1", (13, 0), False),
        ("12.8", "550.1", None, False),
        ("13.0", None, None, False),
        ("14.0", "580.1", None, False),
        ("14.0", "580.1", (13, 0), True),
        (None, "570.1", (12, 8), False),
    ],
)
def test_what_a_driver_speaks(cuda, driver, speaks, refused):
    assert bool(driver_refusal(cuda, Hardware(driver=driver, cuda=speaks))) == refused


def test_the_doctor_and_the_entrypoint_know_the_same_drivers():
    from comfyrun.preflight.version import BRANCHES

    assert dict(DRIVERS) == dict(BRANCHES)
    assert MINIMUM["nvidia"] == (DRIVERS[13],)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"imgbuild.target": None}, "no label imgbuild.target"),
        ({"imgbuild.compute-capability": None}, "no label imgbuild.compute-capability"),
        ({"imgbuild.target": "ada"}, "says ada"),
        ({"imgbuild.platform": "linux/arm64"}, "and the image is for linux/amd64"),
        ({"imgbuild.compute-capability": "nine"}, "write it as"),
        ({"imgbuild.kernels": "sage"}, "name=version@key:architectures"),
        (
            {"imgbuild.kernels": "sageattention=2.2.0@0123456789abcdef:sm_120a"},
            "its sageattention holds sm_120a, which does not run on 9.0",
        ),
    ],
)
def test_labels_that_cannot_be_trusted(plans, change, says):
    own = {k: v for k, v in {**plans["h100"].labels, **change}.items() if v is not None}
    choice = choose([candidate("h100", "r:h100", own, platform=AMD64)], seen("h100"), AMD64)
    assert choice.chosen is None
    assert says in choice.verdicts[0].why


def test_a_fallback_kernel_has_no_code_and_runs(plans):
    own = {**plans["h100"].labels, "imgbuild.kernels": "sageattention=1.0.6@fallback:none"}
    choice = choose([candidate("h100", "r:h100", own, platform=AMD64)], seen("h100"), AMD64)
    assert choice.chosen is not None


def test_made_for_it_and_yet_broken(plans):
    own = {**plans["h100"].labels, "imgbuild.kernels": "probe=1.0.0@0123456789abcdef:sm_80a"}
    choice = choose([candidate("h100", "r:h100", own, platform=AMD64)], seen("h100"), AMD64)
    assert "h100 is made for NVIDIA H100 80GB HBM3 (9.0), but its probe holds sm_80a" in choice.what
    assert "imgbuild verify" in choice.advice
