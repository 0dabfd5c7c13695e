"""Layers of one network copied into another: how a stage of a chain begins with what the one before it learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lmdali.pipeline.errors import ConfigError, InputError

_BUT = "all-but-"


def select_layers(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """The layers that `text` names, in the order of `known`.

    Args:
        text: terms separated by commas: a layer (`fc6`), a range of them (`conv1..conv5`), `conv` or `fc` for all of
            that kind, `all`, or `all-but-LAYER` (`all-but-fc8`).
        known: names of all layers, in the network's order.

    Raises:
        ConfigError: a term names no layer of these.
    """
    chosen: set[str] = set()
    for term in (part.strip() for part in text.split(",")):
        if term == "all":
            found = list(known)
        elif term.startswith(_BUT) and term.removeprefix(_BUT) in known:
            found = [layer for layer in known if layer != term.removeprefix(_BUT)]
        elif term in ("conv", "fc"):
            found = [layer for layer in known if layer.startswith(term)]
        else:
            first, dots, last = term.partition("..")
            last = last if dots else first
            found = list(known[known.index(first) : known.index(last) + 1]) if {first, last} <= set(known) else []
        if not found:
            raise ConfigError(
                f"{term!r} names no layers: there are {', '.join(known)}; "
                "also conv1..conv5, conv, fc, all, and all-but-fc8"
            )
        chosen.update(found)
    return tuple(layer for layer in known if layer in chosen)


def transfer_layers(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor], layers: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state `target` with the named layers copied from `source`, bit for bit; neither argument changes.

    Both are in the one-device layout, and both must have every layer that is named: nothing is passed over in silence.
    `conv` therefore takes five layers from one five-layer network to another, and is refused where one has six.

    Args:
        source: a checkpoint's `model`, by parameter name.
        target: a fresh network's, whose other layers (the head of another set of classes) stay as they begin.
        layers: see `select_layers`.

    Returns:
        The new state, its tensors copies, in the order of `target`; and the names of the layers that were copied.

    Raises:
        ConfigError: `layers` names a layer of neither network.
        InputError: one of them lacks a named layer, or a shape or dtype differs.
    """
    known = {name.partition(".")[0]: None for name in (*source, *target)}
    copied = select_layers(layers, sorted(known))  # conv1 ... conv6, fc6 ... fc8: their order is the alphabet's
    state = {name: tensor.detach().clone() for name, tensor in target.items()}
    for name in dict.fromkeys((*target, *source)):
        layer = name.partition(".")[0]
        if layer not in copied:
            continue
        if name not in source or name not in target:
            here, there = ("this network", "the source") if name in source else ("the source", "this network")
            raise InputError(
                f"layer {layer} was to be copied, but {here} has no {name} and {there} has: name the layers that "
                f"both have, found {layers!r}"
            )
        theirs, ours = source[name], target[name]
        if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
            raise InputError(
                f"layer {layer} cannot be copied: {name} is {_described(theirs)} in the source and "
                f"{_described(ours)} in this network; leave {layer} out of {layers!r}, or use a network of the same "
                "shape"
            )
        state[name] = theirs.detach().to(ours.device, copy=True)
    return state, copied


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
