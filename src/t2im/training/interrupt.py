"""What happens on Ctrl-C? The step is finished, the run is saved, and only then does the command end."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from t2im.errors import CANCELLED, TERMINATED

EXIT_CODES = {signal.SIGINT: CANCELLED, signal.SIGTERM: TERMINATED}


class Interruption:
    """Turn the first SIGINT or SIGTERM inside a `with` block into a flag; a second one stops at once.

    Outside the main thread signals cannot be caught; there the flag simply stays down.
    """

    def __init__(self, notice: Callable[[str], None]) -> None:
        self.exit_code = 0
        """What the command should end with; 0 while nobody has asked it to stop."""
        self._notice = notice
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether somebody has asked the run to stop."""
        return self.exit_code != 0

    def __enter__(self) -> Self:
        for number in EXIT_CODES:
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = EXIT_CODES[signal.Signals(number)]
        self._restore()
        self._notice("Stopping after this step; saving. Once more Ctrl-C stops at once, without saving.")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
