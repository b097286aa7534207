"""What a run is asked for, checked before torch is imported, so that the command line answers at once.

Imports nothing but the files at the top, and those for their types alone. Read `settings`, the one table of arguments,
then `options`, which makes signatures and documentation of it; `checks`, `seeds` and `paths` are what both stand on.
"""
