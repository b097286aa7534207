"""A pipeline's parts as verbs: what a process asks of a text encoder, a U-Net, an autoencoder and a scheduler.

Imports `inputs` and the files at the top, and loads the weights in `tiny`. Read `model` first; `tokens` and `text` go
from words to embeddings, `latents` from pictures to latents and back, `schedulers` knows how schedulers differ;
`loading` and `single_file` say where a model comes from.
"""
