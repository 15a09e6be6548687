"""The manners every smart-edge command has: errors in one sentence, ``--json``, tables and progress bars.

Every command has ``-h``, ``-q`` and ``-v``; Ctrl-C ends it with status 130 and a line that says what is kept.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import click

from smart_common.console.strikes import INTERRUPTED, forget, raise_if_struck
from smart_common.errors import SmartError, alternatives, is_nearly, is_shortage, shortened
from smart_common.names import printable
from smart_common.version import version

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    StrChoice: TypeAlias = click.Choice[str]
else:
    StrChoice = click.Choice  # before click 8.2 it takes no type

_bar_console: Console | None = None  # of the progress bar that is shown: only it knows how to print above it

_quiet = False  # -q: neither notes nor bars
_verbose = False  # -v: what the packages log, and the traceback behind an error

_PACKAGES = ("smart_common", "smart_devices", "smart_runtime", "smart_train", "smart_eval", "smart_export")

_TYPED = f"{__name__}.typed"
_KEPT = f"{__name__}.kept"

_WIDE = 200  # columns of a table in a file: as many as any of ours takes

_F = TypeVar("_F", bound=Callable[..., Any])


class Advance(Protocol):
    """Moves a progress bar on."""

    def __call__(self, status: str = "", count: int = 1) -> None:
        """``count`` units are done; ``status`` is a few words on how things stand."""


# What click raises since version 8.2 where a group stands alone: its message is our own help page.
_HELP: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


@contextmanager
def _politely(ctx: click.Context) -> Iterator[None]:
    """Turn an expected failure into one line on standard error and exit status 1, Ctrl-C into one and status 130."""
    try:
        try:
            yield
        finally:
            raise_if_struck()  # whatever what was struck has made of it
    except click.ClickException as error:
        if not isinstance(error, _HELP):  # click repeats what was typed as it is
            vars(error)["message"] = printable(error.message)
        raise
    except SmartError as error:
        say_error(str(error))
    except OSError as error:  # a full disk, a missing permission: the system's own words say it best
        where = f" ({error.filename})" if error.filename else ""
        say_error(f"the system refused: {error.strerror or error}{where}")
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        said = f" ({shortened(str(error))})" if str(error) else ""
        say_error(f"there is too little memory{said}; take smaller batches or networks, or close other programs")
    except (KeyboardInterrupt, click.Abort):
        forget()
        kept: Callable[[], str] = ctx.meta.get(_KEPT, lambda: "nothing was changed")
        click.echo(printable(f"interrupted: {kept()}"), file=sys.stderr)
        raise click.exceptions.Exit(INTERRUPTED) from None
    else:
        return
    raise click.exceptions.Exit(1)


def say_error(message: str) -> None:
    """Print an error for people on standard error, after ``--quiet`` too."""
    if _verbose and sys.exc_info()[0] is not None:
        click.echo("\n".join(map(printable, traceback.format_exc().splitlines())), file=sys.stderr)
    click.echo(printable(f"error: {message}"), file=sys.stderr)  # by itself click sends UTF-8 where ASCII is asked for


def is_verbose() -> bool:
    """Whether the user asked to be told more."""
    return _verbose


def if_interrupted(kept: Callable[[], str]) -> None:
    """Let ``kept`` say, should Ctrl-C end the running command, what of its work is kept and how to go on."""
    click.get_current_context().meta[_KEPT] = kept
    raise_if_struck()


def _set_quiet(_: click.Context, __: click.Parameter, wanted: bool) -> None:
    global _quiet  # noqa: PLW0603  # of the process, as the streams are that it silences
    _quiet = _quiet or wanted


def _set_verbose(_: click.Context, __: click.Parameter, wanted: bool) -> None:
    global _verbose  # noqa: PLW0603  # as above
    if wanted and not _verbose:
        _verbose = True
        handler = _NoteHandler()
        handler.setLevel(logging.DEBUG)
        handler.addFilter(lambda record: record.levelno < logging.WARNING)  # warnings are shown anyway
        for package in _PACKAGES:
            logger = logging.getLogger(package)
            logger.setLevel(logging.DEBUG)
            logger.addHandler(handler)


class _Polite:
    """Mixin for click commands: what every one has, and expected failures in one line, while options are read too.

    ``option_groups`` are headings of the help page and the names of the options below each; all others are below
    ``Options``, at the end.
    """

    def __init__(self, *args: Any, option_groups: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"], **(kwargs.pop("context_settings", None) or {})}
        super().__init__(*args, context_settings=settings, **kwargs)  # type: ignore[call-arg]  # before a click class
        self.option_groups = option_groups or {}

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        *own, asking = super().get_params(ctx)  # type: ignore[misc]
        return [*own, *_of_every_command(), asking]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        parameters = {one.name: one for one in self.get_params(ctx) if isinstance(one, click.Option)}
        sections = [[parameters.pop(name) for name in names] for names in self.option_groups.values()]
        for heading, section in zip([*self.option_groups, "Options"], [*sections, parameters.values()], strict=True):
            lines = [line for line in (parameter.get_help_record(ctx) for parameter in section) if line is not None]
            with formatter.section(heading):
                formatter.write_dl(lines)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        global _quiet, _verbose  # noqa: PLW0603  # as above; of this command, and not of one before it
        _quiet = _verbose = False
        for stream in (sys.stdout, sys.stderr):  # a name that its encoding lacks must not end an hour's work
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        # Of a damaged picture Pillow warns once for each tag, which may be thousands.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        try:
            return super().main(*args, **kwargs)  # type: ignore[misc]  # it sits before a click class
        except SystemExit as end:
            if isinstance(end.__context__, click.Abort):  # Ctrl-C outside of what `_politely` sees; click says 1
                end.code = INTERRUPTED
            raise

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_TYPED] = tuple(args)
        with _politely(ctx):
            return super().parse_args(ctx, args)  # type: ignore[misc,no-any-return]

    def invoke(self, ctx: click.Context) -> Any:
        with _politely(ctx):
            result = super().invoke(ctx)  # type: ignore[misc]
            ctx.meta.setdefault(_KEPT, lambda: "the work was done already")
            return result


def _of_every_command() -> list[click.Parameter]:
    return [
        click.Option(names, is_flag=True, expose_value=False, callback=callback, help=text)
        for names, callback, text in (
            (["-q", "--quiet"], _set_quiet, "Say results and errors only."),
            (["-v", "--verbose"], _set_verbose, "Say more: what is done, and where in the code an error arose."),
        )
    ]


class Command(_Polite, click.Command):
    """A click command with the house's manners."""


class Group(_Polite, click.Group):
    """A click group with the house's manners; ``default`` names the command meant when none is given.

    What is nearly a command's name, and not that of a file, is no argument of the default but a slip.
    """

    command_class = Command

    def __init__(self, *args: Any, default: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let ``prog FILE`` and ``prog --option FILE`` mean ``prog DEFAULT ...``."""
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if self.default and args and args[0] not in own and self.get_command(ctx, args[0]) is None:
            slip = args[0].isalpha() and is_nearly(args[0], self.list_commands(ctx)) and not os.path.lexists(args[0])
            args = args if slip else [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command as click does; of one that is not there say which are, and which may be meant."""
        if args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            ctx.fail(f"No such command {alternatives(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


class Choice(StrChoice):
    """One of several words; of a word that is none of them it says which may be meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word as it is, if it is one of them."""
        if value not in self.choices:
            self.fail(f"unknown {alternatives(str(value), self.choices)}", param, ctx)
        return str(value)


def typed() -> tuple[str, ...]:
    """Return the arguments of the running command as the user typed them."""
    found: tuple[str, ...] = click.get_current_context().meta[_TYPED]
    return found


def version_option(program: str) -> Callable[[_F], _F]:
    """Return a decorator that adds ``--version``; unlike click's own, it looks the version up only when asked."""

    def show(context: click.Context, _: click.Parameter, wanted: bool) -> None:  # click's signature
        if wanted and not context.resilient_parsing:
            click.echo(f"{program}, version {version()}")
            context.exit()

    return click.option(
        "--version", is_flag=True, expose_value=False, is_eager=True, callback=show, help="Show the version and exit."
    )


def json_option(function: _F) -> _F:
    """Add ``--json``, passed to the command as ``as_json``."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print the result as JSON on standard output, all else on standard error.",
    )(function)


def print_json(result: object) -> None:
    """Print ``result`` as JSON on standard output; numbers that JSON does not have (nan, inf) are a bug."""
    click.echo(json.dumps(result, indent=2, allow_nan=False))


def console(*, stderr: bool = False) -> Console:
    """Return a console for people: colours on a terminal, none into a file or pipe."""
    from rich.console import Console  # noqa: PLC0415  # here and below: `--help` does without rich

    return Console(stderr=stderr, highlight=False)


def note(message: str) -> None:
    """Print a line for people on standard error, above a progress bar if there is one; nothing after ``--quiet``."""
    if _quiet:
        return
    (_bar_console or console(stderr=True)).print(printable(message), markup=False, soft_wrap=True)


def say(line: str) -> None:
    """Print a line of the result on standard output, of whatever length; names in it cannot steer a terminal."""
    click.echo(printable(line))


def warn(sentences: Iterable[str]) -> None:
    """Print each sentence for people on standard error, as what must not be overlooked."""
    for sentence in sentences:
        note(f"warning: {sentence}")


@contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Send to standard error what a library of native code writes to standard output, which is for results.

    Such a library knows nothing of ``sys.stdout``: the process's own standard output is replaced, for all its threads.
    """
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (AttributeError, OSError, ValueError):  # standard output is closed: nobody reads a result there
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def warnings_as_notes(*packages: str) -> Iterator[None]:
    """Show what the loggers ``packages`` warn of as lines for people, each once, not in logging's own way."""
    handler = _NoteHandler()
    for package in packages:
        logging.getLogger(package).addHandler(handler)
    try:
        yield
    finally:
        for package in packages:
            logging.getLogger(package).removeHandler(handler)


class _NoteHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._shown:
            self._shown.add(message)
            note(message)


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1, lines: bool = True
) -> Table:
    """Return a table whose first ``text_columns`` are text and whose others are numbers, right-aligned.

    Without ``lines`` its columns are parted by spaces. Title and cells are shown as they are: a file or class name in
    brackets is no markup.
    """
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    look = box.HEAVY_HEAD if lines else box.SIMPLE_HEAD
    result = Table(title=Text(printable(title)) if title else None, title_justify="left", box=look, pad_edge=lines)
    for i, column in enumerate(columns):
        result.add_column(column, justify="left" if i < text_columns else "right", no_wrap=i == 0)
    for row in rows:
        result.add_row(*(Text(printable(cell)) for cell in row))
    return result


def print_wide(what: Table) -> None:
    """Print a table with many columns: a terminal folds it to its width, a file or pipe has none."""
    out = console()
    if not out.is_terminal:
        out.width = max(out.width, _WIDE)
    out.print(what)


@contextmanager
def progress(description: str, *, total: int) -> Iterator[Advance]:
    """Show a bar on standard error while work goes on, none when that is not a terminal.

    Yields a function to call when a unit, or ``count`` of them, is done, with a few words on how things stand.
    """
    from rich import progress as bars  # noqa: PLC0415

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[status]}"),
    )
    screen = console(stderr=True)
    global _bar_console  # noqa: PLW0603  # standard error is one for the process, and so is the bar on it
    with bars.Progress(*columns, console=screen, disable=_quiet or not screen.is_terminal) as bar:
        task = bar.add_task(description, total=total, status="")

        def advance(status: str = "", count: int = 1) -> None:
            raise_if_struck()
            bar.update(task, advance=count, status=status)

        before, _bar_console = _bar_console, screen
        try:
            yield advance
        finally:
            _bar_console = before
