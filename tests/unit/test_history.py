from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from imgbuild import bases, history, sources
from imgbuild.build import Builder, Options, Outcome
from imgbuild.engines import Image
from imgbuild.history import KEEP, Record, append, last, records, seconds_by_stage
from imgbuild.matrix import load_matrix
from imgbuild.parts import parts
from imgbuild.plan import make_plan
from imgbuild.render import BUILDKIT
from imgbuild.settings import Settings
from imgbuild.wheelhouse import Entry


def record(number=0, **changes):
    return Record(
        **{
            "when": f"2026-11-21T15:00:{number % 60:02}+00:00",
            "target": "h100",
            "plan": f"{number:016x}",
            "tag": "comfyui:0.33.0-cu130-h100",
            "digest": "sha256:1",
            "state": "built",
            "engine": "docker",
            "base": "registry",
            "seconds": 94.3,
            "components": {"base": {"suite": "trixie"}},
            "stages": {"base": 6.5},
            "compiled": {"kernel:probe": 12},
            "bytes": {"layer:torch": 733_800_000},
            **changes,
        }
    )


def test_none(tmp_path):
    assert last(tmp_path, "h100") is None
    assert records(tmp_path, "h100") == ()
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"


def test_what_goes_in_comes_out(tmp_path):
    append(tmp_path, record(1))
    append(tmp_path, record(2))
    append(tmp_path, record(3, target="ada"))
    assert records(tmp_path, "h100") == (record(1), record(2))
    assert last(tmp_path, "h100") == record(2)
    assert last(tmp_path, "ada") == record(3, target="ada")


DAMAGED = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"\x00\xff\xfe",
    b'{"format": 1}',
    record(7, target="ada").model_dump_json().encode(),
    record(7).model_dump_json().replace('"format":1', '"format":2').encode(),
    record(7).model_dump_json().replace("94.3", "-1").encode(),
    record(7).model_dump_json().replace("94.3", '"94.3"').encode(),
    record(7).model_dump_json().replace("trixie", "tri\\u001b[31mxie").encode(),
    record(7).model_dump_json()[:-30].encode(),
]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_or_foreign_line_is_as_if_it_were_not_there(tmp_path, line):
    append(tmp_path, record(1))
    with (tmp_path / "history" / "h100.jsonl").open("ab") as file:
        file.write(line + b"\n")
    append(tmp_path, record(2))
    assert records(tmp_path, "h100") == (record(1), record(2))


def test_a_line_that_was_broken_off_takes_no_other_with_it(tmp_path):
    append(tmp_path, record(1))
    with (tmp_path / "history" / "h100.jsonl").open("ab") as file:
        file.write(b'{"format":1,"when":"20')
    append(tmp_path, record(2))
    assert records(tmp_path, "h100") == (record(1), record(2))


def test_only_the_last_ones_are_kept(tmp_path):
    for number in range(2 * KEEP + 1):
        append(tmp_path, record(number))
    file = tmp_path / "history" / "h100.jsonl"
    assert len(file.read_text().splitlines()) == KEEP
    assert last(tmp_path, "h100") == record(2 * KEEP)
    assert records(tmp_path, "h100")[0] == record(KEEP + 1)


def _append_many(cache, first):
    for number in range(first, first + 20):
        append(cache, record(number))


def test_builds_at_once_lose_no_line(tmp_path):
    with ThreadPoolExecutor(3) as pool:  # each opens the lock for itself, as processes do
        list(pool.map(partial(_append_many, tmp_path), (0, 100, 200)))
    assert len((tmp_path / "history" / "h100.jsonl").read_text().splitlines()) == 60


# What BuildKit's progress says of time

PLAIN = """\
#1 [internal] load local bake definitions
#1 DONE 0.0s
#24 [context comfyui-src] load from client
#24 DONE 0.9s
#31 [venv-torch 1/1] RUN --mount=type=bind python3 /tmp/stages/install.py
#32 [venv-comfy 1/1] RUN --mount=type=bind python3 /tmp/stages/install.py
#32 7.101 Installed 4 packages
#32 DONE 7.6s
#31 [venv-torch 1/1] RUN --mount=type=bind python3 /tmp/stages/install.py
#31 DONE 20.8s
#35 [runtime  1/10] COPY --link --from=venv-torch /o/ /
#35 DONE 4.6s
#36 [runtime 10/10] COPY --link --from=nodes /o/ /
#36 CACHED
#51 exporting to image
#51 exporting layers 28.9s done
#51 DONE 73.9s
"""


def test_seconds_of_stages():
    assert seconds_by_stage(PLAIN) == {"": {"venv-torch": 25.4, "venv-comfy": 7.6, "export": 73.9}}


def test_seconds_of_several_targets_and_of_two_bakes_in_one_log():
    log = (
        "#5 [gb10-probe compile-probe 1/2] RUN compile\n#5 DONE 8.0s\n"
        "#1 [internal] load local bake definitions\n#5 [internal] load build context\n#5 DONE 3.0s\n"
        "#6 [ada venv-torch 1/1] RUN\n#6 DONE 42.8s\n#7 [h100 venv-torch 1/1] RUN\n#7 DONE 0.0s\n"
        "#8 [h100] exporting to image\n#8 DONE 10.0s\n"
    )
    assert seconds_by_stage(log) == {
        "gb10-probe": {"compile-probe": 8.0},
        "ada": {"venv-torch": 42.8},
        "h100": {"export": 10.0},
    }


@pytest.mark.parametrize(
    "log", ["", "\x00\n#\n#1 DONE\n#1 DONE 3.0s\n", '{"vertexes":[]}\n', "STEP 1/9: FROM base\n"]
)
def test_a_log_of_another_kind_gives_nothing(log):
    assert seconds_by_stage(log) == {}


# What a build leaves


class Engine:
    """Builds at once; `shows` is its progress."""

    name = "made-up"
    context = None
    abilities = BUILDKIT

    def __init__(self, shows="", status=0):
        self.shows, self.status, self.digest, self.built = shows, status, "sha256:1", False

    def check(self):
        return None

    def alive(self):
        return True

    def data_root(self):
        return None

    def find(self, tag):
        if not self.built:
            return None
        return Image(tag=tag, digest=self.digest, platform="linux/amd64", labels={}, size=1)

    def base_context(self, base, arch):
        return "oci-layout:///x"

    def bake(self, bake_file, targets, *, log, metadata, **_options):
        log.write(self.shows.encode())
        metadata.write_text("{}")
        self.built = self.status == 0
        return self.status


@pytest.fixture
def builder(project, tmp_path, monkeypatch):
    for path in (project.images / "targets").iterdir():  # this engine compiles nothing
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(x for x in lines if not x.startswith("kernels:")))
    monkeypatch.setattr(sources, "upstream_reachable", lambda git, env: True)
    monkeypatch.setattr(bases, "registry_has", lambda base, env: True)

    def make(engine):
        said = []
        made = Builder(
            project=project,
            matrix=load_matrix(project.images),
            settings=Settings(),
            env={},
            cache=tmp_path / "cache",
            engine=engine,
            say=said.append,
            notice=lambda title, lines: said.append(title),
        )
        return made, said

    return make


def build(work):
    return work.build(work.matrix.select(["h100"]), Options(force=True))


def test_a_build_is_remembered(builder):
    engine = Engine(PLAIN)
    work, _ = builder(engine)
    build(work)
    first = last(work.cache, "h100")
    plan = make_plan(work.project, work.matrix, work.matrix.select(["h100"])[0])
    assert (first.state, first.engine, first.base, first.tag) == (
        "built",
        "made-up",
        "registry",
        "comfyui:0.33.0-cu130-h100",
    )
    assert (first.plan, first.digest) == (plan.key, "sha256:1")
    assert first.components == parts(work.project, plan)
    assert first.bytes["layer:torch"] == next(x.size for x in plan.layers if x.name == "torch")
    # 73.9 s of export, shared out by bytes between torch and comfy
    assert first.stages["layer:torch"] > 25.4 + 60
    assert sum(first.stages.values()) == pytest.approx(25.4 + 7.6 + 73.9, abs=0.2)

    engine.shows = ""
    build(work)
    second = last(work.cache, "h100")
    assert second.state == "cached"
    assert second.stages == first.stages, "what did not run took what it took before"


def test_a_failed_build_is_not(builder):
    work, _ = builder(Engine(status=1))
    assert build(work).failed
    assert records(work.cache, "h100") == ()


def test_a_history_that_cannot_be_written_fails_no_build(builder, tmp_path):
    work, said = builder(Engine())
    work.cache.mkdir()
    (work.cache / "history").write_text("in the way")
    assert not build(work).failed
    assert any(s.startswith("this build is not in the history that imgbuild why reads: ") for s in said)


def test_a_full_disk_fails_no_build(builder, monkeypatch):
    work, said = builder(Engine())
    monkeypatch.setattr(history.os, "write", lambda handle, data: len(data) // 2)
    assert not build(work).failed
    assert any("No space left on device" in s for s in said)


def test_what_is_edited_while_it_builds_is_not_in_the_record(builder):
    engine = Engine()
    work, _ = builder(engine)
    node = work.project.nodes / "dgls" / "__init__.py"
    before = parts(work.project, make_plan(work.project, work.matrix, work.matrix.select(["h100"])[0]))

    def bake(*args, **options):
        node.write_text("# another\n")
        return Engine.bake(engine, *args, **options)

    engine.bake = bake
    build(work)
    assert last(work.cache, "h100").components["nodes"] == before["nodes"]


def test_kernels_are_remembered_with_what_compiling_took(project, tmp_path):
    matrix = load_matrix(project.images)
    plan = make_plan(project, matrix, matrix.select(["h100"])[0])
    probe = next(k for k in plan.kernels if k.name == "probe")
    entry = Entry(
        kernel="probe",
        version=probe.version,
        key=probe.key,
        distribution=probe.distribution,
        wheel=tmp_path / "probe-1-cp313-cp313-linux_x86_64.whl",
        sha256="0" * 64,
        size=12_000,
        components=probe.components,
        inventory=[],
        seconds=11.5,
        peak_bytes=1,
        made="2026-11-21T15:00:00+00:00",
    )
    arguments = {
        "plan": plan,
        "outcome": Outcome(target="h100", state="built", tags=plan.tags, digest="sha256:1"),
        "components": parts(project, plan),
        "engine": "docker",
        "base": "bootstrap",
        "shown": {"h100": {"venv-kernel-probe": 2.5, "uv": 6.0}},
    }
    made = history.make_record(**arguments, entries={("probe", probe.key): entry}, before=None)
    assert made.compiled == {"kernel:probe": 11.5}
    assert made.bytes["kernel:probe"] == 12_000
    assert made.stages == {"kernel:probe": 2.5}
    after = history.make_record(**{**arguments, "shown": {}}, entries={}, before=made)
    assert (after.compiled, after.stages) == (made.compiled, made.stages), "the wheelhouse was pruned"
