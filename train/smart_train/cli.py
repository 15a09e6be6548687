"""``smart-train``: train one network with a clean and a robust path."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from smart_common.console import cli as house
from smart_common.errors import shortened
from smart_devices.device_profile import SPARSE_GAIN_CHANNELS
from smart_train.architectures.cli import NetworkName
from smart_train.choices import (
    ARCHITECTURES,
    ATTACKS,
    AVERAGES,
    BUDGETS,
    DATA_SPECS,
    DEFAULT_ALIGN,
    FACTORY_FILE,
    FACTORY_FORM,
    MASK_MODES,
    PRECISIONS,
    SCHEDULES,
    SCOPES,
    SCORES,
    STRUCTURES,
)
from smart_train.data.cli import ImageSize, data_options
from smart_train.errors import ConfigError
from smart_train.methods import METHODS
from smart_train.options import NORMALISATIONS, parse_init
from smart_train.training.recipe import RECIPE, Value, read_recipe

# Of one call, or of one machine, and not of a training: a recipe, which may be a stranger's, chooses no files.
NOT_IN_RECIPES = {
    "recipe", "help_method", "resume", "force", "as_json", "version", "help", "quiet", "verbose", "data_dir",
    "cache_dir", "no_cache", "init", "extra", "teacher", "no_trial", "output", "plot", "tensorboard",
}  # fmt: skip
_FILES_IN = {"data": ":", "target": ".json"}  # what tells a file from a name in options that take both
_PLACES = {"data_dir", "init", "extra", "teacher"}  # for a resumed training to remember, which goes on where it was

_GROUPS = {
    "Data": (
        *("data", "data_dir", "cache_dir", "no_cache", "max_broken", "train_images", "test_images", "image_size"),
        *("resized_crop", "crop_pad", "flip", "extra", "extra_share"),
    ),
    "Network and masks": (
        *("model", "model_arg", "init", "structure", "density", "scope", "align", "min_channels", "permute", "target"),
        *("budget", "masks", "score", "normalize", "no_trial"),
    ),
    "Method and attack": (
        *("method", "method_options", "help_method", "teacher", "attack", "eps", "steps", "step_size"),
    ),
    "What may be added to any method": (
        *("label_smoothing", "cutmix", "distill", "temperature", "awp", "awp_from", "average", "ema_decay", "swa_from"),
    ),
    "Optimisation": ("epochs", "batch_size", "lr", "schedule", "weight_decay", "seed", "device", "precision"),
    "Output": ("output", "dense_control", "plot", "tensorboard", "resume", "force", "as_json"),
}


def _apply_recipe(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make what the recipe says the default of every option, checked as on the command line."""
    if path is not None:
        ctx.meta[RECIPE] = path
        values = read_recipe(path)
        for name, mark in _FILES_IN.items():
            if mark in str(values.get(name, "")):
                raise ConfigError(
                    f"{name} in {path} names a file, which a recipe cannot choose; remove it there and type --{name}"
                )
        _set_defaults(ctx, values, path, names=_names(ctx) - NOT_IN_RECIPES)


def _apply_resume(ctx: click.Context, _: click.Parameter, checkpoint: str | None) -> str | None:
    """Make the options of the training that wrote ``checkpoint`` the default of every option."""
    if checkpoint:
        from smart_train.training.state import read_options  # noqa: PLC0415  # torch

        _set_defaults(ctx, read_options(Path(checkpoint)), Path(checkpoint), names=_kept(ctx))
    return checkpoint


def _options_to_keep(ctx: click.Context) -> dict[str, Value]:
    """Return in the form of a recipe the options of ``ctx`` that differ from the defaults, places as absolute paths."""
    kept: dict[str, Value] = {}
    for name in sorted(_kept(ctx)):
        value = ctx.params[name]
        if value is None or ctx.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        kept[name] = _in_recipe(name, value)
    return kept


def _in_recipe(name: str, value: Any) -> Value:
    """Return an option's value as a recipe has it, places on this machine as absolute paths."""
    if name == "image_size":
        return "x".join(map(str, value))
    if isinstance(value, tuple | list):
        if name == "init":
            value = [f"{path}={file.absolute()}" for path, file in parse_init(value).items()]
        return dict(pair.partition("=")[::2] for pair in value)
    if isinstance(value, Path) or (name == "target" and value.endswith(".json")):
        return str(Path(value).absolute())
    if name in {"data", "extra"} and ":" in value:
        kind, _, place = value.partition(":")
        return f"{kind}:{Path(place).expanduser().absolute()}"
    if name == "model" and ".py:" in value:
        file, _, factory = value.rpartition(":")
        return f"{Path(file).absolute()}:{factory}"
    found: Value = value
    return found


def _refuse_other_options(ctx: click.Context, checkpoint: Path) -> None:
    """Raise ConfigError if an option is typed that is not what the resumed training has."""
    kept = {**_method_defaults(ctx.default_map or {}), **(ctx.default_map or {})}
    for option in ctx.command.params:
        name = option.name or ""
        if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE or name not in _kept(ctx) | {"output"}:
            continue
        theirs, ours = kept.get(name, option.get_default(ctx)), ctx.params[name]
        theirs = option.type_cast_value(ctx, None if option.value_is_missing(theirs) else theirs)
        if theirs is None or _in_recipe(name, theirs) != _in_recipe(name, ours):
            raise ConfigError(
                f"{option.opts[-1]} is not what the training of {checkpoint} was started with; leave it out to go on, "
                "or start another one with -o"
            )


def _method_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the method in ``options`` has for options that are left to it; its steps go with its attack alone."""
    from smart_train.methods import load_method  # noqa: PLC0415  # torch

    defaults = dict(load_method(options.get("method", "smart")).defaults)
    usual = defaults.get("attack", "pgd")
    return defaults if options.get("attack", usual) == usual else defaults | {"steps": None}


def _names(ctx: click.Context) -> set[str]:
    return {option.name for option in ctx.command.params if isinstance(option, click.Option) and option.name}


def _kept(ctx: click.Context) -> set[str]:
    return _names(ctx) - NOT_IN_RECIPES | _PLACES


def _set_defaults(ctx: click.Context, values: Mapping[str, Value], path: Path, *, names: set[str]) -> None:
    if ctx.default_map:
        raise ConfigError("--recipe and --resume CKPT cannot be combined: the training has its options already")
    options = {option.name: option for option in ctx.command.params if isinstance(option, click.Option)}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            raise ConfigError(
                f"{name!a:.100} in {path} is no option for a recipe; see smart-train --help for their names"
            )
        try:
            found[name] = _option_value(options[name], value, ctx)
        except (click.BadParameter, ValueError) as error:
            reason = error.message if isinstance(error, click.BadParameter) else str(error)
            raise ConfigError(
                f"--{name.replace('_', '-')} does not take what {path} has for {name}: {shortened(reason).rstrip('.')}"
            ) from error
    ctx.default_map = found


def _option_value(option: click.Option, value: Value, ctx: click.Context) -> Any:
    """Return ``value`` as the command line would give it; raise click.BadParameter or ValueError."""
    if option.name == "init" and isinstance(value, str):  # kept so when there was one file for all paths
        return [value]
    if option.multiple:
        if isinstance(value, str | int | float):
            raise ValueError(f"a table is wanted, [{option.name}] and lines like width = 32")
        return [f"{key}={number}" for key, number in value.items()]
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
    option_groups=_GROUPS,
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
@click.option("--extra", metavar="npz:FILE", help="More training images: arrays images (uint8 NHWC) and labels.")
@click.option("--extra-share", type=float, help="What of each batch they are.  [default: 0.7 with --extra]")
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
    help=f"The network: {', '.join(ARCHITECTURES)}; torchvision:NAME or timm:NAME, where these are installed; "
    f"or {FACTORY_FORM} or {FACTORY_FILE}, which imports your own.",
)
@click.option("--model-arg", multiple=True, metavar="NAME=VALUE", help="An argument of the network: width=32.")
@click.option(
    "--init",
    multiple=True,
    metavar="[PATH=]FILE",
    help="Start from these weights of the network: a state dict of torch.save or .safetensors, for other classes too, "
    "or a published file of a residual network. --init a.pt --init robust=b.pt starts the batch norms of path robust "
    "from another file; all other weights are shared, and from the one without PATH, or the first.",
)
@click.option(
    "--normalize",
    metavar="HOW",
    help=f"What to normalise images by: {NORMALISATIONS} (0.5/0.25; commas between channels).  [default: what "
    "published weights expect, with --init of torchvision: and timm: or where the file says it, else data]",
)
@click.option("--structure", default="channel", metavar="NAME", help=f"What masks remove: {STRUCTURES}.")
@click.option(
    "--density",
    type=float,
    help="What a path keeps of each group's channels, or layer's weights.  [default: 1, 0.5 for smart; N/M for N:M]",
)
@click.option(
    "--scope", default="block", type=house.Choice(SCOPES), help="Mask block interiors, or residual streams too."
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
@click.option(
    "--budget",
    default="uniform",
    type=house.Choice(BUDGETS),
    help="Keep the same density of each group or layer, or a higher one of smaller ones (erk, Erdos-Renyi-kernel).",
)
@click.option(
    "--masks",
    default="gradual",
    type=house.Choice(list(MASK_MODES)),
    help="How masks are found: gradual is smart-edge's own, not the rule of the SMART paper; regrow is that of DNR, by "
    "authors of SMART; the others are controls (docs/masks.md).",
)
@click.option("--score", default="magnitude", type=house.Choice(SCORES), help="By what they choose.")
@click.option("--method", default="smart", type=house.Choice(list(METHODS)), help="The training method.")
@click.option("--set", "method_options", multiple=True, metavar="NAME=VALUE", help="An option of the method: beta=6.")
@click.option(
    "--help-method",
    type=house.Choice(list(METHODS)),
    is_eager=True,
    expose_value=False,
    callback=_say_method,
    help="Describe a method and its options, and exit.",
)
@click.option(
    "--teacher",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="CKPT[:PATH]",
    help="For methods that learn from a frozen network, and --distill: its checkpoint, trained on the same data, and "
    "the path that teaches, as in standard.pt or both.pt:robust.  [default path: clean, or the only one]",
)
@click.option(
    "--attack",
    default="pgd",
    type=house.Choice(list(ATTACKS)),
    show_default=False,
    help="The attack trained against.  [default: the method's, mostly pgd]",
)
@click.option("--eps", default="8/255", help="Its radius in pixel units, [0, 1].")
@click.option("--steps", type=int, help="Its gradient steps.  [default: the method's, mostly 7; 1 for fgsm-rs, n-fgsm]")
@click.option(
    "--step-size",
    help="In pixel units.  [default: the method's, mostly 2.5 eps / steps; 1.25 eps for fgsm-rs, eps for n-fgsm]",
)
@click.option("--label-smoothing", default=0.0, help="Spread this share of each target over all classes.")
@click.option("--cutmix", default=0.0, metavar="ALPHA", help="Paste a part of another image into each; 1 is usual.")
@click.option("--distill", default=0.0, metavar="SHARE", help="What a teacher's probabilities count in the targets.")
@click.option("--temperature", default=1.0, help="What the teacher's scores are divided by.")
@click.option("--awp", default=0.0, metavar="SIZE", help="Perturb weights by this share of their norm; 0.005 is usual.")
@click.option("--awp-from", default=1, metavar="EPOCH", help="The first epoch that does.")
@click.option("--average", default="none", type=house.Choice(AVERAGES), help="Deploy the mean of the weights.")
@click.option("--ema-decay", default=0.995, help="How much of the mean --average ema keeps at a step.")
@click.option("--swa-from", default=0.75, help="The share of the training after which --average swa begins.")
@click.option("--epochs", default=30, show_default=False, help="[default: the method's, mostly 30]")
@click.option("--batch-size", default=128, help="Of one step; smart, dual-bn and float give each path half.")
@click.option("--lr", default=0.1, show_default=False, help="Peak learning rate.  [default: the method's, mostly 0.1]")
@click.option(
    "--schedule",
    default="cosine",
    type=house.Choice(SCHEDULES),
    show_default=False,
    help="How the learning rate falls: after a warm-up, from a peak halfway, or by tenths.  [default: the method's, "
    "mostly cosine]",
)
@click.option("--weight-decay", default=5e-4)
@click.option("--seed", default=0)
@click.option("--device", default="auto", type=house.Choice(["auto", "cpu", "cuda"]))
@click.option("--precision", default="32-true", type=house.Choice(PRECISIONS))
@click.option(
    "-o", "--output", default="ckpt.pt", type=click.Path(path_type=Path, dir_okay=False), help="The checkpoint."
)
@click.option(
    "--plot",
    is_flag=False,
    flag_value="",
    metavar="FILE",
    help="Draw the training's curves: .png, .svg or .pdf; alone, ckpt.history.png beside ckpt.pt.",
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
    help="Train the same network unmasked by the same recipe afterwards, into ckpt.dense.pt, to compare with: "
    "smart-export shows its accuracies. Takes longer than the training itself.",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="CKPT",
    is_eager=True,  # before the options whose defaults it sets
    callback=_apply_resume,
    help="Continue the interrupted training of this checkpoint; alone, that of -o with the same options typed again.",
)
@click.option("--force", is_flag=True, help="Replace an existing checkpoint and its state, and what --plot names.")
@click.option(
    "--no-trial",
    is_flag=True,
    help="Do not try the whole way, export too, on a few images first, as is done with networks of your own.",
)
@house.json_option
@house.version_option("smart-train")
@click.pass_context
def main(ctx: click.Context, /, **options: Any) -> None:
    """Train one network; by default with a clean and a robust path that share weights (SMART, arXiv 2302.03523).

    The best epoch goes to OUTPUT, beside it what --resume needs (ckpt.last.pt) and one line an epoch
    (ckpt.history.csv). Figures are from the test split, robust ones under PGD-20.
    """
    from smart_train.training.cli import train  # noqa: PLC0415  # torch, and all that trains

    if options["resume"]:
        options["output"] = Path(options["resume"])
        _refuse_other_options(ctx, options["output"])
    defaults = _method_defaults(options).items()
    options |= {name: v for name, v in defaults if ctx.get_parameter_source(name) is ParameterSource.DEFAULT}
    with house.warnings_as_notes("smart_train"):
        train(ctx, keep=partial(_options_to_keep, ctx), **options)


if __name__ == "__main__":
    main()
