"""The server of ``jaxad.serve``: HTTP, requests that are scored together, a page, and a folder that is watched."""
