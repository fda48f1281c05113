"""The progress of a run on the terminal: one line per job, live where there is a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

PLAIN_EVERY_S = 15.0
SIGNS = {"waiting": " ", "running": "▶", "done": "✓", "was done": "=", "failed": "✗", "cancelled": "■"}


@dataclass
class Line:
    """One job's line."""

    name: str
    state: str = "waiting"
    """A key of SIGNS."""
    progress_file: Path | None = None
    begin: float = 0.0
    seconds: float = 0.0
    note: str = ""
    progress: dict[str, Any] = field(default_factory=dict)

    def look(self) -> None:
        """Reads the job's progress file and the clock."""
        if self.state != "running":
            return
        self.seconds = time.monotonic() - self.begin
        if self.progress_file is not None and self.progress_file.is_file():
            try:
                self.progress = json.loads(self.progress_file.read_text())
            except (OSError, ValueError):
                return  # replaced at this moment; the next look sees it

    def work(self) -> str:
        """e.g. "120/200 train_steps, 3.4/s, 0:24 left"; the note where there is no progress."""
        facts = self.progress
        if not facts:
            return self.note
        words = [f"{facts['done']}/{facts['total']} {facts['unit']}"]
        if facts.get("rate"):
            rate = facts["rate"]
            words.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
        if facts.get("left_s") and self.state == "running":
            words.append(f"{clock(facts['left_s'])} left")
        if facts.get("note"):
            words.append(str(facts["note"]))
        return ", ".join(words + ([self.note] if self.note else []))


class Board:
    """The lines of a run. Thread-safe enough for one writer and one drawing thread."""

    def __init__(self, names: list[str], title: str) -> None:
        self.lines = {name: Line(name) for name in names}
        self._title = title
        self._live: Live | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._terminal = sys.stdout.isatty()

    def open(self) -> None:
        """Begins to draw."""
        if self._terminal:
            from rich.live import Live

            self._live = Live(get_renderable=self._table, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        else:
            self._thread = threading.Thread(target=self._tell, name="board", daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._over.set()
        if self._live is not None:
            self._live.refresh()
            self._live.stop()
        if self._thread is not None:
            self._thread.join()

    def begin(self, name: str, progress_file: Path | None = None, note: str = "") -> None:
        line = self.lines[name]
        line.state, line.progress_file, line.begin, line.note, line.progress = "running", progress_file, time.monotonic(), note, {}
        self._say(f"{name}: started{f' ({note})' if note else ''}")

    def end(self, name: str, state: str, note: str = "") -> None:
        """`state`: done | was done | failed | cancelled."""
        line = self.lines[name]
        line.look()
        line.state, line.note = state, note
        if state == "was done":
            line.progress = {}
        took = f" in {line.seconds:.1f} s" if line.seconds else ""
        self._say(f"{name}: {state}{took}{f', {line.work()}' if line.work() else ''}")

    def _say(self, text: str) -> None:
        if not self._terminal:
            print(text, flush=True)

    def _tell(self) -> None:
        while not self._over.wait(PLAIN_EVERY_S):
            for line in self.lines.values():
                if line.state == "running":
                    line.look()
                    print(f"{line.name}: {line.work() or 'running'} ({line.seconds:.0f} s)", flush=True)

    def _table(self) -> Table:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_row("", self._title)
        for line in self.lines.values():
            line.look()
            style = {"running": "bold", "failed": "red", "waiting": "dim", "was done": "dim"}.get(line.state, "")
            elapsed = clock(line.seconds) if line.seconds else ""
            table.add_row(SIGNS[line.state], line.name, elapsed, line.work() or line.state, style=style)
        return table


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss."""
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
