from __future__ import annotations

import pytest

from imgbuild.errors import ConfigError
from imgbuild.reference import Reference, image_in

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "host", "path", "tag", "digest"),
    [
        ("localhost/x", "localhost", "x", None, None),
        ("localhost:5000/team/comfyui:gb10", "localhost:5000", "team/comfyui", "gb10", None),
        (f"r.example/a/b-c/d__e@{DIGEST}", "r.example", "a/b-c/d__e", None, DIGEST),
        (f"r.example/x:1.0-cu130@{DIGEST}", "r.example", "x", "1.0-cu130", DIGEST),
        ("[::1]:5000/x:y", "[::1]:5000", "x", "y", None),
        ("docker.io/debian:trixie", "docker.io", "library/debian", "trixie", None),
        ("docker.io/team/x", "docker.io", "team/x", None, None),
    ],
)
def test_parse(text, host, path, tag, digest):
    found = Reference.parse(text)
    assert (found.host, found.path, found.tag, found.digest) == (host, path, tag, digest)
    assert Reference.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "its registry's name first"),
        ("debian:trixie", "docker.io/library/debian"),
        ("team/comfyui:cpu", "docker.io/team/comfyui"),
        ("https://r.example/x", "without https://"),
        ("r.example/X", "small letters"),
        ("r.example//x", "small letters"),
        ("r.example/../x", "small letters"),
        ("r.example/x:", "is no tag"),
        ("r.example/x:-a", "is no tag"),
        (f"r.example/x:{'a' * 129}", "at most 128"),
        ("r.example/x@sha256:123", "64 hexadecimal digits"),
        ("r.example/x@", "64 hexadecimal digits"),
        (f"r.example/{'a' * 256}", "small letters"),
    ],
)
def test_what_is_wrong(text, says):
    with pytest.raises(ConfigError, match="is no image in a registry") as caught:
        Reference.parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_asked_for():
    assert Reference.parse("r.example/x").name == "latest"
    assert Reference.parse("r.example/x:a").name == "a"
    assert Reference.parse(f"r.example/x:a@{DIGEST}").name == DIGEST


def test_default_tag():
    assert str(Reference.parse("r.example/x", tag="cpu")) == "r.example/x:cpu"
    assert Reference.parse("r.example/x:a", tag="cpu").tag == "a"
    assert Reference.parse(f"r.example/x@{DIGEST}", tag="cpu").tag is None


def test_others_of_the_repository():
    found = Reference.parse("r.example/x:a")
    assert str(found.tagged("b")) == "r.example/x:b"
    assert str(found.at(DIGEST)) == f"r.example/x@{DIGEST}"


@pytest.mark.parametrize(
    ("registry", "path"),
    [
        ("ghcr.io/team", "team/comfyui"),
        ("ghcr.io/team/", "team/comfyui"),
        ("ghcr.io/team/comfyui", "team/comfyui"),
        ("ghcr.io/mycomfyui", "mycomfyui/comfyui"),
        ("localhost:5000", "comfyui"),
    ],
)
def test_publishing_and_pulling_mean_the_same_place(registry, path):
    assert image_in(registry, "comfyui") == Reference(host=registry.partition("/")[0], path=path)


@pytest.mark.parametrize(
    ("registry", "words"),
    [
        ("ghcr.io/team/comfyui:h100", "without a tag"),
        ("https://ghcr.io/team", "no place in a registry"),
        ("team", "no place in a registry"),
        ("ghcr.io/Team", "no place in a registry"),
    ],
)
def test_no_place_in_a_registry(registry, words):
    with pytest.raises(ConfigError, match=words):
        image_in(registry, "comfyui")
