"""What a person looks at: figures, films, pages and notebook outputs of what was recorded.

Imports `trace`, `process`, `latents`, `unet`, `model`, `inputs` and the files at the top. Read `view` first, what all
drawing needs of a trace; `figures` with their `style`, `film`, `report` and `notebook` each draw one kind of thing;
`tiles` makes small pictures for pages, and `web` has the files in `viewer/`, which draw in a browser, of the report and
of the live page alike.
"""
