"""vadis over HTTP and WebSocket: `vadis serve`.

`protocol` is the wire layout, `streams` the engine that batches live streams, `limits` what one client may ask for,
`models` what is served, `session` one WebSocket, `app` the FastAPI application, `run` the process around it. The last three need the
extra `server`; the others don't.
"""
