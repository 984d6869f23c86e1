"""An index behind HTTP: micro-batches, an API, and a page in the browser."""
