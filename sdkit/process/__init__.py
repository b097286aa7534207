"""The processes as generators of events, and the run that each of them belongs to.

Imports `unet`, `model`, `inputs` and the files at the top. Read `run` first, with what hooks may ask of
it in `asked`, then `reverse`, the heart; it begins with `condition` (words) and `start` (noise or a picture), and each
of its steps with `context`. `forward` and `inverse` are the ways to noise;
`prepare` makes a run of what was asked for, and `result` is its end.
"""
