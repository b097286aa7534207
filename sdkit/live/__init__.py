"""The live page: a run on a page of the browser, watched and steered while it forms.

Imports every wing but `cli`, and Gradio, the extra "app", where it serves.
Read `runs` first: what a visitor may ask for, as messages. `server` brings them to `page.html`, and `app` starts it.
"""
