"""``smart-train``: train one network with a clean and a robust path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from smart_common.console import cli as house
from smart_common.version import version
from smart_devices.device_profile import SPARSE_GAIN_CHANNELS
from smart_train.architectures.cli import NetworkName
from smart_train.choices import (
    ARCHITECTURES,
    ATTACKS,
    DATA_SPECS,
    DEFAULT_ALIGN,
    FACTORY_FORM,
    MASK_MODES,
    PRECISIONS,
    SCOPES,
    SCORES,
    STRUCTURES,
)
from smart_train.data.cli import ImageSize, data_options
from smart_train.errors import ConfigError
from smart_train.methods import METHODS
from smart_train.training.recipe import Value, read_recipe

# Of one call, or of one machine, and not of a training.
NOT_IN_RECIPES = {
    "recipe", "help_method", "resume", "force", "as_json", "version", "help", "data_dir", "cache_dir", "no_cache",
    "init",
}  # fmt: skip


def _apply_recipe(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make what the recipe says the default of every option, checked as on the command line."""
    if path is None:
        return
    options = {
        o.name: o for o in ctx.command.params if isinstance(o, click.Option) and o.name and o.name not in NOT_IN_RECIPES
    }
    found: dict[str, Any] = {}
    for name, value in read_recipe(path).items():
        if name not in options:
            raise ConfigError(
                f"{name!a:.100} in {path} is no option for a recipe; see smart-train --help for their names"
            )
        try:
            found[name] = _option_value(options[name], value, ctx)
        except (click.BadParameter, ValueError) as error:
            reason = error.message if isinstance(error, click.BadParameter) else str(error)
            raise ConfigError(
                f"--{name.replace('_', '-')} does not take what {path} has for {name}: {reason.rstrip('.')}"
            ) from error
    ctx.default_map = found


def _option_value(option: click.Option, value: Value, ctx: click.Context) -> Any:
    """Return ``value`` as the command line would give it; raise click.BadParameter or ValueError."""
    if option.multiple:
        if isinstance(value, str | int | float):
            raise ValueError(f"a table is wanted, [{option.name}] and lines like width = 32")
        return [f"{key}={number}" for key, number in value.items()]
    if value is True and isinstance(option.flag_value, str):
        return option.flag_value  # an option that may stand alone, like --plot
    if option.is_flag != isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("true or false is wanted" if option.is_flag else "text or a number is wanted")
    # Through text, so that 7.5 epochs are refused and not cut to 7.
    return value if option.is_flag else option.type.convert(str(value), option, ctx)


def _say_method(ctx: click.Context, _: click.Parameter, name: str | None) -> None:
    """Describe a method and end."""
    if name is None:
        return
    from smart_train.methods import load_method  # noqa: PLC0415  # torch

    click.echo(load_method(name).describe())
    ctx.exit()


@click.command(
    cls=house.Command,
    context_settings={"show_default": True},
    epilog="Example: smart-train --data digits --model resnet8 --density 0.5 --epochs 15 --eps 0.3 -o ckpt.pt",
)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    is_eager=True,  # before the options whose defaults it sets
    expose_value=False,
    callback=_apply_recipe,
    help="Take options from this .toml or .json file, by their names; those on the command line outweigh it.",
)
@click.option("--data", default="digits", help=f"{DATA_SPECS}.")
@data_options
@click.option(
    "--image-size",
    type=ImageSize(),
    metavar="N",
    help="Pictures of a folder: scale the shorter side to N pixels and cut out the middle (HxW for other shapes than "
    "squares); adds --resized-crop unless told otherwise.",
)
@click.option("--train-images", type=int, metavar="N", help="Train on N images, classes in proportion.  [default: all]")
@click.option("--test-images", type=int, metavar="N", help="Report on N test images.  [default: all]")
@click.option("--crop-pad", default=0, help="Crop training images at random after padding each side by this.")
@click.option("--flip/--no-flip", help="Mirror half of the training images left to right.")
@click.option(
    "--resized-crop/--no-resized-crop",
    default=None,
    show_default=False,
    help="Train on a random part of each image, 35% of it or more, scaled to its size.  [default: with --image-size]",
)
@click.option(
    "--model",
    default="resnet8",
    type=NetworkName(),
    metavar="NAME",
    help=f"The network: {', '.join(ARCHITECTURES)}; or {FACTORY_FORM}, which imports that module of yours.",
)
@click.option("--model-arg", multiple=True, metavar="NAME=VALUE", help="An argument of the network: width=32.")
@click.option(
    "--init",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Start from this plain state dict of the network.",
)
@click.option("--structure", default="channel", metavar="NAME", help=f"What masks remove: {STRUCTURES}.")
@click.option(
    "--density",
    type=float,
    help="What a path keeps of each group's channels, or of each layer's weights.  "
    "[default: 0.5, 1 for methods with one path; N/M for N:M]",
)
@click.option(
    "--scope", default="block", type=click.Choice(SCOPES), help="Mask block interiors, or residual streams too."
)
@click.option("--align", type=int, help=f"Round kept channels up to a multiple of this.  [default: {DEFAULT_ALIGN}]")
@click.option(
    "--min-channels",
    type=int,
    help="Mask no N:M in layers with fewer input or output channels.  "
    f"[default: 1; {SPARSE_GAIN_CHANNELS} where --target has sparse tensor cores]",
)
@click.option("--permute", is_flag=True, help="First order channels so that N:M keeps more; pays with --init.")
@click.option("--target", metavar="NAME", help="Take the alignment of this device (smart-devices list, or FILE.json).")
@click.option("--masks", default="gradual", type=click.Choice(MASK_MODES), help="How masks are found.")
@click.option("--score", default="magnitude", type=click.Choice(SCORES), help="By what they choose.")
@click.option("--method", default="smart", type=click.Choice(list(METHODS)), help="The training method.")
@click.option("--set", "method_options", multiple=True, metavar="NAME=VALUE", help="An option of the method: beta=6.")
@click.option(
    "--help-method",
    type=click.Choice(list(METHODS)),
    is_eager=True,
    expose_value=False,
    callback=_say_method,
    help="Describe a method and its options, and exit.",
)
@click.option("--attack", default="pgd", type=click.Choice(list(ATTACKS)), help="The attack trained against.")
@click.option("--eps", default="8/255", help="Its radius in pixel units, [0, 1].")
@click.option("--steps", type=int, help="Its gradient steps.  [default: 7 for pgd, 1 for fgsm-rs]")
@click.option("--step-size", help="In pixel units.  [default: 2.5 eps / steps; 1.25 eps for fgsm-rs]")
@click.option("--epochs", default=30)
@click.option("--batch-size", default=128, help="Half of it trains each path.")
@click.option("--lr", default=0.1, help="Peak learning rate.")
@click.option("--weight-decay", default=5e-4)
@click.option("--seed", default=0)
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--precision", default="32-true", type=click.Choice(PRECISIONS))
@click.option(
    "-o", "--output", default="ckpt.pt", type=click.Path(path_type=Path, dir_okay=False), help="The checkpoint."
)
@click.option(
    "--plot",
    is_flag=False,
    flag_value="",
    metavar="FILE",
    help="Draw the training's curves: .png, .svg or .pdf; alone, history.png beside the checkpoint.",
)
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write TensorBoard events to this folder.",
)
@click.option(
    "--dense-control",
    is_flag=True,
    help="First train the same network unmasked by the same recipe too, into ckpt.dense.pt, to compare with: "
    "smart-export shows its accuracies. Takes longer than the training itself.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted training with the same options and -o.")
@click.option("--force", is_flag=True, help="Replace an existing checkpoint and its state.")
@house.json_option
@click.version_option(version(), prog_name="smart-train")
@click.pass_context
def main(ctx: click.Context, /, **options: Any) -> None:
    """Train one network; by default with a clean and a robust path that share weights (SMART, arXiv 2302.03523).

    The best epoch goes to OUTPUT, beside it what --resume needs (ckpt.last.pt) and one line an epoch (history.csv, of
    the folder's latest training; every checkpoint keeps its own lines). Figures are from the test split, robust ones
    under PGD-20.
    """
    from smart_train.training.cli import train  # noqa: PLC0415  # torch, and all that trains

    with house.warnings_as_notes("smart_train"):
        train(ctx, **options)


if __name__ == "__main__":
    main()
