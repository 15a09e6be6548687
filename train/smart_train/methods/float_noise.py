"""FLOAT (Kundu et al. 2022, arXiv 2204.00426): how much noise the weights carry decides how much robustness counts.

Every convolution of path ``robust`` computes with W + l alpha n, where n is drawn anew for each forward pass from a
normal distribution with the standard deviation of W, alpha is learnt for each layer, and l is 1 in training. A graph
with random numbers is of no use on a device: deployed is one draw for each of a few l, each with weights of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smart_common.roles import Role
from smart_train.accuracy import to_tensor
from smart_train.attacks import Attack
from smart_train.checkpoint.format import Checkpoint
from smart_train.errors import CheckpointError, NetworkError
from smart_train.masking.deriving import derived
from smart_train.masking.layers import ExpertConv2d
from smart_train.masking.network import PathNetwork, SmartNetwork
from smart_train.masking.passes import Out, Pass
from smart_train.masking.statistics import reestimate_
from smart_train.methods.interface import Batch, Method, PathSpec, Sampler, Setup, Step, Training, attacked, masked
from smart_train.methods.oat import short_steps
from smart_train.methods.smart import CLEAN, ROBUST, Smart

ALPHA = 0.25  # at the beginning, of the authors' released code
STRENGTHS = {"clean": 0.0, "lambda-02": 0.2, "lambda-07": 0.7, "robust": 1.0}
"""The l of each deployed path; one without noise has the batch norms of path ``clean``, the others of ``robust``."""

STATISTICS_IMAGES = 1000  # attacked training images whose statistics the batch norms of frozen weights get
_DRAWS = 8  # of noise, over which the statistics of a randomised network are averaged
_BATCH = 128


class WeightNoise(nn.Module):
    """The noise of every convolution of a network.

    Args:
        path: of the network, to look for convolutions in.
        seed: of the noise.

    Attributes:
        names: of the convolutions, inside the plain network; a subclass of a convolution has no noise.
        alpha: float (layers,), learnt.

    Raises:
        NetworkError: if there is no convolution.
    """

    def __init__(self, path: PathNetwork, *, seed: int) -> None:
        super().__init__()
        self.names = [name for name, module in path.network.named_modules() if type(module) is ExpertConv2d]
        if not self.names:
            raise NetworkError(
                f"{type(path.network).__name__} has no convolution whose weights could carry noise; train it by "
                f"--method smart"
            )
        self.seed = seed
        self.alpha = nn.Parameter(torch.full((len(self.names),), ALPHA))
        self._numbers: tuple[int, ...] = ()
        self._generator: torch.Generator | None = None

    def restart(self, *numbers: int) -> None:
        """Draw from here on what the seed and ``numbers`` say, whatever was drawn before."""
        self._numbers, self._generator = numbers, None

    def perturbed(self, layer: int, weight: Tensor, *, strength: float) -> Tensor:
        """Return ``weight`` of the layer of that number with new noise; neither it nor its scale has a gradient."""
        if self._generator is None or self._generator.device != weight.device:
            seed = np.random.SeedSequence([self.seed, *self._numbers]).generate_state(1)
            self._generator = torch.Generator(device=weight.device).manual_seed(int(seed[0]))
        noise = torch.empty_like(weight).normal_(generator=self._generator)
        return weight + strength * self.alpha[layer] * noise.mul_(weight.detach().std(correction=0))

    def randomise_(self, path: PathNetwork, *, strength: float) -> None:
        """Have every convolution of ``path`` draw noise in each pass, in place."""
        for layer, name in enumerate(self.names):
            convolution = path.network.get_submodule(name)
            assert isinstance(convolution, ExpertConv2d)
            convolution.noise = lambda weight, layer=layer: self.perturbed(layer, weight, strength=strength)

    @torch.no_grad()
    def freeze_(self, path: PathNetwork, *, strength: float, generator: torch.Generator) -> None:
        """Add one draw to the weights of ``path``, which it must have for itself, in place.

        ``generator`` is on the CPU, so that the draw is the same wherever the network is.
        """
        for alpha, name in zip(self.alpha, self.names, strict=True):
            convolution = path.network.get_submodule(name)
            assert isinstance(convolution, ExpertConv2d)
            weight = convolution.weight
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            weight.add_(strength * alpha * weight.std(correction=0) * noise)


class NoisyNetwork(nn.Module):
    """A network and the noise that its convolutions draw."""

    def __init__(self, net: SmartNetwork, noise: WeightNoise) -> None:
        super().__init__()
        self.net = net
        self.noise = noise

    def forward(self, passes: Sequence[Pass]) -> list[Out]:
        """Do the passes in order."""
        outs: list[Out] = self.net(passes)
        return outs


class Float(Smart):
    """SMART's step, with noise in each pass of path ``robust``: of every step of the attack and of what is learned.

    The clean term is taken of half of each batch, as in the code of the same authors' RLNet; in that of FLOAT it is of
    all of it.
    """

    def __init__(self, net: SmartNetwork, setup: Setup) -> None:
        self._noise = WeightNoise(net.path(ROBUST), seed=setup.seed)
        self._noise.randomise_(net.path(ROBUST), strength=1.0)
        self._modules = NoisyNetwork(net, self._noise)
        super().__init__(net, setup, extra=self._noise)

    @classmethod
    def build(cls, plain: nn.Module, setup: Setup) -> Training:
        """See :meth:`Training.build`; what learns has two paths, whatever is deployed."""
        return cls(masked(plain, setup, paths=(CLEAN, ROBUST)), setup)

    @property
    def modules(self) -> nn.Module:
        """The network with its noise."""
        return self._modules

    def step(self, batch: Batch, attack: Attack) -> Step:
        """See the class; noise depends on the seed and the step alone, so it needs no state to be resumed from."""
        self._noise.restart(1, batch.number)
        return super().step(batch, short_steps(attack))

    def deployable(self, sample: Sampler) -> SmartNetwork:
        """Return a network for each l with one draw of noise in its weights, the same after every epoch.

        Its batch norms get the statistics of about 1,000 training images, attacked on the network that draws noise.
        """
        sources = {name: ROBUST if strength else CLEAN for name, strength in STRENGTHS.items()}
        net = derived(self.net, sources, shares="nothing")
        noisy = [name for name, strength in STRENGTHS.items() if strength]
        generator = torch.Generator().manual_seed(self._noise.seed)
        for name in noisy:
            self._noise.freeze_(net.path(name), strength=STRENGTHS[name], generator=generator)
        self._noise.restart(0)
        attack, robust = short_steps(self.setup.attack), self.net.path(ROBUST)
        batches = (attacked(robust, batch, attack) for batch in sample(STATISTICS_IMAGES))
        reestimate_(net, net, ([Pass(name, images) for name in noisy] for images in batches))
        return net

    def record(self) -> dict[str, Any]:
        """Return what was drawn, and what the network that draws anew is made by (:func:`randomised`)."""
        alpha = dict(zip(self._noise.names, self._noise.alpha.tolist(), strict=True))
        return {"noise": {"kind": "frozen", "seed": self._noise.seed, "strength": dict(STRENGTHS), "alpha": alpha}}


def randomised(checkpoint: Checkpoint) -> SmartNetwork:
    """Return the network that was trained, whose paths draw noise in each pass, in eval mode; it is never deployed.

    It has the paths of the checkpoint; ``net.path(name).randomised`` says whether one draws noise. Attacks on such a
    path have to average over draws. Statistics of batch norms are means over several draws on the checkpoint's attacked
    samples.

    Raises:
        CheckpointError: if the checkpoint is not of a training by method ``float``.
    """
    found = checkpoint.training.get("noise")
    net = derived(checkpoint.net, {name: name for name in checkpoint.net.path_names}, shares="nothing")
    noise = WeightNoise(net.path(net.path_names[0]), seed=0)
    alpha, strengths = _noise_record(found, layers=noise.names, paths=net.path_names)
    calm = next(name for name, strength in strengths.items() if not strength)
    noisy = [name for name, strength in strengths.items() if strength]
    with torch.no_grad():
        noise.alpha.copy_(torch.tensor(alpha))
        for name, layer in product(noisy, noise.names):
            target, source = (net.path(path).network.get_submodule(layer) for path in (name, calm))
            target.load_state_dict(source.state_dict())
    for name in noisy:
        noise.randomise_(net.path(name), strength=strengths[name])
        images = to_tensor(checkpoint.samples.adversarial[name])
        passes = [Pass(name, images[first : first + _BATCH]) for first in range(0, len(images), _BATCH)]
        reestimate_(net.path(name), net, [passes] * _DRAWS)
    return net


def _noise_record(found: Any, *, layers: Sequence[str], paths: Sequence[str]) -> tuple[list[float], dict[str, float]]:
    """Return the alpha of each layer and the strength of each path that a record of :class:`Float` holds."""
    record = found if isinstance(found, dict) else {}
    alpha, strength = (record.get(key) for key in ("alpha", "strength"))
    if not isinstance(alpha, dict) or not isinstance(strength, dict):
        raise CheckpointError("this checkpoint has no record of noise; train it by --method float")
    numbers = [*(alpha.get(name) for name in layers), *(strength.get(name) for name in paths)]
    if not all(type(number) is float for number in numbers) or 0.0 not in numbers[len(layers) :]:
        raise CheckpointError("the record of noise in this checkpoint is damaged; train it again by --method float")
    return [alpha[name] for name in layers], {name: strength[name] for name in paths}


FLOAT = Method(
    name="float",
    summary="a clean and a robust path whose weights carry noise; deployed with one draw of it at four strengths",
    reference="Kundu et al. 2022, arXiv 2204.00426",
    paths=(
        PathSpec("clean", Role.CLEAN),
        PathSpec("lambda-02", Role.BOTH),
        PathSpec("lambda-07", Role.BOTH),
        PathSpec("robust", Role.ATTACKED),
    ),
    build=Float.build,
    forwards=lambda steps: steps + 3,
    default_density=1.0,
)
