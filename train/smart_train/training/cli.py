"""The work of ``smart-train``, behind its options: what they say becomes a training, and its result is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import click
from click.core import ParameterSource

from smart_common.console import cli as house
from smart_common.errors import SmartError, shortened
from smart_common.figures import check_plot, is_plot
from smart_common.lazy import load
from smart_common.outputs import Output, check_outputs
from smart_common.robustness import warnings_of_metrics
from smart_devices import Target, resolve_target
from smart_devices.profiles import profile_file
from smart_train.architectures.build import ARCHITECTURES
from smart_train.architectures.cli import network_file
from smart_train.architectures.custom import Factory, import_factory
from smart_train.attacks import Attack, attack_kind
from smart_train.checkpoint.described_masks import describe_masks
from smart_train.checkpoint.format import Checkpoint, describe, load_checkpoint
from smart_train.checkpoint.reader import is_archive
from smart_train.choices import CUSTOM, DEFAULT_ALIGN, is_library_name
from smart_train.data.augment import Augmentation
from smart_train.data.cli import DataPlaces, data_place
from smart_train.errors import ConfigError
from smart_train.masking.network import SmartNetwork
from smart_train.masking.plan import MaskPlan
from smart_train.masking.structure import Pattern, Structure, parse_structure
from smart_train.methods import load_method
from smart_train.options import parse_arguments, parse_fraction, parse_init
from smart_train.training.config import TrainConfig
from smart_train.training.control import control_config, control_path
from smart_train.training.curves import draw_history
from smart_train.training.history import check_history, history_path
from smart_train.training.loop import Trainer
from smart_train.training.owner import owning_output
from smart_train.training.recipe import RECIPE
from smart_train.training.refinements import Refinements
from smart_train.training.results import TrainResult
from smart_train.training.selection import report_attack, selection_attack
from smart_train.training.state import check_output, state_path
from smart_train.training.teacher import teacher_file
from smart_train.training.trial_run import try_out

# Options that say what a `TrainConfig` holds under the same name.
_AS_THEY_ARE = (
    *("permute", "method", "normalize", "train_images", "test_images", "epochs", "batch_size", "weight_decay"),
    *("seed", "device", "precision", "schedule"),
)


# Training knows nothing of the export, which may lack its libraries here.
_EXPORT_ON_TRIAL = "smart_export.trial_export:export_on_trial"


def _structure(
    name: str, *, density: float | None, target: str | None, align: int | None, min_channels: int | None, **others: Any
) -> Structure:
    """Return what masks remove, in steps of ``align`` or of what ``target`` wants of its channels.

    That is the coarser of its fp32 and fp16 alignments; for ``N:M`` also of those for sparse arithmetic, and layers too
    narrow to gain from it there have no ``N:M``. Whole blocks of M are kept unless ``align`` says otherwise.
    """
    if align is not None and target is not None:
        raise ConfigError("--align and --target cannot be combined: --target sets the alignment of that device")
    pattern = parse_structure(name)
    wanted, least = DEFAULT_ALIGN if align is None else align, 1
    if target is not None:
        device = resolve_target(target)
        profile = device.profile
        wanted = max(profile.alignment(precision) for precision in ("fp32", "fp16"))
        if pattern.weights is not None:
            wanted = max(wanted, pattern.weights.alignment(profile))
            least = pattern.weights.least_channels(profile)
        _say_gain(name, pattern, device)
    if align is None:
        wanted = math.lcm(wanted, pattern.block)
    return Structure(
        name=name,
        density=pattern.default_density if density is None else density,
        align=wanted,
        min_channels=least if min_channels is None else min_channels,
        **others,  # click checked the choices
    )


def _say_gain(name: str, pattern: Pattern, target: Target) -> None:
    """Say so when zeros among weights gain no speed on ``target``, before hours are spent on them."""
    refused, slow = pattern.why_refused(target), pattern.weights and pattern.weights.why_slow(target)
    if refused is not None:
        house.note(
            f"note: {refused}: zeros among weights gain no speed there, and smart-export wants --allow-slow-structure"
        )
    elif slow is not None:
        house.note(f"note: {slow}: {name} gains no speed on {target.name}")


def _say_weights(trainer: Trainer) -> None:
    """Say which layers keep all of their weights and why, where single weights are masked; and what permuting gains."""
    net, gains = trainer.net, trainer.gains.values()
    if net.weight_layers:
        whole = "; ".join(f"{name}: {why}" for name, why in net.dense_layers.items())
        house.note(f"note: {net.structure.name} masks weights of {len(net.weight_layers)} layers; not of {whole}")
    if gains:
        before, after = fmean(gain.before for gain in gains), fmean(gain.after for gain in gains)
        house.note(
            f"note: at first {net.structure.name} keeps {after:.1%} of the weights' magnitude in permuted channels, "
            f"{before:.1%} in the order before (mean of {len(gains)} layers)"
        )


def _say_density(net: SmartNetwork) -> None:
    """Say so when alignment keeps clearly more channels than were asked for."""
    if not net.groups:
        return
    kept = sum(count * group.bundle for count, group in zip(net.kept, net.groups, strict=True))
    reached = kept / sum(group.size * group.bundle for group in net.groups)
    if reached > 1.1 * net.structure.density:
        house.note(
            f"note: density will be {reached:.3f} instead of {net.structure.density:g}, since kept channels are "
            f"rounded up to multiples of {net.structure.align}; --align 1 follows it closely"
        )


def _say_notes(trainer: Trainer) -> None:
    """Say what there is to know of a training before it begins."""
    if caveat := load_method(trainer.config.method).caveat:
        house.note(f"note: {trainer.config.method} is a {caveat}; say so wherever its figures appear")
    _say_density(trainer.net)
    _say_weights(trainer)


def _print_summary(summary: dict[str, Any], result: TrainResult, best: Checkpoint, *, config: TrainConfig) -> None:
    keys = ("density", "parameter_density", "clean_accuracy", "robust_accuracy")
    rows = [[path, *(f"{row[key]:.3f}" for key in keys)] for path, row in summary["paths"].items()]
    if summary["dense_control"] is not None:
        control = summary["dense_control"]["paths"]
        rows += [[f"dense control: {path}", *(f"{row[key]:.3f}" for key in keys)] for path, row in control.items()]
    columns = ["path", "density", "parameters", "clean accuracy", f"{report_attack(config.attack.eps).label} accuracy"]
    house.console().print(house.table(f"{result.checkpoint}  (test split, eps {config.attack.eps:.4g})", columns, rows))
    best_epoch = f"best epoch {result.best_epoch} of {config.epochs}"
    house.note(f"{result.seconds:.0f} s, {result.images_per_second:.0f} images/s, {best_epoch}")
    for line in describe_masks(best.net, training=best.training).lines():
        house.note(line)


def _say_phase(phase: str, advance: house.Advance) -> None:
    """Tell what is being done: in the bar, or without one a line when an epoch or the report begins."""
    advance(phase, count=0)
    if not house.console(stderr=True).is_terminal and ": validation" not in phase:
        house.note(phase)


def _what_is_kept(trainer: Trainer, *, again: str) -> str:
    """Say what an interrupt leaves; ``again`` is what has to be typed once more."""
    done, epochs = len(trainer.history), trainer.config.epochs
    if not done:
        return f"no epoch had ended, and nothing is kept in {trainer.output}"
    return f"{done} of {epochs} epochs are kept; `smart-train --resume {trainer.output}{again}` goes on"


def _train_control(trainer: Trainer, *, factory: Factory | None) -> dict[str, Any]:
    """Train the dense control and return its part of the summary."""
    with house.progress("training the dense control", total=trainer.steps_left) as advance:
        result = trainer.run(on_step=advance, on_phase=lambda phase: _say_phase(f"dense control: {phase}", advance))
    found = describe(load_checkpoint(result.checkpoint, factory=factory))
    return {"checkpoint": str(result.checkpoint), "seconds": result.seconds, "paths": found["paths"]}


def _config(ctx: click.Context, model: str, options: dict[str, Any]) -> TrainConfig:
    """Return what the options say of the training; of those that exclude each other a recipe's gives way."""

    def unless_overruled(option: str, *, by: Sequence[str]) -> Any:
        """Return None if it is the recipe's while one of ``by``, which it belongs to or contradicts, is typed."""
        source = ctx.get_parameter_source
        typed = any(source(name) is ParameterSource.COMMANDLINE for name in by)
        if typed and source(option) is ParameterSource.DEFAULT_MAP:
            options[option] = ctx.params[option] = None  # nor is it kept for resuming
        return options[option]

    structure, attack, method = options["structure"], options["attack"], options["method"]
    resized_crop = options["resized_crop"]
    steps = unless_overruled("steps", by=["attack"])
    step_size = unless_overruled("step_size", by=["attack", "eps"])
    own = parse_structure(structure).own_density is not None
    density = unless_overruled("density", by=["structure"]) if own else options["density"]
    return TrainConfig(
        model=model,
        model_arguments=parse_arguments(options["model_arg"]),
        structure=_structure(
            structure,
            density=load_method(method).default_density if density is None and not own else density,
            scope=options["scope"],
            target=unless_overruled("target", by=["align"]),
            align=unless_overruled("align", by=["target"]),
            min_channels=options["min_channels"],
            budget=options["budget"],
        ),
        masks=MaskPlan(mode=options["masks"], score=options["score"]),
        method_options=parse_arguments(options["method_options"], option="--set"),
        attack=Attack(
            name=attack,
            eps=parse_fraction(options["eps"]),
            steps=steps if steps is not None else 1 if attack_kind(attack).one_step else Attack.steps,
            step_size=None if step_size is None else parse_fraction(step_size),
        ),
        augmentation=Augmentation(
            crop_pad=options["crop_pad"],
            flip=options["flip"],
            resized_crop=options["image_size"] is not None if resized_crop is None else resized_crop,
        ),
        refinements=_refinements(options),
        learning_rate=options["lr"],
        **{name: options[name] for name in _AS_THEY_ARE},
    )


def _refinements(options: Mapping[str, Any]) -> Refinements:
    share = options["extra_share"]
    given = {one.name: options[one.name] for one in fields(Refinements)}
    return Refinements(**given | {"extra_share": share if share is not None else 0.7 if options["extra"] else 0.0})


def _try_out(trainer: Trainer, *, factory: Factory | None) -> None:
    """Try the whole way of a network that a user's ``factory`` makes, unless its training has begun already."""
    if factory is None or trainer.steps_left < trainer.total_steps:
        return
    house.note("note: trying the whole way on a few images first; --no-trial leaves that out")
    try:
        export: Callable[[Checkpoint], None] = load(_EXPORT_ON_TRIAL)
    except (ImportError, SmartError):  # a machine that only trains
        house.note("note: export is not tried, its libraries are missing: pip install 'smart-edge[export]'")
        try_out(trainer, factory=factory)
    else:
        try_out(trainer, factory=factory, export=export)


def _factory(ctx: click.Context, model: str) -> Factory | None:
    """Return what makes ``model``, None for one of ours; raise ConfigError if only a file asks for code of a user's."""
    if model in ARCHITECTURES:
        return None
    if not is_library_name(model) and ctx.get_parameter_source("model") is not ParameterSource.COMMANDLINE:
        raise ConfigError(
            f"--model {shortened(model)} is in a file alone, which may be anybody's; type it on the command line too "
            "to have that code imported"
        )
    return import_factory(model)


def _check_outputs(
    ctx: click.Context, checkpoints: Sequence[Path], *, curves: Path | None, tensorboard: Path | None, force: bool
) -> None:
    """Refuse outputs that are something that this training reads, a key or another kind of file."""
    for one in checkpoints:
        check_history(history_path(one))
    found = [Output("-o", path, is_archive) for one in checkpoints for path in (one, state_path(one))]
    found += [Output("-o", history_path(one)) for one in checkpoints]
    if curves is not None:
        found.append(Output("--plot", curves, is_plot))
    if tensorboard is not None:
        found.append(Output("--tensorboard", tensorboard / "events"))
    given = ctx.params
    read = [
        data_place(given["data"]),
        data_place(given["extra"] or ""),
        given["data_dir"],
        *parse_init(given["init"]).values(),
        ctx.meta.get(RECIPE),
    ]
    read += [network_file(given["model"]), profile_file(given["target"] or "")]
    read += [] if given["teacher"] is None else [teacher_file(given["teacher"])[0]]
    check_outputs(found, inputs=read, force=force)


def _start_anew(output: Path, *, factory: Factory | None) -> None:
    """Say that there is nothing to resume yet; raise ConfigError if that is so because the training has ended."""
    state = state_path(output).name
    if output.exists() and any(load_checkpoint(output, factory=factory).metrics.values()):
        raise ConfigError(
            f"no {state} beside {output} to resume from, since this training has ended; use --force to replace it"
        )
    house.note(f"no {state} to resume from yet: starting from the beginning")


def train(
    ctx: click.Context,
    *,
    keep: Callable[[], Mapping[str, Any]],
    data: str,
    places: DataPlaces,
    init: Sequence[str],
    output: Path,
    plot: str | None,
    tensorboard: Path | None,
    resume: str | None,
    force: bool,
    no_trial: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Do what ``smart-train`` is asked for; ``ctx`` tells which ``options`` were typed, ``keep`` is for resuming."""
    goes_on = resume is not None
    check_output(output)
    curves = None if plot is None else Path(plot) if plot else history_path(output).with_suffix(".png")
    if curves is not None:
        check_plot(curves)  # before the hours of training, not after
    if goes_on and force:
        raise ConfigError("--resume and --force cannot be combined: one continues a training, the other starts anew")
    outputs = [output, *([control_path(output)] if options["dense_control"] else [])]
    for one in outputs:
        ctx.with_resource(owning_output(one))
    existing = [p for one in outputs for p in (one, state_path(one)) if p.exists()]
    if existing and not goes_on and not force:
        raise ConfigError(
            f"{existing[0]} exists already; use --resume {output} to continue it or --force to replace it"
        )
    _check_outputs(ctx, outputs, curves=curves, tensorboard=tensorboard, force=force)
    model = options["model"]
    factory = _factory(ctx, model)
    config = _config(ctx, model if factory is None else CUSTOM, options)
    if goes_on and not state_path(output).exists():
        _start_anew(output, factory=factory)
    if config.permute:
        house.note(f"note: ordering channels so that {config.structure.name} keeps more; wide networks take a minute")
    images = places.load(data, image_size=options["image_size"])
    started: dict[str, Any] = {"resume": goes_on, "factory": factory, "initial": parse_init(init)}
    started |= {name: options[name] for name in ("teacher", "extra")}
    trainer = Trainer(config, images, output=output, tensorboard=tensorboard, options=keep(), **started)
    control = None
    if options["dense_control"]:  # made before the hours of training, should there be something against it
        control = Trainer(control_config(config), images, output=outputs[-1], **started)
    again = "" if model in ARCHITECTURES or is_library_name(model) else f" --model {model}"
    house.if_interrupted(lambda: _what_is_kept(trainer, again=again))
    _try_out(trainer, factory=None if no_trial else factory)
    if force:  # an old network must not stay beside the state of the new one, where it could be taken for it
        for path in existing:
            path.unlink()
    _say_notes(trainer)
    judged = selection_attack(config.attack.eps).label
    with house.progress("training", total=trainer.steps_left) as advance:
        result = trainer.run(
            on_step=advance,
            on_epoch=lambda report: house.note(report.describe(attack=judged)),
            on_phase=lambda phase: _say_phase(phase, advance),
        )
    controlled = None if control is None else _train_control(control, factory=factory)
    best = load_checkpoint(result.checkpoint, factory=factory)
    found = describe(best)
    warnings = warnings_of_metrics({path: best.role(path) for path in best.net.path_names}, best.metrics)
    summary = {
        "checkpoint": str(result.checkpoint),
        "history": str(history_path(result.checkpoint)),
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "best_epoch": result.best_epoch,
        "stopped": None if result.stopped is None else asdict(result.stopped),
        **{key: found[key] for key in ("union_density", "masks", "paths")},
        "dense_control": controlled,
        "warnings": list(warnings),
    }
    if as_json:
        house.print_json(summary)
    else:
        _print_summary(summary, result, best, config=config)
    house.warn(warnings)
    # Last: a plot that cannot be written takes nothing else with it.
    if curves is not None:
        draw_history(trainer.history, curves, attack=judged)
        house.note(f"plot: {curves}")
