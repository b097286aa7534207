"""Latents by themselves: pictures to latents and back, what is lost on the way, their statistics and their colours.

Imports `process`, `trace`, `model`, `inputs` and the files at the top. Read `autoencoder` first; `statistics` describes
latents in numbers, `previews` shows them without the decoder.
"""
