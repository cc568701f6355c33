"""python -m comfywork VERB …, which is what comfyrun hands its queue verbs over to."""

from __future__ import annotations

import sys

from comfywork.cli import main

sys.exit(main())
