"""``neucodex-train``: train a recipe, write its bundle, measure and compare bundles."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from rich.console import Console
from rich.logging import RichHandler

from shared.engine.torch_engine import load_network
from shared.errors import BundleError, ConfigError, NeucodexError
from shared.model.bundle import MANIFEST, Bundle
from training.calibrate import LabelledFrames, budget_alphas, split_held_out
from training.evaluate import Evaluation, evaluate, load_evaluation, to_json
from training.export import ExportOptions, export_run, quantise, recalibrate
from training.fit import CHECKPOINT, FitOptions, fit
from training.import_net import Imported, adopt, compare, import_network, save_backbone
from training.loss_budget import DELTA
from training.nir_graphs import (
    DEFAULT_TIMESTEP_SECONDS,
    Reset,
    head_graph,
    network_of,
    read_graph,
    summary,
    write_graph,
)
from training.progress import shown_on
from training.quantise import MOST_LOST_POINTS
from training.recipe import RECIPE, Recipe, load_recipe
from training.recipe_data import TrainingData, load_test, load_training
from training.report import (
    MARKDOWN,
    PICTURE,
    budget_table,
    draw_trade_off,
    trade_off_markdown,
    trade_off_table,
)
from training.snntorch_network import Readout

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).resolve().parent / "recipes"
BUNDLE, EVALUATION, CACHE, IMPORTED = "bundle", "evaluation.json", "cache", "imported"
"""What a run folder holds beside its recipe, log, curves and checkpoints."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 2, with one line on stderr, where it cannot run."""
    arguments = _parser().parse_args(argv)
    try:
        _log_to(Console(stderr=True))
        code: int = arguments.command(arguments)
    except NeucodexError as error:
        print(f"neucodex-train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _log_to(console: Console) -> None:
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False)
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    else:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neucodex-train", description="Train networks and make model bundles of them."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_fit(commands.add_parser("fit", help="train a recipe and write its bundle"))
    _add_import_net(
        commands.add_parser("import-net", help="take a snnTorch network over and train a recipe")
    )
    _add_nir(commands.add_parser("nir", help="exchange networks with neuromorphic frameworks"))
    _add_calibrate(commands.add_parser("calibrate", help="alphas for loss budgets of your own"))
    _add_export(commands.add_parser("export", help="write a run's bundle again"))
    _add_recalibrate(
        commands.add_parser("recalibrate", help="a bundle's exits and codec, measured anew")
    )
    _add_quantise(
        commands.add_parser("quantise", help="a bundle with an int8 head besides, if it is as good")
    )
    _add_evaluate(commands.add_parser("evaluate", help="measure a bundle on the test set"))
    _add_report(commands.add_parser("report", help="compare bundles: table and picture"))
    return parser


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a recipe. The run folder gets recipe.toml, log.jsonl (a line per epoch), "
        "curves.png, checkpoints and, at the end, the bundle."
    )
    parser.set_defaults(command=_fit)
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="recipe file (TOML)")
    parser.add_argument("--resume", action="store_true", help="go on from the last epoch saved")
    parser.add_argument(
        "--backbone",
        type=Path,
        metavar="PATH",
        help="begin with the network without bottleneck of this run folder or bundle",
    )
    _add_training(parser)


def _add_import_net(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Take a network written in snnTorch over as the backbone of a recipe, compare the two on "
        "held-out samples, then train the recipe's phases as fit does. NETWORK is imported, and so "
        "its code is run; later commands and the bundle do without it."
    )
    parser.set_defaults(command=_import_net)
    parser.add_argument(
        "network",
        metavar="NETWORK",
        help="package.module:object, a torch module or what makes one",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        required=True,
        metavar="FILE",
        help="its weights: safetensors, or a PyTorch checkpoint with a state dict",
    )
    _add_template(parser)
    _add_training(parser)


def _add_nir(parser: argparse.ArgumentParser) -> None:
    parser.description = "Read and write NIR, the exchange format of neuromorphic frameworks."
    commands = parser.add_subparsers(required=True, metavar="export|import")
    export = commands.add_parser("export", help="write the head of a bundle as a NIR graph")
    export.set_defaults(command=_nir_export)
    export.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of the bundle")
    export.add_argument("file", type=Path, metavar="FILE", help="NIR file to write")
    export.add_argument(
        "--timestep-seconds",
        type=float,
        default=None,
        metavar="SECONDS",
        help="dt of the file's time constants (default: the bundle's window, else 0.001)",
    )
    take = commands.add_parser("import", help="take a NIR chain over and train a recipe")
    take.set_defaults(command=_nir_import)
    take.add_argument("file", type=Path, metavar="FILE", help="NIR file")
    take.add_argument(
        "--timestep-seconds",
        type=float,
        metavar="SECONDS",
        help="dt, where neurons leak and the file does not say",
    )
    take.add_argument(
        "--reset",
        choices=get_args(Reset),
        help="what firing does, where the file does not say (default: zero, as NIR has it)",
    )
    _add_template(take)
    _add_training(take)


def _add_template(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe", type=Path, required=True, help="recipe file (TOML) without network.backbone"
    )
    parser.add_argument(
        "--readout",
        choices=get_args(Readout),
        default="spikes",
        help="what counts as logits of a network that ends in neurons (default: spikes)",
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="RUN", help="run folder, made if missing"
    )
    parser.add_argument(
        "--teacher", type=Path, help="pytorch_resnet_cifar10 checkpoint to distil from"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--no-compile", action="store_true", help="run without torch.compile (for short runs)"
    )
    _add_data(parser, threads="all")


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find on the held-out samples the alphas that keep a loss budget, one for all timesteps "
        "and one for each: the accuracy lost by leaving early is at most that many points, with "
        f"{100 - 100 * DELTA:g} %% certainty, for samples like those and no others."
    )
    parser.set_defaults(command=_calibrate)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle or run folder")
    parser.add_argument(
        "--loss-budget",
        type=_points,
        nargs="+",
        required=True,
        metavar="POINTS",
        help="percentage points of accuracy, e.g. 0.5",
    )
    _add_recipe(parser)
    _add_data(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fold BatchNorm, export the graphs and calibrate on the held-out samples through the very "
        "graphs just written. The same run gives the same bytes and digest."
    )
    parser.set_defaults(command=_export)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--out", type=Path, help="bundle to write (default: RUN/bundle)")
    parser.add_argument("--version", default="1", help="the bundle's version (default: 1)")
    parser.add_argument("--float32", action="store_true", help="keep weights at full precision")
    parser.add_argument(
        "--evaluation", type=Path, help="JSON of evaluate, of the same weights, for the card"
    )
    _add_data(parser)


def _add_recalibrate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a bundle with the graphs and weights of another; temperature, alphas and operations "
        "are measured and the codec tables fitted anew, as export does it."
    )
    parser.set_defaults(command=_recalibrate)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle or run folder")
    parser.add_argument("--out", type=Path, required=True, help="bundle to write")
    parser.add_argument("--version", required=True, help="the new bundle's version")
    _add_recipe(parser)
    _add_data(parser)


def _add_quantise(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a bundle that has an int8 head besides all that another has, ranges set by training "
        f"samples. It is accepted only if it loses at most {MOST_LOST_POINTS} points on held-out "
        "samples, through codec, tail and exit rule; the card gets the figures."
    )
    parser.set_defaults(command=_quantise)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle or run folder")
    parser.add_argument("--out", type=Path, required=True, help="bundle to write")
    parser.add_argument("--version", required=True, help="the new bundle's version")
    _add_recipe(parser)
    _add_data(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run the whole test set through the engines, the exit rule and the codec that serve."
    )
    parser.set_defaults(command=_evaluate)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle or run folder")
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON file to write (default: RUN/evaluation.json of a run, else standard output)",
    )
    _add_recipe(parser)
    _add_data(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print and draw the trade-off between accuracy, bytes and timesteps."
    parser.set_defaults(command=_report)
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="run folder, JSON of evaluate, or bundle; what has no evaluation is evaluated now",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report"),
        metavar="FOLDER",
        help=f"gets {MARKDOWN}, {PICTURE} and the evaluations made (default: report)",
    )
    _add_recipe(parser)
    _add_data(parser, required=False)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        type=Path,
        help="names the data set (default: recipe.toml beside the bundle, else the shipped "
        "recipe of the bundle's name)",
    )


def _add_data(
    parser: argparse.ArgumentParser, *, required: bool = True, threads: str = "1"
) -> None:
    parser.add_argument(
        "--data", type=Path, required=required, metavar="DIR", help="where the data set lies"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keeps simulated event frames (default: RUN/cache of a run)",
    )
    parser.add_argument("--threads", type=_count, help=f"CPU threads (default: {threads})")


def _points(text: str) -> float:
    value = float(text)
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"expected points between 0 and 100, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def _fit(arguments: argparse.Namespace) -> int:
    run: Path = arguments.out
    recipe = load_recipe(arguments.recipe)
    is_begun = (run / CHECKPOINT).exists()
    if is_begun and not arguments.resume:
        raise ConfigError(f"expected no training run at {run}, found one; --resume goes on with it")
    data = load_training(recipe, arguments.data, arguments.cache or run / CACHE)
    run.mkdir(parents=True, exist_ok=True)
    if arguments.recipe.resolve() != (run / RECIPE).resolve():
        shutil.copyfile(arguments.recipe, run / RECIPE)
    return _train(recipe, data, arguments, backbone=arguments.backbone, resume=is_begun)


def _import_net(arguments: argparse.Namespace) -> int:
    imported = import_network(
        arguments.network, arguments.weights, arguments.recipe, arguments.readout
    )
    return _train_imported(imported, arguments.network, arguments)


def _nir_import(arguments: argparse.Namespace) -> int:
    network = network_of(read_graph(arguments.file), arguments.reset, arguments.timestep_seconds)
    place = str(arguments.file)
    imported = adopt(network, place, arguments.recipe, arguments.readout)
    return _train_imported(imported, place, arguments)


def _nir_export(arguments: argparse.Namespace) -> int:
    bundle = Bundle(arguments.bundle)
    framing = bundle.manifest.preprocessing.framing
    window = getattr(framing, "window_microseconds", None)
    seconds = arguments.timestep_seconds or (window / 1e6 if window else DEFAULT_TIMESTEP_SECONDS)
    graph = head_graph(load_network(bundle).head(), bundle.spec.input_shape, seconds)
    write_graph(graph, arguments.file)
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary(graph).items())
    log.info("%s: %s, timestep %g s", arguments.file, kinds, seconds)
    return 0


def _train_imported(imported: Imported, place: str, arguments: argparse.Namespace) -> int:
    run: Path = arguments.out
    if (run / CHECKPOINT).exists():
        raise ConfigError(f"expected no training run at {run}, found one; fit --resume goes on")
    data = load_training(imported.recipe, arguments.data, arguments.cache or run / CACHE)
    comparison = compare(imported, data.held_out, data.preprocessing)
    log.info(
        "%s gives the same logits on %d held-out samples: accuracy %.2f %%, firing rate %.3f at %s",
        place,
        comparison.samples,
        100 * comparison.accuracy,
        comparison.firing_rate,
        imported.recipe.network.bottleneck.split,
    )
    save_backbone(imported.network, run / IMPORTED)
    (run / RECIPE).write_bytes(imported.recipe_text)
    return _train(imported.recipe, data, arguments, backbone=run / IMPORTED)


def _train(
    recipe: Recipe,
    data: TrainingData,
    arguments: argparse.Namespace,
    *,
    backbone: Path | None,
    resume: bool = False,
) -> int:
    run: Path = arguments.out
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    options = FitOptions(
        resume=resume,
        teacher=arguments.teacher,
        device=arguments.device,
        compile_loss=not arguments.no_compile,
        backbone=backbone,
    )
    with shown_on(Console(stderr=True)) as progress:
        fit(recipe, data, run, options, progress)
        bundle = export_run(
            run,
            data,
            run / BUNDLE,
            ExportOptions(),
            threads=_threads(arguments),
            progress=progress,
        )
    log.info("%s: digest %s", bundle.path, bundle.digest)
    return 0


def _calibrate(arguments: argparse.Namespace) -> int:
    found = find_bundle(arguments.bundle)
    recipe = recipe_of(found, arguments.recipe)
    data = load_training(recipe, arguments.data, arguments.cache or found.cache)
    held_out = LabelledFrames.of(data.held_out)
    with shown_on(Console(stderr=True)) as progress:
        alphas = budget_alphas(
            found.bundle,
            held_out,
            arguments.loss_budget,
            threads=_threads(arguments),
            progress=progress,
        )
    _, testing = split_held_out(held_out)
    Console().print(budget_table(alphas, len(testing.labels)))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    run: Path = arguments.run
    evaluation = None if arguments.evaluation is None else load_evaluation(arguments.evaluation)
    options = ExportOptions(arguments.version, not arguments.float32, evaluation)
    data = load_training(load_recipe(run / RECIPE), arguments.data, arguments.cache or run / CACHE)
    with shown_on(Console(stderr=True)) as progress:
        bundle = export_run(
            run,
            data,
            arguments.out or run / BUNDLE,
            options,
            threads=_threads(arguments),
            progress=progress,
        )
    log.info("%s: digest %s", bundle.path, bundle.digest)
    return 0


def _recalibrate(arguments: argparse.Namespace) -> int:
    found = find_bundle(arguments.bundle)
    recipe = recipe_of(found, arguments.recipe)
    data = load_training(recipe, arguments.data, arguments.cache or found.cache)
    with shown_on(Console(stderr=True)) as progress:
        bundle = recalibrate(
            found.bundle,
            arguments.version,
            data,
            arguments.out,
            threads=_threads(arguments),
            progress=progress,
        )
    log.info("%s: digest %s", bundle.path, bundle.digest)
    return 0


def _quantise(arguments: argparse.Namespace) -> int:
    found = find_bundle(arguments.bundle)
    recipe = recipe_of(found, arguments.recipe)
    data = load_training(recipe, arguments.data, arguments.cache or found.cache)
    with shown_on(Console(stderr=True)) as progress:
        compared = quantise(
            found.bundle,
            arguments.version,
            data,
            arguments.out,
            threads=_threads(arguments),
            progress=progress,
        )
    log.info(
        "%s: digest %s; %.2f points lost, %.2f %% of the code's bits differ",
        arguments.out,
        Bundle(arguments.out).digest,
        compared.lost_points,
        100 * compared.flipped,
    )
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    found = find_bundle(arguments.bundle)
    content = to_json(_evaluated(found, arguments))
    out = arguments.out or found.evaluation
    if out is None:
        sys.stdout.write(content.decode())
    else:
        out.write_bytes(content)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    evaluations = [_evaluation_at(path, arguments) for path in arguments.paths]
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    Console().print(trade_off_table(evaluations))
    (out / MARKDOWN).write_text(trade_off_markdown(evaluations), encoding="utf-8")
    draw_trade_off(evaluations, out / PICTURE)
    log.info("written: %s, %s", out / MARKDOWN, out / PICTURE)
    return 0


def _evaluation_at(path: Path, arguments: argparse.Namespace) -> Evaluation:
    if path.is_file():
        return load_evaluation(path)
    found = find_bundle(path)
    bundle = found.bundle
    kept: Path = arguments.out / f"{bundle.manifest.name}-{bundle.digest[:8]}.json"
    for file in filter(None, (found.evaluation, kept)):
        if file.exists():
            evaluation = load_evaluation(file)
            if evaluation.is_of(bundle.manifest, bundle.calibration()):
                return evaluation
            log.info("%s is of another export", file)
    if arguments.data is None:
        raise ConfigError(f"expected an evaluation of {path}, or --data to make one, got neither")
    evaluation = _evaluated(found, arguments)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(to_json(evaluation))
    return evaluation


def _evaluated(found: FoundBundle, arguments: argparse.Namespace) -> Evaluation:
    recipe = recipe_of(found, arguments.recipe)
    data = load_test(recipe, arguments.data, arguments.cache or found.cache)
    with shown_on(Console(stderr=True)) as progress:
        return evaluate(
            found.bundle,
            LabelledFrames.of(data),
            data.name,
            threads=_threads(arguments),
            progress=progress,
        )


def _threads(arguments: argparse.Namespace) -> int:
    """Return the CPU threads of the engines."""
    threads: int = arguments.threads or 1
    return threads


class FoundBundle(NamedTuple):
    """A bundle, and the run folder it belongs to, if a run folder was named."""

    bundle: Bundle
    run: Path | None

    @property
    def evaluation(self) -> Path | None:
        """Where the run keeps its evaluation."""
        return None if self.run is None else self.run / EVALUATION

    @property
    def cache(self) -> Path | None:
        """Where the run keeps simulated event frames."""
        return None if self.run is None else self.run / CACHE


def find_bundle(path: Path) -> FoundBundle:
    """Open the bundle at ``path``, or that of the run folder ``path``.

    Raises:
        BundleError: there is neither.
    """
    if (path / MANIFEST).is_file():
        return FoundBundle(Bundle(path), None)
    if (path / BUNDLE / MANIFEST).is_file():
        return FoundBundle(Bundle(path / BUNDLE), path)
    raise BundleError(f"expected a bundle or the folder of a finished run at {path}, found none")


def recipe_of(found: FoundBundle, given: Path | None) -> Recipe:
    """Return the recipe that names a bundle's data set.

    Args:
        found: the bundle.
        given: the recipe's file; None looks beside the bundle, then among the shipped recipes.

    Raises:
        ConfigError: there is none, or it describes another network.
    """
    bundle = found.bundle
    places = (bundle.path.parent / RECIPE, SHIPPED / f"{bundle.manifest.name}.toml")
    path = given or next((place for place in places if place.is_file()), None)
    if path is None:
        raise ConfigError(
            f"expected --recipe, because there is neither {' nor '.join(map(str, places))}"
        )
    recipe = load_recipe(path)
    if recipe.network != bundle.spec:
        raise ConfigError(
            f"expected the recipe of {bundle.path}, got that of another network: {path}"
        )
    return recipe


if __name__ == "__main__":
    sys.exit(main())
