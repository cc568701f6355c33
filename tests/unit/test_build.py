from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from imgbuild import bases, build, estimate, sources
from imgbuild.build import Builder, Options, failure, raise_for
from imgbuild.engines import Image
from imgbuild.errors import BuildError, DiskError, DriftError, EngineError, NetworkError
from imgbuild.matrix import load_matrix
from imgbuild.render import BUILDKIT
from imgbuild.settings import Settings

FAILED = b"""\
#16 [h100 venv-torch 1/1] RUN uv
#16 ERROR: process "/bin/sh -c uv" did not complete successfully: exit code: 2
------
 > [h100 venv-torch 1/1] RUN uv:
0.512 first words
3.101 Hash mismatch for torch
------
Dockerfile:15
--------------------
ERROR: failed to solve: process "/bin/sh -c uv" did not complete successfully: exit code: 2
"""


class Recorded:
    """An engine that answers what it was told to."""

    name = "recorded"
    context = None
    abilities = BUILDKIT

    def __init__(self, *, status=0, says=b"", images=None, lives=True, after=None):
        self.status, self.says, self.images, self.lives = status, says, dict(images or {}), lives
        self.after = after or {}
        self.bakes = []

    def check(self):
        return None

    def alive(self):
        return self.lives

    def data_root(self):
        return Path("/")

    def find(self, tag):
        digest = self.images.get(tag)
        return Image(tag=tag, digest=digest, platform="linux/amd64", labels={}, size=1) if digest else None

    def base_context(self, base, arch):
        return "oci-layout:///x"

    def bake(self, bake_file, targets, *, log, metadata, **_options):
        self.bakes.append((bake_file.read_text(), targets))
        log.write(self.says)
        self.images.update(self.after)
        if self.status == 0:
            metadata.write_text('{"h100": {"containerimage.digest": "sha256:1"}}')
        return self.status


@pytest.fixture
def builder(project, tmp_path, monkeypatch):
    (project.root / "entrypoint").mkdir()
    for path in (project.images / "targets").iterdir():  # about images alone: this engine compiles nothing
        path.write_text(re.sub(r"^kernels: .*\n", "", path.read_text(), flags=re.MULTILINE))
    monkeypatch.setattr(sources, "upstream_reachable", lambda git, env: True)
    monkeypatch.setattr(bases, "registry_has", lambda base, env: True)

    def make(engine, settings=None):
        said = []
        made = Builder(
            project=project,
            matrix=load_matrix(project.images),
            settings=settings or Settings(),
            env={},
            cache=tmp_path / "cache",
            engine=engine,
            say=said.append,
            notice=lambda title, lines: said.append("\n".join([title, *lines])),
        )
        return made, said

    return make


def targets(builder, *names):
    return builder.matrix.select(names)


H100 = "comfyui:0.33.0-cu130-h100"
ADA = "comfyui:0.33.0-cu130-ada"


def test_built_and_cached(builder):
    work, _ = builder(Recorded(images={H100: "sha256:1"}, after={ADA: "sha256:2"}))
    report = work.build(targets(work, "h100", "ada"), Options(force=True))
    assert {o.target: o.state for o in report.outcomes} == {"h100": "cached", "ada": "built"}
    assert report.metadata["h100"]["containerimage.digest"] == "sha256:1"
    assert report.log.is_file()
    raise_for(report, "imgbuild build")


def test_failure_names_stage_lines_log_and_command(builder):
    work, _ = builder(Recorded(status=1, says=FAILED))
    report = work.build(targets(work, "h100"), Options(force=True))
    with pytest.raises(BuildError) as caught:
        raise_for(report, "imgbuild build")
    assert "h100: stage h100 venv-torch 1/1 failed" in str(caught.value)
    assert "    Hash mismatch for torch" in str(caught.value)
    assert str(report.log) in str(caught.value)
    assert caught.value.hint == "imgbuild build --target h100"


def test_each_target_says_what_came_of_it(builder):
    engine = Recorded(status=1, says=FAILED, after={ADA: "sha256:2"})
    work, _ = builder(engine)
    report = work.build(targets(work, "h100", "ada", "gb10"), Options(force=True))
    assert {o.target: o.state for o in report.outcomes} == {
        "h100": "failed",
        "ada": "built",
        "gb10": "not started",
    }


def test_keep_going_makes_one_call_a_target(builder):
    engine = Recorded(status=1, says=FAILED)
    work, _ = builder(engine)
    report = work.build(targets(work, "h100", "ada"), Options(force=True, keep_going=True))
    assert [t for _, t in engine.bakes] == [("ada",), ("h100",)]
    assert all(o.state == "failed" for o in report.outcomes)


def test_engine_that_dies(builder):
    work, _ = builder(Recorded(status=1, says=b"rpc error: EOF\n", lives=False))
    with pytest.raises(EngineError, match="died during the build"):
        work.build(targets(work, "h100"), Options(force=True))


def test_disk_that_fills_up(builder):
    work, _ = builder(Recorded(status=1, says=b"ERROR: write /o: no space left on device\n"))
    with pytest.raises(DiskError, match="the disk is full"):
        work.build(targets(work, "h100"), Options(force=True))


def test_too_small_a_disk_is_refused_before_anything_starts(builder, monkeypatch):
    engine = Recorded()
    work, _ = builder(engine)
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: type("U", (), {"free": 10**9})())
    with pytest.raises(DiskError, match="this build may take"):
        work.build(targets(work, "h100"), Options())
    assert engine.bakes == []


def test_shared_layers_are_estimated_once(builder):
    work, _ = builder(Recorded())
    source = sources.upstream_source(work.project, work.matrix)
    one, two = (
        estimate.disk(work.plans(targets(work, *names), source, Options()), host_platform="linux/amd64")
        for names in (["h100"], ["h100", "ada"])
    )
    assert one.bytes == two.bytes


def test_unreachable_upstream_is_said_loudly(builder, monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "upstream_reachable", lambda git, env: False)
    monkeypatch.setattr(sources, "fallback_tree", lambda *a, **k: _tree(tmp_path / "tree", "0.3.75"))
    engine = Recorded()
    work, said = builder(engine)
    work.build(targets(work, "h100"), Options(force=True))
    assert any("NOT ComfyUI 0.33.0" in s and "imgbuild.comfyui.source=fallback" in s for s in said)
    assert "comfyui:0.3.75-cu130-h100" in engine.bakes[0][0]
    with pytest.raises(NetworkError, match="--no-fallback forbids"):
        work.build(targets(work, "h100"), Options(fallback=False))


def test_base_only_from_a_registry(builder, monkeypatch):
    monkeypatch.setattr(bases, "registry_has", lambda base, env: False)
    work, _ = builder(Recorded())
    with pytest.raises(NetworkError, match="no registry that has debian:trixie-slim"):
        work.build(targets(work, "h100"), Options(base="registry", force=True))


def _tree(path, version, requirements=None):
    for name in ("main.py", "server.py", "nodes.py", "comfy/cli_args.py"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("")
    (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    own = Path(__file__).parents[2] / "images" / "requirements" / "comfyui-0.33.0.txt"
    (path / "requirements.txt").write_text(requirements if requirements is not None else own.read_text())
    (path / "models" / "checkpoints").mkdir(parents=True)
    (path / "models" / "checkpoints" / "big.safetensors").write_text("gigabytes")
    return path


def test_checkout_as_source(builder, tmp_path):
    engine = Recorded()
    work, _ = builder(engine)
    tree = _tree(tmp_path / "tree", "0.33.0")
    seen = {}

    def bake(bake_file, names, *, log, metadata, **_options):
        staged = bake_file.parent / "comfyui-src"
        seen["files"] = {p.relative_to(staged).as_posix() for p in staged.rglob("*") if p.is_file()}
        metadata.write_text("{}")
        return 0

    engine.bake = bake
    work.build(targets(work, "h100"), Options(force=True, sources={"comfyui": tree}))
    assert "main.py" in seen["files"]
    assert not any("safetensors" in f for f in seen["files"]), "a model of the user's never goes in"


def test_checkout_with_other_requirements(builder, tmp_path):
    work, _ = builder(Recorded())
    tree = _tree(tmp_path / "tree", "0.33.0", "torch\nsomething-new\n")
    with pytest.raises(DriftError) as caught:
        work.build(targets(work, "h100"), Options(force=True, sources={"comfyui": tree}))
    assert caught.value.exit_code == 4
    assert caught.value.hint == f"imgbuild lock --source comfyui={tree}"


def test_secrets_are_files_and_nothing_else(builder, tmp_path):
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----")
    engine = Recorded()
    work, _ = builder(engine, Settings(ca_bundle=ca, proxies=(("HTTPS_PROXY", "http://me:hunter2@proxy"),)))
    work.build(targets(work, "h100"), Options(force=True))
    assert "hunter2" not in engine.bakes[0][0]
    assert f"id=ca,src={ca}" in engine.bakes[0][0]


def test_dry_run_builds_nothing(builder):
    engine = Recorded()
    work, _ = builder(engine)
    assert [o.state for o in work.build(targets(work, "h100"), Options(dry_run=True)).outcomes] == [
        "not started"
    ]
    assert engine.bakes == []


def test_failure_without_a_stage():
    assert failure("ERROR: failed to read: no such file\n") == (
        None,
        ("ERROR: failed to read: no such file",),
    )
    assert failure("\x1b[31m > [a 1/2] RUN x:\x1b[0m\nout\n------\n") == ("a 1/2", ("out",))


def test_local_images_have_oci_media_types_and_no_provenance(builder):
    """Docker's media types have none for a zstd layer: the engine refuses to run such an image."""
    engine = Recorded()
    work, _ = builder(engine)
    work.build(targets(work, "h100"), Options(force=True))
    assert "oci-mediatypes=true" in engine.bakes[0][0]
    assert "type=provenance,disabled=true" in engine.bakes[0][0]


def test_cache_of_a_registry_is_a_tag_a_target(builder):
    engine = Recorded()
    work, _ = builder(engine)
    options = Options(force=True, cache_from="r.example/p", cache_to="r.example/q")
    work.build(targets(work, "h100"), options)
    entry = json.loads(engine.bakes[0][0])["target"]["h100"]
    assert entry["cache-from"] == ["type=registry,ref=r.example/p/cache:h100"]
    (to,) = entry["cache-to"]
    assert to.startswith("type=registry,ref=r.example/q/cache:h100,mode=max,")
    assert "ignore-error=true" in to  # its loss costs time, not the build
