"""`python endless.py <folder>`: a process, and a child of it, that end only when they are stopped.

The child holds the lock `<folder>/lock` for as long as it lives, and says so by `<folder>/begun`.
"""

import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if len(sys.argv) == 2:
        subprocess.Popen([sys.executable, __file__, str(folder), "child"])
    else:
        FileLock(folder / "lock").acquire()
        (folder / "begun").touch()
    time.sleep(60)
