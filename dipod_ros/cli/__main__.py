# SPDX-License-Identifier: Apache-2.0
"""`python -m dipod_ros.cli` is the `dipod` command, also where no script is on PATH."""

from dipod_ros.cli.main import main

if __name__ == '__main__':
    raise SystemExit(main())
