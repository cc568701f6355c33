from __future__ import annotations

import json
from dataclasses import replace

import pytest

from imgbuild.contents import Contents
from imgbuild.diffreport import page, view
from imgbuild.hardware import Hardware
from imgbuild.imagediff import changes, difference, pair_layers
from imgbuild.imageinfo import facts, runs_here, secret_free, shared_rows
from imgbuild.imageview import Layer, View, layer_names
from imgbuild.locate import is_remote, sized

GROUPS = ("nvidia", "torch", "python", "media", "comfy")


def layers(*names, stored=True, unpacked=True):
    """'torch=a' is a layer of that name and content."""
    found = []
    for text in names:
        name, _, content = text.partition("=")
        found.append(
            Layer(
                diff=f"sha256:{content or name}",
                name=name,
                created_by="",
                stored=10 * len(name) if stored else None,
                unpacked=100 * len(name) if unpacked else None,
            )
        )
    return tuple(found)


def image(*names, **changes):
    known = {k: changes.pop(k) for k in ("stored", "unpacked") if k in changes}
    base = View(
        reference="a",
        place="docker",
        digest="sha256:1",
        platform="linux/amd64",
        created=None,
        labels={},
        environment={},
        user="",
        entrypoint=(),
        command=(),
        ports=(),
        volumes=(),
        healthcheck=False,
        layers=layers(*names, **known),
    )
    return replace(base, **changes)


def packages(**python):
    return Contents(python=python, debian={}, source="x")


def test_equal_images():
    a = image("base", "torch")
    found = difference(a, a, packages(numpy="2"), packages(numpy="2"))
    assert found.empty
    assert found.stored.shared == a.stored
    assert json.loads(json.dumps(found.as_json()))["same"] is True


def test_pairs_are_by_content_then_by_place_then_alone():
    a = layers("base", "torch", "kernel a=1", "kernel b=1", "comfyui", "profile=1")
    b = layers("base", "torch", "kernel a=2", "comfyui", "more", "profile=2")
    pairs = pair_layers(a, b)
    assert [(p.name, bool(p.a), bool(p.b), p.same) for p in pairs] == [
        ("base", True, True, True),
        ("torch", True, True, True),
        ("kernel a", True, True, False),
        ("kernel b", True, False, False),
        ("comfyui", True, True, True),
        ("more", False, True, False),
        ("profile", True, True, False),
    ]


def test_changes_in_order():
    found = changes({"b": "1", "c": "1", "same": "x"}, {"a": "1", "c": "2", "same": "x"})
    assert [(c.sign, c.name, c.a, c.b) for c in found] == [
        ("+", "a", None, "1"),
        ("-", "b", "1", None),
        ("~", "c", "1", "2"),
    ]


def test_packages_that_are_not_known_are_not_equal_ones():
    found = difference(image("x"), image("x"), packages(a="1"), "it has no SBOM")
    assert found.python is None
    assert found.debian is None
    assert found.sources == ("x", "it has no SBOM")
    assert found.as_json()["python"] is None


def test_sizes_that_nobody_knows():
    a, b = image("base", "own=1", stored=False), image("base", "own=2", unpacked=False)
    found = difference(a, b, "", "")
    assert (found.stored.a, found.stored.b, found.stored.shared) == (None, b.stored, None)
    assert found.unpacked.b is None
    assert sized(b, [a]).layers[0].unpacked == a.layers[0].unpacked
    assert sized(b, [a]).layers[1].unpacked is None


def test_a_layer_that_is_there_twice_counts_once():
    assert image("base", "base").stored == image("base").stored


def test_shared_of_each_two():
    rows = shared_rows([image("base", "x"), image("base", "y"), image("z")])
    assert [r["layers"] for r in rows] == [1, 0, 0]
    assert [r["stored_bytes"] for r in rows] == [40, 0, 0]


# --- names of layers -----------------------------------------------------------------------------

KERNELS = "probe=1.0.0@d1586481b03fa4e2:sm_90,flash-attn=2.8.3@b95fd3cd3ed272d4:sm_90"
COPY = "COPY /o/ / # buildkit"


@pytest.mark.parametrize(
    ("created_by", "kernels", "names"),
    [
        (
            ["ADD base.tar / # buildkit", *[COPY] * 11],
            KERNELS,
            ["base", *GROUPS, "kernel probe", "kernel flash-attn", "comfyui", "nodes", "comfyrun", "profile"],
        ),
        (
            ["ADD base.tar /", *[COPY] * 8, "RUN /bin/sh -c pip install mine # buildkit"],
            "none",
            [
                *("base", "torch", "python", "media", "comfy", "comfyui", "nodes", "comfyrun", "profile"),
                "RUN /bin/sh -c pip install mine",
            ],
        ),
        (
            ["ADD base.tar /", "RUN apt-get", *[COPY] * 4],
            "none",
            ["base 1/2", "base 2/2", "comfyui", "nodes", "comfyrun", "profile"],
        ),
        (["ADD x /", COPY], "none", ["ADD x /", "COPY /o/ /"]),
        (["ADD x /", *[COPY] * 20], "none", ["ADD x /", *["COPY /o/ /"] * 20]),
        ([*[COPY] * 4, "RUN x", COPY], "none", [*["COPY /o/ /"] * 4, "RUN x", "COPY /o/ /"]),
        (["", COPY], "broken label", ["–", "COPY /o/ /"]),
    ],
)
def test_names_of_layers(created_by, kernels, names):
    labels = {"imgbuild.target": "x", "imgbuild.kernels": kernels}
    assert list(layer_names(created_by, labels, GROUPS)) == names


def test_layers_of_others_keep_their_lines():
    long = "/bin/sh -c #(nop) ADD file:" + "0" * 100 + " in / "
    names = layer_names([long, COPY], {}, GROUPS)
    assert names[0].startswith("ADD file:000")
    assert len(names[0]) == 60


def test_every_target_of_the_matrix_gets_the_names_of_its_plan(plans, matrix):
    groups = [layer.name for layer in matrix.common.layers]
    for plan in plans.values():
        expected = [
            "base",
            *(layer.name for layer in plan.layers),
            *(f"kernel {k.name}" for k in plan.kernels),
            *("comfyui", "nodes", "comfyrun", "profile"),
        ]
        created_by = ["ADD base.tar /", *[COPY] * (len(expected) - 1)]
        assert list(layer_names(created_by, plan.labels, groups)) == expected


# --- the page ------------------------------------------------------------------------------------


def test_the_page_is_whole_and_escapes(root):
    a = image("base", "<script>alert(1)</script>=1", reference="a<b>", environment={"API_TOKEN": "t0ps3cret"})
    b = image("base", "<script>alert(1)</script>=2", "only", labels={"x": "<img src=y>"})
    found = difference(a, b, packages(numpy="1"), packages(numpy="2"))
    text = page(found, templates=root / "templates", version="1")
    assert "<script" not in text
    assert "<img" not in text
    assert "t0ps3cret" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert "a&lt;b&gt;" in text


def test_blocks_are_to_one_scale():
    a, b = image("base", "x=1"), image("base", "long name", "x=2")
    shown = view(difference(a, b, "unknown", "unknown"))
    assert shown["measure"] == "unpacked"
    whole, other = shown["pictures"]
    assert [x["kind"] for x in whole["bars"][1]["blocks"]] == ["other", "only", "same"]
    assert sum(x["height"] for x in whole["bars"][1]["blocks"]) == pytest.approx(100, abs=0.1)
    assert whole["bars"][0]["total"] == 500
    assert [x["kind"] for x in other["bars"][0]["blocks"]] == ["other"]
    assert other["bars"][0]["total"] == 100


# --- what is told of one image -------------------------------------------------------------------


def test_secrets_are_not_shown():
    shown = dict(
        secret_free({"HF_TOKEN": "hf_x", "INDEX": "https://me:pw@host/x", "PATH": "/bin", "db_password": "x"})
    )
    assert shown == {"HF_TOKEN": "***", "INDEX": "https://***@host/x", "PATH": "/bin", "db_password": "***"}


def test_an_image_of_somebody_else():
    found = runs_here(image("x"), Hardware(), "linux/amd64")
    assert not found.runs
    assert "no label imgbuild.target" in found.why
    assert ("made for", "not known: it has no label imgbuild.target") in facts(image("x"))


@pytest.mark.parametrize(
    ("text", "remote"),
    [
        ("comfyui:h100", False),
        ("localhost/comfyui:h100", False),
        ("team/comfyui:h100", False),
        ("localhost:5000/comfyui", True),
        ("127.0.0.1:5000/comfyui:h100", True),
        ("registry.example/comfyui@sha256:" + "0" * 64, True),
    ],
)
def test_what_is_in_a_registry(text, remote):
    assert is_remote(text) == remote
