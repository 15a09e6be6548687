"""A network made of the paths of another one."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from smart_train.choices import Shares
from smart_train.masking.layers import make_plain_
from smart_train.masking.network import Normalise, SmartNetwork
from smart_train.masking.trial import copied


def derived(net: SmartNetwork, sources: Mapping[str, str], *, shares: Shares) -> SmartNetwork:
    """Return a network in eval mode whose paths, the keys of ``sources``, begin as those of ``net`` they name.

    Batch norms and masks are copies. With ``shares="weights"`` the other parameters are those of ``net`` itself, which
    is not changed unless they are; with ``"nothing"`` every path has copies of its own.
    """
    first = net.path(net.path_names[0])
    own = net.own_parameters()
    plain = copied(first.network, shared={id(p): p for n, p in first.network.named_parameters() if n not in own})
    make_plain_(plain, masked=False)
    assert isinstance(first.normalise, Normalise)
    result = SmartNetwork(
        plain,
        paths=list(sources),
        groups=net.groups,
        structure=net.structure,
        normalise=copy.deepcopy(first.normalise),
        kept_whole=net.kept_whole,
        weight_layers=net.weight_layers,
        dense_layers=net.dense_layers,
        shares=shares,
    )
    for path, source in sources.items():
        result.path(path).network.load_state_dict(net.path(source).network.state_dict())
        for group, mask in enumerate(net.masks(source)):
            result.set_mask(path, group, mask)
        for layer, mask in net.weight_masks(source).items():
            result.set_weight_mask(path, layer, mask)
    return result.eval()
