"""The inside of the U-Net: where attention and blocks are shown, edited and kept.

Imports `model`, `inputs` and the files at the top. Read `attention` first, which has the mathematics, then `scope`,
which shows a run what is inside, of attention by `layer`, on a twin of the U-Net; `maps` keeps where each word looked.
"""
