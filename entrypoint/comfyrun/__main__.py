import sys

from comfyrun.cli import main

sys.exit(main())
