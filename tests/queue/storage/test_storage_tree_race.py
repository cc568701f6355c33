"""Folders that one process makes while others take the empty ones away."""

from __future__ import annotations

import threading
from pathlib import Path

from comfywork.storage.tree import Tree


def test_a_new_file_below_folders_that_vanish(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(300):
                with tree.new_file(f".staging/t{number}/j{turn}", "a"):
                    pass
                assert tree.remove(f".staging/t{number}/j{turn}/a")
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(tmp_path.iterdir()) == []
