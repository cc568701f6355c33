"""From findings to steps, and the steps done by hands that only take notes."""

import json
from pathlib import Path

import pytest
from doctor_machine import (
    ARCHIVE,
    BINFMT,
    CONF,
    CONF_FILE,
    DEBIAN_12,
    FEDORA,
    HANDLER,
    HANDLER_FILE,
    OLD_STORE,
    QEMU,
    UBUNTU_24,
    Machine,
    done,
    policy,
)

from imgbuild import doctor
from imgbuild.doctor import minimum
from imgbuild.doctor.mend import apt, host
from imgbuild.doctor.mend.daemonjson import with_containerd_store
from imgbuild.doctor.mend.steps import COLD_DISK, Register, StartEngine, StopEngine
from imgbuild.errors import ConfigError, EngineError

BOTH = frozenset({"linux/amd64", "linux/arm64"})
BOOKWORM = policy(
    docker__io=(None, "20.10.24+dfsg1-1+deb12u1+b6"),
    docker_compose=(None, "1.29.2-3"),
    ca_certificates=("20230311+deb12u1", "20230311+deb12u1"),
    qemu_user=(None, "1:7.2+dfsg-7+deb12u18+b3"),
    mmdebstrap=(None, "1.3.5-7"),
    git=(None, "1:2.39.5-0+deb12u3"),
)
TRIXIE = policy(
    docker__io=(None, "26.1.5+dfsg1-9+deb13u1"),
    docker_cli=(None, "26.1.5+dfsg1-9+deb13u1"),
    docker_buildx=(None, "0.13.1+ds1-3"),
    docker_compose=(None, "2.26.1-4"),
    ca_certificates=(None, "20250419"),
    qemu_user=(None, "1:10.0.13+ds-0+deb13u1"),
    qemu_user_binfmt=(None, "1:10.0.13+ds-0+deb13u1"),
)
NOBLE = policy(
    docker__io=(None, "28.2.2-0ubuntu1~24.04.1"),
    docker_buildx=(None, "0.20.1-0ubuntu1~24.04.2"),
    docker_compose_v2=(None, "2.37.1+ds1-0ubuntu2~24.04.1"),
    docker_compose=(None, "1.29.2-6ubuntu1"),
    ca_certificates=("20240203", "20240203"),
    qemu_user=(None, "1:8.2.2+ds-0ubuntu1.10"),
)


def examine(machine):
    return doctor.examine(machine.probe(), platforms=BOTH, cache=Path("/cache"))


def steps(machine, *, fresh=True):
    return doctor.ensure(examine(machine), host.survey(machine.probe()), fresh=fresh)


def shell(machine, **kwargs):
    return "\n".join(line for s in steps(machine, **kwargs) for line in s.shell())


def bare(release=None, apt_policy="", sources=ARCHIVE):
    """No docker, no binfmt, no QEMU, no mmdebstrap."""
    machine = Machine().without("docker", "dockerd", "mmdebstrap", "arch-test")
    machine.files = {"/etc/os-release": release or machine.files["/etc/os-release"]}
    if sources:
        machine.files["/etc/apt/sources.list.d/debian.sources"] = sources
    return machine.reply("apt-cache policy", apt_policy)


# versions


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Docker version 28.2.2, build e6534b4", (28, 2, 2)),
        ("26.1.5+dfsg1-9+deb13u1", (26, 1, 5)),
        ("1:10.0.13+ds-0+deb13u1", (10, 0, 13)),
        ("github.com/docker/buildx v0.17.1 257815a", (0, 17, 1)),
        ("Docker Compose version v2.20.2-desktop.1", (2, 20, 2)),
        ("580.65.06", (580, 65, 6)),
        ("1:7.2+dfsg-7+deb12u18+b3", (7, 2)),
        ("no version", None),
        ("", None),
    ],
)
def test_versions(text, version):
    assert minimum.parse(text) == version


# apt


def test_main_archive_of_deb822():
    found = apt.main_archive(apt.parse_sources({"debian.sources": ARCHIVE}), "bookworm")
    assert found.uris == ("http://mirror.invalid/debian",)
    assert apt.donor_source(found) == (
        "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: trixie\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_main_archive_of_one_line():
    text = (
        "# deb http://old.invalid/debian bookworm main\n"
        "deb cdrom:[Debian 12]/ bookworm main\n"
        "deb-src http://mirror.invalid/debian bookworm main\n"
        "deb http://mirror.invalid/debian-security bookworm-security main\n"
        "deb [arch=amd64 signed-by=/k.gpg check-valid-until=no] https://mirror.invalid/debian/ bookworm main contrib # x\n"
    )
    found = apt.main_archive(apt.parse_sources({"/etc/apt/sources.list": text}), "bookworm")
    assert found.uris == ("https://mirror.invalid/debian/",)
    assert "Signed-By: /k.gpg\nCheck-Valid-Until: no\n" in apt.donor_source(found)


def test_main_archive_of_a_half_upgraded_machine():
    text = "deb http://third.invalid/apt cloud-sdk-bookworm main\ndeb http://mirror.invalid/debian bookworm main\n"
    found = apt.main_archive(apt.parse_sources({"a.list": text}), "trixie")
    assert found.uris == ("http://mirror.invalid/debian",)


@pytest.mark.parametrize(
    "text",
    [
        "deb http://mirror.invalid/debian bookworm-backports main\n",
        "deb http://mirror.invalid/debian-security bookworm main\n",
        "deb http://mirror.invalid/apt cloud-sdk-bookworm main\n",
        "deb http://mirror.invalid/tool bookworm stable\n",
        "nonsense\n",
        "",
    ],
)
def test_no_main_archive(text):
    assert apt.main_archive(apt.parse_sources({"a.list": text}), "bookworm") is None


def test_exact_suite_comes_before_an_alias():
    text = "deb http://one.invalid/debian stable main\ndeb http://two.invalid/debian bookworm main\n"
    assert apt.main_archive(apt.parse_sources({"a.list": text}), "bookworm").uris == (
        "http://two.invalid/debian",
    )
    alias = apt.parse_sources({"a.list": "deb http://one.invalid/debian oldstable main\n"})
    assert apt.main_archive(alias, "bookworm").uris == ("http://one.invalid/debian",)


def test_disabled_and_embedded_key():
    text = (
        "Types: deb\nEnabled: no\nURIs: http://off.invalid/debian\nSuites: bookworm\nComponents: main\n"
        "\n# a comment\nTypes: deb deb-src\nURIs: http://mirror.invalid/debian\nSuites: bookworm\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"
    )
    (found,) = apt.parse_sources({"a.sources": text})
    assert apt.donor_source(found).endswith("Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n")


def test_policy():
    found = apt.parse_policy(BOOKWORM)
    assert found["docker.io"] == apt.Package(installed=None, candidate="20.10.24+dfsg1-1+deb12u1+b6")
    assert "docker-buildx" not in found
    assert apt.parse_policy("") == {}


# daemon.json


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        (None, {"features": {"containerd-snapshotter": True}}),
        ("  \n", {"features": {"containerd-snapshotter": True}}),
        (
            '{"features": {"buildkit": true, "containerd-snapshotter": false}, "data-root": "/d"}',
            {"features": {"buildkit": True, "containerd-snapshotter": True}, "data-root": "/d"},
        ),
    ],
)
def test_daemon_json_is_merged(text, settings):
    assert json.loads(with_containerd_store(text)) == settings


def test_daemon_json_that_is_right_stays_as_it_is():
    text = '{ "features":{"containerd-snapshotter":true}  }'
    assert with_containerd_store(text) is text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"bridge": oops', "not valid JSON"),
        ("[]", "JSON object"),
        ('{"features": []}', "not an object"),
        ('{"storage-driver": "overlay2"}', "storage-driver"),
    ],
)
def test_daemon_json_that_cannot_be_merged_is_not_touched(text, words):
    machine = Machine().info(**OLD_STORE)
    machine.files["/etc/docker/daemon.json"] = text
    hands = machine.hands()
    with pytest.raises(ConfigError, match=words) as e:
        doctor.fix(hands, examine(machine), examine=lambda: examine(machine), tell=lambda _: None)
    assert "not touched" in e.value.message
    assert e.value.hint
    assert not machine.written
    assert not machine.spawned
    assert not [r for r in machine.ran if r.startswith("apt-get")]


# plan


def test_nothing_to_mend_is_no_step():
    assert steps(Machine()) == []


def test_bare_debian_13():
    text = shell(bare(apt_policy=TRIXIE))
    assert (
        "ca-certificates docker.io docker-cli docker-buildx docker-compose qemu-user qemu-user-binfmt" in text
    )
    assert "/trixie" not in text
    assert "sources.list.d" not in text
    assert "setsid dockerd" in text
    assert (
        text.index("daemon.json")
        < text.index("docker.io")
        < text.index("setsid")
        < text.index("mount -t binfmt_misc")
    )
    assert text.rstrip().endswith(f"cat {CONF_FILE} > {BINFMT}/register")


def test_bare_debian_12_takes_from_trixie_what_is_too_old():
    text = shell(bare(DEBIAN_12, BOOKWORM))
    assert (
        "install --no-install-recommends docker.io/trixie docker-cli/trixie docker-buildx/trixie docker-compose/trixie"
        in text
    )
    assert "qemu-user/trixie qemu-user-binfmt/trixie" in text
    assert "-t trixie" not in text
    assert "ca-certificates" not in text
    assert "Pin-Priority: 100" in text
    assert "URIs: http://mirror.invalid/debian\nSuites: trixie\n" in text
    pin, source, install = (
        text.index("Pin: release"),
        text.index("Suites: trixie"),
        text.index("docker.io/trixie"),
    )
    assert pin < source < text.rindex(" update", 0, install) < install


def test_debian_12_without_lists_of_packages():
    text = shell(bare(DEBIAN_12, policy(ca_certificates=("1", "1"))), fresh=False)
    assert text.index("--yes update") < text.index("docker.io/trixie")
    assert "git/trixie" not in text


def test_debian_12_that_has_trixie_already():
    machine = bare(
        DEBIAN_12,
        BOOKWORM,
        ARCHIVE + "\nTypes: deb\nURIs: http://m.invalid/debian\nSuites: trixie\nComponents: main\n",
    )
    text = shell(machine)
    assert "docker.io/trixie" in text
    assert "sources.list.d" not in text


def test_debian_12_without_a_mirror_says_so():
    found = steps(bare(DEBIAN_12, BOOKWORM, sources=""))
    assert any(s.manual and "no apt source" in s.title for s in found)
    assert "docker.io/trixie" not in "\n".join(line for s in found for line in s.shell())


def test_debian_11_is_too_old():
    release = DEBIAN_12.replace("12", "11").replace("bookworm", "bullseye")
    found = steps(bare(release, BOOKWORM.replace("24+dfsg1-1", "5+dfsg1-1")))
    assert any(s.manual and "Debian GNU/Linux 11" in s.title for s in found)


def test_ubuntu_uses_its_own_packages():
    found = steps(bare(UBUNTU_24, NOBLE))
    text = "\n".join(line for s in found if not s.manual for line in s.shell())
    assert "docker.io docker-buildx docker-compose-v2" in text
    assert "trixie" not in text
    (manual,) = [s for s in found if s.manual]
    assert "qemu-user, version 10.0 or newer" in manual.shell()


def test_dockers_own_packages_are_completed_not_replaced():
    machine = Machine().reply("docker compose version", returncode=1)
    machine.reply(
        "apt-cache policy",
        TRIXIE
        + policy(
            docker_ce=("5:29.0.0-1~debian.13~trixie", "5:29.0.0-1~debian.13~trixie"),
            docker_ce_cli=("5:29.0.0-1~debian.13~trixie", "5:29.0.0-1~debian.13~trixie"),
            docker_buildx_plugin=("0.29.1-1", "0.29.1-1"),
            docker_compose_plugin=(None, "2.40.0-1"),
        ),
    )
    assert shell(machine).endswith("--no-install-recommends docker-compose-plugin")


def test_systemd_starts_the_engine():
    machine = Machine().down()
    machine.files["/run/systemd/system/x"] = ""
    text = shell(machine)
    assert "systemctl restart docker" in text
    assert "setsid" not in text


def test_restart_keeps_the_options_of_a_hand_started_dockerd():
    machine = Machine().info(**OLD_STORE)
    machine.files |= {
        "/etc/docker/daemon.json": '{"debug": true}',
        "/run/docker.pid": "99\n",
        "/proc/99/cmdline": "/usr/sbin/dockerd\0--data-root\0/big\0--bip\0\0",
    }
    write, stop, start = steps(machine)
    assert json.loads(write.text) == {"debug": True, "features": {"containerd-snapshotter": True}}
    assert stop == StopEngine(title=stop.title, pid=99)
    assert start.argv == ("/usr/sbin/dockerd", "--data-root", "/big", "--bip", "")


def test_pid_file_of_something_else():
    machine = Machine().info(**OLD_STORE)
    machine.files |= {"/run/docker.pid": "99", "/proc/99/cmdline": "/bin/sleep\0"}
    assert host.survey(machine.probe()).dockerd is None


def test_running_containers_are_not_ended():
    machine = Machine().reply("docker version --format {{json .}}", '{"Server": {"Version": "20.10.24"}}')
    machine.reply("docker ps", "abc\n").reply("apt-cache policy", TRIXIE)
    found = steps(machine)
    assert [s for s in found if s.manual and "running containers (1)" in s.title]
    assert not [s for s in found if isinstance(s, StartEngine)]


# fix


def run_fix(machine, *, after=None):
    told = []

    def again():
        if after:
            after(machine)
        return examine(machine)

    findings = doctor.fix(machine.hands(), examine(machine), examine=again, tell=told.append)
    return findings, told


def test_fix_of_a_good_machine_does_nothing():
    machine = Machine()
    findings, told = run_fix(machine)
    assert told == []
    assert not machine.written
    assert not doctor.failed(findings)


def test_fix_of_a_bare_machine_does_everything_once():
    machine = bare(DEBIAN_12, BOOKWORM)
    machine.files |= {CONF_FILE: CONF}

    def arrive(line):
        if "docker.io/trixie" in line:
            machine.programs |= {n: (f"/usr/bin/{n}",) for n in ("docker", "dockerd")}
        return done()

    def mend(machine):
        machine.files |= {HANDLER_FILE: HANDLER.format(flags="POF"), f"{BINFMT}/status": "enabled"}
        machine.reply("docker buildx imagetools inspect", returncode=1)
        if any("mmdebstrap" in r for r in machine.ran if r.startswith("apt-get")):
            machine.programs |= {n: (f"/usr/bin/{n}",) for n in ("mmdebstrap", "arch-test")}

    machine.replies["apt-get"] = arrive
    findings, told = run_fix(machine, after=mend)
    assert not doctor.failed(findings)
    assert sorted(machine.written) == [
        "/etc/apt/preferences.d/imgbuild-trixie",
        "/etc/apt/sources.list.d/imgbuild-trixie.sources",
        "/etc/docker/daemon.json",
    ]
    assert machine.spawned == [["dockerd"]]
    assert machine.poked == [(f"{BINFMT}/register", CONF.strip())]
    installs = [r for r in machine.ran if r.startswith("apt-get") and " install " in r]
    # The registry can only be asked once buildx is there, so mmdebstrap comes in a second round.
    assert "mmdebstrap" in installs[-1]
    assert "mmdebstrap" not in " ".join(installs[:-1])
    assert all(s.title and s.shell() for s in told)
    assert run_fix(machine)[1] == []


def test_fix_stops_when_steps_do_not_help():
    machine = Machine().without("mmdebstrap").reply("docker buildx imagetools inspect", returncode=1)
    findings, _ = run_fix(machine)
    assert doctor.failed(findings)
    assert len([r for r in machine.ran if r.startswith("apt-get") and " update" in r]) == 1
    assert len([r for r in machine.ran if r.startswith("apt-get") and " install " in r]) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"uid": 1000}, "as root"),
        ({"files": {"/etc/os-release": FEDORA}}, "Fedora"),
        ({"files": {}}, "this system"),
    ],
)
def test_fix_refuses(change, words):
    machine = Machine(**change).without("docker", "git")
    with pytest.raises(EngineError, match=words):
        run_fix(machine)
    assert not machine.written
    assert not [r for r in machine.ran if r.startswith("apt-get")]
    assert shell(machine)


def test_other_distributions_get_words():
    machine = Machine(files={"/etc/os-release": FEDORA}).without("docker")
    manual = steps(machine)[1]
    assert manual.manual
    assert "docker-buildx, version 0.13 or newer" in manual.shell()


def test_apt_that_fails_says_why_and_how_to_repeat():
    machine = Machine().without("git").reply("apt-get", stderr="E: Could not get lock\n", returncode=100)
    with pytest.raises(EngineError, match="Could not get lock") as e:
        run_fix(machine)
    assert "apt-get" in e.value.hint


def test_update_is_left_out_when_the_packages_are_there():
    machine = Machine(qemu=done(QEMU.format("7.2.22"))).reply(
        "apt-cache policy",
        policy(qemu_user=("1:10.0.13+ds", "1:10.0.13+ds"), qemu_user_binfmt=("1:10.0.13+ds", "1:10.0.13+ds")),
    )
    _, told = run_fix(machine, after=lambda m: setattr(m, "qemu", done(QEMU.format("10.0.13"))))
    assert [type(s) for s in told] == [Register]
    assert not [r for r in machine.ran if r.startswith("apt-get")]


# steps


def test_dockerd_that_ends_shows_its_log():
    machine = Machine(dead={4711}).down()
    machine.files["/var/log/dockerd.log"] = (
        "first\n" * 50 + "failed to start daemon: no space left on device\n"
    )
    with pytest.raises(EngineError, match="no space left on device") as e:
        run_fix(machine)
    assert "first\n" * 20 not in e.value.message


LOG = "/var/log/dockerd.log"


def cold(machine, start):
    """What dockerd does on a disk that nobody has read yet, as its log says it; the second start finds it read."""
    if start == 1:
        machine.dead.add(4711)
        machine.files[LOG] = machine.files.get(LOG, "") + f"{COLD_DISK}\n"
    else:
        machine.reply("docker version --format {{.Server.Version}}", "26.1.5\n")


def test_dockerd_whose_containerd_was_late_is_started_once_more():
    machine = Machine(on_spawn=cold).down()
    StartEngine(title="start").apply(machine.hands())
    assert machine.spawned == [["dockerd"]] * 2
    [line] = machine.said
    assert "starting dockerd once more" in line


def test_a_second_late_containerd_is_the_end():
    def late(machine, start):
        machine.dead.add(4710 + start)
        machine.files[LOG] = machine.files.get(LOG, "") + f"start {start}\n{COLD_DISK}\n"

    machine = Machine(on_spawn=late).down()
    with pytest.raises(EngineError, match="start 2\n  failed to start containerd"):
        StartEngine(title="start").apply(machine.hands())
    assert len(machine.spawned) == 2


def test_only_what_this_start_wrote_counts():
    """The log goes on over boots: an old line is no reason for a second start."""
    machine = Machine(dead={4711}).down()
    machine.files[LOG] = f"{COLD_DISK}\nfailed to start daemon: no space left on device\n"
    with pytest.raises(EngineError, match="no space left on device"):
        StartEngine(title="start").apply(machine.hands())
    assert (len(machine.spawned), machine.said) == (1, [])


def test_dockerd_that_never_answers():
    machine = Machine().down()
    with pytest.raises(EngineError, match="does not answer after 60 s"):
        run_fix(machine)
    assert 60 <= machine.now < 70


def test_dockerd_that_does_not_stop():
    machine = Machine()
    hands = machine.hands()
    machine._terminate = None
    object.__setattr__(hands, "terminate", lambda _: None)
    with pytest.raises(EngineError, match="did not stop"):
        StopEngine(title="stop", pid=99).apply(hands)


def test_start_without_dockerd():
    with pytest.raises(EngineError, match="not installed"):
        StartEngine(title="start").apply(Machine().without("dockerd").hands())


def test_register_replaces_every_handler_of_that_processor():
    machine = Machine()
    machine.files[f"{BINFMT}/qemu-old"] = HANDLER.format(flags="")
    machine.files[f"{BINFMT}/python3.11"] = "enabled\ninterpreter /usr/bin/python3.11\nmagic a70d0d0a\n"
    machine.files[CONF_FILE] = CONF.replace(":OPF", ":OP")
    Register(title="r", uname="aarch64", elf_machine=183).apply(machine.hands())
    assert machine.poked == [
        (HANDLER_FILE, "-1"),
        (f"{BINFMT}/qemu-old", "-1"),
        (f"{BINFMT}/register", CONF.strip()),
    ]


def test_register_without_settings_leaves_the_old_handler():
    machine = Machine()
    del machine.files[CONF_FILE]
    with pytest.raises(EngineError, match="missing or empty"):
        Register(title="r", uname="aarch64", elf_machine=183).apply(machine.hands())
    assert machine.poked == []
