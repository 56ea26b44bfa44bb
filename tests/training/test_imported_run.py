"""The worked example: a snnTorch network becomes a bundle that runs on the real pair."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_agent import Edge
from examples import snntorch_net
from examples.pair import pair
from shared.engine import onnx_runtime, torch_engine
from shared.engine.base import Engine, zero_state
from shared.exit_rule import expand_alpha
from shared.model.bundle import WEIGHTS, Bundle, PartName
from shared.model.neuron import LIF
from training.calibrate import (
    LabelledFrames,
    answers,
    batches,
    exit_timesteps,
    judge,
    named_engine,
    run_engines,
)
from training.cli import main
from training.evaluate import load_evaluation
from training.fit import CHECKPOINT, FitOptions, fit, load_checkpoint
from training.import_net import load_network, load_weights
from training.recipe import load_recipe
from training.recipe_data import load_test, load_training
from training.snntorch_network import original_logits

# Exporting takes a while where both cores are busy.
pytestmark = pytest.mark.timeout(600)

RECIPE = Path(snntorch_net.__file__).with_suffix(".toml")
NETWORK = "examples.snntorch_net:network"
PARTS: tuple[PartName, ...] = ("head", "tail", "whole")


def command(*words: str | Path) -> int:
    return main([str(word) for word in words])


def import_net(weights: Path, template: Path, data: Path, out: Path) -> int:
    flags = ("--weights", weights, "--recipe", template, "--data", data, "--out", out)
    return command("import-net", NETWORK, *flags, "--readout", "membrane", "--no-compile")


@pytest.fixture(scope="module")
def weights(cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the example trains on a few pictures, with a threshold of its own in each layer."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    snntorch_net.main(cifar10 / "cifar-10-batches-bin", path)
    trained = load_file(path)
    trained |= {"lif1.threshold": torch.tensor(0.4), "lif2.threshold": torch.tensor(0.7)}
    save_file(trained, path)
    return path


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's recipe, made small, but long enough that the code comes to life."""
    text = "batch_size = 4\n" + RECIPE.read_text()
    for key, few in (("holdout", 16), ("epochs", 6)):
        text, changes = re.subn(rf"^{key} = \d+$", f"{key} = {few}", text, flags=re.MULTILINE)
        assert changes == 1
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def run(
    weights: Path, template: Path, cifar10: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "imported"
    assert import_net(weights, template, cifar10, folder) == 0
    return folder


@pytest.fixture(scope="module")
def few_tests(run: Path, cifar10: Path) -> LabelledFrames:
    """The test pictures."""
    return LabelledFrames.of(load_test(load_recipe(run / "recipe.toml"), cifar10))


def test_only_the_bottleneck_learns(run: Path) -> None:
    before, after = (
        load_checkpoint(folder / CHECKPOINT)["network"] for folder in (run / "imported", run)
    )

    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in changed if not name.startswith("tail.")} == {
        "encoder",
        "decoder",
    }
    tail = {name: tensor for name, tensor in after.items() if name.startswith("tail.")}
    assert tail
    for name, tensor in tail.items():
        assert torch.equal(tensor, after[name.replace("tail.", "backbone.", 1)]), name


def test_the_bundle_computes_what_the_network_computed(
    run: Path, weights: Path, cifar10: Path, few_tests: LabelledFrames, tmp_path: Path
) -> None:
    flags = ("--data", cifar10, "--out", tmp_path / "bundle", "--float32")
    assert command("export", run, *flags) == 0
    bundle = Bundle(tmp_path / "bundle")
    network = load_network(NETWORK)
    load_weights(network, weights)
    spec, preprocessing = bundle.spec, bundle.manifest.preprocessing
    (frames,) = batches(few_tests.frames, spec, preprocessing)

    with torch.no_grad():
        expected = original_logits(network, torch.from_numpy(np.stack(frames)), "membrane")
    logits = run_engines(
        [named_engine(bundle, "whole")], few_tests.frames, spec, preprocessing
    ).logits

    assert logits.std() > 0.05
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-3)


def test_leaks_and_thresholds_keep_their_precision(run: Path) -> None:
    stored = load_file(run / "bundle" / WEIGHTS)

    assert stored["backbone.lif2.leaky2.lif.beta"].shape == (32, 1, 1)
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        name: torch.float16 if name.endswith("weight") else torch.float32 for name in stored
    }


@pytest.mark.parametrize("part", PARTS)
def test_both_engines_compute_the_same(run: Path, part: PartName) -> None:
    bundle = Bundle(run / "bundle")
    engines: list[Engine] = [
        onnx_runtime.load_engine(bundle, part),
        torch_engine.load_engine(bundle, part),
    ]
    generator, shape = np.random.default_rng(1), engines[0].input_shape
    states = [zero_state(engine, 4) for engine in engines]

    for _ in range(bundle.spec.timesteps):
        x: Any = generator.normal(size=(4, *shape)).astype(np.float32)
        x = (x > 1).astype(np.uint8) if part == "tail" else x
        (one, states[0]), (other, states[1]) = (
            engine.step(x, state) for engine, state in zip(engines, states, strict=True)
        )
        assert np.isclose(one, other, atol=1e-3).mean() > 0.99


def test_firing_rates_count_spikes_above_each_layers_own_threshold(
    run: Path, few_tests: LabelledFrames
) -> None:
    bundle = Bundle(run / "bundle")
    spec, preprocessing = bundle.spec, bundle.manifest.preprocessing
    head = torch_engine.load_network(bundle).head()
    spikes: dict[str, float] = {}
    for name, module in head.chains.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(
                lambda _, __, output, name=name: spikes.update({name: float(output[0].mean())})
            )
    (frames,) = batches(few_tests.frames, spec, preprocessing)
    with torch.no_grad():
        head(torch.from_numpy(np.stack(frames)))

    engines = [named_engine(bundle, "head")]
    rates = run_engines(engines, few_tests.frames, spec, preprocessing).firing_rates

    assert rates == pytest.approx(spikes, abs=1e-3)
    assert {"head.lif1.leaky2.lif", "head.lif2.leaky2.lif"} < set(rates)
    assert min(rates[name] for name in rates if name.startswith("head")) > 0.001


def test_the_run_is_evaluated_and_calibrated_like_any_other(
    run: Path, cifar10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("evaluate", run, "--data", cifar10) == 0
    assert command("calibrate", run, "--data", cifar10, "--loss-budget", "99") == 0

    evaluation = load_evaluation(run / "evaluation.json")
    assert (evaluation.name, evaluation.images) == ("snntorch-net", 8)
    assert "99" in capsys.readouterr().out
    assert (
        "spiking network (imported, width 1), split after `pool2`"
        in (run / "bundle" / "CARD.md").read_text()
    )


def test_the_pair_serves_the_bundle(run: Path, few_tests: LabelledFrames) -> None:
    bundle = Bundle(run / "bundle")
    spec, preprocessing = bundle.spec, bundle.manifest.preprocessing
    engines = [named_engine(bundle, "head"), named_engine(bundle, "tail")]
    logits = run_engines(engines, few_tests.frames, spec, preprocessing).logits
    decisions = judge(logits, bundle.calibration().temperature)
    first = np.sort(decisions.confidences[0])
    widest = int(np.diff(first).argmax())
    alpha = float(first[widest : widest + 2].mean())
    exit_at = exit_timesteps(decisions, expand_alpha(alpha, spec.timesteps))
    assert 0 < (exit_at == 0).sum() < len(exit_at)

    with (
        pair(bundle.path, edge_flags=("--alpha", str(alpha))) as both,
        Edge(both.edge.address) as edge,
    ):
        replies = [edge.classify(pixels) for pixels in few_tests.frames]

    assert {reply.placement for reply in replies} == {"co_inference"}
    assert [reply.timesteps_used for reply in replies] == (exit_at + 1).tolist()
    assert [reply.label for reply in replies] == answers(decisions, exit_at).tolist()
    confidences = np.take_along_axis(decisions.confidences, exit_at[None], 0)[0]
    assert [reply.confidence for reply in replies] == pytest.approx(confidences, abs=1e-4)


def test_a_run_stopped_in_its_first_epoch_is_begun_again(
    run: Path, cifar10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--data", cifar10, "--out", tmp_path, "--no-compile")
    assert command("fit", run / "recipe.toml", *flags) == 2
    assert "expected a backbone to begin with (--backbone)" in capsys.readouterr().err
    recipe = load_recipe(run / "recipe.toml")
    options = FitOptions(compile_loss=False, backbone=run / "imported")

    fit(recipe, load_training(recipe, cifar10), tmp_path, options)

    expected, found = (load_checkpoint(each / CHECKPOINT)["network"] for each in (run, tmp_path))
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_run_is_not_overwritten(
    run: Path,
    weights: Path,
    template: Path,
    cifar10: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert import_net(weights, template, cifar10, run) == 2
    assert "found one; fit --resume goes on" in capsys.readouterr().err


def test_nothing_is_left_of_an_import_that_fails(
    weights: Path, template: Path, cifar10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = template.read_text().replace("pool2", "conv2")
    (tmp_path / "wrong.toml").write_text(text)

    assert import_net(weights, tmp_path / "wrong.toml", cifar10, tmp_path / "run") == 2

    said = capsys.readouterr().err
    assert "expected split to be one of lif1, lif2, pool2, lif3" in said
    assert not (tmp_path / "run").exists()
