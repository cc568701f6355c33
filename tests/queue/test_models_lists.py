"""Lists of models: every mistake at once; what is shipped; what fits where."""

from __future__ import annotations

from pathlib import Path

import pytest
from modelskit import model_list, models_of

from comfywork.errors import ConfigError
from comfywork.models import budget, modellist, selection, targets

GOOD = {"repository": "owner/name", "file": "a/m.safetensors", "revision": "main", "folder": "vae"}


def refused(text):
    with pytest.raises(ConfigError) as caught:
        modellist.parse(text.encode(), Path("l.yaml"))
    return caught.value.messages


def with_file(**more):
    return model_list({**GOOD, **more})


def test_every_mistake_at_once_with_line_and_nearest_key():
    text = """\
schema: 1
title: x
source: y
modells: []
models:
  - name: A b
    titel: t
    licence: x
    workloads: []
    vram: {gb: -1, by: me}
    files:
      - repository: x
        folder: checkpoint
        sha256: 123
      - url: http://a.b/c
        folder: unet
"""
    found = refused(text)
    assert found == (
        "l.yaml:4: modells: is not known (did you mean 'models'?)",
        "l.yaml:6: models[0].name: must be small letters, digits, '.', '_' and '-'",
        "l.yaml:6: models[0]: title is missing",
        "l.yaml:7: models[0].titel: is not known (did you mean 'title'?)",
        "l.yaml:9: models[0].workloads: list should have at least 1 item after validation, not 0",
        "l.yaml:10: models[0].vram.gb: input should be greater than 0",
        "l.yaml:12: models[0].files[0].repository: must be OWNER/NAME, as in the address of its page",
        "l.yaml:13: models[0].files[0].folder: 'checkpoint' is none of ComfyUI's folders (did you mean 'checkpoints'?)",
        "l.yaml:14: models[0].files[0].sha256: must be a text: put it in quotes",
        "l.yaml:15: models[0].files[1].url: must begin with https:// (http:// only on this machine's loopback)",
        "l.yaml:16: models[0].files[1].folder: 'unet' is ComfyUI's old name: write 'diffusion_models'",
    )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"file": "../../etc/passwd"}, "path inside the repository"),
        ({"file": "/etc/passwd"}, "path inside the repository"),
        ({"folder": "vae/../../x"}, "plain folder names"),
        ({"folder": "../vae"}, "none of ComfyUI's folders"),
        ({"folder": "custom_nodes"}, "none of ComfyUI's folders"),
        ({"save_as": "../x.safetensors"}, "plain file name"),
        ({"save_as": ".x.safetensors"}, "plain file name"),
        ({"save_as": "x.part"}, "plain file name"),
        ({"save_as": "x" * 201}, "plain file name"),
        ({"revision": "a b"}, "branch, tag or commit"),
        ({"sha256": "A" * 64}, "64 hexadecimal digits"),
        ({"size": 0}, "greater than 0"),
        ({"about": "big"}, "no size"),
        ({"url": "https://example.org/x"}, "which one?"),
    ],
)
def test_refused(more, says):
    assert any(says in message for message in refused(with_file(**more)))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/x",
        "https://user:secret@example.org/x",
        "https:///x",
        "file:///etc/passwd",
        "https://[::1",
        "x",
    ],
)
def test_refused_addresses(url):
    found = refused(model_list({"url": url, "folder": "vae"}))
    assert len(found) == 1
    assert "secret" not in found[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("a: [", "is not YAML"),
        ("a: 1\na: 2\n", "is not YAML"),
        ("a: &x [1]\nb: *x\n", "anchors"),
        ("[" * 5000, "nested too deeply"),
        ("- 1\n", "must be keys with values"),
        ("x" * 1_000_001, "larger than"),
    ],
)
def test_not_a_list(text, says):
    assert any(says in message for message in refused(text)), refused(text)


def test_not_text():
    with pytest.raises(ConfigError, match=r"l\.yaml:2: is not UTF-8"):
        modellist.parse(b"a: 1\n\xff", Path("l.yaml"))


def test_two_files_in_one_place():
    text = model_list(GOOD, {**GOOD, "repository": "owner/other"})
    assert "give one of them save_as" in refused(text)[0]


def test_one_file_in_two_models_is_one_file(tmp_path):
    text = model_list(GOOD)
    both = text + text[text.index("  - name: tiny") :].replace("tiny", "other")
    assert len(selection.unique(models_of(both, tmp_path))) == 1


def test_two_lists_that_want_different_files_in_one_place(tmp_path):
    first = models_of(model_list(GOOD), tmp_path)
    second = models_of(model_list({**GOOD, "repository": "owner/other"}), tmp_path)
    with pytest.raises(ConfigError, match="which one"):
        selection.unique([*first, *second])


def test_locked_or_not(tmp_path):
    locked = {**GOOD, "revision": "a" * 40, "size": 1, "sha256": "0" * 64}
    assert models_of(model_list(locked), tmp_path)[0].locked
    assert models_of(model_list(GOOD), tmp_path)[0].files[0].lacks == ("revision", "size", "sha256")


class TestShipped:
    @pytest.mark.parametrize("name", modellist.shipped())
    def test_is_valid_and_says_that_it_is_not_locked(self, name):
        found = modellist.load(name)
        assert not found.locked
        assert "not locked" in found.path.read_text() or "without access to the hub" in found.path.read_text()

    def test_everything_that_the_document_names_is_there_or_left_out_with_a_reason(self):
        found = modellist.load("h100-workshop")
        assert [model.name for model in found.models] == [
            "wan2.2-t2v-14b",
            "wan2.2-i2v-14b",
            "ltx-2",
            "mochi-1",
            "flux2-dev",
            "z-image-turbo",
            "sd3.5-large",
            "juggernaut-xl-v9",
            "hunyuanvideo-i2v",
            "skyreels-v1-i2v",
        ]
        assert [left.name for left in found.content.left_out] == [
            "HunyuanImage-3.0",
            "Stream DiffVSR",
            "HiStream",
        ]

    def test_none_of_the_documents_wrong_repositories(self):
        for name in modellist.shipped():
            for model in modellist.load(name).models:
                for file in model.files:
                    assert file.repository not in (
                        "wand-ai/wan-2.2",
                        "stabilityai/z-image-turbo",
                        "SkyworkAI/SkyReels-v1",
                    )

    def test_an_unknown_name(self):
        with pytest.raises(ConfigError, match="did you mean 'h100-workshop'"):
            modellist.load("h100-workshp")


class TestBudget:
    def needs(self, **more):
        return budget.needs(modellist.load("h100-workshop").models, **more)

    def test_the_documents_recommendation_fits_by_its_own_figures(self):
        """1 video model and 2 image models, about 60 GB of an H100's 80."""
        wanted = ("wan2.2-t2v-14b", "flux2-dev", "z-image-turbo")
        needs = [need for need in self.needs(declared_only=True) if need.name in wanted]
        found = budget.fit(needs, targets.chosen(("h100",), None, None)[0])
        assert [need.name for need in found.held] == list(wanted)
        assert found.used == 60

    def test_weights_larger_than_declared_count(self):
        need = next(need for need in self.needs() if need.name == "ltx-2")
        assert (need.declared, need.largest, need.counted, need.doubtful) == (10, 27.1, 27.1, True)

    def test_what_does_not_fit_is_told_apart(self):
        found = budget.fit(self.needs(), targets.chosen((), 20, None)[0])
        assert [need.name for need in found.held] == ["z-image-turbo"]
        assert [need.name for need in found.left] == ["sd3.5-large", "juggernaut-xl-v9", "skyreels-v1-i2v"]
        assert "wan2.2-t2v-14b" in [need.name for need in found.never]

    @pytest.mark.parametrize("target", targets.KNOWN, ids=lambda t: t.name)
    def test_the_bar_has_the_width_and_shows_everything_held(self, target):
        needs = self.needs()
        letters = {need.name: chr(ord("A") + i) for i, need in enumerate(needs)}
        found = budget.fit(needs, target)
        drawn = budget.bar(found, letters)
        assert len(drawn) == 40
        assert {letters[need.name] for need in found.held} == set(drawn) - {".", "#"}
        assert drawn.count("#") == round(target.kept * 40 / target.memory)

    def test_targets(self):
        assert [t.name for t in targets.chosen(("ada", "gb10"), None, None)] == [
            "ada-48gb",
            "ada-24gb",
            "ada-12gb",
            "gb10",
        ]
        assert targets.chosen(("h100",), None, 4)[0].usable == 76

    def test_the_images_own_target(self, tmp_path):
        (tmp_path / "p.json").write_text('{"target": "gb10"}')
        assert targets.here(tmp_path / "p.json") == "gb10"
        assert targets.here(tmp_path / "none.json") is None
