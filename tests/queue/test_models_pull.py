"""`models pull` against a server that truncates, throttles, answers 429 and 500, and changes a file."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time

import pytest
from badserver import COMMIT, OTHER_COMMIT, Fault
from models_fixtures import a_hub, a_server  # noqa: F401  (fixtures)
from modelskit import Board, content, model_list, models_of, pull

from comfywork.errors import ConfigError
from comfywork.models import folder, record
from comfywork.models.errors import BusyError, PlaceError
from comfywork.models.outcome import exit_code

BYTES = content(300_000)
SHA = hashlib.sha256(BYTES).hexdigest()


def locked(server, served_path="/m.safetensors", data=BYTES, **more):
    return {
        "url": f"{server.url}{served_path}",
        "folder": "checkpoints",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        **more,
    }


def target(tmp_path, name="m.safetensors", folder="checkpoints"):
    return tmp_path / "models" / folder / name


def leftovers(tmp_path):
    return sorted(p.name for p in (tmp_path / "models").rglob("*.part*"))


def run(tmp_path, *files, **more):
    models = models_of(model_list(*files), tmp_path)
    return pull(tmp_path / "models", models, **more)


def one(tmp_path, *files, **more):
    found, board = run(tmp_path, *files, **more)
    assert len(found) == 1
    return found[0], board


def test_fetches_whole_and_proven(tmp_path, server):
    server.add("/m.safetensors", BYTES)
    found, _ = one(tmp_path, locked(server))
    assert (found.outcome, found.sha256, found.evidence) == ("fetched", SHA, "the list")
    assert target(tmp_path).read_bytes() == BYTES
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("truncate", 100_000), Fault("truncate", 1), Fault("truncate", 150_000)],
        [Fault("status", 500), Fault("status", 503), Fault("truncate", 70_000), Fault("status", 502)],
        [Fault("busy", 0), Fault("busy-date", 0)],
        [Fault("drop"), Fault("drop")],
        [Fault("long-length")],
        [Fault("short-length")],
        [Fault("truncate", 90_000), Fault("wrong-range")],
        [Fault("truncate", 90_000), Fault("no-range")],
        [Fault("no-length")],
        [Fault("truncate", 120_000), Fault("corrupt", 5)],
        [Fault("throttle", 0.005)],
    ],
    ids=lambda faults: "+".join(f.kind for f in faults),
)
def test_what_passes_is_overcome(tmp_path, server, faults):
    server.add("/m.safetensors", BYTES).faults.extend(faults)
    found, _ = one(tmp_path, locked(server))
    assert found.outcome == "fetched", found.message
    assert target(tmp_path).read_bytes() == BYTES
    assert leftovers(tmp_path) == []


def test_goes_on_where_the_server_broke_off(tmp_path, server):
    server.add("/m.safetensors", BYTES).faults.append(Fault("truncate", 200_000))
    one(tmp_path, locked(server))
    ranges = [headers.get("range") for _, headers in server.requests("GET")]
    assert ranges == [None, "bytes=200000-"]
    assert server.requests("GET")[1][1]["if-range"] == server.files["/m.safetensors"].tag


def test_retry_after_is_obeyed(tmp_path, server):
    server.add("/m.safetensors", BYTES).faults.append(Fault("busy", 1))
    from comfywork.models.wire import Patience

    began = time.monotonic()
    found, board = one(tmp_path, locked(server), patience=Patience(first=0.001, most=0.002))
    assert found.outcome == "fetched"
    assert time.monotonic() - began >= 1
    assert any("429" in text and "again in 1.0 s" in text for text in board.said)


def test_gives_up_and_a_second_run_goes_on(tmp_path, server):
    served = server.add("/m.safetensors", BYTES)
    served.faults.extend([Fault("truncate", 250_000), *[Fault("status", 500)] * 20])
    found, _ = one(tmp_path, locked(server))
    assert (found.outcome, found.exit_code) == ("failed", 69)
    assert "the same command goes on" in found.hint
    assert not target(tmp_path).exists()
    assert (target(tmp_path).parent / "m.safetensors.part").stat().st_size == 250_000
    served.faults.clear()
    server.log.clear()
    found, _ = one(tmp_path, locked(server))
    assert (found.outcome, found.taken_up) == ("fetched", 250_000)
    assert [headers.get("range") for _, headers in server.requests("GET")] == ["bytes=250000-"]
    assert target(tmp_path).read_bytes() == BYTES


def test_a_changed_file_is_refused(tmp_path, server):
    server.add("/m.safetensors", content(300_000, seed=2))
    found, _ = one(tmp_path, locked(server))
    assert (found.outcome, found.exit_code) == ("refused", 1)
    assert SHA in found.message
    assert not target(tmp_path).exists()
    assert leftovers(tmp_path) == []


def test_a_file_of_another_size_is_refused_before_it_is_fetched(tmp_path, server):
    server.add("/m.safetensors", BYTES + b"x")
    found, _ = one(tmp_path, locked(server))
    assert (found.outcome, found.exit_code) == ("refused", 1)
    assert "300,001 bytes, the list says 300,000" in found.message
    assert leftovers(tmp_path) == []


def test_changed_in_the_middle_locked(tmp_path, server):
    """The list knows the right one: the new one is refused, also when only the ETag shows it."""
    served = server.add("/m.safetensors", BYTES)
    served.faults.append(Fault("change", 100_000))
    found, board = one(tmp_path, locked(server))
    assert (found.outcome, found.exit_code) == ("refused", 1)
    assert SHA in found.message
    assert any("ETag" in text for text in board.said)
    assert not target(tmp_path).exists()
    assert leftovers(tmp_path) == []


def test_changed_in_the_middle_unlocked(tmp_path, server):
    served = server.add("/m.safetensors", BYTES)
    served.faults.append(Fault("change", 100_000))
    entry = {"url": f"{server.url}/m.safetensors", "folder": "vae"}
    found, _ = one(tmp_path, entry, unlocked=True)
    assert (found.outcome, found.exit_code) == ("refused", 1)
    assert "changed at the server while it was fetched" in found.message
    assert "ETag" in found.message
    assert not target(tmp_path, folder="vae").exists()
    assert leftovers(tmp_path) == []


def test_changed_between_two_runs_unlocked(tmp_path, server):
    served = server.add("/m.safetensors", BYTES)
    served.faults.extend([Fault("truncate", 100_000), *[Fault("status", 500)] * 20])
    entry = {"url": f"{server.url}/m.safetensors", "folder": "vae"}
    assert one(tmp_path, entry, unlocked=True)[0].outcome == "failed"
    served.faults.clear()
    served.change(content(300_000, seed=3))
    found, _ = one(tmp_path, entry, unlocked=True)
    # Nothing of the old one was safely on disk under its ETag, or it was and the change is seen: never a mixture.
    if found.outcome == "fetched":
        assert target(tmp_path, folder="vae").read_bytes() == served.content
    else:
        assert found.outcome == "refused"
        assert not target(tmp_path, folder="vae").exists()


def test_unlocked_without_etag_is_never_pieced_together(tmp_path, server):
    served = server.add("/m.safetensors", BYTES, etag="")
    served.faults.extend([Fault("truncate", 100_000), Fault("truncate", 200_000)])
    found, _ = one(tmp_path, {"url": f"{server.url}/m.safetensors", "folder": "vae"}, unlocked=True)
    assert found.outcome == "fetched"
    assert found.evidence == "nobody"
    assert [headers.get("range") for _, headers in server.requests("GET")] == [None, None, None]
    assert target(tmp_path, folder="vae").read_bytes() == BYTES


def test_a_server_that_does_not_say_the_length(tmp_path, server):
    served = server.add("/m.safetensors", BYTES)
    served.faults.append(Fault("no-length"))
    entry = {"url": f"{server.url}/m.safetensors", "folder": "vae", "sha256": SHA}
    assert one(tmp_path, entry, unlocked=True)[0].outcome == "fetched"


@pytest.mark.parametrize(
    ("kind", "says"),
    [("gzip", "compressed"), ("extra", "the list says 300,000"), ("endless", "more than the 300,000 bytes")],
)
def test_what_will_not_pass_is_refused(tmp_path, server, kind, says):
    server.add("/m.safetensors", BYTES).faults.extend([Fault(kind)] * 9)
    found, _ = one(tmp_path, locked(server))
    assert (found.outcome, found.exit_code) == ("refused", 1)
    assert says in found.message
    assert not target(tmp_path).exists()


def test_not_there(tmp_path, server):
    found, _ = one(tmp_path, locked(server))
    assert (found.outcome, found.exit_code) == ("refused", 1)
    assert "404" in found.message


def test_one_failure_does_not_stop_the_others(tmp_path, server):
    server.add("/a.safetensors", BYTES)
    other = content(1000, seed=9)
    server.add("/b.safetensors", other)
    found, _ = run(
        tmp_path,
        locked(server, "/a.safetensors", data=other),
        locked(server, "/b.safetensors", data=other),
    )
    assert [o.outcome for o in found] == ["refused", "fetched"]
    assert exit_code(found) == 1


def test_parallel(tmp_path, server):
    """Eight files that take half a second each, four at once, in far less than four seconds."""
    data = {f"/{i}.safetensors": content(160_000, seed=i) for i in range(8)}
    for path, bytes_ in data.items():
        server.add(path, bytes_).faults.append(Fault("throttle", 0.05))
    began = time.monotonic()
    found, _ = run(tmp_path, *(locked(server, path, data=b) for path, b in data.items()), parallel=4)
    assert {o.outcome for o in found} == {"fetched"}
    assert time.monotonic() - began < 3


class TestWhatIsHere:
    def test_a_right_file_is_left_alone(self, tmp_path, server):
        target(tmp_path).parent.mkdir(parents=True)
        target(tmp_path).write_bytes(BYTES)
        before = target(tmp_path).stat()
        found, _ = one(tmp_path, locked(server))
        assert found.outcome == "already right"
        assert server.log == []
        assert target(tmp_path).stat().st_mtime_ns == before.st_mtime_ns

    def test_a_second_pull_reads_nothing_again(self, tmp_path, server, monkeypatch):
        server.add("/m.safetensors", BYTES)
        one(tmp_path, locked(server))
        monkeypatch.setattr(folder, "sha256", lambda *_: pytest.fail("read again"))
        found, _ = one(tmp_path, locked(server))
        assert (found.outcome, found.message) == ("already right", "as recorded by an earlier pull")

    @pytest.mark.parametrize("wrong", [b"short", content(300_000, seed=7)])
    def test_a_wrong_file_is_refused_and_replaced_on_demand(self, tmp_path, server, wrong):
        server.add("/m.safetensors", BYTES)
        target(tmp_path).parent.mkdir(parents=True)
        target(tmp_path).write_bytes(wrong)
        found, _ = one(tmp_path, locked(server))
        assert (found.outcome, found.exit_code, found.hint) == ("refused", 1, "replace it: --replace")
        assert target(tmp_path).read_bytes() == wrong
        found, _ = one(tmp_path, locked(server), replace=True)
        assert found.outcome == "replaced"
        assert target(tmp_path).read_bytes() == BYTES

    def test_a_replacement_that_fails_leaves_the_old_file(self, tmp_path, server):
        server.add("/m.safetensors", content(300_000, seed=2))
        target(tmp_path).parent.mkdir(parents=True)
        target(tmp_path).write_bytes(b"old")
        found, _ = one(tmp_path, locked(server), replace=True)
        assert found.outcome == "refused"
        assert target(tmp_path).read_bytes() == b"old"

    def test_a_part_that_a_crash_has_damaged(self, tmp_path, server):
        """Blocks that never reached the disk read as zeros: found out by the hash, and fetched again."""
        served = server.add("/m.safetensors", BYTES)
        served.faults.extend([Fault("truncate", 200_000), *[Fault("status", 500)] * 20])
        one(tmp_path, locked(server))
        part = target(tmp_path).parent / "m.safetensors.part"
        state = json.loads((target(tmp_path).parent / "m.safetensors.part.json").read_text())
        assert state["synced"] == 200_000
        with part.open("r+b") as file:
            file.seek(50_000)
            file.write(bytes(4096))
        served.faults.clear()
        found, _ = one(tmp_path, locked(server))
        assert (found.outcome, found.taken_up) == ("fetched", 0)
        assert target(tmp_path).read_bytes() == BYTES

    def test_damage_after_the_last_sync(self, tmp_path, server):
        served = server.add("/m.safetensors", BYTES)
        served.faults.extend([Fault("truncate", 200_000), *[Fault("status", 500)] * 20])
        one(tmp_path, locked(server))
        part = target(tmp_path).parent / "m.safetensors.part"
        with part.open("ab") as file:
            file.write(bytes(4096))
        served.faults.clear()
        found, board = one(tmp_path, locked(server))
        assert found.outcome == "fetched"
        assert any("pieces do not make the file" in text for text in board.said)
        assert target(tmp_path).read_bytes() == BYTES

    def test_where_no_hash_decides_only_synced_bytes_are_kept(self, tmp_path, server):
        served = server.add("/m.safetensors", BYTES)
        served.faults.extend([Fault("truncate", 200_000), *[Fault("status", 500)] * 20])
        entry = {"url": f"{server.url}/m.safetensors", "folder": "vae"}
        one(tmp_path, entry, unlocked=True)
        with (target(tmp_path, folder="vae").parent / "m.safetensors.part").open("ab") as file:
            file.write(bytes(4096))
        served.faults.clear()
        found, _ = one(tmp_path, entry, unlocked=True)
        assert (found.outcome, found.taken_up) == ("fetched", 200_000)
        assert target(tmp_path, folder="vae").read_bytes() == BYTES

    def test_a_part_of_another_file_is_not_used(self, tmp_path, server):
        served = server.add("/m.safetensors", BYTES)
        served.faults.extend([Fault("truncate", 200_000), *[Fault("status", 500)] * 20])
        one(tmp_path, locked(server))
        new = content(400_000, seed=5)
        served.faults.clear()
        served.change(new)
        found, _ = one(tmp_path, locked(server, data=new))
        assert (found.outcome, found.taken_up) == ("fetched", 0)
        assert target(tmp_path).read_bytes() == new

    def test_a_link_in_the_parts_place(self, tmp_path, server):
        server.add("/m.safetensors", BYTES)
        target(tmp_path).parent.mkdir(parents=True)
        victim = tmp_path / "victim"
        victim.write_bytes(b"precious")
        (target(tmp_path).parent / "m.safetensors.part").symlink_to(victim)
        found, _ = one(tmp_path, locked(server))
        assert (found.outcome, found.exit_code) == ("failed", 69)
        assert victim.read_bytes() == b"precious"


class TestHub:
    def entry(self, data=BYTES, **more):
        return {
            "repository": "owner/model",
            "file": "split/m.safetensors",
            "revision": COMMIT,
            "folder": "diffusion_models",
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            **more,
        }

    def test_through_the_redirect(self, tmp_path, hub):
        hub.publish("owner/model", "split/m.safetensors", BYTES)
        found, _ = one(tmp_path, self.entry(), hub_url=hub.url)
        assert (found.outcome, found.revision) == ("fetched", COMMIT)
        assert target(tmp_path, folder="diffusion_models").read_bytes() == BYTES

    def test_a_truncation_at_the_other_host_asks_the_hub_again(self, tmp_path, hub):
        served = hub.publish("owner/model", "split/m.safetensors", BYTES)
        served.faults.extend([Fault("truncate", 100_000), Fault("status", 403)])
        found, _ = one(tmp_path, self.entry(), hub_url=hub.url)
        assert found.outcome == "fetched"
        assert len(hub.requests("GET")) == 3
        assert len(hub.cdn.requests("GET")) == 3

    def test_the_token_stays_with_the_hub(self, tmp_path, hub):
        hub.publish("owner/model", "split/m.safetensors", BYTES, gated=True, wants_token="hf_secret")
        found, _ = one(tmp_path, self.entry(), hub_url=hub.url, token="hf_secret")
        assert found.outcome == "fetched"
        assert all(h["authorization"] == "Bearer hf_secret" for _, h in hub.requests("GET"))
        assert not any("authorization" in h for _, _, h in hub.cdn.log)

    @pytest.mark.parametrize("token", [None, "hf_wrong"])
    def test_gated(self, tmp_path, hub, token):
        hub.publish("owner/model", "split/m.safetensors", BYTES, gated=True, wants_token="hf_secret")
        found, _ = one(tmp_path, self.entry(), hub_url=hub.url, token=token)
        assert (found.outcome, found.exit_code) == ("refused", 77)
        assert f"{hub.url}/owner/model" in found.message
        assert "licence" in found.message
        assert "HF_TOKEN" in found.message

    def test_a_changed_file_is_refused_before_it_is_fetched(self, tmp_path, hub):
        hub.publish("owner/model", "split/m.safetensors", content(300_000, seed=4))
        found, _ = one(tmp_path, self.entry(), hub_url=hub.url)
        assert (found.outcome, found.exit_code) == ("refused", 1)
        assert "changed at the hub" in found.message
        assert hub.requests("GET") == []

    @pytest.mark.parametrize(
        ("more", "says", "code"),
        [
            ({"repository": "owner/nothing"}, "no such repository", 77),
            ({"revision": OTHER_COMMIT}, "no such revision", 1),
            ({"file": "m.sft"}, "has no file", 1),
        ],
    )
    def test_not_there(self, tmp_path, hub, more, says, code):
        hub.publish("owner/model", "split/m.safetensors", BYTES)
        found, _ = one(tmp_path, self.entry(**more), hub_url=hub.url)
        assert (found.outcome, found.exit_code) == ("refused", code)
        assert says in found.message

    def test_metadata_is_asked_again_too(self, tmp_path, hub):
        served = hub.publish("owner/model", "split/m.safetensors", BYTES)
        served.head_faults.extend([Fault("status", 429), Fault("status", 500)])
        found, _ = one(tmp_path, self.entry(), hub_url=hub.url)
        assert found.outcome == "fetched"

    def test_nobody_there(self, tmp_path):
        found, _ = one(tmp_path, self.entry(), hub_url="http://127.0.0.1:9")
        assert (found.outcome, found.exit_code) == ("failed", 69)

    def test_unlocked_is_refused(self, tmp_path, hub):
        with pytest.raises(ConfigError, match=r"not locked(?s:.*)no commit, no size, no sha256"):
            one(
                tmp_path,
                {"repository": "owner/model", "file": "m.safetensors", "folder": "vae"},
                hub_url=hub.url,
            )

    def test_unlocked_on_demand_is_proven_by_the_hub_and_recorded(self, tmp_path, hub):
        hub.publish("owner/model", "m.safetensors", BYTES)
        entry = {"repository": "owner/model", "file": "m.safetensors", "folder": "vae"}
        found, _ = one(tmp_path, entry, hub_url=hub.url, unlocked=True)
        assert (found.outcome, found.evidence, found.sha256, found.revision) == (
            "fetched",
            "the hub",
            SHA,
            COMMIT,
        )
        kept = record.read(tmp_path / "models")["vae/m.safetensors"]
        assert (kept.sha256, kept.evidence, kept.revision) == (SHA, "the hub", COMMIT)
        # The bytes were asked for by commit, so that a push in between cannot mix two versions.
        assert f"/resolve/{COMMIT}/" in hub.requests("GET")[0][0]
        hub.repositories["owner/model"]["m.safetensors"].change(content(300_000, seed=8))
        found, _ = one(tmp_path, entry, hub_url=hub.url, unlocked=True)
        assert (found.outcome, found.exit_code) == ("refused", 1)
        found, _ = one(tmp_path, entry, hub_url=hub.url, unlocked=True, replace=True)
        assert found.outcome == "replaced"

    def test_a_file_of_git_itself_has_no_sha256(self, tmp_path, hub):
        hub.publish("owner/model", "m.safetensors", BYTES, lfs=False)
        entry = {"repository": "owner/model", "file": "m.safetensors", "folder": "vae"}
        found, _ = one(tmp_path, entry, hub_url=hub.url, unlocked=True)
        assert (found.outcome, found.evidence, found.sha256) == ("fetched", "nobody", SHA)


class StopAt:
    """Stops a pull once so many bytes are here."""

    def __init__(self, stop, offset):
        self._stop, self._offset = stop, offset

    def at(self, offset, size):
        if offset >= self._offset:
            self._stop.set()

    def hashed(self, count):
        pass

    def said(self, text):
        pass


class TestFolder:
    def test_no_room(self, tmp_path, server, monkeypatch):
        server.add("/m.safetensors", BYTES)
        usage = folder.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: usage._replace(free=200_000))
        with pytest.raises(PlaceError, match=r"300 kB are still to come, and 200 kB are free"):
            one(tmp_path, locked(server))
        assert server.requests("GET") == []

    def test_a_full_disk_in_the_middle_keeps_the_part(self, tmp_path, server):
        import resource

        server.add("/m.safetensors", BYTES)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        import signal

        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
        try:
            found, _ = one(tmp_path, locked(server))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        assert (found.outcome, found.exit_code) == ("failed", 69)
        assert not target(tmp_path).exists()
        found, _ = one(tmp_path, locked(server))
        assert (found.outcome, found.taken_up) == ("fetched", 150_000)

    def test_two_pulls_at_once(self, tmp_path, server):
        server.add("/m.safetensors", BYTES).faults.append(Fault("throttle", 0.05))
        first = {}
        thread = threading.Thread(target=lambda: first.update(found=one(tmp_path, locked(server))[0]))
        thread.start()
        while not (target(tmp_path).parent / "m.safetensors.part").exists():
            time.sleep(0.005)
        with pytest.raises(BusyError, match=f"another pull works in .*process {os.getpid()} on "):
            one(tmp_path, locked(server))
        board = Board()
        found, _ = one(tmp_path, locked(server), wait=True, board=board)
        thread.join()
        assert first["found"].outcome == "fetched"
        assert found.outcome == "already right"
        assert "waiting for another pull" in board.said[0]
        assert len(server.requests("GET")) == 1

    def test_stop_keeps_the_part(self, tmp_path, server):
        server.add("/m.safetensors", BYTES).faults.append(Fault("throttle", 0.05))
        stop = threading.Event()

        class Stopping(Board):
            def meter(self, path, size):
                return StopAt(stop, 100_000)

        found, _ = one(tmp_path, locked(server), stop=stop, board=Stopping())
        assert (found.outcome, found.exit_code) == ("stopped", 130)
        kept = (target(tmp_path).parent / "m.safetensors.part").stat().st_size
        assert 100_000 <= kept < 300_000
        found, _ = one(tmp_path, locked(server))
        assert (found.outcome, found.taken_up) == ("fetched", kept)

    def test_shared_files_are_fetched_once(self, tmp_path, server):
        server.add("/m.safetensors", BYTES)
        text = model_list(locked(server))
        second = text[text.index("  - name: tiny") :].replace("name: tiny", "name: other")
        found, _ = pull(tmp_path / "models", models_of(text + second, tmp_path))
        assert [o.outcome for o in found] == ["fetched"]
        assert len(server.requests("GET")) == 1


class TestSmallPrint:
    def test_redirects_without_end(self, tmp_path, server):
        server.add("/m.safetensors", BYTES).faults.extend([Fault("loop")] * 20)
        found, _ = one(tmp_path, locked(server))
        assert (found.outcome, found.exit_code) == ("failed", 69)
        assert "redirects without end" in found.message

    def test_more_than_the_hub_sends_by_http(self, tmp_path, hub):
        entry = {
            "repository": "owner/model",
            "file": "m.safetensors",
            "revision": COMMIT,
            "folder": "vae",
            "size": 60_000_000_000,
            "sha256": SHA,
        }
        served = hub.publish("owner/model", "m.safetensors", BYTES)
        served.stated = (60_000_000_000, SHA)
        found, _ = one(tmp_path, entry, hub_url=hub.url)
        assert (found.outcome, found.exit_code) == ("refused", 1)
        assert "hf download owner/model m.safetensors" in found.hint

    def test_a_record_that_cannot_be_written_is_said(self, tmp_path, server):
        server.add("/m.safetensors", BYTES)
        (tmp_path / "models" / ".comfyrun-models.json~").mkdir(parents=True)
        found, _ = one(tmp_path, locked(server))
        assert (found.outcome, found.exit_code) == ("failed", 69)
        assert ".comfyrun-models.json~" in found.message
        assert target(tmp_path).read_bytes() == BYTES

    def test_what_a_crash_left_after_the_rename_is_swept(self, tmp_path, server):
        server.add("/m.safetensors", BYTES)
        one(tmp_path, locked(server))
        (target(tmp_path).parent / "m.safetensors.part.json").write_text("{}")
        one(tmp_path, locked(server))
        assert leftovers(tmp_path) == []

    def test_a_state_that_is_no_state(self, tmp_path, server):
        server.add("/m.safetensors", BYTES)
        target(tmp_path).parent.mkdir(parents=True)
        (target(tmp_path).parent / "m.safetensors.part").write_bytes(b"x" * 1000)
        (target(tmp_path).parent / "m.safetensors.part.json").write_text('{"synced": "all", "source": 1}')
        found, _ = one(tmp_path, locked(server))
        assert (found.outcome, found.taken_up) == ("fetched", 0)

    def test_lines_where_there_is_no_terminal(self, tmp_path, server, monkeypatch):
        import io

        from rich.console import Console

        from comfywork.models import progress

        monkeypatch.setattr(progress, "_EVERY", 0.05)
        server.add("/m.safetensors", BYTES).faults.append(Fault("throttle", 0.02))
        text = io.StringIO()
        one(tmp_path, locked(server), board=progress.Lines(Console(file=text, width=200)))
        assert "of 300 kB" in text.getvalue()
        assert text.getvalue().rstrip().endswith("checkpoints/m.safetensors: fetched")
