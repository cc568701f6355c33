"""What deploying asks of the machine: ports, folders, a GPU, systemd."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import quadlets

from imgbuild.cli import main
from imgbuild.deploy.auto import target_for
from imgbuild.deploy.deployment import Wishes, deploy
from imgbuild.deploy.folders import may, refuse_unusable, source_of
from imgbuild.deploy.ledger import Entry, Ledger, Record
from imgbuild.deploy.ports import free_port, problem, refuse_taken
from imgbuild.deploy.rollout import pinned_name
from imgbuild.deploy.services import MARK, Services
from imgbuild.deploy.units import unit_files
from imgbuild.errors import ConfigError, DeploymentError, EngineError, SelectionError
from imgbuild.hardware import Gpu, Hardware

# --- ports ---------------------------------------------------------------------------------------


def test_a_taken_port_is_refused_with_who_has_it_and_one_that_is_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"port {port} of 127.0.0.1 is taken by \S+ \(pid {os.getpid()}\)"
        ) as e:
            refuse_taken("127.0.0.1", port, lambda _: None)
        free = free_port("127.0.0.1", port)
        assert e.value.hint == f"--port {free} is free"
        with pytest.raises(ConfigError, match="taken by the container comfyui-cpu"):
            refuse_taken("127.0.0.1", port, lambda _: "comfyui-cpu")
    assert problem("127.0.0.1", port) is None
    refuse_taken("127.0.0.1", port, lambda _: None)


def test_an_address_of_another_machine():
    with pytest.raises(ConfigError, match="no such address"):
        refuse_taken("192.0.2.1", 8188, lambda _: None)


# --- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("comfy-data", "comfy-data"),
        ("./x", "/w/x"),
        ("/a/../b", "/b"),
        ("~/x", "/home/me/x"),
        ("a/b", "/w/a/b"),
    ],
)
def test_a_name_is_a_volume_and_a_path_a_folder(text, found):
    assert source_of("--data", text, cwd=Path("/w"), env={"HOME": "/home/me"}) == found


@pytest.mark.parametrize("text", ["", "a:b", "/x,y"])
def test_what_an_engine_would_read_otherwise(text):
    with pytest.raises(ConfigError):
        source_of("--data", text, cwd=Path("/"), env={})


def test_a_name_that_is_also_a_folder_here(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(ConfigError, match="the named volume, or the folder") as e:
        source_of("--data", "data", cwd=tmp_path, env={})
    assert "./data" in e.value.hint


def test_a_folder_that_is_not_there_is_named_with_the_nearest(tmp_path):
    (tmp_path / "comfyui").mkdir()
    with pytest.raises(ConfigError, match=f"did you mean {tmp_path}/comfyui") as e:
        refuse_unusable("--data", f"{tmp_path}/comfui", user="1:1", writable=True, env={})
    assert e.value.hint.startswith("mkdir -p")


@pytest.mark.parametrize("path", ["/", "/etc", "/usr", "/home/me"])
def test_folders_of_the_system_are_refused(path):
    with pytest.raises(ConfigError, match="of the system's, or all of yours"):
        refuse_unusable("--data", path, user="1:1", writable=True, env={"HOME": "/home/me"})


def test_a_folder_of_somebody_else(tmp_path):
    tmp_path.chmod(0o755)
    owner = f"{os.getuid()}:{os.getgid()}"
    with pytest.raises(ConfigError, match="cannot be written by 54321:54321") as e:
        refuse_unusable("--data", str(tmp_path), user="54321:54321", writable=True, env={})
    assert f"chown 54321:54321 {tmp_path}" in e.value.hint
    refuse_unusable("--models", str(tmp_path), user="54321:54321", writable=False, env={})
    refuse_unusable("--data", str(tmp_path), user=owner, writable=True, env={})


def test_who_may(tmp_path):
    found = tmp_path.stat()
    tmp_path.chmod(0o570)
    assert may(tmp_path, found.st_uid, 9, write=True) is False
    assert may(tmp_path, found.st_uid + 1, found.st_gid, write=True) is True
    assert may(tmp_path, found.st_uid + 1, found.st_gid + 1, write=False) is False


# --- the GPU -------------------------------------------------------------------------------------


def gpu(name, capability, number=1):
    return Gpu(name=name, uuid=f"GPU-{number}", capability=capability)


def test_the_target_of_this_machines_gpu(matrix):
    target, why = target_for(matrix, Hardware(gpus=(gpu("NVIDIA H100", "9.0"),)), "linux/amd64")
    assert (target.name, why) == ("h100", "NVIDIA H100 (9.0)")
    target, _ = target_for(matrix, Hardware(gpus=(gpu("NVIDIA GB10", "12.1"),)), "linux/arm64")
    assert target.name == "gb10"


@pytest.mark.parametrize(
    ("hardware", "platform", "says", "hint"),
    [
        (Hardware(), "linux/amd64", "no NVIDIA GPU", "--target cpu"),
        (Hardware(problem="nvidia-smi: oh"), "linux/amd64", "oh", "--target cpu"),
        (Hardware(unsliced=("H100",)), "linux/amd64", "MIG mode without a slice", "--target cpu"),
        (
            Hardware(gpus=(gpu("Old", "5.2"),)),
            "linux/amd64",
            r"no target fits Old \(5.2\)",
            "imgbuild targets",
        ),
        # The GPU would fit; GH200's host would not.
        (Hardware(gpus=(gpu("GH200", "9.0"),)), "linux/arm64", "no target fits", "imgbuild targets"),
        (
            Hardware(gpus=(gpu("H100", "9.0"), gpu("RTX 4090", "8.9", 2))),
            "linux/amd64",
            "several targets fit",
            "--target ada --gpu GPU-2 or --target h100 --gpu GPU-1",
        ),
    ],
)
def test_never_a_guess(matrix, hardware, platform, says, hint):
    with pytest.raises(SelectionError, match=says) as e:
        target_for(matrix, hardware, platform)
    assert hint in e.value.hint


def test_without_a_gpu_run_offers_the_cpu(root, capsys):
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    assert main(["--project", str(root), "run"]) == 3
    assert "--target cpu" in capsys.readouterr().err


# --- units ---------------------------------------------------------------------------------------

HARD = Wishes(
    data="/srv/comfy data",
    memory="32g",
    words=("--preview-method", 'a b%$c"d\\'),
    models=("/mnt/m",),
    environment=('A=x y $z %t "q"',),
)


@pytest.mark.parametrize("user", [True, False], ids=["user", "system"])
@pytest.mark.parametrize("target", ["ada", "cpu", "gb10", "h100"])
@pytest.mark.parametrize("wishes", [Wishes(), HARD], ids=["standard", "hard"])
def test_podmans_own_generator_takes_the_quadlet(tmp_path, plans, target, wishes, user):
    if quadlets.generator() is None:
        pytest.skip(f"no quadlet generator: Podman 4.4 and newer has one; {quadlets.FETCH} fetches Debian's")
    d = deploy(plans[target], wishes)
    units = unit_files(d, "podman", at_boot=True, user=user)
    done = quadlets.generate(units, tmp_path / "units", user=user)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "Loading source unit file" not in line]
    assert said == []  # of a key that it does not know, a name that is not fully qualified
    services = quadlets.services(done.stdout)
    assert services.keys() == {
        name.replace(".container", ".service").replace(".volume", "-volume.service") for name in units
    }
    words = quadlets.command(services[f"{d.name}.service"], "ExecStart", {"t": "/run", "N": d.name})
    assert words[:2] == ["/usr/bin/podman", "run"]
    start = " ".join(words)
    for option in (
        "--pull never",
        "--read-only",
        "--cap-drop all",
        "--security-opt=no-new-privileges",
        "--user 1000:1000",
        "--publish 127.0.0.1:8188:8188",
        "--health-cmd comfyrun health",
        "--stop-timeout 10",
    ):
        assert option in start
    image = words.index(f"localhost/comfyui:{target}")
    assert tuple(words[image + 1 :]) == d.words
    assert {f"{name}={value}" for name, value in d.all_environment.items()} <= set(words[:image])
    assert {volume.spelled for volume in d.volumes} <= set(words[:image])
    assert ("--userns keep-id:uid=1000,gid=1000" in start) == user
    assert ("--device nvidia.com/gpu=all" in start) == (target != "cpu")
    assert "AutoUpdate" not in done.stdout


@pytest.mark.parametrize("wishes", [Wishes(), HARD], ids=["standard", "hard"])
def test_systemd_takes_dockers_unit(tmp_path, plans, wishes):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    if not Path("/usr/bin/docker").exists():
        pytest.skip("the unit starts /usr/bin/docker")
    [(name, text)] = unit_files(deploy(plans["h100"], wishes), "docker", at_boot=True, user=False).items()
    (tmp_path / name).write_text(text)
    (tmp_path / "docker.service").write_text("[Service]\nExecStart=/bin/true\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    said = [line for line in done.stderr.splitlines() if name in line]
    assert (done.returncode, said) == (0, [])


def services(tmp_path, **more):
    return Services(**{"engine": "podman", "user": False, "env": {}, "root": tmp_path, **more})


def test_installing_and_removing_units(tmp_path, plans):
    s = services(tmp_path)
    for target in ("h100", "cpu"):
        s.install(unit_files(deploy(plans[target]), "podman", at_boot=True, user=False))
    assert s.installed("comfyui-h100").is_file()
    (s.folder / "mine.volume").write_text("[Volume]\n")
    assert [p.name for p in s.remove("comfyui-h100")] == [
        "comfyui-h100.container"
    ]  # cpu still has the volumes
    gone = {p.name for p in s.remove("comfyui-cpu")}
    assert gone == {"comfyui-cpu.container", "comfy-data.volume", "comfy-cache.volume"}
    assert [p.name for p in s.folder.iterdir()] == ["mine.volume"]
    with pytest.raises(SelectionError, match="comfyui-cpu"):
        s.installed("comfyui-cpu")


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_what_stays_after_a_removal_is_named(tmp_path, plans, engine):
    s = services(tmp_path, engine=engine)
    for wishes, volumes in (
        (Wishes(), ("comfy-data", "comfy-cache")),
        (Wishes(data="/srv/comfy data", cache="own.cache"), ("own.cache",)),
        (Wishes(data="/srv/a", cache="/srv/b", models=("/mnt/m",)), ()),
    ):
        s.install(unit_files(deploy(plans["cpu"], wishes), engine, at_boot=True, user=False))
        assert s.volumes("comfyui-cpu") == volumes


def test_units_of_somebody_else_are_spared(tmp_path, plans):
    s = services(tmp_path)
    s.folder.mkdir(parents=True)
    (s.folder / "comfyui-cpu.container").write_text("[Container]\n")
    with pytest.raises(ConfigError, match="was not written by imgbuild"):
        s.install(unit_files(deploy(plans["cpu"]), "podman", at_boot=True, user=False))
    with pytest.raises(ConfigError, match="was not written by imgbuild"):
        s.remove("comfyui-cpu")
    assert MARK not in (s.folder / "comfyui-cpu.container").read_text()


def test_where_units_lie(tmp_path):
    assert services(tmp_path).folder == tmp_path / "etc/containers/systemd"
    assert services(tmp_path, engine="docker").folder == tmp_path / "etc/systemd/system"
    assert services(tmp_path, user=True, env={"HOME": "/home/me"}).folder == Path(
        "/home/me/.config/containers/systemd"
    )


def test_without_systemd_it_is_said(tmp_path):
    if Path("/run/systemd/system").exists():
        pytest.skip("systemd runs here")
    with pytest.raises(EngineError, match="systemd"):
        services(tmp_path, env=dict(os.environ)).systemctl("daemon-reload")


# --- what was deployed ---------------------------------------------------------------------------


def test_the_ledger(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.read("docker", "a") == Record(name="a", engine="docker")
    entry = Entry(image="comfyui:cpu-0123", digest="sha256:0123", since="2026-11-21T00:00:00+00:00")
    record = Record(name="a", engine="docker", current=entry)
    ledger.write(record)
    assert ledger.read("docker", "a") == record
    assert ledger.read("podman", "a").current is None
    for damage in ("", "[]", '{"name": "a"}', '{"name": "a", "engine": "docker", "current": {"x": 1}}'):
        ledger.path("docker", "a").write_text(damage)
        with pytest.raises(ConfigError, match="is damaged"):
            ledger.read("docker", "a")


def test_one_update_at_a_time(tmp_path):
    ledger = Ledger(tmp_path)
    refused = pytest.raises(DeploymentError, match="another update of a runs")
    with ledger.alone("docker", "a"), ledger.alone("docker", "b"), refused, ledger.alone("docker", "a"):
        pass
    with ledger.alone("docker", "a"):
        pass


@pytest.mark.parametrize(
    ("reference", "pinned"),
    [
        ("comfyui:cpu", "comfyui:h100-0123456789ab"),
        ("localhost:5000/team/comfyui", "localhost:5000/team/comfyui:h100-0123456789ab"),
        ("localhost:5000/team/comfyui:x@sha256:ff", "localhost:5000/team/comfyui:h100-0123456789ab"),
    ],
)
def test_a_tag_of_its_own_for_a_digest(reference, pinned):
    assert pinned_name(reference, "h100", "sha256:0123456789abcdef") == pinned
