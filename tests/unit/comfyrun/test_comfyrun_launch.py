from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from syntheticui import STRANGER

from comfyrun.errors import ConfigError
from comfyrun.options import REQUIRED_FLAGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from comfyrun.launch import Launch

    Start = Callable[..., Launch]


def flags_of(launch: Launch) -> list[str]:
    return [str(option) for option in launch.options]


def variables_of(launch: Launch) -> dict[str, tuple[str, str]]:
    return {v.name: (v.value, v.origin) for v in launch.variables}


def refused(start: Start, *arguments: str, **env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        start(*arguments, env=env)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_default_start(start: Start) -> None:
    launch = start()
    assert launch.argv == (
        "/opt/venv/bin/python",
        "/opt/comfyui/main.py",
        "--base-directory",
        "/data",
        "--database-url",
        "sqlite:////data/user/comfyui.db",
        "--extra-model-paths-config",
        "/etc/comfyrun/extra_model_paths.yaml",
        "--listen",
        "0.0.0.0",
        "--port",
        "8188",
        "--disable-auto-launch",
        "--use-sage-attention",
        "--gpu-only",
        "--reserve-vram",
        "8",
    )
    assert (launch.listen, launch.port, launch.tls) == (("0.0.0.0",), 8188, False)
    assert (launch.profile, launch.profile_origin) == ("default", "default")
    assert launch.workdir == "/data"
    assert launch.notes == ()
    assert set(REQUIRED_FLAGS) <= {o.name for o in launch.options}


def test_each_value_knows_its_origin(start: Start) -> None:
    env = {"COMFY_PORT": "9000", "COMFY_ARGS": "--preview-method auto", "COMFY_DATA": "/mnt/x/"}
    launch = start("--verbose", env=env)
    origins = {o.name: o.origin for o in launch.options}
    assert origins == {
        "--base-directory": "COMFY_DATA",
        "--database-url": "COMFY_DATA",
        "--extra-model-paths-config": "comfyrun",
        "--listen": "default",
        "--port": "COMFY_PORT",
        "--disable-auto-launch": "comfyrun",
        "--use-sage-attention": "profile default",
        "--gpu-only": "profile default",
        "--reserve-vram": "profile default",
        "--preview-method": "COMFY_ARGS",
        "--verbose": "command line",
    }
    assert launch.workdir == "/mnt/x"


def test_later_layers_win(start: Start) -> None:
    env = {"COMFY_ARGS": "--reserve-vram 2 --port 1111", "COMFY_PORT": "2222"}
    assert "--reserve-vram 2" in flags_of(start(env=env))
    assert start(env=env).port == 1111
    launch = start("--reserve-vram=3", "--port", "3333", env=env)
    assert [f for f in flags_of(launch) if "vram" in f] == ["--reserve-vram 3"]
    assert launch.port == 3333


def test_cpu_on_a_gpu_profile(start: Start) -> None:
    launch = start("--cpu")
    assert "--cpu" in flags_of(launch)
    assert not {"--gpu-only", "--use-sage-attention"} & set(flags_of(launch))
    assert launch.notes == (
        "--cpu (command line) replaces --gpu-only (profile default)",
        "--cpu drops --use-sage-attention (profile default): it needs a GPU",
    )


def test_an_attention_typed_beside_cpu_is_kept(start: Start) -> None:
    assert "--use-sage-attention" in flags_of(start("--cpu", "--use-sage-attention"))


def test_a_flag_replaces_its_alias_and_its_group(start: Start) -> None:
    launch = start("--use-flash-attention", "--disable-api-nodes", env={"COMFY_ARGS": "--offline"})
    given = flags_of(launch)
    assert "--use-flash-attention" in given
    assert "--use-sage-attention" not in given
    assert "--disable-api-nodes" in given
    assert "--offline" not in given


def test_flags_that_add_up_are_kept(start: Start) -> None:
    launch = start("--extra-model-paths-config", "/a.yaml", "/b.yaml", "--verbose", "DEBUG")
    assert flags_of(launch).count("--extra-model-paths-config /a.yaml /b.yaml") == 1
    assert "--extra-model-paths-config /etc/comfyrun/extra_model_paths.yaml" in flags_of(launch)


def test_another_profile(start: Start) -> None:
    launch = start(env={"COMFY_PROFILE": "classic"})
    assert launch.profile_origin == "COMFY_PROFILE"
    assert "--highvram" in flags_of(launch)
    assert variables_of(launch)["OMP_NUM_THREADS"] == ("20", "profile classic")


def test_base_directory_moves_everything(start: Start) -> None:
    launch = start("--base-directory", "/srv/comfy")
    assert launch.workdir == "/srv/comfy"
    assert "--database-url sqlite:////srv/comfy/user/comfyui.db" in flags_of(launch)
    assert [f for f in flags_of(launch) if "--base-directory" in f] == ["--base-directory /srv/comfy"]
    assert "/srv/comfy/user" in {d.path for d in launch.directories}
    assert variables_of(launch)["NOTES"][0] == "/srv/comfy/{x}"


@pytest.mark.parametrize(
    ("arguments", "listen"),
    [
        (("--listen",), ("0.0.0.0", "::")),
        (("--listen", "127.0.0.1,::1"), ("127.0.0.1", "::1")),
        (("--listen", "localhost"), ("localhost",)),
    ],
)
def test_listen(start: Start, arguments: tuple[str, ...], listen: tuple[str, ...]) -> None:
    assert start(*arguments).listen == listen


def test_tls_is_seen(start: Start) -> None:
    launch = start("--tls-keyfile", "/run/secrets/key", "--tls-certfile", "/run/secrets/cert")
    assert launch.tls
    assert [f.path for f in launch.files] == ["/run/secrets/cert", "/run/secrets/key"]


def test_a_value_that_looks_like_a_flag_stays_one_token(start: Start) -> None:
    assert "--database-url=-odd" in start("--database-url=-odd").argv


def test_environment_of_the_profile(start: Start) -> None:
    launch = start(env={"HF_HOME": "/mine", "SECRET": "x", "COMFY_CACHE": "/c"})
    assert variables_of(launch)["HF_HOME"] == ("/mine", "environment")
    assert variables_of(launch)["PYTHONUNBUFFERED"] == ("1", "profile default")
    assert launch.environment["SECRET"] == "x"
    assert "SECRET" not in variables_of(launch)
    assert variables_of(launch)["XDG_CACHE_HOME"] == ("/c/xdg", "comfyrun")
    folders = {d.path for d in launch.directories}
    assert "/mine" not in folders
    assert "/c" in folders


def test_a_uid_without_a_passwd_entry(start: Start) -> None:
    launch = start(env={"HOME": "/"}, machine=STRANGER)
    assert variables_of(launch)["HOME"] == ("/cache/home", "comfyrun: no writable home")
    assert variables_of(launch)["USER"] == ("comfy", "comfyrun: UID 4321 has no name")
    assert launch.environment["LOGNAME"] == "comfy"
    folders = {d.path: d.needs for d in launch.directories}
    assert folders["/cache/home"] == "write"
    assert "comfy" not in folders


def test_what_the_user_set_is_left_alone(start: Start) -> None:
    env = {"USER": "me", "LOGNAME": "me", "XDG_CACHE_HOME": "/x", "MPLCONFIGDIR": "/m"}
    launch = start(env=env, machine=STRANGER)
    assert {k: launch.environment[k] for k in env} == env
    assert not {"USER", "XDG_CACHE_HOME"} & variables_of(launch).keys()


def test_a_known_user_keeps_home_and_name(start: Start) -> None:
    assert not {"HOME", "USER"} & variables_of(start()).keys()


def test_models_may_be_read_only(start: Start) -> None:
    needs = {d.path: d.needs for d in start().directories}
    assert needs["/data/models"] == "exist"
    assert needs["/data/output"] == needs["/data/user"] == needs["/cache"] == "write"


def test_kubernetes_variables_are_ignored_with_one_line(start: Start) -> None:
    launch = start(
        env={
            "COMFY_PORT": "tcp://10.0.0.7:8188",
            "COMFY_PORT_8188_TCP": "tcp://10.0.0.7:8188",
            "COMFY_PORT_8188_TCP_ADDR": "10.0.0.7",
            "COMFY_SERVICE_HOST": "10.0.0.7",
            "COMFY_UI_SERVICE_PORT_HTTP": "8188",
        }
    )
    assert launch.port == 8188
    assert len(launch.notes) == 1
    assert "COMFY_PORT, COMFY_PORT_8188_TCP, COMFY_PORT_8188_TCP_ADDR" in launch.notes[0]


def test_variables_of_comfyui_libraries_pass(start: Start) -> None:
    assert start(env={"COMFY_KITCHEN_DISABLE_HIP": "1", "COMFY_AIMDO_X": "1"}).notes == ()


def test_an_empty_variable_is_unset(start: Start) -> None:
    launch = start(env=dict.fromkeys(("COMFY_PORT", "COMFY_ARGS", "COMFY_PROFILE", "COMFY_DATA"), ""))
    assert launch.port == 8188
    assert launch.profile_origin == "default"


@pytest.mark.parametrize("port", ["0", "65536", "99999", "-1", "eight", "80 80", "8188.0", "٨", "1e3", " "])
def test_bad_ports(start: Start, port: str) -> None:
    assert "is not a port" in refused(start, COMFY_PORT=port)


def test_a_bad_port_among_the_arguments(start: Start) -> None:
    assert refused(start, "--port", "0").startswith("command line: --port '0' is not a port")
    assert "COMFY_ARGS: --port 'x' is not a whole number" in refused(start, COMFY_ARGS="--port x")


@pytest.mark.parametrize("listen", ["300.1.1.1", "0.0.0.0,", "a b", "1.2.3", "-x", "::g"])
def test_bad_addresses(start: Start, listen: str) -> None:
    assert "neither an IP address nor a host name" in refused(start, COMFY_LISTEN=listen)


@pytest.mark.parametrize("path", ["data", "./data", "/", "/.", "/a/../b", "/a\0b", "/a\nb"])
def test_bad_directories(start: Start, path: str) -> None:
    assert refused(start, COMFY_DATA=path)
    assert refused(start, "--base-directory", path)


def test_unbalanced_quotes_do_not_show_the_arguments(start: Start) -> None:
    message = refused(start, COMFY_ARGS="--database-url 'postgres://u:secret@h")
    assert message == (
        "COMFY_ARGS: a quote (\" or ') is opened and not closed: close it, or put a backslash before it"
    )


def test_every_mistake_at_once_with_the_nearest_name(start: Start) -> None:
    message = refused(start, COMFY_PROT="1", COMFY_PORT="0", COMFY_ARG="--cpu", COMFY_CACHE="x")
    assert message.splitlines() == [
        "COMFY_ARG: comfyrun knows no such variable (did you mean COMFY_ARGS?)",
        "COMFY_CACHE: 'x' is not an absolute path: it has to begin with /",
        "COMFY_PORT: '0' is not a port: a whole number from 1 to 65535",
        "COMFY_PROT: comfyrun knows no such variable (did you mean COMFY_PORT?)",
    ]


def test_unknown_profile(start: Start) -> None:
    assert refused(start, COMFY_PROFILE="clasic") == (
        "COMFY_PROFILE: this image has no profile 'clasic' (did you mean classic?); it has classic, default"
    )


def test_mistakes_in_two_layers_are_told_together(start: Start) -> None:
    message = refused(start, "--cpuu", COMFY_ARGS="--gpu-only --cpu --preview-method none2")
    assert message.splitlines() == [
        "COMFY_ARGS: --preview-method 'none2' is none of none, auto (did you mean none?)",
        "COMFY_ARGS: --gpu-only and --cpu exclude each other: keep one of them",
        "command line: this ComfyUI has no flag --cpuu (did you mean --cpu?)",
    ]
