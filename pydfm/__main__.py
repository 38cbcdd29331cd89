"""The program: ``pydfm``, or ``python -m pydfm``."""

import signal
import sys
import threading


def main() -> int:
    """Run the command line and return its exit code, 130 where Ctrl-C stopped it."""
    try:
        from pydfm.cli import main as program  # its imports take long enough to be stopped too

        return program.main()
    except KeyboardInterrupt:
        # Pressed again, it would end the program by the signal, without an exit code.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if sys.stderr is not None:  # print would take stdout
            # A progress bar that was being drawn, or ^C, is on the line.
            start = "\n" if sys.stderr.isatty() else ""
            print(f"{start}pydfm: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
