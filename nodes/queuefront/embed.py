"""On a worker: what nodes write into their files is the graph as it was submitted.

The agent gives every job folders of its own, and so changes file names in the graph that ComfyUI runs. Nodes that
store the graph (PNG, WebP, MP4, FLAC, latents) would store those. They ask for it by the hidden input PROMPT.
"""

from __future__ import annotations

from typing import Any

SUBMITTED = "comfywork_prompt"
"""In a prompt's extra_data: the graph as it was submitted."""


class AsSubmitted:
    """A DynamicPrompt whose original is the one that was submitted."""

    def __init__(self, prompt: Any, original: dict[str, Any]) -> None:
        self._prompt, self._original = prompt, original

    def get_original_prompt(self) -> dict[str, Any]:
        return self._original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prompt, name)


def install() -> None:
    import execution  # noqa: PLC0415

    inner = execution.get_input_data

    def get_input_data(
        inputs: Any,
        class_def: Any,
        unique_id: Any,
        execution_list: Any = None,
        dynprompt: Any = None,
        extra_data: Any = None,
        **more: Any,
    ) -> Any:
        given = extra_data or {}
        original = given.get(SUBMITTED)
        if dynprompt is not None and isinstance(original, dict):
            dynprompt = AsSubmitted(dynprompt, original)
        return inner(inputs, class_def, unique_id, execution_list, dynprompt, given, **more)

    execution.get_input_data = get_input_data
