"""Many pictures: lists and grids of jobs, made once each, in one process or on a cluster, whatever happens meanwhile.

Imports `inputs`, `tasks`, `process`, `model`, `hooks`, `trace` and the files at the top, all that needs torch only when
there is something to make. Read `batch` first, then `jobs`, what is asked for, `book`, the folder that never loses a
picture, and `work`, which makes them; `cluster` does the same on Ray.
"""
