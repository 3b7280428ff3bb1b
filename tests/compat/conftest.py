"""What is collected: a client in Go only where there is a Go to build it."""

import shutil

collect_ignore = [] if shutil.which("go") else ["test_go_qemu.py"]
