"""What a run is asked for, checked before torch is imported, so that the command line answers at once.

Imports nothing but the files at the top, and those for their types alone. Read `arguments`, the one table of them,
then `signatures`, which makes signatures and documentation of it; `checks`, `seeds` and `paths` are what both stand on.
"""
