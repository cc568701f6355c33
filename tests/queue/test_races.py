"""Clients and workers all at once, on real connections: what WATCH has to hold together."""

from __future__ import annotations

import contextlib
import random
import threading
import time

from queuekit import Server, consistent, fake, settings_of

from comfywork import names
from comfywork.broker import Broker, Submission
from comfywork.errors import ConflictError
from comfywork.lease import Foreign, Lease, LeaseLostError, Ledger
from comfywork.views import ENDED, Failure, Output

SECONDS = 4.0


def test_everybody_at_once(server: Server) -> None:  # noqa: C901, PLR0915
    settings = settings_of(server, depth=100_000)
    jobs: list[str] = []
    finished: list[str] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def client(seed: int) -> None:
        dice, broker = random.Random(seed), Broker(server.client, settings)
        while not stop.is_set():
            match dice.randrange(5):
                case 0 | 1:
                    one = Submission(tenant=f"t{dice.randrange(3)}", workflow=fake())
                    broker.submit(one)
                    jobs.append(one.id)
                case 2 if jobs:
                    broker.cancel(dice.choice(jobs[-20:]))
                case 3 if jobs:
                    with contextlib.suppress(ConflictError):
                        broker.reprioritise(dice.choice(jobs[-20:]), dice.choice(names.PRIORITIES))
                case _:
                    broker.jobs(limit=20)

    def worker(seed: int) -> None:
        dice, name = random.Random(seed), f"w{seed}"
        while not stop.is_set():
            ledger = Ledger(server.client, settings)  # each turn is a process of its own
            ledger.own(name, name)
            taken = ledger.take(name, name)
            if isinstance(taken, Foreign):
                raise AssertionError(taken)  # noqa: TRY004
            if not isinstance(taken, Lease) or dice.random() < 0.1:
                continue
            with contextlib.suppress(LeaseLostError):
                ledger.beat(name, name, taken, None, {})
                match dice.randrange(5):
                    case 0:
                        ledger.hand_back(taken.job, taken.token, "test", counted=False)
                    case 1:
                        ledger.fail(taken.job, taken.token, Failure(kind="execution", message="no"))
                    case _:
                        output = Output(key="k", node="1", name="n", media_type="x", size=1, sha256="s")
                        ledger.finish(taken, ledger.seal(taken, [output], taken.token))
                        finished.append(taken.job)

    def reaper() -> None:
        ledger, dice = Ledger(server.client, settings), random.Random(0)
        while not stop.is_set():
            held = server.client.zrange(names.LEASES, 0, -1)
            if held:
                server.client.zadd(names.LEASES, {dice.choice(held): 1}, xx=True)
            ledger.reap()
            ledger.tidy()
            time.sleep(0.005)

    def guarded(act, *arguments) -> None:
        try:
            act(*arguments)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=guarded, args=(client, seed)) for seed in range(3)]
    threads += [threading.Thread(target=guarded, args=(worker, seed)) for seed in range(10, 13)]
    threads += [threading.Thread(target=guarded, args=(reaper,))]
    for thread in threads:
        thread.start()
    stop.wait(SECONDS)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors
    consistent(server.client)
    # What is left is ended by one worker.
    broker, ledger = Broker(server.client, settings), Ledger(server.client, settings)
    ledger.own("last", "last")
    for key in server.client.zrange(names.LEASES, 0, -1):
        server.client.zadd(names.LEASES, {key: 1})
    ledger.reap()
    while isinstance(taken := ledger.take("last", "last"), Lease):
        assert not server.client.hexists(names.job(taken.job), "cancel"), "a cancelled job is waiting"
        ledger.finish(taken, ledger.seal(taken, (), taken.token))
    consistent(server.client)
    states = [broker.status(job).state for job in jobs]
    assert set(states) <= set(ENDED)
    counted = {key.decode(): value for key, value in server.client.hgetall(names.COUNTERS).items()}
    assert sum(int(counted.get(state, 0)) for state in ENDED) == len(jobs) == int(counted["submitted"])
    assert len(finished) == len(set(finished))
    assert len(jobs) > 100
