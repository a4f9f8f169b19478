"""``python -m negindex.tools``: the same as ``negindex``."""

from negindex.tools.cli import main

main(prog_name="negindex")
