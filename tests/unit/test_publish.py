from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakeregistry import fake_registry
from test_build import Recorded, builder, targets  # noqa: F401
from tinyimage import write_layout

from imgbuild.build import Options
from imgbuild.cli import main
from imgbuild.engines import Image
from imgbuild.errors import BuildError, ConfigError, DiskError, EngineError, RegistryError, VerificationError
from imgbuild.layout import Layout
from imgbuild.publish import publish
from imgbuild.publisher import Publisher
from imgbuild.sbom import SBOM
from imgbuild.transport import Patience

NAME = "team/comfyui"
DAY = "20261121"
H100 = ("0.33.0-cu130-h100-20261121", "0.33.0-cu130-h100", "h100")


@pytest.fixture
def fake():
    with fake_registry() as store:
        yield store


@pytest.fixture
def publisher(fake, tmp_path):
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}

    def make(**more):
        options = {"registry": f"{fake.host}/team", "env": env, "say": lambda _: None, "day": DAY}
        return Publisher(**options | {"patience": Patience(pause=0.01), "again": "imgbuild publish …"} | more)

    return make


@pytest.fixture
def made(tmp_path, plans):
    """A layout of a target, whose digests are `made.digests`."""
    count = [0]

    def make(target="h100", **more):
        count[0] += 1
        folder = tmp_path / f"layout-{count[0]}"
        make.digests = write_layout(folder, plans[target], **more)
        return plans[target], Layout(folder)

    return make


def tags(fake):
    return {t: _digest(fake.manifests[NAME, t][1]) for t in fake.tags(NAME) if not t.startswith("sha256-")}


def _digest(raw):
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def test_everything_is_there_before_the_tags(fake, publisher, made):
    work = publisher()
    staged = work.stage(*made())
    assert tags(fake) == {}
    assert (staged.moved.sent > made.digests["size"], staged.moved.there) == (True, 0)
    done = work.finish([staged], "comfyui")
    assert [str(t.reference) for t in done] == [f"{fake.host}/{NAME}:{tag}" for tag in H100]
    assert {t.state for t in done} == {"new"}
    assert tags(fake) == dict.fromkeys(H100, made.digests["index"])
    puts = [a.partition("?")[0].rpartition("/")[::2] for a in fake.asked if a.startswith("PUT")]
    kinds = ["blob" if place.endswith("uploads") else name for place, name in puts]
    first = kinds.index(made.digests["image"])
    assert kinds[:first] == ["blob"] * 4, "blobs go before the manifest that names them"
    assert kinds.index(made.digests["index"]) < kinds.index(staged.sbom) < kinds.index(H100[0])
    assert kinds[-3:] == list(H100), "tags last, and of them the one that never moves first"


def test_what_is_there_stays(fake, publisher, made):
    """Provenance alone is another: by the platform's digest it is the same image, and its index is kept."""
    work = publisher()
    work.finish([work.stage(*made())], "comfyui")
    before, fake.asked[:] = tags(fake), []
    staged = work.stage(*made(when="2026-11-22T20:00:00Z"))
    done = work.finish([staged], "comfyui")
    assert {t.state for t in done} == {"there"}
    assert staged.moved.sent == 0
    assert staged.top.digest == before["h100"] != made.digests["index"]
    assert tags(fake) == before
    assert not any(a.startswith(("PUT", "POST", "PATCH", "DELETE")) for a in fake.asked)


def test_only_what_changed_moves(fake, publisher, made):
    publisher().finish([publisher().stage(*made(bulk=os.urandom(100_000)))], "comfyui")
    before = tags(fake)
    work = publisher(day="20261122")
    staged = work.stage(*made(bulk=b"", profile=b'{"other": 1}'))
    done = work.finish([staged], "comfyui")
    assert [t.state for t in done] == ["new", "moved", "moved"]
    assert staged.moved.there > 0, "the base is the same"
    after = tags(fake)
    assert after[H100[0]] == before[H100[0]], "the tag of the day before is what it was"
    assert after["h100"] == made.digests["index"] != before["h100"]


def test_tag_of_the_day_never_moves(fake, publisher, made):
    work = publisher()
    work.finish([work.stage(*made())], "comfyui")
    held = dict(fake.manifests), dict(fake.blobs)
    with pytest.raises(RegistryError, match="tags of a day never move") as caught:
        work.stage(*made(profile=b'{"other": 1}'))
    assert f"{H100[0]} exists, is another image (sha256:" in str(caught.value)
    assert caught.value.hint == "--date 20261121.2 publishes another one of that day; no tag has moved"
    assert (fake.manifests, fake.blobs) == held, "nothing was sent"
    second = publisher(day="20261121.2")
    done = second.finish([second.stage(*made(profile=b'{"other": 1}'))], "comfyui")
    assert done[0].reference.tag == "0.33.0-cu130-h100-20261121.2"


def test_dry_run_sends_nothing(fake, publisher, made):
    layout = made()
    work = publisher(dry_run=True)
    staged = work.stage(*layout)
    done = work.finish([staged], "comfyui")
    assert {t.state for t in done} == {"new"}
    assert (staged.moved.sent > made.digests["size"], staged.moved.there) == (True, 0)
    assert (fake.manifests, fake.blobs) == ({}, {})
    publisher().stage(*layout)
    told = work.stage(*layout)
    assert (told.moved.sent, told.moved.there) == (0, staged.moved.sent)
    assert not fake.tags(NAME)[1:], "only the referrers' own tag"


def test_second_target_of_a_platform(fake, publisher, made):
    work = publisher()
    bulk = os.urandom(400_000)
    work.stage(*made("h100", bulk=bulk))
    staged = work.stage(*made("ada", bulk=bulk, profile=b'{"ada": 1}'))
    assert staged.moved.there > 400_000
    assert staged.moved.sent < 400_000


def test_blobs_of_another_repository(fake, publisher, made):
    publisher(registry=f"{fake.host}/stage").stage(*made(bulk=os.urandom(100_000)))
    plan, layout = made()
    fake.asked.clear()
    staged = publisher(mount="stage/comfyui").stage(plan, layout)
    assert staged.moved.mounted > 0
    assert any("mount=sha256" in a and "from=stage%2Fcomfyui" in a for a in fake.asked)


def test_sbom_and_provenance_hang_on_the_image(fake, publisher, made):
    staged = publisher().stage(*made())
    index = json.loads(fake.manifests[NAME, staged.top.digest][1])
    assert [m["platform"]["architecture"] for m in index["manifests"]] == ["amd64", "unknown"]
    assert (NAME, index["manifests"][1]["digest"]) in fake.manifests
    listed = json.loads(fake.manifests[NAME, staged.digest.replace(":", "-")][1])["manifests"]
    assert [(m["digest"], m["artifactType"]) for m in listed] == [(staged.sbom, SBOM)]
    manifest = json.loads(fake.manifests[NAME, staged.sbom][1])
    assert manifest["subject"]["digest"] == staged.digest
    bom = json.loads(fake.blobs[NAME, manifest["layers"][0]["digest"]])
    assert {"libc6", "torch", "ComfyUI", "sageattention"} <= {c["name"] for c in bom["components"]}


def test_what_a_garbage_collection_took_comes_back(fake, publisher, made):
    """Of some registries it forgets what only an index points to."""
    work = publisher()
    layout = made()
    staged = work.stage(*layout)
    work.finish([staged], "comfyui")
    before = tags(fake)
    del fake.manifests[NAME, staged.digest]
    del fake.blobs[NAME, made.digests["layers"][1]]
    again = work.stage(*layout)
    assert again.moved.sent > 0
    assert (NAME, staged.digest) in fake.manifests
    assert tags(fake) == before


# One index over several targets


def test_combined_index(fake, publisher, made):
    work = publisher()
    staged = [work.stage(*made(name)) for name in ("gb10", "h100")]
    done = work.finish(staged, "comfyui", combined="all")
    assert (done[-1].reference.tag, done[-1].state) == ("all", "new")
    index = json.loads(fake.manifests[NAME, "all"][1])
    found = [(m["platform"]["architecture"], m["digest"]) for m in index["manifests"]]
    assert found[:2] == [("amd64", staged[1].digest), ("arm64", staged[0].digest)]
    assert [a for a, _ in found[2:]] == ["unknown", "unknown"]
    again = work.finish([work.stage(*made(name)) for name in ("h100", "gb10")], "comfyui", combined="all")
    assert {t.state for t in again} == {"there"}


@pytest.mark.parametrize(
    ("names", "tag", "says"),
    [
        (("ada", "h100"), "all", "ada and h100 are both linux/amd64"),
        (("h100",), "all", "combines targets of two platforms or more"),
        (("gb10", "h100"), "gb10", "that is the tag of a target"),
        (("gb10", "h100"), "a/b", "is no tag"),
    ],
)
def test_combined_index_that_cannot_be(publishing, names, tag, says):
    engine, run, _ = publishing
    with pytest.raises(ConfigError, match="--combined-index") as caught:
        run(names, combined=tag)
    assert says in str(caught.value)
    assert engine.bakes == []


# What goes wrong


def test_failure_before_the_tags_leaves_them(fake, publisher, made):
    publisher().finish([publisher().stage(*made())], "comfyui")
    before = tags(fake)
    fake.misbehave = lambda h: (
        "/manifests/sha256:" in h.path and h.command == "PUT" and (h.body(), h.refuse(500))
    )
    with pytest.raises(RegistryError, match="status 500") as caught:
        publisher(day="20261122").stage(*made(profile=b"{1}"))
    assert "then: imgbuild publish" in caught.value.hint
    assert tags(fake) == before


def test_registry_with_immutable_tags(fake, publisher, made):
    publisher().finish([publisher().stage(*made())], "comfyui")
    before = tags(fake)
    work = publisher(day="20261122")
    staged = work.stage(*made(profile=b"{1}"))

    def immutable(handler):
        if handler.command != "PUT" or not handler.path.endswith("/manifests/0.33.0-cu130-h100"):
            return False
        handler.body()
        handler.refuse(409, "tag is immutable")
        return True

    fake.misbehave = immutable
    with pytest.raises(RegistryError, match="the registry lets nobody move it: tag is immutable") as caught:
        work.finish([staged], "comfyui")
    assert f"stays at {before['h100']}" in str(caught.value)
    assert "0.33.0-cu130-h100-20261122" in str(caught.value), "what has moved is said"
    assert staged.top.digest in caught.value.hint
    assert {t: d for t, d in tags(fake).items() if t in before} == before


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"platform": "linux/arm64"}, "it holds linux/arm64, not linux/amd64"),
        ({"labels": {"imgbuild.plan": "other"}}, "with the plan other"),
    ],
)
def test_image_that_is_not_the_plans(fake, publisher, made, more, says):
    with pytest.raises(VerificationError, match=says):
        publisher().stage(*made(**more))
    assert fake.blobs == {}


@pytest.mark.parametrize("damage", ["missing", "short", "altered"])
def test_layout_that_is_not_whole(fake, publisher, made, damage):
    plan, layout = made()
    digest = made.digests["image" if damage == "altered" else "layers"]
    path = (
        layout.folder / "blobs/sha256" / (digest if isinstance(digest, str) else digest[1]).partition(":")[2]
    )
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-1] + b"!" * (damage == "altered"))
    with pytest.raises(VerificationError, match="what the engine gave out is not whole"):
        publisher().stage(plan, layout)
    assert fake.blobs == {}


def test_registry_is_asked_before_anything_is_built(fake, publisher):
    fake.misbehave = lambda h: h.refuse(401) or True
    with pytest.raises(RegistryError, match="wants another login") as caught:
        publisher().check("comfyui")
    assert caught.value.hint == f"docker login {fake.host}, then: imgbuild publish …"


@pytest.mark.parametrize("where", ["", "x", "team/x", "https://r.example/x", "r.example/X"])
def test_no_place(publisher, where):
    with pytest.raises(ConfigError, match="is no place in a registry"):
        publisher(registry=where)


@pytest.mark.parametrize("day", ["", "today", "2026-11-21", "20261121.x", "20261121.1234"])
def test_no_day(publisher, day):
    with pytest.raises(ConfigError, match="write it as YYYYMMDD"):
        publisher(day=day)


def test_key_without_cosign_or_no_key(publisher, tmp_path):
    with pytest.raises(EngineError, match="'cosign' is not installed") as caught:
        publisher(key="cosign.key", env={"PATH": str(tmp_path)})
    assert "apt-get install cosign" in caught.value.hint
    (tmp_path / "cosign").write_text("#!/bin/sh\n")
    (tmp_path / "cosign").chmod(0o755)
    with pytest.raises(ConfigError, match="there is no key"):
        publisher(key=str(tmp_path / "no.key"), env={"PATH": str(tmp_path)})


# End to end, with an engine that gives out what it is told to


class Exporting(Recorded):
    """Its bakes write tiny layouts where the bake file wants them."""

    def __init__(self):
        super().__init__()
        self.layers, self.spoilt, self.plans = {}, {}, ()

    def find(self, tag):
        if tag not in self.layers:
            return None
        return Image(tag=tag, digest="sha256:1", platform="", labels={}, size=1, layers=self.layers[tag])

    def bake(self, bake_file, targets, **options):
        status = super().bake(bake_file, targets, **options)
        for name, entry in json.loads(bake_file.read_text())["target"].items():
            assert entry["attest"] == ["type=provenance,mode=min"]
            assert "force-compression=true" in entry["output"][0]
            plan = next(p for p in self.plans if p.name == name)
            if name in self.spoilt:
                return self.spoilt[name]
            write_layout(Path(re.search(r"dest=([^,]+)", entry["output"][0])[1]), plan)
        return status


@pytest.fixture
def publishing(fake, builder, publisher):  # noqa: F811
    engine = Exporting()
    work, said = builder(engine)

    def run(names, combined=None, **more):
        options = Options(force=True)
        selected = targets(work, *names)
        engine.plans = work.plans(selected, work.source(options)[0], options)
        return publish(work, publisher(**more), selected, options, combined=combined)

    return engine, run, said


def test_publish(fake, publishing):
    engine, run, said = publishing
    done = run(("gb10", "h100"), combined="all")
    assert [s.target for s in done.images] == ["gb10", "h100"]
    assert [names for _, names in engine.bakes] == [("gb10",), ("h100",)]
    assert len(done.tags) == 7
    assert done.strange == ()
    assert sorted(tags(fake)) == sorted(t.reference.tag for t in done.tags)
    assert not any("NOT the same" in s for s in said)


def test_one_target_that_fails_keeps_all_tags(fake, publishing):
    engine, run, _ = publishing
    engine.spoilt = {"h100": 1}
    with pytest.raises(BuildError, match="nothing is published, no tag has moved") as caught:
        run(("gb10", "h100"))
    assert "when it builds: imgbuild publish" in caught.value.hint
    assert tags(fake) == {}


def test_what_was_tested_is_not_what_is_published(publishing):
    engine, run, said = publishing
    engine.layers = {"comfyui:0.33.0-cu130-h100": ("sha256:1",)}
    assert run(("h100",)).strange == ("h100",)
    assert any("NOT the same as comfyui:0.33.0-cu130-h100 of this engine: 3 of 3 layers" in s for s in said)


def test_full_disk_is_told_before_the_export(publishing, builder, monkeypatch, publisher):  # noqa: F811
    engine, _, _ = publishing
    work, _ = builder(engine)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    here = Image(tag="", digest="", platform="", labels={}, size=1)
    monkeypatch.setattr(engine, "find", lambda _: here)
    with pytest.raises(DiskError, match="compressing h100 may take"):
        publish(work, publisher(), targets(work, "h100"), Options())
    assert engine.bakes == []


def test_publishing_leaves_no_files(publishing, tmp_path):
    _, run, _ = publishing
    folder = tmp_path / "cache/publish"
    for name, age in (("killed", 90_000), ("under-way", 100)):
        (folder / name / "layout").mkdir(parents=True)
        os.utime(folder / name, (time.time() - age,) * 2)
    run(("h100",))
    assert [p.name for p in folder.iterdir()] == ["under-way"]


# The command line


def test_command_fails_early(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    fake.misbehave = lambda h: h.refuse(403) or True
    assert main(["push", "-t", "cpu", "--registry", f"{fake.host}/team"]) == 9
    err = capsys.readouterr().err
    assert "forbids it to this login" in err
    assert f"docker login {fake.host}, then: imgbuild push --target cpu --registry {fake.host}/team" in err
    assert main(["publish", "-t", "cpu", "--registry", "x"]) == 2
    assert main(["publish", "-t", "cpu"]) == 2
    assert main(["publish", "-t", "cpu", "--all", "--registry", f"{fake.host}/team"]) == 2
    assert main(["publish", "-t", "nothing", "--registry", f"{fake.host}/team"]) == 3


def test_sbom_command(fake, publisher, made, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    work = publisher()
    work.finish([work.stage(*made())], "comfyui")
    capsys.readouterr()
    assert main(["sbom", f"{fake.host}/{NAME}:h100"]) == 0
    assert json.loads(capsys.readouterr().out)["specVersion"] == "1.6"
    for tag in [k for k in fake.manifests if k[1].startswith("sha256-")]:
        del fake.manifests[tag]
    assert main(["sbom", f"{fake.host}/{NAME}:h100"]) == 9
    assert "has no SBOM in its registry" in capsys.readouterr().err


def test_made_names(plans, publisher):
    work = publisher()
    assert work.tags(plans["cpu"]) == ("0.33.0-cpu-20261121", "0.33.0-cpu", "cpu")
    assert str(work.name("comfyui")).endswith("/team/comfyui")
    assert replace(work, registry="localhost:5000").name("comfyui").path == "comfyui"
