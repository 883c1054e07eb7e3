"""Ctrl-C and SIGTERM: a training stops after a whole step and its checkpoint, anything else at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While this context is entered, says whether a signal asked to stop.

    Whoever calls it, asking, stops by himself when it is true. As long as nobody has asked yet, and at the second
    signal, the handler raises a KeyboardInterrupt. Outside the main thread, where no handler can be installed, and for
    signals that the process ignores, nothing changes.
    """

    def __init__(self) -> None:
        self.signal: int = signal.SIGINT
        self._came, self._asked = False, False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        self._asked = True
        return self._came

    def finished(self, left: str) -> None:
        """From now on nobody asks: a signal stops at once, also one that came since somebody last asked.

        Raises:
            KeyboardInterrupt: Of one that came; says what is ``left``.
        """
        self._asked = False
        if self._came:
            raise KeyboardInterrupt(left)

    @property
    def exit_status(self) -> int:
        """Of a process that a signal ended, as shells count: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        at_once = self._came or not self._asked
        self.signal, self._came = number, True
        if at_once:
            raise KeyboardInterrupt
