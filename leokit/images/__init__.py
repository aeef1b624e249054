"""Images: finding, decoding and drawing them; no torch here, so that worker processes stay light."""
