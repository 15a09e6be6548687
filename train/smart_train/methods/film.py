"""Batch norms that follow a condition: a scale and a shift of each channel, computed from a code of the condition.

FiLM (Perez et al. 2018, arXiv 1709.07871) as once-for-all adversarial training places it (arXiv 2010.11828, section
3.2): after every batch norm but those of shortcuts and one that stands alone before the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from smart_train.errors import NetworkError
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.layers import ExpertBatchNorm2d
from smart_train.masking.network import PathNetwork, SmartNetwork
from smart_train.masking.passes import Out, Pass
from smart_train.methods.feature_layers import SHORTCUT

CODE = 128  # numbers of a condition's code, of the authors' released code
_SLOPE = 0.01  # of all leaky rectifiers


class Film(nn.Module):
    """Codes (L, 128) to scales and shifts, both (L, channels), by two linear layers.

    It begins near a scale of 1 and a shift of 0 (ours: a network that was trained before begins as nearly itself).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(CODE, 2 * channels)
        self.out = nn.Linear(2 * channels, 2 * channels)
        with torch.no_grad():
            self.out.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        hidden = nn.functional.leaky_relu(self.hidden(codes), _SLOPE)
        scale, shift = nn.functional.leaky_relu(self.out(hidden), _SLOPE).chunk(2, dim=1)
        return scale, shift


class Conditions(nn.Module):
    """The FiLM of every batch norm of a network that has one, shared by its paths, for ``count`` conditions.

    Args:
        path: a path of the network.
        example: float (N, C, H, W), an input of it.
        count: of conditions, 128 at most; each has a row of a random orthogonal matrix as its code.
        seed: of the codes and of the layers' beginning.

    Attributes:
        codes: float (count, 128), of unit length and orthogonal.
        names: of the batch norms, inside the plain network.

    Raises:
        NetworkError: if no batch norm can follow a condition.
    """

    codes: Tensor

    def __init__(self, path: PathNetwork, example: Tensor, *, count: int, seed: int) -> None:
        super().__init__()
        self.names = conditioned_batch_norms(path, example)
        if not self.names:
            raise NetworkError(
                f"no batch norm of {type(path.network).__name__} can follow a condition: it has to be an affine "
                f"BatchNorm2d, and not a shortcut's or the last before the head; train by --method smart"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            orthogonal, _ = torch.linalg.qr(torch.randn(CODE, CODE, dtype=torch.float64))
            self.register_buffer("codes", orthogonal[:count].float())
            norms = [path.network.get_submodule(name) for name in self.names]
            self.films = nn.ModuleList([Film(norm.num_features) for norm in norms if isinstance(norm, nn.BatchNorm2d)])

    @contextmanager
    def applied(self, path: PathNetwork, conditions: Tensor) -> Iterator[None]:
        """Run a block in which ``path`` takes images (N, C, H, W) under ``conditions``, int64 (N,), their codes' rows.

        Scales and shifts are computed once, when the block begins. They act before the mask: what it removes is zero.
        """
        hooks = []
        try:
            for name, film in zip(self.names, self.films, strict=True):
                rows = torch.cat(film(self.codes), dim=1)[conditions]
                hook = _Modulation(*rows[:, :, None, None].chunk(2, dim=1))
                hooks.append(path.network.get_submodule(name).register_forward_hook(hook))
            yield
        finally:
            for handle in hooks:
                handle.remove()

    @torch.no_grad()
    def fold_(self, path: PathNetwork, condition: int) -> None:
        """Give the batch norms of ``path`` what they have under one condition as their own parameters, in place."""
        for name, film in zip(self.names, self.films, strict=True):
            norm = path.network.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm2d)
            (scale,), (shift,) = film(self.codes[condition : condition + 1])
            norm.weight.mul_(scale)
            norm.bias.mul_(scale).add_(shift)


class _Modulation:
    """A forward hook of a masked batch norm: scale * output + shift, both (N, C, 1, 1), with the mask in the shift."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        self.scale, self.shift = scale, shift

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        assert isinstance(norm, ExpertBatchNorm2d)
        keep = norm.mask if norm.held is not None or norm.gate is None else norm.gate
        scale, shift = self.scale, self.shift if keep is None else self.shift * keep.view(1, -1, 1, 1)
        if norm.training or norm.running_mean is None or norm.running_var is None:
            return output * scale.to(output.dtype) + shift.to(output.dtype)
        # With fixed statistics both are one product and sum of the input: an attack need not go back through two.
        weight, bias = norm.masked_affine()
        assert bias is not None
        slope = weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = shift + scale * (bias - norm.running_mean * slope).view(1, -1, 1, 1)
        return inputs[0] * (scale * slope.view(1, -1, 1, 1)).to(output.dtype) + shift.to(output.dtype)


class ConditionalNetwork(nn.Module):
    """A network and its conditions: does passes in order, each under its ``condition`` if it has one."""

    def __init__(self, net: SmartNetwork, conditions: Conditions) -> None:
        super().__init__()
        self.net = net
        self.conditions = conditions

    def forward(self, passes: list[Pass]) -> list[Out]:
        """Do the passes."""
        outs = []
        for one in passes:
            path, rows = self.net.path(one.path), one.condition
            with nullcontext() if rows is None else self.conditions.applied(path, rows):
                outs += self.net([one])
        return outs


@torch.no_grad()
def conditioned_batch_norms(path: PathNetwork, example: Tensor) -> list[str]:
    """Return the names of the batch norms that are to follow a condition, in the order of the network.

    The one before the head is the last to run, where it reads no convolution's output: so it is in networks whose
    blocks begin with their batch norms, and nowhere else.
    """
    made: list[Tensor] = []  # kept, so that no other tensor is taken for one of them
    last, alone = "", False

    def saw_norm(name: str, features: Tensor) -> None:
        nonlocal last, alone
        last, alone = name, not any(features is one for one in made)

    norms = {n: m for n, m in path.network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs, name=name: saw_norm(name, inputs[0]))
        for name, norm in norms.items()
    ]
    convolutions = [module for module in path.network.modules() if isinstance(module, nn.Conv2d)]
    hooks += [one.register_forward_hook(lambda _, __, output: made.append(output)) for one in convolutions]
    try:
        with attack_mode(path):
            path(example)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        name
        for name, norm in norms.items()
        # A subclass may compute something after it, which no scale of its own would undo.
        if type(norm) is ExpertBatchNorm2d and norm.affine and not SHORTCUT.search(name)
        if not (alone and name == last)
    ]
