"""What a run showed, kept: in memory, in one file, and compared with another run.

Imports `model`, `inputs` and the files at the top; it is below whatever makes a run, and reads of a run only what its
events carry. Read `trace` first, which records; `record` is one entry of it, `file` writes and opens it, `compare`
holds two against each other.
"""
