"""Fuzzing: everything that reads what others wrote, fed with what others broke.

Whatever comes in, a reader returns or raises a typed error, soon and in little memory.
`python -m tools.fuzz --help`; to add a reader, add a target to `targets.py`.
"""
