"""The verbs of the command line, one file each; one line here."""

import functools
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer

from mpicoded.commands import doctor, lab, launch
from mpicoded.errors import MpicodedError, RemoteError

app = typer.Typer(
    name="mpicoded",
    help="Coded distributed inference of convolutional networks under MPI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


# They stay beside a run that needs the memory, so they do without torch: 0.3 s and 60 MB to start
# instead of 2.6 s and 260 MB. All other verbs are loaded when one of them is asked for.
LIGHT = {"launch", "lab", "doctor"}

# What typer raises for a wrong command line; the class has no public name of its own.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main(**context: Any) -> int:
    """Run the verb in ``sys.argv``, with ``context`` for it; return the exit status."""
    if not LIGHT.intersection(sys.argv[1:2]):
        _add_verbs()
    alone = not context  # a leader has its own way to end
    if alone and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a verb may have to clean up
    try:
        return int(app(standalone_mode=False, **context) or 0)
    except UsageError as error:
        return _misused(error)
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _misused(error: Any) -> int:
    """Print what is wrong with the command line in one line, where typer would draw a box."""
    if why := error.format_message().rstrip("."):  # empty: the help was shown instead
        path = error.ctx.command_path if error.ctx else "python -m mpicoded"
        print(f"error: {why}; see {path} --help", file=sys.stderr)
    return 2


def _verb(command: Callable[..., None]) -> Callable[..., None]:
    """Print an error that the user can mend, in one line and without a traceback."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except MpicodedError as error:
            raise _failed(str(error)) from None
        except MemoryError as error:
            raise _failed(f"there is not enough memory for this job ({error})") from None
        except RemoteError as error:
            print(f"error: a worker failed: {error}", file=sys.stderr)
            raise typer.Exit(1) from None

    return guarded


def _failed(why: str) -> typer.Exit:
    """Print an error in one line, whatever a file had in its names; return how to leave."""
    line = " ".join(why.splitlines())
    print("error:", "".join(c if c.isprintable() else repr(c)[1:-1] for c in line), file=sys.stderr)
    return typer.Exit(2)


@functools.cache
def _add_verbs() -> None:
    from mpicoded.commands import (
        calibrate,
        data,
        evaluate,
        plan,
        profile,
        report,
        run,
        simulate,
        train,
    )

    verbs = (run.run, profile.profile, plan.plan, report.report, train.train, evaluate.evaluate)
    for verb in (*verbs, calibrate.calibrate, simulate.simulate):
        app.command()(_verb(verb))
    about = "Data sets by name: which there are, how to get one."
    sets = typer.Typer(help=about, no_args_is_help=True)
    sets.command("list")(_verb(data.show))
    sets.command("fetch")(_verb(data.fetch))
    app.add_typer(sets, name="data")


app.command()(_verb(launch.launch))
app.command()(_verb(doctor.doctor))

labs = typer.Typer(help="A Pi cluster on one machine: real limits, faults.", no_args_is_help=True)
labs.command("up")(_verb(lab.up))
labs.command("run", context_settings={"allow_extra_args": True})(_verb(lab.run))
labs.command("profile")(_verb(lab.profile))
labs.command("status")(_verb(lab.report))
labs.command("fault")(_verb(lab.fault))
labs.command("down")(_verb(lab.down))
app.add_typer(labs, name="lab")
