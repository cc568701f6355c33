"""The cpu image under Podman: by `imgbuild run`, as the quadlet's own command line, and as a service of a real systemd.

Not here: rootless Podman, CDI devices, SELinux.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import quadlets
from kit import ROOT, wait_for
from podmachine import PodMachine, bootstrap
from scratch import tool_argv, tool_env
from served import IMAGE, UID, Place, docker

from imgbuild.deploy.deployment import spell
from imgbuild.engines.podman import Podman

pytestmark = pytest.mark.podman

LATE = 'ENTRYPOINT ["sh", "-c", "case \\"$*\\" in *--print*) exec comfyrun \\"$@\\";; esac; echo torn; exit 9", "--"]'
GOOD = "ENV IMGBUILD_TEST=good"


@pytest.fixture(scope="module")
def podman():
    if shutil.which("podman") is None:
        pytest.skip("no podman")
    return Podman(os.environ)


@pytest.fixture(scope="module")
def image(podman, tmp_path_factory):
    """Docker's cpu image in Podman, as docs/pulling.md says it: by save and load. Taken away again."""
    theirs = layers(docker("image", "inspect", IMAGE).stdout)
    if theirs is None:
        pytest.skip(f"no image {IMAGE} in Docker: imgbuild build --target cpu")
    full = f"localhost/{IMAGE}"
    if theirs == layers(say(podman, "image", "inspect", full, check=False).stdout):
        yield full
        return
    path = tmp_path_factory.mktemp("carried") / "cpu.tar.zst"
    for words in (("save", IMAGE, "-o", path), ("load", path, "--engine", "podman")):
        done = subprocess.run(
            tool_argv("--project", ROOT, *words),
            env=tool_env(None),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    path.unlink()
    yield full
    say(podman, "rmi", "--force", say(podman, "image", "inspect", "--format", "{{.Id}}", full).stdout.strip())


def layers(inspected):
    found = json.loads(inspected or "[]")
    return found[0]["RootFS"]["Layers"] if found else None


def say(podman, *words, check=True, stdin=None, env=None):
    done = subprocess.run(
        [*podman.command, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        input=stdin,
        env={**os.environ, **(env or {})},
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture
def place(podman, image, tmp_path):
    found = Place(tmp_path, engine=podman.command, source=image)
    found.prepare()
    yield found
    found.clean()


def up(place, *more):
    """`imgbuild run` with Podman; seconds until it served by its own count, and what it printed."""
    done = place.tool("run", "-t", "cpu", *place.options, "--engine", "podman", "--detach", *more)
    assert done.returncode == 0, done.stderr
    return done.stderr.rpartition("serves after ")[2].split()[0], done.stderr


def healthy(place, name, seconds=120):
    """Nobody asks by itself where no systemd runs, so this does."""
    return wait_for(lambda: place.call("healthcheck", "run", name).returncode == 0, seconds)


# --- imgbuild run ----------------------------------------------------------------------------------


def test_up_generates_down_up_and_the_data_is_still_there(place, capsys):
    first, said = up(place)
    assert healthy(place, place.name, 10)
    [container] = place.inspect()
    assert container["State"]["Health"]["Status"] == "healthy"
    [file] = place.generate()
    assert file.stat().st_uid == UID
    data = file.read_bytes()
    stopped = time.monotonic()
    place.call("stop", place.name)
    down = time.monotonic() - stopped
    [container] = place.inspect()
    assert container["State"]["ExitCode"] == 0  # a stop that was asked for
    place.call("rm", place.name)
    assert not place.inspect()
    assert file.read_bytes() == data
    # Up again by what was printed, as somebody would paste it.
    printed = said[said.index("podman ") : said.index("\n• ")]
    started = time.monotonic()
    pasted = subprocess.run(["bash", "-c", printed], capture_output=True, text=True, check=False)
    assert pasted.returncode == 0, pasted.stderr
    assert healthy(place, place.name)
    second = time.monotonic() - started
    assert file.read_bytes() == data
    [other] = place.generate(0x0088FF)
    assert other != file  # it went on counting where the first one had stopped
    with capsys.disabled():
        print(
            f"\npodman: serves after {first} s; stopped in {down:.1f} s; pasted, healthy after {second:.1f} s"
        )


def test_the_container_is_confined(place):
    up(place, "--memory", "3g")
    [found] = place.inspect()
    host = found["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert not found["EffectiveCaps"]
    assert not found["BoundingCaps"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert host["PidsLimit"] == 4096
    assert host["Memory"] == host["MemorySwap"] == 3 << 30
    assert spell(host["ShmSize"]) == "1g"
    assert host["PortBindings"] == {"8188/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(place.port)}]}
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 5}
    assert found["Config"]["User"] == f"{UID}:{UID}"
    assert found["Config"]["StopTimeout"] == 10
    status = place.call("exec", place.name, "cat", "/proc/1/status").stdout
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


def variant(podman, place, tag, line):
    name = f"localhost/{place.name}:{tag}"
    argv = ("build", *podman.limits, "--quiet", "--pull=never", "--format", "docker", "--tag", name, "-")
    say(podman, *argv, stdin=f"FROM {place.source}\n{line}\n")
    return name


def test_update_rollback_and_a_broken_update(podman, place, capsys):
    up(place)
    [file] = place.generate()
    before = place.inspect()[0]["Image"]
    good, late = variant(podman, place, "good", GOOD), variant(podman, place, "late", LATE)
    reports = []
    for words, code in (
        (("update", place.name, "--image", good), 0),
        (("rollback", place.name), 0),
        (("update", place.name, "--image", late), 12),
    ):
        done = place.tool(*words, "--engine", "podman", "--json")
        assert done.returncode == code, done.stderr
        reports.append(json.loads(done.stdout))
        if words == ("update", place.name, "--image", good):
            assert "IMGBUILD_TEST=good" in place.inspect()[0]["Config"]["Env"]
            assert place.generate(0x00FF00)[0].is_file()
    assert place.inspect()[0]["Image"] == before
    assert reports[-1]["rolled_back"]
    for name in (place.source, good, late):  # only the tags that an update makes are taken away
        assert place.call("image", "exists", name).returncode == 0, name
    assert place.generate(0x0000FF)[0].is_file()
    assert file.is_file()
    with capsys.disabled():
        print(
            "\npodman, seconds without an answer: update {:.1f}, rollback {:.1f}, broken and back {:.1f}".format(
                *(report["downtime"] for report in reports)
            )
        )


# --- the quadlet's own command line ------------------------------------------------------------------


def without_systemd(words, podman):
    """Of a command line that systemd would run: journald's log and the unit's group of processes do not exist here."""
    here = {"--cgroups=split": "--cgroups=enabled", "journald": "k8s-file"}
    verb, *rest = (here.get(word, word) for word in words[1:])
    return [*podman.command, verb, *(podman.limits if verb == "run" else ()), *rest]


def test_the_command_line_that_the_generator_makes(podman, place, tmp_path, capsys):
    if quadlets.generator() is None:
        pytest.skip(f"no quadlet generator: {quadlets.FETCH}")
    printed = place.tool("service", "print", "-t", "cpu", "--system-service", *place.options)
    assert printed.returncode == 0, printed.stderr
    units = {}
    for part in printed.stdout.split("# /etc/containers/systemd/")[1:]:
        name, _, text = part.partition("\n")
        units[name] = text
    done = quadlets.generate(units, tmp_path / "units", user=False)
    assert done.returncode == 0, done.stderr
    services = quadlets.services(done.stdout)
    service = services[f"{place.name}.service"]
    assert "Type=notify" in service
    specifiers = {"t": str(tmp_path), "N": place.name}
    start, stop = (quadlets.command(service, key, specifiers) for key in ("ExecStart", "ExecStop"))
    for volume in (s for name, s in services.items() if name.endswith("-volume.service")):
        made = quadlets.command(volume, "ExecStart", {})[1:]
        assert made == ["volume", "create", "--ignore", place.cache]
        say(podman, "volume", "create", place.cache)  # Podman 4.3 has no --ignore, and no quadlets
    times = []
    for color in (0xFF8800, 0x0088FF):
        begun = time.monotonic()
        pid = start_as_systemd(without_systemd(start, podman), tmp_path / "notify")
        assert Path(f"/proc/{pid}/comm").read_text().strip() == "conmon"  # whose exit code is the container's
        assert healthy(place, place.name)
        times.append(time.monotonic() - begun)
        assert place.generate(color)[0].stat().st_uid == UID
        stopped = subprocess.run(without_systemd(stop, podman), capture_output=True, text=True, check=False)
        assert stopped.returncode == 0, stopped.stderr
        assert not place.inspect()
        (tmp_path / f"{place.name}.cid").unlink(missing_ok=True)
    assert len(list((place.data / "output").glob("deployed_*.png"))) == 2
    with capsys.disabled():
        print(f"\nquadlet's command line, healthy after {times[0]:.1f} s, {times[1]:.1f} s")


def start_as_systemd(argv, path):
    """Run it with a socket to say that it is ready; the main process that it names."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        path.unlink(missing_ok=True)
        notified.bind(str(path))
        notified.settimeout(20)
        env = {**os.environ, "NOTIFY_SOCKET": str(path)}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said = dict(line.split("=", 1) for line in notified.recv(4096).decode().split())
        assert said["READY"] == "1"
        return int(said["MAINPID"])


# --- a service of a real systemd -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine(podman, image, tmp_path_factory):
    if os.geteuid() or shutil.which("mmdebstrap") is None:
        pytest.skip("a machine with systemd is made by root, with mmdebstrap: imgbuild doctor --fix")
    found = PodMachine(podman, tmp_path_factory.mktemp("machine"))
    found.folder.chmod(0o711)
    if why := bootstrap(found.root):
        pytest.skip(f"Debian 13 cannot be bootstrapped: {why}")
    found.boot()
    yield found
    found.gone()
    shutil.rmtree(found.root)


@pytest.fixture
def options(machine, tmp_path, image):
    name = f"svc-{tmp_path.name[:20].replace('_', '-')}"
    data = machine.folder / "shared" / name
    data.mkdir()
    os.chown(data, UID, UID)
    words = ["--name", name, "--data", str(data), "--cache", f"{name}-cache", "--port", "8188"]
    yield name, data, [*words, "--image", image]
    machine.tool("service", "remove", "-t", "cpu", "--name", name)


def service(machine, verb, *words, code=0):
    done = machine.tool("service", verb, "-t", "cpu", *words)
    said = machine.call("journalctl", "--lines=40", "--output=cat").stdout if done.returncode != code else ""
    assert done.returncode == code, done.stderr + said
    return done.stdout + done.stderr


def by_timer(machine, name):
    """healthy, and nobody asked but Podman's own timer."""
    ask = ("podman", "inspect", "--format", "{{.State.Health.Status}}", name)
    return wait_for(lambda: machine.call(*ask).stdout.strip() == "healthy", 150)


def ready(machine, name, seconds=120):
    return wait_for(
        lambda: machine.call("podman", "exec", name, "comfyrun", "health", "--ready").returncode == 0, seconds
    )


def test_the_documented_verbs_on_a_machine_with_systemd(machine, options, capsys):
    name, data, words = options
    unit, named = f"{name}.service", ("--name", name)
    begun = time.monotonic()
    assert "starts at every boot" in service(machine, "enable", *words)
    assert machine.state(unit) == "active"
    assert ready(machine, name), machine.call("journalctl", "--unit", unit).stdout
    served = time.monotonic() - begun
    machine.generate(8188)
    assert by_timer(machine, name)
    found = time.monotonic() - begun
    [file] = (data / "output").glob("*.png")
    assert file.stat().st_uid == UID
    first = file.read_bytes()
    assert "Starting server" in machine.call("journalctl", "--unit", unit).stdout  # ComfyUI's own words
    assert "Active: active (running)" in service(machine, "status", *named)

    begun = time.monotonic()
    service(machine, "restart", *named)
    assert ready(machine, name)
    again = time.monotonic() - begun
    machine.generate(8188, 0x0088FF)

    service(machine, "stop", *named)
    assert machine.state(unit) == "inactive"  # not failed: a stop that was asked for
    assert not machine.call("podman", "ps", "--all", "--quiet").stdout.strip()
    assert file.read_bytes() == first
    service(machine, "start", *named)
    assert ready(machine, name)

    # What crashes is started again.
    killed = machine.property(unit, "MainPID")
    machine.call("podman", "kill", "--signal", "KILL", name)
    assert wait_for(lambda: machine.property(unit, "NRestarts") == "1", 40)
    assert ready(machine, name)
    assert machine.property(unit, "MainPID") != killed

    begun = time.monotonic()
    machine.reboot()
    assert ready(machine, name)
    booted = time.monotonic() - begun
    machine.generate(8188, 0x00FF88)
    service(machine, "disable", *words)
    assert machine.state(unit) == "active"  # it goes on, but not after a reboot
    machine.reboot()
    assert machine.state(unit) == "inactive"

    assert f"podman volume rm {name}-cache" in service(machine, "remove", *named)
    assert machine.property(unit, "LoadState") == "not-found"
    assert not [p for p in (machine.root / "etc/containers/systemd").rglob("*") if p.is_file()]
    assert f"{name}-cache" in machine.call("podman", "volume", "ls", "--quiet").stdout
    assert len(list((data / "output").glob("*.png"))) == 3
    assert file.read_bytes() == first
    with capsys.disabled():
        print(
            f"\nservice of systemd: serves after {served:.1f} s, healthy by Podman's own timer within {found:.1f} s; "
            f"restart {again:.1f} s; reboot until it serves {booted:.1f} s"
        )


def test_a_wrong_setting_is_not_tried_again(machine, options):
    name, _, words = options
    service(machine, "install", *words, "--env", "COMFY_LOG=nonsense")
    machine.tool("service", "start", "-t", "cpu", "--name", name)
    assert wait_for(lambda: machine.state(f"{name}.service") == "failed", 60)
    assert machine.property(f"{name}.service", "ExecMainStatus") == "2"
    time.sleep(12)  # RestartSec is 10
    assert machine.property(f"{name}.service", "NRestarts") == "0"
    assert machine.state(f"{name}.service") == "failed"
