"""The report: words and a picture, also for a model that has not run or does not swap."""

from __future__ import annotations

from typing import Any

import pytest


def test_text_and_picture_of_a_run(dgls: Any, models: Any) -> None:
    from dgls import picture, report
    from sampling import sample, swapping

    model = swapping("wan.safetensors", gpu_layer_indices="0,3", threading=True)
    sample(model)
    found = report.of(model)
    text = report.text(found)
    assert text.startswith("DGLS: cpu on ")
    assert "on the GPU throughout (2, " in text
    assert "): 0, 3\n" in text
    assert "note: threading has no effect here" in text
    assert found.copies > 0
    assert found.metrics is not None
    image = picture.render(found)
    assert image.width == picture.WIDTH
    colours = {colour for _, colour in image.getcolors(1 << 24)}
    assert {picture.RESIDENT, picture.STREAMED, picture.COMPUTE} <= colours
    tensor = picture.tensor(image)
    assert tuple(tensor.shape) == (1, image.height, image.width, 3)
    assert 0 <= float(tensor.min()) <= float(tensor.max()) <= 1
    assert picture.render(found).tobytes() == image.tobytes()


@pytest.mark.parametrize("asked", [{}, {"mode": "off"}], ids=["not run", "off"])
def test_without_a_run(dgls: Any, models: Any, asked: Any) -> None:
    from dgls import picture, report
    from sampling import swapping

    found = report.of(swapping("wan.safetensors", **asked))
    assert len(found.layers) == 6
    assert found.copies == 0
    assert ("the model has not run yet" in report.text(found)) is (not asked)
    assert picture.render(found).height > 100


def test_the_node(dgls: Any, models: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths
    from dgls import nodes
    from dgls.errors import NodeError
    from sampling import sample, stock, swapping

    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    model = swapping("wan.safetensors", initial_gpu_layers=1)
    sample(model)
    answer = nodes.Report().report(model, None)
    text, image = answer["result"]
    assert answer["ui"]["text"] == [text]
    (shown,) = answer["ui"]["images"]
    assert (tmp_path / shown["filename"]).stat().st_size > 1000
    assert image.shape[-1] == 3
    with pytest.raises(NodeError, match="needs the model that the DGLS Swapping Loader gave"):
        nodes.Report().report(stock("wan.safetensors"), None)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], "none"), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8"), ([10, 11], "10-11")],
)
def test_ranges(dgls: Any, numbers: list[int], text: str) -> None:
    from dgls.report import ranges

    assert ranges(numbers) == text


def test_sizes_and_seconds(dgls: Any) -> None:
    from dgls.report import seconds, size

    assert [size(n) for n in (0, 1023, 1 << 20, 3 << 29)] == ["0 bytes", "1023 bytes", "1.00 MiB", "1.50 GiB"]
    assert [seconds(n) for n in (None, 0.0012, 2)] == ["–", "1.20 ms", "2.00 s"]
