"""Contract suites for executors and stores that others write.

Provisional, as the Protocols are. Each suite is a plain class whose ``test_`` methods
use plain asserts: subclass it in a module of your tests, say how to make what is
tested, and pytest runs it; for unittest, derive from `unittest.TestCase` as well. The
project's settings must be set up. Nothing here imports a test framework.
"""

from .executors import ExecutorContract
from .hosts import RecordingHost, SavedMetadata, Start
from .owned_stores import OwnedResultStoreContract
from .stores import ResultStoreContract

__all__ = [
    "ExecutorContract",
    "OwnedResultStoreContract",
    "RecordingHost",
    "ResultStoreContract",
    "SavedMetadata",
    "Start",
]
