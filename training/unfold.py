"""Begin training with the network of a bundle, whose BatchNorm has been folded away.

A BatchNorm is put back behind every layer that had one so that the network computes what the
bundle's does, and so that it would go on doing so in training mode: its statistics are measured,
its scale and shift undo them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from shared.model.backbones import Chain
from shared.model.folding import Norm


@torch.no_grad()
def unfold(backbone: Chain, folded: Mapping[str, Tensor], batches: Iterable[Tensor]) -> None:
    """Give a backbone the weights of its folded form.

    Args:
        backbone: as trained, with its BatchNorms.
        folded: every parameter by its name in the folded backbone.
        batches: normalised inputs, float ``[T, N, C, H, W]``, to measure the statistics on.

    Raises:
        RuntimeError: a parameter is missing, unknown or of another shape.
    """
    norms = {
        name: module[1]
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Sequential) and isinstance(module[1], Norm)
    }
    backbone.load_state_dict(_with_identities(folded, norms))
    _measure(backbone.eval(), list(norms.values()), batches)
    backbone.train()


def _with_identities(folded: Mapping[str, Tensor], norms: Mapping[str, Norm]) -> dict[str, Tensor]:
    """Return a state in which every BatchNorm does nothing but add the folded bias."""
    state = {name: tensor.float() for name, tensor in folded.items()}
    for name, norm in norms.items():
        if f"{name}.bias" not in state:
            raise RuntimeError(f"expected a bias {name}.bias of a folded layer, found none")
        bias = state.pop(f"{name}.bias")
        state[f"{name}.0.weight"] = state.pop(f"{name}.weight")
        state |= {
            f"{name}.1.weight": torch.ones_like(bias),
            f"{name}.1.bias": bias,
            f"{name}.1.running_mean": torch.zeros_like(bias),
            f"{name}.1.running_var": torch.ones_like(bias) - norm.eps,
            f"{name}.1.num_batches_tracked": torch.tensor(0),
        }
    return state


def _measure(backbone: Chain, norms: list[Norm], batches: Iterable[Tensor]) -> None:
    """Set statistics to those of the batches, scale and shift to what undoes them."""
    moments: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        planes = inputs[0].transpose(0, 1).flatten(1)
        moments[norm].append(torch.stack([planes.mean(1), planes.square().mean(1)]))

    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    for frames in batches:
        backbone(frames)
    for hook in hooks:
        hook.remove()
    for norm, noted in moments.items():
        mean, square = torch.stack(noted).mean(0)
        variance = (square - mean.square()).clamp_min(0)
        norm.load_state_dict(
            norm.state_dict()
            | {
                "weight": (variance + norm.eps).sqrt(),
                "bias": norm.bias + mean,
                "running_mean": mean,
                "running_var": variance,
            }
        )
