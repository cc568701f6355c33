"""The image's file system: whose it is, who may write, and what has no business in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from imageresults import ImageResults

    from imgbuild.plan import Plan
    from imgbuild.subject import Subject

pytestmark = pytest.mark.ring1

# Debian's own, as its packages install them. Under no-new-privileges none of them gains anything.
_DEBIAN_SETID = {
    *("/usr/bin/chage", "/usr/bin/chfn", "/usr/bin/chsh", "/usr/bin/expiry", "/usr/bin/gpasswd"),
    *("/usr/bin/mount", "/usr/bin/newgrp", "/usr/bin/passwd", "/usr/bin/su", "/usr/bin/umount"),
    "/usr/sbin/unix_chkpwd",
}
# Debian's own too: its spool, its logs, apt's download folder.
_DEBIAN_WRITABLE = {
    *("/run/lock", "/var/mail", "/var/tmp", "/var/local", "/var/lib/apt/lists/partial"),
    *("/var/log/lastlog", "/var/log/btmp", "/var/log/wtmp"),
}
# Triton carries its own assembler and cannot do without.
_TRITONS = "/site-packages/triton/"
# What python3-venv makes an environment's pip of.
_DEBIAN_LEFTOVERS = ("/usr/share/python-wheels/",)


def test_everything_that_starts_is_there(look_inside: dict[str, Any]) -> None:
    missing = [path for path, info in look_inside["key_files"].items() if info is None]
    assert missing == []


def test_nothing_of_its_code_is_writable(look_inside: dict[str, Any]) -> None:
    """No file or folder in the image can be changed by the user that runs it."""
    found = [row for row in look_inside["tree"]["writable"] if row[0] not in _DEBIAN_WRITABLE]
    assert found == []


def test_all_of_it_belongs_to_root(look_inside: dict[str, Any]) -> None:
    found = [row for row in look_inside["tree"]["owned"] if row[0] not in _DEBIAN_WRITABLE]
    assert found == []


def test_no_program_gives_more_rights(look_inside: dict[str, Any]) -> None:
    """No set-uid program and no file capability but Debian's own."""
    tree = look_inside["tree"]
    assert sorted({path for path, _ in tree["setid"]} - _DEBIAN_SETID) == []
    assert tree["capable"] == []


def test_no_cuda_compiler_is_left_behind(look_inside: dict[str, Any]) -> None:
    assert [path for path in look_inside["tree"]["compilers"] if _TRITONS not in path] == []


def test_gcc_and_the_python_headers_stay(
    look_inside: dict[str, Any], subject: Subject, engine: Any, image: str
) -> None:
    """Triton compiles its launcher at run time: a C compiler that finds Python.h and makes a library."""
    program = "#include <Python.h>\nint main(void) { return PY_MAJOR_VERSION - 3; }\n"
    command = (
        "cat > /tmp/x.c && gcc -o /tmp/x /tmp/x.c $(python3 -c "
        '\'import sysconfig; print("-I" + sysconfig.get_paths()["include"])\') && /tmp/x'
    )
    done = engine.run(
        image,
        *("-c", command),
        entrypoint="sh",
        options=("--tmpfs", "/tmp:exec", "--network", "none"),
        stdin=program,
        check=False,
    )
    assert done.code == 0, done.text


def test_nothing_of_the_build_is_left_behind(look_inside: dict[str, Any]) -> None:
    """No checkout, package cache, wheel, settings file or home folder of a build."""
    found = [p for p in look_inside["tree"]["leftovers"] if not p.startswith(_DEBIAN_LEFTOVERS)]
    assert found == []


def test_the_profile_is_the_plans(look_inside: dict[str, Any], plan: Plan) -> None:
    """What the image starts with is what the matrix says."""
    assert look_inside["profile"] is not None
    assert json.loads(look_inside["profile"]) == json.loads(json.dumps(plan.profile))


def test_a_baked_node_is_there(look_inside: dict[str, Any], baked_node: str) -> None:
    assert "__init__.py" in look_inside["nodes"].get(baked_node, [])


def test_its_user_has_a_name(look_inside: dict[str, Any]) -> None:
    assert "comfy:x:1000:1000:" in (look_inside["passwd"] or "")


def test_its_size(
    look_inside: dict[str, Any],
    results: ImageResults,
    subject: Subject,
    config: dict[str, Any],
    engine: Any,
    image: str,
    record_property: Any,
) -> None:
    """How large it is, for the record; a fifth more than its wheels is what a base and code may take."""
    tree = look_inside["tree"]
    record_property("bytes_unpacked", tree["bytes"])
    results.facts["size"] = {"store": subject.image.size, "unpacked": tree["bytes"], "files": tree["files"]}
    results.facts["layers"] = layers(engine, image)
    assert tree["bytes"] > 0


def layers(engine: Any, image: str) -> list[dict[str, Any]]:
    """Of each layer, from the bottom to the top: the instruction that made it, and its bytes."""
    text = engine.history(image, "--human=false", "--format", "{{json .}}").strip()
    # Docker prints an object a line, Podman one list.
    entries = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    rows = []
    for entry in reversed(entries):
        by = str(entry.get("CreatedBy") or "")
        size = str(entry.get("Size", entry.get("size", 0)))
        if by.split()[:1] and by.split(maxsplit=1)[0] in ("COPY", "ADD", "RUN", "WORKDIR"):
            rows.append({"by": by[:120], "bytes": int(float(size)) if size.replace(".", "").isdigit() else 0})
    return rows
