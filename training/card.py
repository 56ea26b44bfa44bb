"""The text of a bundle's ``CARD.md``: what the network is, how it was trained, what it reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from shared.errors import BundleError
from shared.model.bundle import WEIGHTS, BudgetTest, Calibration, Manifest, Operations
from training.curves import read_log
from training.data.sets import IN_RANDOM_ORDER
from training.evaluate import Evaluation
from training.recipe import Recipe
from training.teacher import TEACHER_LOGITS

TRAINING_HEADING, CALIBRATION_HEADING = "## Training", "## Calibration"
INT8_HEADING = "## The int8 head"


class History(NamedTuple):
    """What is known of a training run."""

    recipe: Recipe
    distilled: bool
    epochs: tuple[dict[str, Any], ...]
    """The lines of the run's log."""


def read_history(run: Path, recipe: Recipe) -> History:
    """Read the history of the run in folder ``run``."""
    return History(recipe, (run / TEACHER_LOGITS).exists(), read_log(run))


def card(
    manifest: Manifest,
    calibration: Calibration,
    history: History,
    evaluation: Evaluation | None = None,
) -> str:
    """Return the card.

    Raises:
        BundleError: the evaluation is of other weights or alphas.
    """
    if evaluation is not None and not evaluation.is_of(manifest, calibration):
        raise BundleError(
            f"expected an evaluation of weights {manifest.files[WEIGHTS]} under alphas "
            f"{calibration.alpha}, got one of {evaluation.weights_sha256} under {evaluation.alpha}"
        )
    sections = [_head(manifest), _training(history), calibration_section(calibration)]
    if evaluation is not None:
        sections.append(_evaluation(evaluation))
    return "\n".join(sections)


def recalibrated_card(text: str, manifest: Manifest, calibration: Calibration) -> str:
    """Return a card for a bundle whose calibration alone is new.

    Args:
        text: the card of the bundle with the same network.
        manifest: of the new bundle.
        calibration: of the new bundle.
    """
    _, heading, training = text.partition(CALIBRATION_HEADING)[0].partition(TRAINING_HEADING)
    return "\n".join(
        [_head(manifest), (heading + training).rstrip() + "\n", calibration_section(calibration)]
    )


def card_with_int8(text: str, manifest: Manifest, section: str) -> str:
    """Return a card for a bundle that has got an int8 head, and is the same otherwise.

    Args:
        text: the card of the bundle without, or with another one.
        manifest: of the new bundle.
        section: on the int8 head.
    """
    _, heading, rest = text.partition("\n## ")
    return "\n".join(
        [
            _head(manifest).rstrip() + "\n",
            (heading + rest).partition(INT8_HEADING)[0].strip() + "\n",
            section,
        ]
    )


def calibration_section(calibration: Calibration) -> str:
    """Return the card's section of calibration figures."""
    alphas = "\n".join(
        f"| `{name}` | {', '.join(f'{value:.4f}' for value in values) or 'none'} | "
        f"{_tested(calibration.tests.get(name))} |"
        for name, values in sorted(calibration.alpha.items())
    )
    operations = "\n".join(
        f"| {part} | {_operations(each)} |" for part, each in sorted(calibration.operations.items())
    )
    return f"""{CALIBRATION_HEADING}

On {calibration.fitting_images:,} held-out samples: temperature {calibration.temperature:.4f} of
confidence `{calibration.confidence}`, and how the alphas of a `by_timestep` list are to one
another. On {calibration.images:,} others:

| alpha | at t = 0, 1, ... | risk, points | accuracy | mean timesteps | exits at t = 0, 1, ... |
|---|---|---|---|---|---|
{alphas}

The *risk* is the share of samples that are right after all T timesteps and wrong at their exit.
With {100 - 100 * max(test.delta for test in calibration.tests.values()):g} % certainty, over the
draw of the held-out samples, a list keeps the budget in its name **for inputs like these samples
only**; of others this says nothing. Alpha 1 is never exceeded: no early exit could be shown to keep
the budget.

With `{calibration.default_alpha}`, the default, {_percentages(calibration.exit_distribution)} of
the samples use 1, 2, ... timesteps. The code's neurons fire in
{100 * calibration.firing_rates["code"]:.2f} % of timesteps.

Effective operations, mean per timestep of one sample:

| part | multiply-accumulates | accumulates | membrane updates |
|---|---|---|---|
{operations}
"""


def _tested(test: BudgetTest | None) -> str:
    if test is None:
        return "- | - | - | -"
    return (
        f"{100 * test.observed_risk:.2f} | {100 * test.accuracy:.2f} % | "
        f"{test.mean_timesteps:.2f} | {_percentages(test.exit_distribution)}"
    )


def _head(manifest: Manifest) -> str:
    spec, bottleneck = manifest.spec, manifest.spec.bottleneck
    bits = spec.code_bits
    return f"""# {manifest.name} {manifest.version}

A spiking network ({spec.backbone_name}, width {spec.width:g}), split after `{bottleneck.split}`.

- input {list(spec.input_shape)}, {spec.classes} classes, T = {spec.timesteps}
- features at the split {list(spec.feature_shape)}
- code {list(spec.code_shape)}: {bits} bits or {-(-bits // 8)} bytes per timestep
"""


def _training(history: History) -> str:
    recipe = history.recipe
    last = {epoch["phase"]: epoch for epoch in history.epochs}
    rows = "\n".join(
        f"| {phase.name} | {phase.train} | {phase.timesteps} | {phase.epochs} | "
        f"{_final_accuracy(last.get(phase.name))} |"
        for phase in recipe.phases
    )
    teacher = (
        f"Distilled from a non-spiking teacher (weight {recipe.distillation:g})."
        if history.distilled
        else "No teacher."
    )
    is_last = recipe.data.name in IN_RANDOM_ORDER
    held_out = f"the last {recipe.holdout:,}" if is_last else f"{recipe.holdout:,} drawn at random"
    return f"""{TRAINING_HEADING}

Recipe `{recipe.name}`, on the training part of `{recipe.data.name}` but for {held_out}, which
are held out. {teacher}
The accuracy is on the held-out samples at the phase's last timestep.

| phase | networks | timesteps | epochs | accuracy |
|---|---|---|---|---|
{rows}
"""


def _final_accuracy(epoch: dict[str, Any] | None) -> str:
    if epoch is None:
        return "not run"
    accuracies: dict[str, list[float]] = epoch["holdout_accuracy"]
    return ", ".join(f"{name} {100 * values[-1]:.2f} %" for name, values in accuracies.items())


def _evaluation(evaluation: Evaluation) -> str:
    exits = evaluation.co_inference[evaluation.default_alpha]
    full, alone = evaluation.edge_only_full, evaluation.edge_only_exit[evaluation.default_alpha]
    packed_bytes = exits.payload_bytes_per_image_by_codec["raw"]
    reduction = evaluation.float32_feature_bytes_per_image / max(1, exits.payload_bytes_per_image)
    return f"""## Test set

{evaluation.images:,} samples of `{evaluation.data}`, through the engines, the exit rule and the
codec that serve:

- full T, network without the bottleneck: {100 * full.accuracy:.2f} %
- full T, compressed: {100 * evaluation.accuracy_compressed[-1]:.2f} %
- early exit with `{evaluation.default_alpha}`, compressed: {100 * exits.accuracy:.2f} % in
  {exits.mean_timesteps:.2f} timesteps on average
  ({_percentages(exits.exit_distribution)} use 1, 2, ...)
- payload with codec `{evaluation.codec}`, under that alpha:
  {exits.payload_bytes_per_timestep:.1f} bytes per timestep sent,
  {exits.payload_bytes_per_image:.1f} per sample, where float32 features over full T have
  {reduction:,.0f} times as many; bit-packed alone {packed_bytes:.1f} per sample
- {evaluation.code_bits_per_timestep} code bits per timestep before the codec, of which
  {100 * evaluation.firing_rates_compressed["code"]:.2f} % are spikes

Effective operations on the edge, mean per sample:

| run | multiply-accumulates | accumulates | membrane updates |
|---|---|---|---|
| co-inference, that alpha | {_operations(exits.edge_operations)} |
| edge-only-exit, that alpha | {_operations(alone.edge_operations)} |
| edge-only-full | {_operations(full.edge_operations)} |
"""


def _operations(operations: Operations) -> str:
    return f"{operations.mac:,.0f} | {operations.ac:,.0f} | {operations.neuron:,.0f}"


def _percentages(shares: tuple[float, ...]) -> str:
    return ", ".join(f"{100 * share:.1f} %" for share in shares)
