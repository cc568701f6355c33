import sys

from imgbuild.cli import main

sys.exit(main())
