"""The embedded model: the small world that it draws, its parts before training, its training, and its weights.

Imports `inputs` and the files at the top. Read `grammar` (what captions say) and `drawing` (the true pictures) first,
then `anatomy`, `fitting` and `train`; README.md says what was trained, and how good it is.
"""
