"""The `ddm` command's one way in and out; it listens to signals before anything heavy is imported.

0       done
1       a user's mistake, or a file that cannot be read or written: one line
70      unexpected: one line, which names a log file with the traceback
130     interrupted (143: by SIGTERM; 141: nobody reads on)
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    caught: list[int] = []

    def stop(number: int, frame: Any) -> None:
        caught.append(number)
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup asks
    }
    try:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # an ASCII terminal has no dash
        # XLA 0.10.1 tells of every kept program that it may not suit this CPU, 3 kB each; what is
        # wrong is raised.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from ddm_jax import cli

        cli.call(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return 0
    except BaseException as error:
        for number in before:
            signal.signal(number, signal.SIG_DFL)  # the second time means now
        if isinstance(error, SystemExit) and not caught:
            raise
        return _tell(error, caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(error: BaseException, caught: list[int]) -> int:
    """Say in one line why the command ends; returns its exit status."""
    # An import that a signal breaks may end as an error of another type.
    if caught or isinstance(error, KeyboardInterrupt):
        _say("interrupted; the same command picks up where it was")
        return 128 + (caught or [signal.SIGINT])[0]
    if isinstance(error, BrokenPipeError):  # the reader, `head` for one, has enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 128 + 13
    if isinstance(error, OSError) or (isinstance(error, ValueError) and _is_ours(error)):
        _say(f"error: {error}")
        return 1
    _say(f"error: unexpected {_summary(error)}; the traceback is in {_log(error)}")
    return 70


def _say(text: str) -> None:
    """Print one line: what cannot be printed, a line's end for one, is a blank."""
    print("".join(each if each.isprintable() else " " for each in text), file=sys.stderr)


def _summary(error: BaseException) -> str:
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised it, and no library below: a mistake that it expects."""
    import traceback

    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return os.path.dirname(__file__) in frame.f_code.co_filename


def _log(error: BaseException) -> str:
    """Write the traceback into the run's folder, or else the temporary one; returns where."""
    import platform
    import tempfile
    import time
    import traceback
    from pathlib import Path

    # The commands call their folder so.
    asked = [frame.f_locals.get("workdir") for frame, _ in traceback.walk_tb(error.__traceback__)]
    runs = [one for one in asked if isinstance(one, Path) and (one / "config.json").is_file()]
    text = "".join(traceback.format_exception(error))
    told = f"{sys.argv}\nPython {platform.python_version()}, {platform.platform()}\n{text}"
    for folder in (*runs[:1], Path(tempfile.gettempdir())):
        path = folder / f"ddm-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        try:
            with path.open("x", encoding="utf-8", errors="replace") as file:
                file.write(told)
            return str(path)
        except OSError:
            continue
    return "no file: none could be written"


if __name__ == "__main__":
    sys.exit(main())
