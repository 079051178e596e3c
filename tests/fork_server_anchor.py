"""A process of the fork server's that does nothing, so that the server stays."""

import os
from multiprocessing import forkserver


class Anchor:
    """What that process runs: it ends when its pipe is closed."""

    def _bootstrap(self, parent_sentinel: int) -> int:
        os.close(parent_sentinel)
        fds = forkserver.get_inherited_fds()
        assert fds is not None
        os.read(fds[0], 1)
        return 0
