"""Runs the C kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on random shapes and on
masks and codes that do not fit.

    python -m tools.sanitize --minutes 10
"""
