"""`accelerate launch -m fpe_hf.recipes RECIPE [key.sub=value ...]`, and the same with torchrun."""

from __future__ import annotations

import argparse
import sys

from ..errors import FPEError
from ..files import end_cleanly
from .launching import launch, open_recipe

INTERRUPTED = 143  # 128 + SIGTERM, as shells report it


def main(words: list[str] | None = None) -> int:
    """Runs a recipe.

    Returns:
        Exit code: 0 all is well, 1 an error, 143 stopped by SIGTERM with everything saved.
    """
    parser = argparse.ArgumentParser(prog="fpe_hf.recipes", description=main.__doc__)
    parser.add_argument("recipe", help="file, or name of a recipe of the package")
    parser.add_argument("assignments", nargs="*", metavar="key.sub=value")
    parser.add_argument("--resume", action="store_true", help="go on with an earlier run")
    parser.add_argument("--resume-from", metavar="USER/NAME", help="go on with a run on the Hub")
    parser.add_argument(
        "--allow-code", metavar="NAME", action="append", default=[], help="code that may be run"
    )
    arguments = parser.parse_args(words)
    end_cleanly()
    try:
        from .training import Interrupted

        recipe = open_recipe(arguments.recipe, arguments.assignments)
        launch(
            recipe,
            resume=arguments.resume,
            resume_from=arguments.resume_from,
            allow_code=arguments.allow_code,
        )
    except FPEError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"Stopped: {stop}; --resume goes on.", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
