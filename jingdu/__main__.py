"""`python -m jingdu` and `torchrun -m jingdu`."""

import sys

from jingdu.cli import main

sys.exit(main())
