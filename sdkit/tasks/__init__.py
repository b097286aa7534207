"""What a user asks for, one file each.

Imports every wing but `cli` (and `app`). Read `generate` first; `again` goes on from what was recorded, `diffuse` and
`invert` lead to noise, `interpolate` from one picture to another; `read_prompt` and `cost` look at a model's parts.
"""
