"""update and rollback of what runs: by digest, with images that are broken on purpose; seconds without an answer."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import threading
import time

import pytest
from kit import wait_for
from served import IMAGE, Place, docker

# Each FROM the real image, so a few bytes.
GOOD = "ENV IMGBUILD_TEST=good"
MUTE = 'ENTRYPOINT ["/bin/false"]'  # cannot even say what it would start
LATE = 'ENTRYPOINT ["sh", "-c", "case \\"$*\\" in *--print*) exec comfyrun \\"$@\\";; esac; echo torn; exit 9", "--"]'
SILENT = 'ENTRYPOINT ["sh", "-c", "case \\"$*\\" in *--print*) exec comfyrun \\"$@\\";; esac; exec sleep 600", "--"]'


@pytest.fixture
def place(client, tmp_path):
    if docker("image", "inspect", IMAGE).returncode:
        pytest.skip(f"no image {IMAGE}: imgbuild build --target cpu")
    found = Place(tmp_path)
    found.prepare()
    yield found
    found.clean()


@pytest.fixture
def by_run(place):
    started = place.tool("run", "-t", "cpu", *place.options, "--env", "HF_TOKEN=sesame", "--detach")
    assert started.returncode == 0, started.stderr
    return place


@pytest.fixture
def by_compose(place):
    if docker("compose", "version").returncode:
        pytest.skip("no docker compose: imgbuild doctor --fix")
    folder = place.folder / "compose"
    assert place.tool("compose", "cpu", "-o", str(folder), *place.options).returncode == 0
    (folder / ".env").write_text("# mine\nCOMFYUI_RESTART=unless-stopped\n")
    (folder / ".env").chmod(0o600)
    place.compose("up", "--detach", "--wait")
    return place


@pytest.fixture(params=["by_run", "by_compose"])
def running(request):
    return request.getfixturevalue(request.param)


def variant(place, tag, line):
    name = f"{place.name}:{tag}"
    done = docker("build", "--quiet", "--tag", name, "-", stdin=f"FROM {IMAGE}\n{line}\n")
    assert done.returncode == 0, done.stderr
    return name


def image_id(reference):
    return docker("image", "inspect", "--format", "{{.Id}}", reference).stdout.strip()


def serving(place):
    [container] = place.inspect()
    return container


class Clock:
    """Seconds without an answer, measured here and not by the tool."""

    def __init__(self, port):
        self.port, self.silent, self.last = port, 0.0, None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.ended.wait(0.05):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", "/prompt")
                if connection.getresponse().status == 200:
                    now = time.monotonic()
                    self.silent = max(self.silent, now - self.last) if self.last else 0.0
                    self.last = now

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        wait_for(lambda: self.last and time.monotonic() - self.last < 1, 30)
        self.ended.set()
        self.thread.join()


def test_update_and_rollback(running, capsys):
    place = running
    [file] = place.generate()
    data = file.read_bytes()
    old, good = image_id(IMAGE), variant(place, "good", GOOD)
    with Clock(place.port) as clock:
        done = place.tool("update", place.name, "--image", good, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["was"], report["wanted"], report["changed"]) == (old, image_id(good), True)
    assert serving(place)["Image"] == image_id(good)
    assert place.generate(0x00FF00)[0].is_file()
    again = place.tool("update", place.name, "--image", good)
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    docker("rmi", good)  # the tag moves on, as a tag does: what runs has one of its own
    back = place.tool("rollback", place.name, "--json")
    assert back.returncode == 0, back.stderr
    assert serving(place)["Image"] == old
    assert file.read_bytes() == data
    forth = place.tool("rollback", place.name)
    assert forth.returncode == 0, forth.stderr
    assert serving(place)["Config"]["Env"].count("IMGBUILD_TEST=good") == 1
    with capsys.disabled():
        print(
            f"\nupdate: {report['downtime']:.1f} s without an answer by its own count, {clock.silent:.1f} s by the test's; "
            f"rollback: {json.loads(back.stdout)['downtime']:.1f} s"
        )
    assert abs(clock.silent - report["downtime"]) < 1.5


@pytest.mark.parametrize(
    ("line", "why"), [(LATE, "exit code 9"), (SILENT, "did not take prompts within 15 s")]
)
def test_the_one_before_comes_back_by_itself(running, capsys, line, why):
    place = running
    [file] = place.generate()
    before = serving(place)
    broken = variant(place, "broken", line)
    with Clock(place.port) as clock:
        done = place.tool("update", place.name, "--image", broken, "--timeout", "15", "--json")
    assert done.returncode == 12, done.stdout + done.stderr
    assert why in done.stderr
    assert "the one before serves again" in done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert (report["changed"], report["rolled_back"], report["serves"]) == (False, True, True)
    now = serving(place)
    assert now["Image"] == before["Image"]
    assert now["HostConfig"]["RestartPolicy"] == before["HostConfig"]["RestartPolicy"]
    assert place.generate(0x00FF00)[0].is_file()
    assert file.is_file()
    with capsys.disabled():
        print(
            f"\nbroken update, back again: {report['downtime']:.1f} s, {clock.silent:.1f} s by the test's count"
        )


def test_what_cannot_even_say_what_it_starts_stops_nothing(running):
    place = running
    before = serving(place)
    with Clock(place.port) as clock:
        done = place.tool("update", place.name, "--image", variant(place, "mute", MUTE))
    assert done.returncode == 12
    assert "nothing was stopped" in done.stderr
    assert serving(place)["State"]["StartedAt"] == before["State"]["StartedAt"]
    assert clock.silent < 1


def test_an_update_keeps_settings_and_secrets(by_run):
    place = by_run
    assert place.tool("update", place.name, "--image", variant(place, "good", GOOD)).returncode == 0
    found = serving(place)
    assert "HF_TOKEN=sesame" in found["Config"]["Env"]
    assert "sesame" not in json.dumps(found["Config"]["Labels"])
    assert "sesame" not in "".join(p.read_text() for p in (place.folder / "cache" / "deployments").iterdir())
    assert found["HostConfig"]["ReadonlyRootfs"] is True


def test_an_update_writes_one_line_of_env(by_compose):
    place = by_compose
    env = place.folder / "compose" / ".env"
    good = variant(place, "good", GOOD)
    assert place.tool("update", place.name, "--image", good).returncode == 0
    pinned = f"{place.name}:cpu-{image_id(good)[7:19]}"
    assert env.read_text() == f"# mine\nCOMFYUI_RESTART=unless-stopped\nCOMFYUI_IMAGE_CPU={pinned}\n"
    assert env.stat().st_mode & 0o777 == 0o600
    assert serving(place)["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    started = serving(place)["State"]["StartedAt"]
    place.compose("up", "--detach", "--wait")  # by hand: it is the same
    assert serving(place)["State"]["StartedAt"] == started


@pytest.mark.parametrize("half", [True, False], ids=["the new one was there", "nothing was there"])
def test_an_interrupted_update_is_cleared_up(by_run, half):
    place = by_run
    docker("stop", place.name)
    docker("rename", place.name, f"{place.name}-before")
    if half:  # somebody killed the tool while the new one was looked at
        docker("run", "--detach", "--name", place.name, variant(place, "silent", SILENT))
    good = variant(place, "good", GOOD)
    done = place.tool("update", place.name, "--image", good)
    assert done.returncode == 0, done.stderr
    assert "an update was interrupted" in done.stderr
    assert serving(place)["Name"] == f"/{place.name}"
    assert serving(place)["Image"] == image_id(good)


def test_refusals(by_run):
    place = by_run
    for words, code, says in (
        (("rollback", place.name), 3, "nothing is known of an image before"),
        (("update", place.name, "--image", "not-there:x"), 3, "docker has no image not-there:x"),
        (("update", place.name[:-1]), 3, f"did you mean {place.name}?"),
        (("run", "-t", "cpu", *place.options), 2, "runs already"),
        (("run", "-t", "cpu", *place.options, "--name", "other"), 2, f"taken by the container {place.name}"),
    ):
        done = place.tool(*words)
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr


def test_a_foreground_run_ends_with_the_containers_own_code(place):
    done = place.tool("run", "-t", "cpu", *place.options, "--", "--no-such-flag")
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr + done.stdout
    assert done.stderr.startswith("docker run \\\n  --rm")
    assert not place.inspect()


def test_ctrl_c_leaves_nobody_without_a_server(by_run):
    place = by_run
    before = serving(place)["Image"]
    silent = variant(place, "silent", SILENT)
    update = place.begin("update", place.name, "--image", silent)
    assert wait_for(
        lambda: any(c["Image"] == image_id(silent) and c["State"]["Running"] for c in place.inspect()), 120
    )
    update.send_signal(signal.SIGINT)
    said = update.communicate(timeout=120)[1]
    assert update.returncode == 130, said
    assert "the one before is started again" in said
    assert wait_for(lambda: serving(place)["Image"] == before and serving(place)["State"]["Running"], 30)
    assert wait_for(lambda: answers(place), 120)
    assert place.generate()


def answers(place):
    with contextlib.suppress(OSError, http.client.HTTPException):
        return place.client.queue() is not None
    return False
