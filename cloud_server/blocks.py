"""Models as the command line shows them: one block of lines each."""

from __future__ import annotations

from collections.abc import Iterable

from protos import co_inference_pb2 as pb

Block = list[tuple[str, str]]
"""Keys and values of the lines."""


def served_block(model: pb.Model) -> Block:
    """Return what a server tells of a model."""
    block = [
        ("model", f"{model.name} {model.version}"),
        ("digest", model.digest.hex()),
        ("input", dims(model.input_shape)),
        ("code", dims(model.code_shape)),
        ("timesteps", str(model.timesteps)),
        ("parts", "tail, whole" if model.whole else "tail"),
        ("slots", f"{model.slots_in_use} of {model.slots} in use"),
    ]
    return block + ([("default", "yes")] if model.is_default else [])


def dims(shape: Iterable[int]) -> str:
    """Return a shape as text."""
    return "x".join(map(str, shape))


def print_blocks(blocks: Iterable[Block]) -> None:
    """Print blocks with an empty line between."""
    text = "\n\n".join("\n".join(f"{key:<10}{value}" for key, value in block) for block in blocks)
    print(text or "no models")
