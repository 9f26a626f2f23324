"""`imserver` with a planted bug, for the tests that must find it: receipts before the flush."""

import time

from imserver import timeline_sqlite_writer
from imserver.cli import main

FLUSH = timeline_sqlite_writer.Writer._flush


class HastyWriter(timeline_sqlite_writer.Writer):
    def _flush(self) -> None:
        if self._journal:
            self._journal.settle(self._batch)
        time.sleep(0.05)  # a slow disk
        FLUSH(self)


timeline_sqlite_writer.Writer._flush = HastyWriter._flush  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
