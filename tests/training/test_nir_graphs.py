"""Networks come from NIR and heads go there, with the same spikes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import snntorch
import torch
from torch import nn

from shared.engine.torch_engine import load_network
from shared.errors import ConfigError
from shared.events.framing import ByTime
from shared.model.bundle import Bundle
from training.cli import main
from training.data.sets import Options, load
from training.nir_graphs import RESET, TIMESTEP, head_graph, network_of, read_graph, write_graph
from training.snntorch_network import convert, original_logits

nir = pytest.importorskip("nir", reason="the exchange format")
SHIPPED = Path(__file__).resolve().parents[2] / "shared" / "zoo" / "resnet18-n-mnist"
WEIGHTS, NMNIST = os.environ.get("NEUCODEX_NIR", ""), os.environ.get("NEUCODEX_NMNIST", "")
"""The N-MNIST network of sinabs in NIR, and the recordings."""


def chain(**nodes: Any) -> Any:
    names = ["input", *nodes, "output"]
    ends = {"input": nir.Input({"input": np.array([1, 4, 4])})}
    both = ends | nodes | {"output": nir.Output({"output": np.array([3])})}
    edges = list(zip(names, names[1:], strict=False))
    return nir.NIRGraph(both, edges, type_check=False)


def integrate(*shape: int, threshold: float = 1.0, **metadata: Any) -> Any:
    ones = np.ones(shape, np.float32)
    return nir.IF(r=ones, v_threshold=threshold * ones, v_reset=0 * ones, metadata=metadata)


def small(**changes: Any) -> Any:
    rng = np.random.default_rng(0)
    conv = nir.Conv2d(
        (4, 4),
        rng.normal(size=(2, 1, 3, 3)).astype(np.float32),
        1,
        1,
        1,
        1,
        np.zeros(2, np.float32),
    )
    two = np.array([2, 2])
    nodes = {
        "conv": conv,
        "fire": integrate(2, 4, 4),
        "pool": nir.SumPool2d(two, two, np.array([0, 0])),
        "flat": nir.Flatten({"input": np.array([2, 2, 2])}, start_dim=0),
        "full": nir.Affine(rng.normal(size=(3, 8)).astype(np.float32), np.zeros(3, np.float32)),
        "out": integrate(3),
    }
    return chain(**{name: node for name, node in (nodes | changes).items() if node is not None})


def simulate(graph: Any, frames: np.ndarray) -> np.ndarray:
    """Run a graph node by node, its neurons as their metadata say; ``[T, C, H, W]`` in and out."""
    before: dict[str, list[str]] = {}
    for source, target in graph.edges:
        before.setdefault(target, []).append(source)
    potential: dict[str, Any] = {}
    fired: dict[str, Any] = {}
    steps = []
    for frame in torch.from_numpy(frames).float():
        values: dict[str, Any] = {"input": frame[None]}
        while "output" not in values:
            for name, sources in before.items():
                if name not in values and all(source in values for source in sources):
                    x = torch.stack([values[source] for source in sources]).sum(0)
                    values[name] = _run(graph.nodes[name], name, x, potential, fired)
        steps.append(values["output"][0].numpy())
    return np.stack(steps)


def _run(node: Any, name: str, x: Any, potential: dict[str, Any], fired: dict[str, Any]) -> Any:
    kind = type(node).__name__
    if kind == "Conv2d":
        weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
        stride, padding = (tuple(map(int, each)) for each in (node.stride, node.padding))
        return nn.functional.conv2d(x, weight, bias, stride, padding)
    if kind == "Output":
        return x
    assert kind in ("IF", "LIF")
    leak, gain = torch.zeros(()), torch.from_numpy(node.r)
    if kind == "LIF":
        share = torch.from_numpy(np.asarray(node.metadata[TIMESTEP] / node.tau, np.float32))
        leak, gain = share, gain * share
    threshold = torch.from_numpy(node.v_threshold)
    mem, spike = potential.get(name, torch.zeros_like(x)), fired.get(name, torch.zeros_like(x))
    if node.metadata[RESET] == "subtract":
        mem = (1 - leak) * mem - spike * threshold
    else:
        mem = (1 - leak) * mem * (1 - spike)
    potential[name] = mem + gain * x
    fired[name] = (potential[name] > threshold).float()
    return fired[name]


def test_a_chain_becomes_stages_that_end_in_neurons() -> None:
    network = network_of(small(), None, None)
    assert [name for name, _ in network.named_children()] == ["stage1", "stage2"]
    neurons = [module for module in network.modules() if isinstance(module, snntorch.Leaky)]
    assert [each.reset_mechanism for each in neurons] == ["zero", "zero"]
    description, _ = convert(network, (1, 4, 4), 3, "spikes")
    assert [stage.features for stage in description.stages] == [(2, 4, 4)]


def test_a_sum_pooling_adds_up() -> None:
    x = torch.ones(1, 2, 4, 4)
    graph = small()
    pool, flat, full, _ = cast("nn.Sequential", network_of(graph, None, None)[1])
    expected = nn.functional.linear(
        4 * torch.ones(1, 8), torch.from_numpy(graph.nodes["full"].weight)
    )
    torch.testing.assert_close(full(flat(pool(x))), expected)


def test_leaky_neurons_keep_their_leak_and_the_input_its_effect() -> None:
    ones = np.ones(3, np.float32)
    leaky = nir.LIF(0.01 * ones, 5 * ones, 0 * ones, 2 * ones, 0 * ones)
    graph = small(out=leaky)
    with pytest.raises(ConfigError, match="node out, LIF: expected the length of a timestep"):
        network_of(graph, None, None)
    *_, neurons = cast("nn.Sequential", network_of(graph, "subtract", 0.001)[-1])
    assert isinstance(neurons, snntorch.Leaky)
    assert float(neurons.beta) == pytest.approx(0.9)
    # r * dt / tau = 0.5: a potential of 2 takes an input of 4.
    assert float(neurons.threshold) == pytest.approx(4.0)
    assert neurons.reset_mechanism == "subtract"


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (small(full=nir.Scale(np.ones(8))), "node full, Scale: expected Conv2d, Affine"),
        (small(full=None), "expected weights between a sum pooling and neurons"),
        (small(out=nir.IF(np.ones(3), np.ones(3), np.ones(3))), "reset to 0"),
        (small(out=nir.IF(-np.ones(3), np.ones(3), np.zeros(3))), "expected r above 0"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(graph: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        network_of(graph, None, None)


def test_a_graph_that_is_no_chain_is_refused() -> None:
    graph = small()
    graph.edges.append(("fire", "full"))
    with pytest.raises(ConfigError, match="two edges from node fire"):
        network_of(graph, None, None)
    graph = small()
    graph.edges.remove(("pool", "flat"))
    with pytest.raises(ConfigError, match="not on it are"):
        network_of(graph, None, None)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nir").write_bytes(b"no HDF5")
    for name in ("a.nir", "none.nir"):
        with pytest.raises(ConfigError, match=f"{name}: expected a NIR graph"):
            read_graph(tmp_path / name)


def test_an_exported_head_gives_the_bundle_s_code(tmp_path: Path) -> None:
    path = tmp_path / "head.nir"
    assert main(["nir", "export", str(SHIPPED), str(path)]) == 0
    rng = np.random.default_rng(0)
    frames = (8 * (rng.random((6, 2, 34, 34)) < 0.1)).astype(np.float32)
    head = load_network(Bundle(SHIPPED)).head()
    with torch.inference_mode():
        expected, _ = head(torch.from_numpy(frames)[:, None])
        found = simulate(read_graph(path), frames)
    assert 0 < expected.mean() < 1
    # A sum in another order moves a spike now and then.
    assert (found == expected[:, 0].numpy()).mean() > 0.999


def test_a_chain_comes_back_from_its_export(tmp_path: Path) -> None:
    from shared.model.backbones import Chain
    from shared.model.split import Part

    _, backbone = convert(network_of(small(out=None), "subtract", None), (1, 4, 4), 3, "spikes")
    graph = head_graph(Part({"head": Chain(dict(backbone.items()))}), (1, 4, 4), 0.001)
    write_graph(graph, tmp_path / "chain.nir")
    again = network_of(read_graph(tmp_path / "chain.nir"), None, None)
    frames = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 2, 1, 4, 4))).float()
    with torch.inference_mode():
        expected, _ = backbone(frames)
        found = original_logits(again, frames, "spikes")
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(not (WEIGHTS and NMNIST), reason="NEUCODEX_NIR or NEUCODEX_NMNIST is not set")
@pytest.mark.slow
def test_the_published_network_knows_all_test_recordings() -> None:
    network = network_of(read_graph(Path(WEIGHTS)), None, None)
    framing = ByTime(timesteps=300, window_microseconds=1000)
    data = load("n-mnist", Path(NMNIST), train=False, options=Options(framing=framing))
    _, backbone = convert(network, (2, 34, 34), 10, "spikes")
    right = 0
    with torch.inference_mode():
        for start in range(0, len(data), 20):
            part = data.part(slice(start, start + 20))
            frames = torch.from_numpy(part.inputs).transpose(0, 1).float()
            state = None
            total = torch.zeros(len(part), 10)
            for frame in frames:
                spikes, state = backbone(frame[None], state)
                total += spikes[0]
            right += int((total.argmax(1) == torch.from_numpy(part.labels)).sum())
    assert right == len(data) == 100
