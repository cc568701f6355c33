"""The page in a real browser: log in, a job that moves, a picture, cancel, nothing from elsewhere.

IMGBUILD_PAGE_PICTURE=docs/images/queue-page.png writes the picture of the docs.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from frontkit import Api, Queue, Worker, png

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="pip install playwright, for the page in a browser"
)


@pytest.fixture
def page(browser: sync_api.Browser, api: Api) -> Iterator[sync_api.Page]:
    """Fails the test when the page asks anybody else, or the console complains."""
    context = browser.new_context(viewport={"width": 1240, "height": 900}, color_scheme="light")
    found = context.new_page()
    complaints: list[str] = []
    found.on(
        "request", lambda asked: asked.url.startswith((api.url, "blob:")) or complaints.append(asked.url)
    )
    found.on(
        "console",
        lambda said: (
            complaints.append(said.text)
            if said.type == "error"
            and "Failed to load resource" not in said.text  # a refusal, which the page shows
            else None
        ),
    )
    found.on("pageerror", lambda error: complaints.append(str(error)))
    yield found
    context.close()
    assert complaints == []


def log_in(page: sync_api.Page, api: Api, tenant: str = "user001") -> None:
    page.goto(api.url)
    page.get_by_label("Token").fill(api.tokens[tenant])
    page.get_by_role("button", name="Log in").click()
    sync_api.expect(page.locator("#who")).to_have_text(re.compile(tenant))


def test_a_wrong_token(page: sync_api.Page, api: Api) -> None:
    page.goto(api.url)
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    sync_api.expect(page.get_by_role("alert")).to_have_text("This token is nobody's.")
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0


def test_a_job_progresses_to_a_picture(page: sync_api.Page, api: Api, queue: Queue, worker: Worker) -> None:
    expect = sync_api.expect
    log_in(page, api)
    job = queue.submit()
    foreign = queue.submit("user002")
    row = page.locator(f"#queue li[data-job='{job.id}']")
    expect(row.locator(".state")).to_have_text("pending")
    lease = worker.take()
    for done, value in ((0, 0), (1, 5)):
        worker.progress(lease, done, value, 10)
    expect(row.locator(".state")).to_have_text("processing")
    expect(row.locator("progress")).to_have_attribute("value", "0.75")
    expect(page.locator("#workers")).to_contain_text("NVIDIA H100")
    worker.complete(lease)
    card = page.locator(f"#results li[data-job='{job.id}']")
    expect(card.locator(".state")).to_contain_text("completed")
    expect(row).to_have_count(0)
    page.wait_for_function(
        "id => document.querySelector(`#results li[data-job='${id}'] img`)?.naturalWidth === 64", arg=job.id
    )
    card.get_by_role("button", name="Open 2_0.png").click()
    expect(page.locator("#viewer img")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Save").click()
    assert Path(download.value.path()).read_bytes() == png()
    page.get_by_role("button", name="Close").click()
    assert foreign.id not in page.content()


def test_cancel_and_run_again(page: sync_api.Page, api: Api, queue: Queue) -> None:
    expect = sync_api.expect
    job = queue.submit()
    log_in(page, api)
    page.locator(f"#queue li[data-job='{job.id}']").get_by_role("button", name="Cancel").click()
    card = page.locator(f"#results li[data-job='{job.id}']")
    expect(card.locator(".state")).to_have_text("cancelled")
    assert queue.broker.status(job.id).state == "cancelled"
    card.get_by_role("button", name="Run again").click()
    expect(page.locator("#queue li")).to_have_count(1)


def test_what_a_job_says_is_text(page: sync_api.Page, api: Api, queue: Queue, worker: Worker) -> None:
    job = queue.submit()
    worker.fail(worker.take(), "execution", "<img src=x onerror=document.title='owned'>")
    log_in(page, api)
    card = page.locator(f"#results li[data-job='{job.id}']")
    sync_api.expect(card.locator(".failure")).to_contain_text("<img src=x")
    assert page.title() == "Queue"


def test_priority_submit_and_leave(page: sync_api.Page, api: Api, queue: Queue, tmp_path: Path) -> None:
    expect = sync_api.expect
    log_in(page, api, "little")
    (tmp_path / "w.json").write_text('{"1": {"class_type": "A", "inputs": {}}}')
    page.locator("#workflow").set_input_files(tmp_path / "w.json")
    expect(page.locator("#queue li")).to_have_count(1)
    chooser = page.get_by_label(re.compile("^Priority of [0-9a-f]"))
    assert chooser.locator("option").all_text_contents() == ["normal", "low"]
    chooser.select_option("low")
    page.wait_for_timeout(500)
    assert [job.priority for job in queue.broker.jobs()] == ["low"]
    (tmp_path / "w.json").write_text('{"nodes": [], "links": []}')
    page.locator("#workflow").set_input_files(tmp_path / "w.json")
    expect(page.locator("#trouble")).to_contain_text("Export (API)")
    page.get_by_role("button", name="Log out").click()
    assert page.evaluate("sessionStorage.length") == 0
    page.reload()
    expect(page.get_by_label("Token")).to_be_visible()
    expect(page.locator("#queue li")).to_have_count(0)


def test_light_and_dark(page: sync_api.Page, api: Api) -> None:
    page.goto(api.url)
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.get_by_role("button", name="Dark").click()
    dark = page.evaluate(colour)
    assert light != dark
    page.reload()
    assert page.evaluate(colour) == dark


def test_the_api_page(page: sync_api.Page, api: Api) -> None:
    page.goto(f"{api.url}/docs")
    sync_api.expect(page.get_by_text("/v1/jobs/{job_id}/cancel")).to_be_visible()


def test_the_picture_of_the_docs(page: sync_api.Page, api: Api, queue: Queue, worker: Worker) -> None:
    """Always taken, kept only where it is asked for."""
    kept = os.environ.get("IMGBUILD_PAGE_PICTURE")
    second = Worker(queue, "worker-2")
    for number in range(4):
        queue.submit()
        worker.complete(worker.take(), {"2_0.png": gradient(number)})
    queue.submit()
    worker.fail(worker.take(), "memory", "out of GPU memory: 18.2 GB wanted, 11.4 GB free, also after /free")
    for _ in range(2):
        queue.submit()
    queue.submit("user002")
    worker.take()
    running = second.take()
    log_in(page, api)
    second.progress(running, 1, 13, 20, "2")
    queue.submit(priority="high")
    queue.submit(priority="low")
    sync_api.expect(page.locator("#queue .state.processing")).to_have_count(1)
    sync_api.expect(page.locator("#results li")).to_have_count(5)
    page.wait_for_function("() => [...document.querySelectorAll('#results img')].every(i => i.naturalWidth)")
    taken = page.screenshot(full_page=True)
    assert taken.startswith(b"\x89PNG")
    if kept:
        Path(kept).write_bytes(taken)


def gradient(number: int, size: int = 256) -> bytes:
    """A picture that one can tell from the others."""
    import struct

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = bytearray()
    for y in range(size):
        rows.append(0)
        for x in range(size):
            fade = (x + y) * 255 // (2 * size)
            ring = 255 if ((x - 128) ** 2 + (y - 128) ** 2) // 900 % (number + 2) == 0 else 120
            rows += bytes(((fade + 60 * number) % 256, ring, 255 - fade))
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(rows)))
        + chunk(b"IEND", b"")
    )
