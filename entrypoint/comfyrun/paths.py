"""Questions about paths, answered with no where pathlib raises: what lies in another user's folder, a NUL in a name."""

from __future__ import annotations

import os

exists = os.path.exists
is_dir = os.path.isdir
is_file = os.path.isfile
is_mount = os.path.ismount
