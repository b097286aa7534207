"""A pipeline's parts as verbs: what a process asks of a text encoder, a U-Net, an autoencoder and a scheduler.

Imports `inputs` and the files at the top, and loads the weights in `tiny`. Read `model` first, and `condition`, what a
U-Net goes by; `tokens` and `text` go from words to embeddings, `latents` from pictures to latents and back,
`schedulers` knows how schedulers differ; `loading`, `parts` and `single_file` say where a model comes from, `allowed`
of which classes, and `storage` keeps weights in half precision. `engines` puts something else in the place of the
U-Net and the decoder for a run, such as `static`.
"""
