from __future__ import annotations

import shlex

import pytest

from imgbuild.deploy.argv import as_text, run_argv
from imgbuild.deploy.deployment import Wishes, deploy, from_label, secrets_of, spell
from imgbuild.deploy.units import unit_files
from imgbuild.errors import ConfigError

MIG = "MIG-3a1cbe10-0000-5000-8000-1c1f2d3e4f50"
ALL = Wishes(
    name="mine",
    image="localhost:5000/team/comfyui@sha256:" + "a" * 64,
    data="/srv/comfy data",
    cache="other",
    models=("/mnt/a", "/mnt/b"),
    address="::1",
    port=9000,
    user="4321",
    gpu=MIG,
    memory="32g",
    stop_timeout=290,
    restart="unless-stopped",
    environment=("A=x y", "HF_TOKEN=hidden", "COMFY_LOG=json"),
    words=("--preview-method", "none"),
)


def options(argv):
    """Every option with its values, in order; what comes after them."""
    words, found = list(argv[2:]), {}
    alone = {"--rm", "--detach", "--read-only", "--tty"}
    while words[0].startswith("--"):
        name = words.pop(0)
        found.setdefault(name, []).append("" if name in alone else words.pop(0))
    return found, words


@pytest.mark.parametrize("target", ["ada", "cpu", "gb10", "h100"])
def test_the_standard_way_is_hardened(plans, target):
    found, rest = options(run_argv(deploy(plans[target]), "docker"))
    assert found["--cap-drop"] == ["ALL"]
    assert found["--read-only"] == [""]
    assert found["--security-opt"] == ["no-new-privileges"]
    assert found["--publish"] == ["127.0.0.1:8188:8188"]
    assert found["--volume"] == ["comfy-data:/data", "comfy-cache:/cache"]
    assert "exec" in found["--tmpfs"][0].split(":")[1].split(",")
    assert found["--pids-limit"] == ["4096"]
    assert found["--pull"] == ["never"]
    assert found.get("--gpus") == (None if target == "cpu" else ["all"])
    assert rest == [f"comfyui:{target}"]


def test_every_wish_stands_in_the_command(plans):
    d = deploy(plans["h100"], ALL)
    found, rest = options(run_argv(d, "docker", mode="detached"))
    assert found["--gpus"] == [f"device={MIG}"]
    assert found["--user"] == ["4321:4321"]
    assert found["--publish"] == ["[::1]:9000:8188"]
    assert found["--volume"] == [
        "/srv/comfy data:/data:Z",
        "other:/cache",
        "/mnt/a:/mnt/models:ro,z",
        "/mnt/b:/mnt/models-1:ro,z",
    ]
    assert found["--memory"] == found["--memory-swap"] == ["32g"]
    assert found["--restart"] == ["unless-stopped"]
    assert found["--env"] == [
        "A=x y",
        "COMFY_LOG=json",
        "COMFY_MODELS=/mnt/models:/mnt/models-1",
        "COMFY_STOP_TIMEOUT=290",
        "HF_TOKEN",
    ]
    assert rest == [ALL.image, "serve", "--disable-pinned-memory", "--preview-method", "none"]


def test_a_secret_is_in_no_command_and_no_label(plans):
    d = deploy(plans["h100"], ALL)
    assert "hidden" not in " ".join(run_argv(d, "docker")) + d.as_label()
    assert secrets_of(ALL.environment) == {"HF_TOKEN": "hidden"}


def test_several_gpus_are_one_word_of_csv(plans):
    found, _ = options(run_argv(deploy(plans["ada"], Wishes(gpu="0,1")), "docker"))
    assert found["--gpus"] == ['"device=0,1"']
    found, _ = options(run_argv(deploy(plans["ada"], Wishes(gpu="0,1")), "podman"))
    assert found["--device"] == ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]


def test_without_a_gpu_an_image_for_one_serves_on_the_cpu(plans):
    d = deploy(plans["h100"], Wishes(gpu="none"))
    found, rest = options(run_argv(d, "docker"))
    assert "--gpus" not in found
    assert rest == ["comfyui:h100", "serve", "--cpu"]


@pytest.mark.parametrize(("stop", "least"), [(2, 4), (8, 10), (30, 38), (290, 363)])
def test_the_engine_kills_after_comfyrun_has_given_up(plans, stop, least):
    d = deploy(plans["cpu"], Wishes(stop_timeout=stop))
    assert d.grace == least
    assert d.all_environment["COMFY_STOP_TIMEOUT"] == str(stop)
    found, _ = options(run_argv(d, "docker"))
    assert found["--stop-timeout"] == [str(least)]


def test_a_memory_limit_bounds_what_counts_against_it(plans):
    d = deploy(plans["h100"], Wishes(memory="6g"))
    assert (d.shm, d.tmp) == (3 << 30, 6 << 30)
    assert "--disable-pinned-memory" in d.words
    assert deploy(plans["cpu"], Wishes(memory="6g")).words == ()


def test_verbs_of_the_image_are_taken_as_they_are(plans):
    assert deploy(plans["h100"], Wishes(words=("check",), memory="6g")).words == ("check",)
    assert deploy(plans["h100"], Wishes(words=("serve", "--cpu"), gpu="none")).words == ("serve", "--cpu")


def test_another_verb_runs_beside_the_server(plans):
    d = deploy(plans["cpu"], Wishes(words=("nodes", "list")))
    found, rest = options(run_argv(d, "docker"))
    assert (found["--name"], rest) == (["comfyui-cpu-nodes"], ["comfyui:cpu", "nodes", "list"])
    assert "--publish" not in found


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"gpu": "MIG"}, "--gpu MIG"),
        ({"port": 0}, "--port 0"),
        ({"user": "me"}, "--user me"),
        ({"memory": "lots"}, "--memory lots"),
        ({"memory": "100m"}, "at least 1g"),
        ({"memory": "4g", "shm": "5g"}, "--shm 5g is more"),
        ({"stop_timeout": 1}, "at least 2 s"),
        ({"restart": "sometimes"}, "--restart sometimes"),
        ({"name": "a b"}, "--name a b"),
        ({"environment": ("1X=2",)}, "--env 1X"),
        ({"environment": ("COMFY_PORT=1",)}, "COMFY_PORT"),
        ({"environment": ("COMFY_STOP_TIMEOUT=1",)}, "COMFY_STOP_TIMEOUT"),
    ],
)
def test_what_cannot_be_had_is_named(plans, wish, says):
    with pytest.raises(ConfigError, match=says):
        deploy(plans["h100"], Wishes(**wish))


def test_no_gpu_for_an_image_without_gpu_code(plans):
    with pytest.raises(ConfigError, match="no GPU code"):
        deploy(plans["cpu"], Wishes(gpu="all"))


def test_the_label_gives_the_same_deployment(plans):
    for wishes in (Wishes(), ALL):
        d = deploy(plans["gb10"], wishes)
        assert from_label(d.as_label()) == d
    for bad in ("", "{}", "[]", '{"volumes": 3}'):
        with pytest.raises(ConfigError):
            from_label(bad)


def test_the_printed_command_is_the_command(plans):
    for engine in ("docker", "podman"):
        d = deploy(plans["h100"], ALL)
        argv = run_argv(d, engine, mode="detached", rootless=True)
        assert tuple(shlex.split(as_text(argv, d).replace("\\\n", ""))) == argv


def test_sizes():
    assert [spell(n) for n in (1, 1024, 3 << 20, 16 << 30, 1 << 40)] == ["1b", "1k", "3m", "16g", "1t"]


# --- the projections agree -----------------------------------------------------------------------


def quadlet_options(text):
    """A quadlet's [Container] as the options of `podman run` that its generator makes of it."""
    section = text.split("[Container]\n")[1].split("\n[")[0]
    pairs = [line.split("=", 1) for line in section.splitlines() if "=" in line and not line.startswith("#")]
    keys = {
        "Label": "--label",
        "AddDevice": "--device",
        "Tmpfs": "--tmpfs",
        "UserNS": "--userns",
        "PublishPort": "--publish",
        "ShmSize": "--shm-size",
        "PidsLimit": "--pids-limit",
        "Pull": "--pull",
        "ContainerName": "--name",
        "HealthCmd": "--health-cmd",
        "HealthInterval": "--health-interval",
        "HealthTimeout": "--health-timeout",
        "HealthStartPeriod": "--health-start-period",
        "HealthRetries": "--health-retries",
    }
    found, numbers, rest = {}, {}, []
    for key, value in pairs:
        plain = value.replace("%%", "%")
        if key in keys:
            found.setdefault(keys[key], []).append(plain)
        elif key == "Volume":
            found.setdefault("--volume", []).append(plain.replace(".volume:", ":", 1))
        elif key == "Environment":
            found.setdefault("--env", []).append(shlex.split(plain.replace("$$", "$"))[0])
        elif key == "PodmanArgs":
            words = shlex.split(plain)
            found.update({a: [b] for a, b in zip(words[::2], words[1::2], strict=True)})
        elif key in ("User", "Group"):
            numbers[key] = value
        elif key in ("Image", "Exec"):
            rest += shlex.split(plain.replace("$$", "$"))
        elif key == "LogDriver":
            pass
        else:
            found[
                {
                    "ReadOnly": "--read-only",
                    "DropCapability": "--cap-drop",
                    "NoNewPrivileges": "--security-opt",
                }[key]
            ] = [value]
    found["--user"] = [f"{numbers['User']}:{numbers['Group']}"]
    return found, rest


@pytest.mark.parametrize("target", ["ada", "cpu", "gb10", "h100"])
@pytest.mark.parametrize("rootless", [True, False])
def test_the_quadlet_says_what_podman_run_says(plans, target, rootless):
    gpu = None if target == "cpu" else ALL.gpu
    wishes = Wishes(**{**ALL.__dict__, "gpu": gpu, "environment": ("A=x y $z %t",)})
    for wish in (Wishes(), wishes):
        d = deploy(plans[target], wish)
        wanted, image = options(run_argv(d, "podman", mode="unit", rootless=rootless))
        files = unit_files(d, "podman", at_boot=True, user=rootless)
        found, rest = quadlet_options(files[f"{d.name}.container"])
        for own in ("--rm", "--log-driver"):
            del wanted[own]
        assert found.pop("--read-only") == ["true"]
        assert wanted.pop("--read-only") == [""]
        assert found.pop("--cap-drop") == [w.lower() for w in wanted.pop("--cap-drop")]
        assert found.pop("--security-opt") == ["true"]
        assert wanted.pop("--security-opt") == ["no-new-privileges"]
        assert found == wanted
        assert rest == image


def test_podman_says_what_docker_says_but_for_what_is_its_own(plans):
    d = deploy(plans["h100"], ALL)
    docker, image = options(run_argv(d, "docker", mode="detached"))
    podman, same = options(run_argv(d, "podman", mode="detached", rootless=True))
    assert image == same
    assert podman.pop("--device") == [f"nvidia.com/gpu={MIG}"]
    assert docker.pop("--gpus") == [f"device={MIG}"]
    assert podman.pop("--userns") == ["keep-id:uid=4321,gid=4321"]
    for name in [n for n in podman if n.startswith("--health")]:
        podman.pop(name)
    for logs in ("--log-driver", "--log-opt"):
        docker.pop(logs)
        podman.pop(logs)
    assert docker == podman


def test_podman_gets_the_full_name_of_what_was_built_here(plans):
    _, rest = options(run_argv(deploy(plans["cpu"]), "podman"))
    assert rest == ["localhost/comfyui:cpu"]


def test_the_health_check_is_the_images_own(root, plans):
    d = deploy(plans["cpu"])
    dockerfile = (root / "rendered" / "cpu" / "Dockerfile").read_text()
    line = next(x for x in dockerfile.splitlines() if x.startswith("HEALTHCHECK"))
    assert f"--interval={d.health.interval}s --timeout={d.health.timeout}s" in line
    assert f"--start-period={d.health.start_period}s" in line
    assert all(f'"{word}"' in line for word in d.health.command)
    assert "--retries" not in line  # the engine's default, which is
    assert d.health.retries == 3


def test_exit_codes_that_are_not_restarted_are_those_of_the_document(root, plans):
    text = " ".join((root / "docs" / "exit-codes.md").read_text().split())
    assert "restarts on failure need not for 2, 76 and 77" in text
    for engine in ("podman", "docker"):
        files = unit_files(deploy(plans["cpu"]), engine, at_boot=False, user=False)
        assert "RestartPreventExitStatus=2 76 77\n" in "".join(files.values())
