"""S3 that is down, slow, full of errors, or not what the settings say; through a wire that breaks as told."""

from __future__ import annotations

import datetime as dt
import io
import ipaddress
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import storage_servers as servers
from storage_kit import PART, bucket_client, s3_settings, s3_storage
from storage_servers import BUCKET, S3Server
from storage_wire import Wire

from comfywork.storage import MissingError, Place, S3Settings, StorageError
from comfywork.storage.s3 import S3Storage, Waits

LARGE = os.urandom(1 << 20) * 12
QUICK = Waits(connect=1, read=1, attempts=3)


@pytest.fixture
def wire(seaweedfs: S3Server) -> Iterator[Wire]:
    with Wire(seaweedfs.port) as wire:
        yield wire


@pytest.fixture
def settings(seaweedfs: S3Server) -> S3Settings:
    return s3_settings(seaweedfs)


@pytest.fixture
def storage(settings: S3Settings, wire: Wire) -> S3Storage:
    return s3_storage(replace(settings, endpoint=wire.endpoint), waits=QUICK)


@pytest.fixture
def direct(settings: S3Settings) -> S3Storage:
    return s3_storage(settings)


def stage(storage: S3Storage, place: Place, content: bytes = LARGE) -> None:
    storage.stage(place, io.BytesIO(content), None, "")


def failure(act: Any) -> StorageError:
    with pytest.raises(StorageError) as caught:
        act()
    text = str(caught.value)
    assert servers.SECRET not in text
    assert "Signature=" not in text
    assert caught.value.hint
    return caught.value


def nothing_is_left(direct: S3Storage) -> None:
    assert direct.sweep_staging(-60, dry_run=True).objects == 0
    assert list(direct.keys("")) == []


# --- settings that are wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"secret_key": "wrong"}, "S3_SECRET_KEY is not that of S3_ACCESS_KEY"),
        ({"access_key": "nobody"}, "does not know S3_ACCESS_KEY"),
        ({"bucket": "no-such-bucket"}, "there is no bucket no-such-bucket|does not allow it"),
        (
            {"access_key": servers.READ_ONLY[0], "secret_key": servers.READ_ONLY[1]},
            "does not allow it to this key",
        ),
    ],
)
def test_what_no_retry_mends(settings: S3Settings, place: Place, change: dict[str, str], says: str) -> None:
    storage = s3_storage(replace(settings, **change))
    for act in (storage.check, lambda: stage(storage, place), lambda: stage(storage, place, b"small")):
        error = failure(act)
        assert not error.retryable
        assert storage._endpoint() in str(error)
        assert re.search(says, str(error)), str(error)


def test_a_name_without_an_address(settings: S3Settings, place: Place) -> None:
    storage = s3_storage(replace(settings, endpoint="http://no-such-host.invalid:9000"), waits=QUICK)
    error = failure(lambda: stage(storage, place))
    assert "no-such-host.invalid:9000 cannot be reached" in str(error)
    assert error.retryable


def test_a_clock_that_is_off(settings: S3Settings, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.auth

    real = botocore.auth.get_current_datetime
    monkeypatch.setattr(
        botocore.auth, "get_current_datetime", lambda *a, **k: real(*a, **k) - dt.timedelta(hours=2)
    )
    error = failure(s3_storage(settings).check)
    assert "clock" in str(error)
    assert error.retryable  # another worker's clock may be right


# --- a server that is away, or in trouble ---------------------------------------------------------


def test_nobody_listens(storage: S3Storage, direct: S3Storage, wire: Wire, place: Place) -> None:
    stage(storage, place)
    wire.down()
    for act in (
        storage.check,
        storage.now,
        lambda: stage(storage, place),
        lambda: storage.publish([place]),
        lambda: storage.open(place.key),
        lambda: list(storage.keys("")),
        lambda: storage.discard(place.tenant, place.job, place.token),
    ):
        error = failure(act)
        assert error.retryable
        assert f"{wire.endpoint} cannot be reached (Connection refused)" in str(error)
    wire.up()
    storage.publish([place])
    assert direct.open(place.key).read() == LARGE


def test_it_answers_nothing(storage: S3Storage, wire: Wire, place: Place) -> None:
    wire.stalled = True
    begin = time.monotonic()
    error = failure(lambda: stage(storage, place, b"small"))
    assert "does not answer in time" in str(error)
    assert error.retryable
    assert time.monotonic() - begin < 15


@pytest.mark.parametrize("content", [b"small", LARGE], ids=["small", "parts"])
def test_slow_down_is_waited_out(storage: S3Storage, wire: Wire, place: Place, content: bytes) -> None:
    wire.slow_down = 2
    stage(storage, place, content)
    assert wire.struck == 2
    wire.kick()
    wire.slow_down = 2
    storage.publish([place])
    wire.slow_down = 2
    wire.kick()
    assert storage.open(place.key).read() == content


def test_slow_down_for_ever_is_told(storage: S3Storage, direct: S3Storage, wire: Wire, place: Place) -> None:
    wire.slow_down = 10_000
    error = failure(lambda: stage(storage, place))
    assert "takes no more requests for now (SlowDown" in str(error)
    assert error.retryable
    wire.heal()
    nothing_is_left(direct)


@pytest.mark.parametrize("after", [0, 1000, 3 << 20])
def test_a_reset_while_it_goes_up_is_made_good(
    storage: S3Storage, wire: Wire, place: Place, after: int
) -> None:
    wire.reset_after, wire.resets = after, 2
    stage(storage, place)
    assert wire.struck == 2
    storage.publish([place])
    assert storage.open(place.key).read() == LARGE


def test_resets_without_end_leave_no_parts(
    storage: S3Storage, direct: S3Storage, wire: Wire, place: Place
) -> None:
    wire.reset_after, wire.resets = (
        3 << 20,
        10_000,
    )  # short requests pass: the upload begins, and its parts fail
    error = failure(lambda: stage(storage, place))
    assert error.retryable
    assert wire.struck >= QUICK.attempts
    nothing_is_left(direct)


def test_parts_that_could_not_be_aborted_go_with_the_sweep(
    storage: S3Storage, direct: S3Storage, wire: Wire, place: Place
) -> None:
    class Cutting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 8 << 20:
                wire.down()
            return super().read(size)

    with pytest.raises(StorageError):
        storage.stage(place, Cutting(LARGE), None, "")
    assert direct.sweep_staging(3600).objects == 0
    assert direct.sweep_staging(-60, dry_run=True).objects == 1
    direct.sweep_staging(-60)
    nothing_is_left(direct)


@pytest.mark.parametrize("after", [400, 1000, 5 << 20])
def test_a_download_that_breaks_goes_on(storage: S3Storage, wire: Wire, place: Place, after: int) -> None:
    stage(storage, place)
    storage.publish([place])
    wire.kick()
    wire.cut_after, wire.cuts = after, 2
    with storage.open(place.key) as opened:
        assert opened.read(100) + opened.read() == LARGE
    assert wire.struck == 2


def test_a_download_that_always_breaks_is_an_error(storage: S3Storage, wire: Wire, place: Place) -> None:
    stage(storage, place)
    storage.publish([place])
    opened = storage.open(place.key)
    wire.cut_after, wire.cuts = 200, 10_000
    wire.kick()
    error = failure(opened.read)
    assert error.retryable


def test_an_object_that_is_replaced_meanwhile(
    storage: S3Storage, wire: Wire, direct: S3Storage, place: Place
) -> None:
    stage(storage, place)
    storage.publish([place])
    with storage.open(place.key) as opened:
        opened.read(10)
        stage(direct, place, LARGE[1:] + b"!")
        direct.publish([place])
        wire.kick()
        error = failure(opened.read)
        assert "was replaced while it was read" in str(error)


def test_an_outage_in_the_middle_of_publishing(
    storage: S3Storage, direct: S3Storage, wire: Wire, place: Place
) -> None:
    places = [replace(place, name=f"9_{n}.png") for n in range(6)]
    for one in places:
        stage(storage, one, b"small")
    storage.publish(places[:3])
    wire.down()
    assert failure(lambda: storage.publish(places)).retryable
    wire.up()
    storage.publish(places)
    assert sorted(found.key for found in direct.keys("")) == [one.key for one in places]


# --- TLS, links, copies ---------------------------------------------------------------------------


def test_tls_with_an_authority_of_ones_own(
    seaweedfs: S3Server, settings: S3Settings, place: Place, tmp_path: Path
) -> None:
    certificate = self_signed(tmp_path)
    with Wire(seaweedfs.port, certificate=certificate) as wire:
        error = failure(s3_storage(replace(settings, endpoint=wire.endpoint), waits=QUICK).check)
        assert "certificate that is not trusted" in str(error)
        assert "S3_CA_FILE" in error.hint
        trusted = s3_storage(replace(settings, endpoint=wire.endpoint, ca_file=certificate))
        stage(trusted, place)
        trusted.publish([place])
        assert trusted.open(place.key).read() == LARGE


def self_signed(folder: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "tls.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file


def test_a_link_ends_and_cannot_be_bent(direct: S3Storage, place: Place) -> None:
    stage(direct, place, b"<script>")
    direct.publish([place])
    link = direct.link(place.key, 1)
    assert link
    for other in (link.replace("9_0.png", "9_1.png"), link.replace("attachment", "inline")):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(other, timeout=10)
    time.sleep(2.1)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(link, timeout=10)


def test_no_link_where_browsers_do_not_reach(settings: S3Settings, place: Place) -> None:
    assert s3_storage(replace(settings, link_endpoint=None)).link(place.key, 60) is None
    public = s3_storage(replace(settings, link_endpoint="https://files.example.org")).link(place.key, 60)
    assert public
    assert public.startswith(f"https://files.example.org/{BUCKET}/")


def test_a_large_copy_is_made_in_parts_and_keeps_its_type(
    direct: S3Storage, settings: S3Settings, seaweedfs: S3Server, place: Place
) -> None:
    video = replace(place, name="9_0.mp4")
    stage(
        direct, video, b"\x00\x00\x00\x20ftypisom" + LARGE
    )  # above the limit of one copy, which is two parts here
    direct.publish([video])
    found = bucket_client(seaweedfs).head_object(Bucket=BUCKET, Key=settings.prefix + video.key)
    assert found["ContentType"] == "video/mp4"
    assert found["ETag"].strip('"').endswith(f"-{-(-(len(LARGE) + 12) // PART)}")
    assert direct.open(video.key).read()[12:] == LARGE


def test_an_object_that_is_deleted_between(direct: S3Storage, place: Place) -> None:
    stage(direct, place, b"small")
    direct.publish([place])
    direct.delete(place.key)
    with pytest.raises(MissingError):
        direct.publish([place])
