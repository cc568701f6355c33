"""Each check against recorded replies: what is well, and every way in which it is not."""

import json
from pathlib import Path

import pytest
from doctor_machine import (
    BINFMT,
    CONF_FILE,
    HANDLER,
    HANDLER_FILE,
    OLD_STORE,
    QEMU,
    Machine,
    done,
)

from imgbuild import doctor
from imgbuild.doctor import Severity, check_disk
from imgbuild.doctor.finding import Mend
from imgbuild.doctor.probe import Disk

BOTH = frozenset({"linux/amd64", "linux/arm64"})
GIT = "https://git.invalid/comfyui"


def look(machine, *, platforms=BOTH, offline=False, needed=None, git_url=GIT):
    return doctor.examine(
        machine.probe(),
        platforms=platforms,
        cache=Path("/cache"),
        needed_bytes=needed,
        git_url=git_url,
        offline=offline,
    )


def of(findings, check):
    return [f for f in findings if f.check == check]


def only(machine, check, **kwargs):
    (found,) = of(look(machine, **kwargs), check)
    return found


def kinds(finding):
    return [r.kind for r in finding.repairs]


def test_a_good_machine_has_nothing_to_mend():
    findings = look(Machine())
    assert not doctor.failed(findings)
    assert not [f for f in findings if f.severity is Severity.WARNING or f.fixable]
    assert [f.check for f in findings] == sorted(
        (f.check for f in findings), key=[c.id for c in doctor.CHECKS].index
    )


def test_every_check_has_its_own_id():
    ids = [c.id for c in doctor.CHECKS]
    assert len(set(ids)) == len(ids)


def test_every_finding_that_is_not_well_says_what_to_do():
    bad = [
        Machine().without("docker", "git", "mmdebstrap"),
        Machine().down(),
        Machine().reply("docker buildx version", returncode=1),
        Machine().reply("docker compose version", returncode=1),
        Machine(env={"SSL_CERT_FILE": "/nowhere"}),
        Machine(disks={"/": Disk(device=1, free=1)}),
        Machine(qemu=done(QEMU.format("7.2.22"))),
        Machine().reply("git ls-remote", returncode=128).reply("uv pip install", returncode=2),
    ]
    for machine in bad:
        for finding in look(machine):
            if finding.severity in (Severity.WARNING, Severity.ERROR):
                assert finding.remedy, finding


def test_as_json_is_what_a_program_reads():
    row = only(Machine().without("git"), "git").as_json()
    assert json.loads(json.dumps(row)) == {
        "check": "git",
        "severity": "warning",
        "what": "git is missing: sources cannot be pinned to a commit",
        "remedy": ["imgbuild doctor --fix"],
        "fixable": True,
    }


# engine


def test_docker_absent():
    findings = look(Machine().without("docker"))
    (engine,) = of(findings, "engine")
    assert engine.severity is Severity.ERROR
    assert kinds(engine) == [Mend.ENGINE_PACKAGES, Mend.ENGINE_START]
    for silent in ("client", "buildx", "compose", "image store", "foreign python"):
        assert not of(findings, silent)
    assert "there is no docker buildx" in of(findings, "registry")[0].what


def test_daemon_down_and_dockerd_there():
    found = only(Machine().down(), "engine")
    assert found.severity is Severity.ERROR
    assert "does not answer" in found.what
    assert "Cannot connect" in found.what
    assert kinds(found) == [Mend.ENGINE_START]


def test_daemon_down_and_dockerd_absent():
    assert kinds(only(Machine().without("dockerd").down(), "engine")) == [
        Mend.ENGINE_PACKAGES,
        Mend.ENGINE_START,
    ]


def test_daemon_that_hangs():
    machine = Machine().reply("docker version --format {{json .}}", returncode=124)
    assert "no answer within 20 s" in only(machine, "engine").what


def test_docker_host_elsewhere_is_not_mended():
    machine = Machine(env={"DOCKER_HOST": "tcp://build.invalid:2376"}).down("timeout")
    machine.reply("docker context inspect", "tcp://build.invalid:2376\n")
    found = only(machine, "engine")
    assert not found.fixable
    assert "unset DOCKER_HOST" in found.remedy[0]


def test_another_context_is_not_mended():
    machine = Machine().down("timeout").reply("docker context inspect", "unix:///run/user/1000/docker.sock\n")
    found = only(machine, "engine")
    assert not found.fixable
    assert "docker context use default" in found.remedy[0]


def test_socket_without_permission():
    found = only(Machine(uid=1000).down("permission denied while trying to connect to the socket"), "engine")
    assert "usermod" in found.remedy[0]
    assert not found.fixable


def test_engine_too_old():
    machine = Machine().reply(
        "docker version --format {{json .}}", '{"Server": {"Version": "20.10.24+dfsg1"}}'
    )
    found = only(machine, "engine")
    assert found.severity is Severity.ERROR
    assert "older than 24.0" in found.what
    assert Mend.ENGINE_PACKAGES in kinds(found)


def test_remote_engine_too_old_is_not_mended():
    machine = Machine().reply("docker version --format {{json .}}", '{"Server": {"Version": "20.10.24"}}')
    machine.reply("docker context inspect", "tcp://build.invalid:2376\n")
    assert not only(machine, "engine").fixable


def test_podmans_stand_in():
    machine = Machine().reply("/usr/bin/docker --version", "podman version 4.3.1\n")
    findings = look(machine)
    assert "stand-in" in of(findings, "engine")[0].what
    assert not of(findings, "buildx")


# client, buildx, compose, store


def test_newer_client_in_front_is_only_information():
    machine = Machine()
    machine.programs["docker"] = ("/usr/local/bin/docker", "/usr/bin/docker")
    machine.reply("/usr/local/bin/docker --version", "Docker version 28.2.2, build e6534b4\n")
    good, hidden = of(look(machine), "client")
    assert good.severity is Severity.OK
    assert hidden.severity is Severity.INFO
    assert "/usr/bin/docker" in hidden.what


def test_old_client_is_a_warning_and_is_mended_when_alone():
    machine = Machine().reply("/usr/bin/docker --version", "Docker version 20.10.24, build 297e128\n")
    found = only(machine, "client")
    assert found.severity is Severity.WARNING
    assert found.fixable


def test_old_client_in_front_is_not_mended_by_packages():
    machine = Machine()
    machine.programs["docker"] = ("/opt/docker", "/usr/bin/docker")
    machine.reply("/opt/docker --version", "Docker version 19.3.1\n")
    old, hidden = of(look(machine), "client")
    assert old.severity is Severity.WARNING
    assert not old.fixable
    assert "/opt/docker" in old.remedy[0]
    assert hidden.severity is Severity.INFO


def test_buildx_absent():
    findings = look(Machine().reply("docker buildx version", returncode=1))
    (found,) = of(findings, "buildx")
    assert found.severity is Severity.ERROR
    assert found.fixable
    assert of(findings, "registry")[0].severity is Severity.INFO


@pytest.mark.parametrize(
    ("version", "severity"),
    [
        ("github.com/docker/buildx v0.12.1 30feaa1", Severity.ERROR),
        ("github.com/docker/buildx v0.13.0 0de5f1c", Severity.OK),
        ("github.com/docker/buildx v0.29.1-desktop.1 abc", Severity.OK),
        ("github.com/docker/buildx", Severity.ERROR),
    ],
)
def test_buildx_versions(version, severity):
    assert only(Machine().reply("docker buildx version", version), "buildx").severity is severity


@pytest.mark.parametrize(
    "reply", [done(returncode=1), done("docker-compose version 1.29.2, build unknown\n")]
)
def test_compose_absent_or_old_is_a_warning(reply):
    machine = Machine()
    machine.replies["docker compose version"] = reply
    found = only(machine, "compose")
    assert found.severity is Severity.WARNING
    assert found.fixable


def test_no_containerd_store():
    found = only(Machine().info(**OLD_STORE), "image store")
    assert found.severity is Severity.ERROR
    assert "overlay2" in found.what
    assert kinds(found) == [Mend.IMAGE_STORE]


def test_no_containerd_store_and_containers_that_run():
    found = only(Machine().info(**{**OLD_STORE, "ContainersRunning": 2}), "image store")
    assert not found.fixable
    assert any("containerd-snapshotter" in r for r in found.remedy)


def test_no_containerd_store_elsewhere():
    machine = Machine().info(**OLD_STORE).reply("docker context inspect", "tcp://build.invalid:2376\n")
    assert not only(machine, "image store").fixable


def test_containerd_store_with_a_driver_it_does_not_have():
    found = only(Machine().info(Driver="overlay2"), "image store")
    assert found.severity is Severity.ERROR
    assert "storage-driver" in found.remedy[0]


# binfmt


def test_nothing_foreign_is_wanted():
    machine = Machine(files={})
    findings = look(machine, platforms=frozenset({"linux/amd64"}))
    assert of(findings, "binfmt")[0].severity is Severity.OK
    assert not of(findings, "foreign python")


def test_on_arm64_it_is_amd64_that_is_foreign():
    machine = Machine(arch="aarch64")
    found = only(machine, "binfmt")
    assert "linux/amd64: no handler for x86_64" in found.what
    assert [(r.kind, r.about) for r in found.repairs][-1] == (Mend.BINFMT_REGISTER, "x86_64")


def test_binfmt_not_mounted():
    machine = Machine()
    machine.files = {f: t for f, t in machine.files.items() if not f.startswith(BINFMT)}
    assert kinds(only(machine, "binfmt")) == [Mend.BINFMT_MOUNT, Mend.BINFMT_REGISTER]


def test_no_handler():
    machine = Machine()
    del machine.files[HANDLER_FILE]
    assert kinds(only(machine, "binfmt")) == [Mend.BINFMT_REGISTER]


def test_no_handler_and_no_qemu():
    machine = Machine()
    del machine.files[HANDLER_FILE], machine.files[CONF_FILE]
    assert kinds(only(machine, "binfmt")) == [Mend.BINFMT_PACKAGES, Mend.BINFMT_REGISTER]


def test_handler_is_known_by_its_magic_not_by_its_name():
    machine = Machine()
    machine.files[f"{BINFMT}/rosetta"] = machine.files.pop(HANDLER_FILE)
    machine.files[f"{BINFMT}/python3.11"] = (
        "enabled\ninterpreter /usr/bin/python3.11\nflags: \noffset 0\nmagic a70d0d0a\n"
    )
    assert only(machine, "binfmt").severity is Severity.OK


def test_handler_disabled():
    machine = Machine()
    machine.files[HANDLER_FILE] = HANDLER.format(flags="POF").replace("enabled", "disabled")
    found = only(machine, "binfmt")
    assert "disabled" in found.what
    assert found.fixable


def test_handler_without_f():
    machine = Machine()
    machine.files[HANDLER_FILE] = HANDLER.format(flags="PO")
    found = only(machine, "binfmt")
    assert "flag F" in found.what
    assert kinds(found) == [Mend.BINFMT_REGISTER]


def test_old_qemu():
    found = only(Machine(qemu=done(QEMU.format("7.2.22"))), "binfmt")
    assert found.severity is Severity.ERROR
    assert "QEMU 7.2.22" in found.what
    assert "import torch" in found.what
    assert kinds(found) == [Mend.BINFMT_PACKAGES, Mend.BINFMT_REGISTER]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (done(returncode=126, stderr="Exec format error"), "Exec format error"),
        (done(returncode=124), "did not end"),
        (done(returncode=1), "status 1"),
    ],
)
def test_foreign_program_does_not_run(reply, words):
    found = only(Machine(foreign=reply), "binfmt")
    assert found.severity is Severity.ERROR
    assert words in found.what


def test_an_emulator_that_is_not_qemu():
    found = only(Machine(qemu=done(returncode=42)), "binfmt")
    assert found.severity is Severity.OK
    assert "not QEMU" in found.what


def test_remote_engine_runs_foreign_programs_itself():
    machine = Machine(files={}).reply("docker context inspect", "tcp://build.invalid:2376\n")
    assert "left to the engine" in only(machine, "binfmt").what


# foreign python


def with_image(ran, *, arch="arm64"):
    machine = Machine().reply("docker image ls", "sha256:aaa\nsha256:aaa\n")
    image = {"Id": "sha256:aaa", "RepoTags": ["app:gb10"], "Architecture": arch, "Os": "linux"}
    machine.reply("docker image inspect", json.dumps([image]))
    machine.replies["docker run"] = ran
    machine.reply("docker rm", "")
    return machine


def test_foreign_python_runs():
    assert "app:gb10 runs" in only(with_image(done("aarch64 42\n")), "foreign python").what


def test_foreign_python_hangs_and_its_container_is_removed():
    machine = with_image(done(returncode=124))
    found = only(machine, "foreign python")
    assert found.severity is Severity.ERROR
    assert any(line.startswith("docker rm --force imgbuild-doctor-arm64") for line in machine.ran)


def test_foreign_python_fails():
    found = only(
        with_image(done(returncode=139, stderr="qemu: uncaught target signal 11\n")), "foreign python"
    )
    assert found.severity is Severity.ERROR
    assert "signal 11" in found.what


@pytest.mark.parametrize(
    "machine",
    [
        Machine(),
        with_image(done(returncode=127)),
        with_image(done("x86_64 42\n"), arch="amd64"),
        with_image(done("x86_64 42\n")),
        Machine().reply("docker image ls", "sha256:aaa\n").reply("docker image inspect", "not json"),
    ],
    ids=["no image", "no python in it", "native image", "a stage of a cross build", "nonsense"],
)
def test_foreign_python_not_tested(machine):
    found = only(machine, "foreign python")
    assert found.severity is Severity.INFO
    assert "not tested" in found.what


# registry, bootstrap


def test_no_registry_is_information_while_mmdebstrap_is_there():
    findings = look(Machine().reply("docker buildx imagetools inspect", returncode=1))
    assert of(findings, "registry")[0].severity is Severity.INFO
    assert of(findings, "bootstrap")[0].severity is Severity.OK


def test_no_registry_and_no_mmdebstrap():
    machine = (
        Machine().without("mmdebstrap", "arch-test").reply("docker buildx imagetools inspect", returncode=124)
    )
    found = only(machine, "bootstrap")
    assert found.severity is Severity.ERROR
    assert kinds(found) == [Mend.BOOTSTRAP_PACKAGES]
    assert "mmdebstrap, arch-test" in found.what


def test_registry_and_no_mmdebstrap():
    assert only(Machine().without("mmdebstrap"), "bootstrap").severity is Severity.INFO


# disk


@pytest.mark.parametrize(
    ("free", "needed", "severity"),
    [
        (30, None, Severity.OK),
        (24, None, Severity.WARNING),
        (7, None, Severity.ERROR),
        (50, 40, Severity.OK),
        (45, 40, Severity.WARNING),
        (39, 40, Severity.ERROR),
        (2, 1, Severity.OK),
    ],
)
def test_check_disk(free, needed, severity):
    got, words = check_disk(free * 10**9, None if needed is None else needed * 10**9)
    assert got is severity
    assert f"{free}.0 GB free" in words


def test_low_disk_on_one_of_two():
    machine = Machine(disks={"/": Disk(device=1, free=10**11), "/cache": Disk(device=2, free=10**9)})
    good, bad = of(look(machine), "disk")
    assert (good.severity, bad.severity) == (Severity.OK, Severity.ERROR)
    assert bad.what.startswith("/cache: 1.0 GB free")


def test_same_disk_is_told_once():
    assert only(Machine(), "disk").what.startswith("/var/lib/docker and /cache:")


def test_containerd_of_the_system_keeps_the_images():
    machine = Machine()
    machine.files["/run/containerd/containerd.sock"] = ""
    assert "/var/lib/containerd" in only(machine, "disk").what


def test_disk_that_cannot_be_asked():
    machine = Machine(disks={"/": None})
    assert {f.severity for f in of(look(machine), "disk")} == {Severity.INFO}


# certificates


def test_certificates_readable():
    machine = Machine(env={"SSL_CERT_FILE": "/ca.pem", "PIP_CERT": "/ca.pem"})
    machine.files["/ca.pem"] = "-----BEGIN CERTIFICATE-----\n"
    assert only(machine, "certificates").severity is Severity.OK


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"])
def test_certificates_unreadable(variable):
    machine = Machine(
        env={variable: "/ca.pem"}, unreadable={"/ca.pem": PermissionError(13, "Permission denied")}
    )
    found = only(machine, "certificates")
    assert found.severity is Severity.ERROR
    assert f"{variable}: /ca.pem cannot be read: Permission denied" in found.what


@pytest.mark.parametrize(("text", "words"), [(None, "does not exist"), ("nothing", "no certificate")])
def test_certificates_useless(text, words):
    machine = Machine(env={"SSL_CERT_FILE": "/ca.pem"})
    if text:
        machine.files["/ca.pem"] = text
    found = only(machine, "certificates")
    assert found.severity is Severity.ERROR
    assert words in found.what


# index, git, upstream


def test_index_that_does_not_answer_is_a_warning_without_the_address():
    machine = Machine(env={"PIP_INDEX_URL": "https://user:secret@index.invalid/simple"})
    stderr = (
        "error: Request failed\n  cause: Failed to fetch: https://user:secret@index.invalid/simple/packaging/\n"
        "  cause: cannot reach https://user:secret@index.invalid/\n\nhint: Consider something\n"
    )
    machine.reply("uv pip install", stderr=stderr, returncode=2)
    found = only(machine, "index")
    assert found.severity is Severity.WARNING
    assert "PIP_INDEX_URL" in found.what
    assert "cannot reach …" in found.what
    assert "secret" not in found.what


def test_index_that_hangs():
    assert "no answer" in only(Machine().reply("uv pip install", returncode=124), "index").what


@pytest.mark.parametrize("variable", ["UV_NO_INDEX", "PIP_NO_INDEX"])
def test_no_index_is_wanted(variable):
    machine = Machine(env={variable: "1"})
    assert only(machine, "index").severity is Severity.INFO
    assert not [line for line in machine.ran if line.startswith("uv")]


def test_index_waits_for_the_certificates():
    assert only(Machine(env={"SSL_CERT_FILE": "/nowhere"}), "index").severity is Severity.INFO


def test_upstream_unreachable_is_a_warning_with_both_ways_out():
    found = only(Machine().reply("git ls-remote", returncode=128), "upstream")
    assert found.severity is Severity.WARNING
    assert "0.3.75" in " ".join(found.remedy)
    assert "--source comfyui=PATH" in " ".join(found.remedy)


def test_upstream_is_left_alone_without_an_address():
    assert not of(look(Machine(), git_url=None), "upstream")


def test_git_absent():
    findings = look(Machine().without("git"))
    assert of(findings, "git")[0].fixable
    assert "git is missing" in of(findings, "upstream")[0].what


def test_offline_asks_no_network():
    machine = Machine()
    findings = look(machine, offline=True)
    assert not [r for r in machine.ran if r.startswith(("uv", "git ls-remote", "docker buildx imagetools"))]
    assert {of(findings, c)[0].what for c in ("registry", "index", "upstream")} == {"not asked: offline"}


# nvidia, podman


def gpu(driver="580.65.06", *, ctk=True, runtime=True):
    machine = Machine()
    machine.programs["nvidia-smi"] = ("/usr/bin/nvidia-smi",)
    machine.reply("nvidia-smi", f"NVIDIA H100 PCIe, {driver}\nNVIDIA H100 PCIe, {driver}\n")
    if ctk:
        machine.programs["nvidia-ctk"] = ("/usr/bin/nvidia-ctk",)
        machine.reply("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.17.8\n")
    return machine.info(Runtimes={"runc": {}, "nvidia": {}}) if runtime else machine


def test_no_gpu_is_information():
    assert only(Machine(), "nvidia").severity is Severity.INFO


def test_gpu_ready():
    assert [f.severity for f in of(look(gpu()), "nvidia")] == [Severity.OK, Severity.OK]


def test_driver_too_old():
    driver, toolkit = of(look(gpu("570.133.20")), "nvidia")
    assert driver.severity is Severity.WARNING
    assert "older than 580" in driver.what
    assert toolkit.severity is Severity.OK


def test_toolkit_absent():
    assert "missing" in of(look(gpu(ctk=False)), "nvidia")[1].what


def test_toolkit_unknown_to_docker():
    found = of(look(gpu(runtime=False)), "nvidia")[1]
    assert found.severity is Severity.WARNING
    assert "runtime configure" in found.remedy[0]


def test_toolkit_by_cdi():
    machine = gpu(runtime=False)
    machine.files["/etc/cdi/nvidia.yaml"] = ""
    assert of(look(machine), "nvidia")[1].severity is Severity.OK


def test_toolkit_while_the_engine_is_silent():
    assert of(look(gpu().down()), "nvidia")[1].severity is Severity.INFO


@pytest.mark.parametrize("reply", [done(returncode=124), done("No devices were found\n", returncode=6)])
def test_nvidia_smi_without_a_gpu(reply):
    machine = gpu()
    machine.replies["nvidia-smi"] = reply
    assert only(machine, "nvidia").severity is Severity.WARNING


@pytest.mark.parametrize(
    ("version", "severity", "words"),
    [
        ("podman version 4.3.1", Severity.OK, "4.3.1"),
        ("podman version 3.4.4", Severity.INFO, "older than 4.3"),
    ],
)
def test_podman(version, severity, words):
    machine = Machine()
    machine.programs["podman"] = ("/usr/bin/podman",)
    found = only(machine.reply("podman --version", version), "podman")
    assert found.severity is severity
    assert words in found.what


def test_what_docker_says_may_be_nonsense():
    machine = Machine().reply("docker version --format {{json .}}", "[]").reply("docker info", "oops")
    assert only(machine, "engine").severity is Severity.ERROR
    machine = Machine().reply("docker info", "oops")
    assert only(machine, "image store").severity is Severity.ERROR
