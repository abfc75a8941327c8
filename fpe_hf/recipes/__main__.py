"""`accelerate launch -m fpe_hf.recipes RECIPE [key.sub=value ...]`: `fpe-hf run`, in parallel."""

import sys

from ..cli.app import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    main()
