from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys

import jsonschema
import pytest
import yaml

from imgbuild.cli import main
from imgbuild.matrix import load_matrix
from imgbuild.plan import make_plans
from imgbuild.projections import schemas, target_files, with_table
from imgbuild.render import PODMAN, Renderer, quote, tidy


@pytest.fixture(scope="module")
def plans(root):
    from imgbuild.project import Project

    project = Project(root=root, writable=False)
    matrix = load_matrix(project.images)
    return make_plans(project, matrix, tuple(matrix.targets.values()))


def test_what_is_committed_is_what_the_matrix_gives(root):
    assert main(["--project", str(root), "render", "--check"]) == 0


def test_rendering_twice_gives_the_same(root, plans):
    renderer = Renderer(root / "templates")
    assert target_files(plans, renderer) == target_files(plans, Renderer(root / "templates"))


@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_renders_the_same(root, tmp_path, plans, seed):
    call = ["--project", str(root), "render", "--output", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-m", "imgbuild", *call],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
    )
    files = target_files(plans, Renderer(root / "templates"))
    written = {p.relative_to(tmp_path).as_posix(): p for p in tmp_path.glob("rendered/*/**/*") if p.is_file()}
    assert {name: path.read_bytes().decode() for name, path in written.items()} == files


@pytest.mark.parametrize("old", ["EXPOSE 8188\r\n", "EXPOSE 8188 \xff\n"])
def test_other_line_ends_and_bytes_are_drift(project, capsys, old):
    call = ["--project", str(project.root), "render", "h100"]
    assert main(call) == 0
    path = project.rendered / "h100" / "Dockerfile"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"EXPOSE 8188\n", old.encode("latin-1")))
    assert path.read_bytes() != good
    assert main([*call, "--check"]) == 4
    assert main(call) == 0
    assert path.read_bytes() == good


def test_only_a_newline_ends_a_line():
    assert tidy("a\u2028b\x85c \n\n\n\nd") == "a\u2028b\x85c\n\nd\n"


def test_quoting_for_a_dockerfile():
    assert quote('a "b" \\ $HOME ü') == r'''"a \"b\" \\ \$HOME ü"'''


def test_check_shows_the_drift_and_the_remedy(project, capsys):
    call = ["--project", str(project.root), "render"]
    assert main(call) == 0
    path = project.rendered / "h100" / "Dockerfile"
    path.write_text(path.read_text().replace("EXPOSE 8188", "EXPOSE 80"))
    (project.rendered / "h100" / "left-over").write_text("x")
    capsys.readouterr()
    assert main([*call, "--check"]) == 4
    out, err = capsys.readouterr()
    assert "-EXPOSE 80\n+EXPOSE 8188" in out
    assert "-x" in out
    assert "2 rendered files are not what the matrix gives" in err
    assert "hint: imgbuild render" in err
    assert main([*call, "--diff"]) == 0
    assert main(call) == 0
    assert not (project.rendered / "h100" / "left-over").exists()
    assert main([*call, "--check"]) == 0


def test_a_target_that_is_gone_is_drift(project):
    call = ["--project", str(project.root), "render"]
    assert main(call) == 0
    (project.images / "targets" / "ada.yaml").unlink()
    assert main([*call, "--check"]) == 4
    assert main(call) == 0
    assert not (project.rendered / "ada").exists()


def test_no_host_of_a_mirror_and_nothing_floating_in_a_dockerfile(root, plans):
    for name, text in target_files(plans, Renderer(root / "templates")).items():
        assert "|| true" not in text, name
        joined = re.sub(r"\\\n", " ", text)  # an instruction is one line
        assert not re.search(r"^(ADD|RUN)\b.*https?://", joined, re.MULTILINE), name
        assert "syntax=" not in text, name
        for line in re.findall(r"^FROM (.*)", text, re.MULTILINE):
            image = next(w for w in line.split() if not w.startswith("--"))
            assert ":" not in image or "@sha256:" in image, line


def test_runtime_only_copies(root, plans):
    for plan in plans:
        text = Renderer(root / "templates").context(plan)["Dockerfile"]
        runtime = text.partition("AS runtime\n")[2]
        assert "RUN" not in runtime
        assert all("--link" in line for line in runtime.splitlines() if line.startswith("COPY"))


def test_podman_gets_what_it_can_parse(root, plans):
    cpu = next(p for p in plans if p.name == "cpu")
    text = Renderer(root / "templates").context(cpu, PODMAN)["Dockerfile"]
    assert "--link" not in text
    assert "--platform" not in re.sub(r"(install|work)\.py --platform", "", text)
    assert "FROM ${BASE} AS base" in text
    assert text.count("COPY --from=venv-") == len(cpu.layers)


def test_everything_is_pinned_by_hash(root, plans):
    for name, text in target_files(plans, Renderer(root / "templates")).items():
        if "/requirements/" in name:
            assert text
            assert all(
                re.fullmatch(r"\S+==\S+( --hash=sha256:[0-9a-f]{64})+", line) for line in text.splitlines()
            )


def test_bake_names_are_the_targets(root, capsys):
    assert main(["--project", str(root), "bake"]) == 0
    bake = json.loads(capsys.readouterr().out)
    assert bake["group"]["default"]["targets"] == sorted(load_matrix(root / "images").targets)
    for name, target in bake["target"].items():
        assert target["context"] == f"rendered/{name}"
        assert target["tags"][-1] == f"comfyui:{name}"
        assert re.fullmatch(r"https://\S+\.git#[0-9a-f]{40}", target["contexts"]["comfyui-src"])


def test_own_yaml_is_valid_by_the_exported_schema(root):
    for path, kind in [
        (root / "images" / "comfyui.yaml", "comfyui"),
        *((p, "target") for p in (root / "images" / "targets").glob("*.yaml")),
    ]:
        jsonschema.validate(yaml.safe_load(path.read_text()), schemas()[kind])
        named = path.read_text().splitlines()[0].rpartition("$schema=")[2]
        assert (path.parent / named).resolve() == root / "images" / "schema" / f"{kind}.json"


def test_the_schema_refuses_what_the_tool_refuses(root):
    data = yaml.safe_load((root / "images" / "targets" / "h100.yaml").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "titel": "x"}, schemas()["target"])


def test_table_in_a_readme(plans):
    begin, end = (
        "<!-- imgbuild targets: begin (rendered; imgbuild render) -->",
        "<!-- imgbuild targets: end -->",
    )
    text = with_table(f"a\n{begin}\nold\n{end}\nb\n", plans)
    assert "old" not in text
    assert text.startswith(f"a\n{begin}\n| target |")
    assert text.endswith(f"{end}\nb\n")
    assert with_table("no table\n", plans) == "no table\n"


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("{{ v.plan.nothing }}", "nothing"),
        ("{{ v.plan.nope | quote }}", "nope"),
        ('{{ 1 + "a" }}', "TypeError: unsupported operand"),
        ("{% for %}", "Expected an expression"),
        ('{{ "a" | nofilter }}', "nofilter"),
        ('{% include "uv.Dockerfile.j2" %}', "RecursionError"),
    ],
)
def test_template_with_a_mistake_says_where(project, capsys, mistake, says):
    path = project.templates / "uv.Dockerfile.j2"  # which Dockerfile.j2 includes
    text = path.read_text()
    path.write_text(f"{text}{mistake}\n")
    assert main(["--project", str(project.root), "render", "--diff"]) == 2
    err = capsys.readouterr().err
    assert f"error: {path}:{text.count(chr(10)) + 1}: " in err
    assert says in err


def test_included_template_that_is_not_there(project, capsys):
    (project.templates / "uv.Dockerfile.j2").unlink()
    assert main(["--project", str(project.root), "render", "--diff"]) == 2
    assert f"there is no template {project.templates / 'uv.Dockerfile.j2'}" in capsys.readouterr().err


def test_stage_scripts_run_on_the_oldest_python_of_a_base(root):
    for path in (root / "templates" / "stages").glob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 11))


def test_plan_is_json(root, capsys):
    assert main(["--project", str(root), "plan", "gb10", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert plan["platform"] == "linux/arm64"
    assert plan["labels"]["imgbuild.compute-capability"] == "12.1"


def test_help_imports_no_heavy_library():
    code = "import sys; from imgbuild.cli import main; main(['--help']); print(sorted({'pydantic','jinja2','docker','rich','yaml'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_bytecode_of_debians_packages_carries_no_time(root, plans):
    for plan in plans:
        text = Renderer(root / "templates").context(plan)["base-setup.sh"]
        assert f"\nexport SOURCE_DATE_EPOCH={plan.epoch} " in text.partition("apt-get")[0]
