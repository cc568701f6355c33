from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
import yaml

from imgbuild.cli import main
from imgbuild.deploy.compose import compose_files, image_variable
from imgbuild.deploy.deployment import Wishes, deploy
from imgbuild.deploy.switches import with_variable
from imgbuild.render import Renderer

TARGETS = ["ada", "cpu", "gb10", "h100"]


@pytest.fixture(scope="module")
def renderer(root):
    return Renderer(root / "templates")


def files_of(renderer, d):
    return compose_files(renderer, d, title="t", again="a")


def _no_compose():
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode


def config(folder, target, env=None, profiles=()):
    """What `docker compose config` makes of a file; it needs no engine."""
    if shutil.which("docker") is None or _no_compose():
        pytest.skip("no docker compose")
    argv = ["docker", "compose", "--file", str(folder / f"{target}.yaml")]
    argv += [word for profile in profiles for word in ("--profile", profile)]
    done = subprocess.run(
        [*argv, "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **(env or {})},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return json.loads(done.stdout.replace("$$", "$"))  # it prints a dollar as it is written


def written(tmp_path, renderer, d):
    for name, text in files_of(renderer, d).items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_all_targets_share_the_base(renderer, plans):
    made = [files_of(renderer, deploy(plans[t])) for t in TARGETS]
    assert len({m["base.yaml"] for m in made}) == 1
    assert len({m["proxy/nginx.conf"] for m in made}) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_committed_is_clean(root, target):
    assert set(config(root / "compose", target)["services"]) == {"comfyui"}
    assert set(config(root / "compose", target, profiles=["proxy"])["services"]) == {"comfyui", "proxy"}


WISHES = {
    "standard": Wishes(),
    "everything": Wishes(
        name="mine",
        image="localhost:5000/team/comfyui:x",
        data="/srv/comfy $data",
        cache="other",
        models=("/mnt/a",),
        port=9000,
        user="4321",
        memory="32g",
        stop_timeout=290,
        restart="unless-stopped",
        environment=("A=x y $z", "HF_TOKEN"),
        words=("--preview-method", "a $b"),
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("wish", WISHES)
def test_compose_says_what_the_deployment_says(tmp_path, renderer, plans, target, wish):
    d = deploy(plans[target], WISHES[wish])
    found = config(written(tmp_path, renderer, d), target, env={"HF_TOKEN": "t"})
    s = found["services"]["comfyui"]
    assert found["name"] == d.name
    assert s["image"] == d.image
    assert s["command"] == list(d.words or ("serve",))
    assert s["user"] == d.user
    assert s["read_only"] is True
    assert s["cap_drop"] == ["ALL"]
    assert s["security_opt"] == ["no-new-privileges"]
    assert s["pids_limit"] == d.pids
    assert int(s["shm_size"]) == d.shm
    assert int(s.get("mem_limit", 0)) == (d.memory or 0) == int(s.get("memswap_limit", 0))
    assert s["restart"] == d.restart
    assert seconds(s["stop_grace_period"]) == d.grace
    assert [(p["host_ip"], p["published"], p["target"]) for p in s["ports"]] == [
        (d.address, str(d.port), 8188)
    ]
    assert [(v["source"], v["target"], v.get("read_only", False)) for v in s["volumes"]] == [
        (v.source, v.target, v.read_only) for v in d.volumes
    ]
    for volume in s["volumes"]:
        if volume["type"] == "bind":
            assert volume["bind"].get("create_host_path", False) is False
            assert volume["bind"]["selinux"] in "zZ"
    wanted = {n: "t" if v is None else v for n, v in d.all_environment.items()}
    assert s["environment"] == wanted
    assert s["healthcheck"]["test"] == ["CMD", *d.health.command]
    assert seconds(s["healthcheck"]["start_period"]) == d.health.start_period
    assert s["logging"]["options"] == {"max-size": "10m", "max-file": "5"}
    assert {n: v for n, v in s["labels"].items() if n in d.labels} == d.labels
    devices = s.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")
    assert devices == ([{"capabilities": ["gpu"], "driver": "nvidia", "count": -1}] if d.gpus else None)


def seconds(text):
    """1m30s, 6m3s, 10s"""
    minutes, _, rest = text.rpartition("m")
    return int(minutes or 0) * 60 + int((rest or text).rstrip("s") or 0)


def test_a_mig_slice_is_reserved_by_its_uuid(tmp_path, renderer, plans):
    mig = "MIG-3a1cbe10-0000-5000-8000-1c1f2d3e4f50"
    d = deploy(plans["h100"], Wishes(gpu=mig))
    s = config(written(tmp_path, renderer, d), "h100")["services"]["comfyui"]
    assert s["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == [mig]


def test_settings_of_the_environment(root):
    env = {
        "COMFYUI_IMAGE_H100": "other:tag",
        "COMFYUI_PORT": "9000",
        "COMFYUI_MEMORY": "8g",
        "COMFYUI_DATA": "/srv/x",
        "COMFYUI_ARGS": "--preview-method none",
    }
    s = config(root / "compose", "h100", env=env)["services"]["comfyui"]
    assert s["image"] == "other:tag"
    # Pinning is sized by the host's memory: with a limit it has to go.
    assert s["command"] == ["serve", "--disable-pinned-memory", "--preview-method", "none"]
    assert (s["mem_limit"], s["ports"][0]["published"]) == (str(8 << 30), "9000")
    assert s["volumes"][0]["source"] == "/srv/x"
    # `update` starts it again with the same.
    kept = {
        n.removeprefix("imgbuild.compose."): v
        for n, v in s["labels"].items()
        if n.startswith("imgbuild.compose.")
    }
    again = config(
        root / "compose",
        "h100",
        env={**{n: v for n, v in kept.items() if v}, "COMFYUI_IMAGE_H100": "other:tag"},
    )
    assert again["services"]["comfyui"] == s


def test_the_proxy_is_as_confined(root):
    s = config(root / "compose", "cpu", profiles=["proxy"])["services"]["proxy"]
    assert s["image"].startswith("nginxinc/nginx-unprivileged:")
    assert s["read_only"] is True
    assert s["cap_drop"] == ["ALL"]
    assert {x["source"] for x in s["secrets"]} == {"htpasswd", "cert.pem", "key.pem"}
    assert [p["target"] for p in s["ports"]] == [8443]


def test_a_variable_a_target():
    assert image_variable("rtx-4070.x") == "COMFYUI_IMAGE_RTX_4070_X"


def test_one_line_of_a_env_file_changes():
    text = "# mine\nHF_TOKEN=x\nCOMFYUI_IMAGE_CPU=old\nCOMFYUI_IMAGE_CPU2=y"
    assert with_variable(text, "COMFYUI_IMAGE_CPU", "new") == (
        "# mine\nHF_TOKEN=x\nCOMFYUI_IMAGE_CPU2=y\nCOMFYUI_IMAGE_CPU=new\n"
    )
    assert with_variable("", "A", "b") == "A=b\n"


def test_the_verb_writes_and_says_how_to_start(root, tmp_path, capsys):
    call = ["--project", str(root), "compose", "cpu", "-o", str(tmp_path / "c"), "--port", "9001"]
    assert main(call) == 0
    assert "docker compose -f" in capsys.readouterr().err
    text = (tmp_path / "c" / "cpu.yaml").read_text()
    assert text.startswith("# Rendered from the hardware matrix; imgbuild compose cpu --port 9001\n")
    assert yaml.safe_load(text)["name"] == "comfyui-cpu"
    assert main(call) == 0
    assert "nothing has changed" in capsys.readouterr().err


def test_the_verb_spares_what_is_somebody_elses(root, tmp_path, capsys):
    (tmp_path / "cpu.yaml").write_text("services: {}\n")
    assert main(["--project", str(root), "compose", "cpu", "-o", str(tmp_path)]) == 2
    assert "was not written by imgbuild" in capsys.readouterr().err


def test_rendering_takes_away_targets_that_are_gone_and_nothing_else(project, capsys):
    folder = project.root / "compose"
    call = ["--project", str(project.root), "render"]
    assert main(call) == 0
    (folder / "secrets").mkdir()
    mine = [folder / "secrets" / "htpasswd", folder / ".env", folder / "mine.yaml"]
    for path in mine:
        path.write_text("x\n")
    gone = folder / "b200.yaml"
    gone.write_text((folder / "h100.yaml").read_text())
    assert main([*call, "--check"]) == 4
    assert "b200.yaml" in capsys.readouterr().out
    assert main(call) == 0
    assert not gone.exists()
    assert all(path.exists() for path in mine)
    assert main([*call, "--check"]) == 0


def test_the_verb_leaves_a_checkouts_own_files_to_render(project, monkeypatch, capsys):
    monkeypatch.chdir(project.root)
    assert main(["compose", "cpu", "--port", "9001"]) == 2
    assert "-o DIR" in capsys.readouterr().err
    assert main(["compose", "cpu", "--port", "9001", "--print"]) == 0
