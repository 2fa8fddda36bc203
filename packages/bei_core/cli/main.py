"""The `bei` command. Each subcommand is one module in this folder, imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from bei_core.cli.signals import SIGTERM_STATUS, interrupted_by_sigterm
from bei_core.errors import BeiError, DiskError

if TYPE_CHECKING:
    import logging

COMMANDS = (
    *("serve", "pull", "build", "models", "engines"),
    *("embed", "rerank", "classify", "embed-dataset"),
    *("bench", "capacity", "doctor", "truss", "completion"),
)


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called, so that `bei --version` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order in which the help lists them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"bei_core.cli.{cmd_name.replace('-', '_')}").command
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of a command line, as in the base class. For an unknown name, the error has those like it."""
        from difflib import get_close_matches

        near = [] if args[0] in COMMANDS else get_close_matches(args[0], COMMANDS)
        if near and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(map(repr, near))}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """The result of the command. Raises RuntimeError for an EOFError, which Click would take for Ctrl-D."""
        try:
            return super().invoke(ctx)
        except EOFError as error:  # of a file or a connection: no command asks the user for anything
            raise RuntimeError(f"an input has ended early: {error}") from error


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Print the version and exit."""
    if wanted and not ctx.resilient_parsing:
        from bei_core.http.version import bei_version

        click.echo(f"bei {bei_version()}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def app() -> None:
    """BEI serves embedding, reranking and classification models."""


def main() -> None:
    """Run the command line. An error is one line; the exit status is 2 for a wrong command line, else the error's."""
    with suppress(OSError):  # there is no null device, or no further file may be opened
        _open_missing_files()
    try:
        _run()
    except Exception:
        if not _writes_json():
            raise
        _log().critical("this is a bug: the command failed", exc_info=True)
        sys.exit(1)
    finally:
        _discard_unwritten_log()


def _open_missing_files() -> None:
    """Open the null device as standard input, output and error if the parent has closed them.

    Else a socket or a file of the cache would get one of their numbers, and what a library prints.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest number that is free
        os.set_inheritable(opened, True)
    os.close(opened)


def _discard_unwritten_log() -> None:
    """Discard what standard error does not take: Python would try again and end with status 120."""
    with suppress(OSError, ValueError):  # there is no null device, or the stream is closed
        try:
            if sys.stderr is not None:
                sys.stderr.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _run() -> None:
    """Run the command line and exit. Raises what is not an error of the user."""
    try:
        with interrupted_by_sigterm() as terminated:
            status = app.main(prog_name="bei", standalone_mode=False)
        sys.exit(status or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        fail(error.format_message(), error.exit_code)
    except click.Abort:
        _write_error("ended by SIGTERM" if terminated.is_set() else "interrupted")
        if sys.stdout is not None:
            sys.stdout.flush()
        os._exit(SIGTERM_STATUS if terminated.is_set() else 130)  # sys.exit would wait for the threads of a download
    except BeiError as error:
        fail(str(error), error.exit_status)
    except OSError as error:
        from bei_core.storage.errors import is_full

        if error.filename is None and not is_full(error):  # it is not about a file of the user
            raise
        where = "" if error.filename is None else f" {error.filename2 or error.filename}"
        fail(f"cannot read or write{where}: {error.strerror}", DiskError.exit_status)


def fail(message: str, status: int) -> None:
    """Write an error and exit. The debug log has the traceback."""
    import logging

    logging.getLogger(__name__).debug("traceback", exc_info=True)
    _write_error(message)
    sys.exit(status)


def _write_error(message: str) -> None:
    """Write an error as one line, in JSON if the log is in JSON."""
    line = f"error: {' '.join(part.strip() for part in message.splitlines())}"
    if _writes_json():
        _log().error("%s", line)
    else:
        with suppress(OSError, ValueError):  # the status says it too
            click.echo(line, err=True)


def _writes_json() -> bool:
    """Whether log lines are JSON objects. Before the settings are read, the command line and the environment say so."""
    from bei_core.logs import is_json, is_json_wanted, is_set_up

    return is_json() if is_set_up() else is_json_wanted(sys.argv[1:], os.environ)


def _log() -> logging.Logger:
    """The logger of this module, in JSON also for errors that come before the log is set up."""
    import logging

    from bei_core.logs import configure_logging, is_json

    if not is_json():
        configure_logging(json_output=True)
    return logging.getLogger(__name__)


if __name__ == "__main__":
    main()
