"""The front itself: takes what ComfyUI has validated, puts it into the queue, and follows it to its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import models as model_lists
from .delivery import Delivery
from .inputs import files_of
from .models import Models
from .outputs import Shelf
from .port import ENDED, Port, PortError, RefusedError, UnreachableError
from .queue import RemoteQueue
from .records import Record, Records
from .said import lost
from .settings import Settings, SettingsError
from .web import middleware

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .port import Look
    from .queue import Item
    from .replay import Replay

LOG = logging.getLogger("queuefront")

PATIENCE = 10.0  # seconds for which a queue that does not answer is asked again, before the prompt is refused
_PAUSES = (0.5, 5.0)  # seconds between two tries: first, longest
_RUNNING, _PENDING = 2.0, 15.0  # seconds between two looks at a job of which nothing is heard
_DEAF_RUNNING, _DEAF_PENDING = 0.5, 3.0  # the same while no changes are heard of at all
_MODELS = 60.0  # seconds between two looks at the workers' models
_AT_ONCE = 8  # looks and transfers
_START = 5.0  # seconds for the first answer of the queue, before ComfyUI starts without it
_REFUSED = 77  # exit code: the token does not allow it
_PAGE = 500  # entries of one look, at most
_PRIVATE = ("client_id", "auth_token_comfy_org", "api_key_comfy_org")


class Front:
    """All of it runs in a thread and an event loop of its own; what ComfyUI's threads call is `submit` and `cancel`."""

    def __init__(self, settings: Settings, server: Any, folders: Any) -> None:
        home = Path(folders.get_system_user_directory("queuefront"))
        self._settings = settings
        self._records = Records(home / "prompts")
        self.models = Models(home / "models.json")
        self.queue = RemoteQueue(server, self)
        self._port = Port(settings)
        shelf = Shelf(
            Path(folders.get_output_directory()), Path(folders.get_temp_directory()), self._records.save
        )
        self._delivery = Delivery(server, self.queue, self._port, shelf)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._answers: dict[str, concurrent.futures.Future[None]] = {}
        self._hints: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._live: dict[str, Record] = {}
        self._hearing = False
        self._tenant = ""
        self._slots: asyncio.Semaphore

    def start(self) -> None:
        """Returns when the queue has answered, or after some seconds without."""
        threading.Thread(target=self._run, name="queuefront", daemon=True).start()
        self._ready.wait(_START)

    # --- called by ComfyUI -----------------------------------------------------------------------

    def submit(self, item: Item) -> None:
        record = self._live[item[1]] = Record.of_item(item)
        self._answers[record.id] = concurrent.futures.Future()
        try:
            self._records.save(record)
        except (OSError, TypeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            self._refuse(record, PortError(f"the prompt cannot be written down: {reason}"))
            return
        self._spawn(self._enter(record))

    def cancel(self, jobs: Iterable[str], *, shown: bool) -> None:
        """`shown`: it stays in the browser's list until it has ended."""
        for job in jobs:
            LOG.info("cancelling %s", job)
            self._spawn(self._cancel(job, shown=shown))

    def answer(self, job: str) -> concurrent.futures.Future[None] | None:
        """Done when the queue has the job; raises PortError when it is not to have it."""
        return self._answers.get(job)

    def answered(self, job: str) -> None:
        """Nobody waits any more: what happens from now on is told as an event."""
        self._answers.pop(job, None)

    # --- its own thread --------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        self._slots = asyncio.Semaphore(_AT_ONCE)
        for record in self._records.load():
            LOG.info("%s is found again", record.id)
            self._live[record.id] = record
            if record.stage == "withdrawn":
                self._spawn(self._cancel(record.id, shown=False))
            else:
                self.queue.show(record.item)
                self._spawn(self._enter(record))
        await self._greet()
        self._ready.set()
        await asyncio.gather(self._listen(), self._refresh())

    async def _greet(self) -> None:
        try:
            await self._identified()
            self.models.update(await self._port.models())
        except UnreachableError as error:
            LOG.warning("%s; %s", error, error.hint or "it is asked again")
        except RefusedError as error:
            if error.status in (401, 403):
                self._die(f"{error}: COMFYWORK_TOKEN")
            LOG.warning("%s; %s", error, error.hint)

    async def _identified(self) -> None:
        """Before anything is submitted: with another's token, the pictures would be another's."""
        if self._tenant:
            return
        tenant, wanted = await self._port.me(), self._settings.tenant
        if wanted and tenant != wanted:
            self._die(f"this token is {tenant}'s, and this front is for {wanted}: COMFYWORK_TOKEN")
        self._tenant = tenant
        LOG.info("prompts of this ComfyUI become jobs of %s at %s", tenant, self._settings.api)

    @staticmethod
    def _die(why: str) -> None:
        LOG.critical("%s", why)
        logging.shutdown()
        os._exit(_REFUSED)

    async def _listen(self) -> None:
        """To what changes, so that nothing has to be asked for often."""
        pause = _PAUSES[0]
        while True:
            try:
                async for job in self._port.changes():
                    self._hearing, pause = True, _PAUSES[0]
                    for hint in self._hints.values() if not job else filter(None, [self._hints.get(job)]):
                        hint.set()
            except PortError as error:
                if self._hearing:
                    LOG.warning("%s", error)
            self._hearing = False
            await asyncio.sleep(pause)
            pause = min(_PAUSES[1], 2 * pause)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(_MODELS if self._tenant else _PAUSES[1])
            with suppress(PortError):
                await self._identified()
                self.models.update(await self._port.models())

    def _spawn(self, work: Any) -> None:
        def begin() -> None:
            task = self._loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._done)

        self._loop.call_soon_threadsafe(begin)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            LOG.error("a prompt is not followed any more", exc_info=task.exception())

    # --- into the queue --------------------------------------------------------------------------

    async def _enter(self, record: Record) -> None:
        """Submit it if the queue may not have it yet, then follow it."""
        if record.stage == "new":
            fresh = record.id in self._answers
            try:
                await self._submitted(record, PATIENCE if fresh else None)
            except PortError as error:
                self._refuse(record, error)
                return
            if self.queue.shows(record.id):
                record.stage = "queued"
                self._records.save(record)
            else:
                # Deleted while it was submitted: the queue had not known it yet.
                await self._cancel(record.id, shown=False)
        if (answer := self._answers.pop(record.id, None)) is not None:
            answer.set_result(None)
        await self._follow(record)

    async def _submitted(self, record: Record, patience: float | None) -> None:
        end = None if patience is None else self._loop.time() + patience
        pause = _PAUSES[0]
        while True:
            try:
                await self._submit(record)
            except UnreachableError:
                if end is not None and self._loop.time() + pause > end:
                    raise
                await asyncio.sleep(pause)
                pause = min(_PAUSES[1], 2 * pause)
            except RefusedError as error:
                if not (error.conflict and patience is None):
                    raise
                return  # submitted before this front was started again
            else:
                return

    async def _submit(self, record: Record) -> None:
        async with self._slots:
            await self._identified()
            files = await asyncio.to_thread(files_of, record.prompt)
            inputs = {name: await self._port.put_input(path.name, path) for name, path in files.items()}
            extra = {name: value for name, value in record.extra_data.items() if name not in _PRIVATE}
            extra["comfywork"] = {"trail": True, "previews": True, "targets": record.targets}
            priority = "high" if record.number < 0 else self._settings.priority
            try:
                await self._port.submit(record.id, record.prompt, priority, inputs, extra)
            except RefusedError as error:
                if error.status != 403 or priority == self._settings.priority:  # noqa: PLR2004
                    raise
                # "Queue (front)" asks for more than this tenant may: then it waits like the others.
                await self._port.submit(record.id, record.prompt, self._settings.priority, inputs, extra)

    def _refuse(self, record: Record, error: PortError) -> None:
        LOG.warning("%s is not queued: %s", record.id, error)
        answer = self._answers.pop(record.id, None)
        if answer is None and self.queue.shows(record.id):
            # Nobody waits for an answer any more, so it fails where it is seen.
            replay = self._delivery.replay(record)
            said = lost(f"Not queued: {error}", error.hint)
            self._delivery.failed(record, replay, said)
        self.queue.drop(record.id)
        if isinstance(error, UnreachableError):
            # Whether it arrived is not known. Nobody counts on it any more, so it is not to run.
            self._spawn(self._cancel(record.id, shown=False))
        else:
            self._forget(record.id)
        if answer is not None:
            answer.set_exception(error)

    async def _cancel(self, job: str, *, shown: bool) -> None:
        """Until the queue knows."""
        pause = _PAUSES[0]
        record = self._live.get(job)
        if record is not None and not shown:
            record.stage = "withdrawn"
            self._records.save(record)
        while True:
            try:
                await self._port.cancel(job)
            except UnreachableError as error:
                LOG.warning("%s; %s is cancelled as soon as it answers", error, job)
                await asyncio.sleep(pause)
                pause = min(30.0, 2 * pause)
            except RefusedError as error:
                if not error.unknown:
                    LOG.warning("%s is not cancelled: %s", job, error)
                break
            else:
                break
        if (hint := self._hints.get(job)) is not None:
            hint.set()
        elif not shown:
            self._forget(job)

    def _forget(self, job: str) -> None:
        self._live.pop(job, None)
        self._records.remove(job)

    # --- to its end ------------------------------------------------------------------------------

    async def _follow(self, record: Record) -> None:
        replay, cursor = self._delivery.replay(record), ""
        hint = self._hints[record.id] = asyncio.Event()
        state, known, troubled = "pending", True, False
        try:
            while True:
                more = False
                try:
                    async with self._slots:
                        look = await self._port.look(record.id, cursor)
                    state, cursor, known, troubled = look.state, look.next, True, False
                    more = len(look.entries) >= _PAGE
                    if await self._looked(record, replay, look, more=more):
                        return
                except UnreachableError as error:
                    if not troubled:
                        LOG.warning("%s; %s goes on meanwhile", error, record.id)
                    troubled = True
                except RefusedError as error:
                    if not (error.unknown and known and await self._again(record)):
                        if self.queue.shows(record.id):
                            why = f"the queue does not answer for this prompt any more: {error}"
                            self._delivery.failed(record, replay, lost(why, error.hint))
                        return
                    known, cursor = False, ""
                if not more:
                    await self._heard(hint, state, troubled=troubled)
        finally:
            self._hints.pop(record.id, None)
            self._forget(record.id)

    async def _looked(self, record: Record, replay: Replay, look: Look, *, more: bool) -> bool:
        """Whether that was the last look."""
        if not self.queue.shows(record.id):
            return look.state in ENDED
        self._moved(record.id, look.state)
        for entry in look.entries:
            replay.feed(entry)
        if more or look.state not in ENDED:
            return False
        if look.state == "completed":
            await self._delivery.completed(record, replay, look.job)
        else:
            self._delivery.ended(record, replay, look.job)
        return True

    async def _heard(self, hint: asyncio.Event, state: str, *, troubled: bool) -> None:
        if troubled:
            await asyncio.sleep(_DEAF_RUNNING)
        running, pending = (_RUNNING, _PENDING) if self._hearing else (_DEAF_RUNNING, _DEAF_PENDING)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(hint.wait(), running if state == "processing" else pending)
        hint.clear()

    def _moved(self, job: str, state: str) -> None:
        if state == "processing":
            self.queue.begin(job)
        elif state == "pending":
            self.queue.back(job)

    async def _again(self, record: Record) -> bool:
        """The queue does not know it: it has lost its data. The prompt is still here."""
        if not self.queue.shows(record.id):
            return False
        LOG.warning("the queue has lost %s: it is submitted again", record.id)
        try:
            await self._submitted(record, None)
        except PortError:
            return False
        return True


def begin(environ: Mapping[str, str]) -> None:
    """Make this ComfyUI a front. It ends with exit code 2 rather than execute anything itself."""
    import folder_paths  # noqa: PLC0415
    from server import PromptServer  # noqa: PLC0415

    try:
        settings = Settings.of_environment(environ)
        front = Front(settings, PromptServer.instance, folder_paths)
    except SettingsError as error:
        for line in str(error).splitlines():
            LOG.critical("%s", line)
        sys.exit(2)
    except OSError as error:
        LOG.critical("the user directory cannot be written: %s", error)
        sys.exit(69)
    model_lists.install(front.models)
    server = PromptServer.instance
    server.prompt_queue = front.queue
    server.app.middlewares.append(middleware(front))
    front.start()
