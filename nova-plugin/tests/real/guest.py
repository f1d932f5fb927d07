"""A guest's console: commands that are typed there, and what they print.

The guest runs scripts/guest-init.sh, which reads commands from its serial console. Nova gives it a
pseudo-terminal and a log file; the log holds what was printed before anybody looked.
"""

import os
import re
import select
import threading
import time


class Console:
    """One boot of a guest. Whatever is waited for must come within the limit (seconds)."""

    def __init__(self, terminal, log):
        self._log = log
        self._mark = 0
        self._fd = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
        self._stop, self._wake = os.pipe()
        # Nobody's reading would block the guest's output. It is in the log as well.
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self):
        while True:
            ready, _, _ = select.select([self._fd, self._stop], [], [])
            if self._stop in ready:
                return
            try:
                data = os.read(self._fd, 65536)
            except OSError:
                # The guest's end is gone.
                return
            if not data:
                return
            with self._news:
                self._news.notify_all()

    def close(self):
        os.write(self._wake, b"x")
        self._thread.join()
        for fd in (self._fd, self._stop, self._wake):
            os.close(fd)

    def text(self):
        with open(self._log, errors="replace") as file:
            return file.read()

    def wait_for(self, pattern, limit):
        """The match of the next line with ``pattern``."""
        end = time.monotonic() + limit
        while True:
            text = self.text()
            # Only whole lines.
            found = re.compile(f"(?:{pattern})[^\n]*\n").search(text, self._mark)
            if found:
                self._mark = found.end()
                return found
            left = end - time.monotonic()
            if left <= 0:
                raise AssertionError(
                    f"the guest didn't say {pattern!r} in {limit} s; it said:\n{text[-4000:]}"
                )
            with self._news:
                # QEMU writes the log before or after the terminal: hence not longer.
                self._news.wait(min(left, 0.1))

    def ready(self, limit=120):
        self.wait_for("GUEST-READY", limit)

    def start(self, command):
        os.write(self._fd, command.encode() + b"\n")

    def result(self, limit=60):
        """Status and output of the command that was started."""
        begin = self._mark
        found = self.wait_for(r"GUEST-RC=(\d+)", limit)
        return int(found[1]), self.text()[begin : found.start()].replace("\r", "").strip()

    def run(self, command, limit=60):
        """Output of a command that must succeed."""
        assert len(command) < 4000 and "\n" not in command, "a terminal's line ends at 4096 bytes"
        self.start(command)
        status, output = self.result(limit)
        assert status == 0, f"in the guest, {command!r} gave {status}:\n{output}"
        return output
