"""A trained model in use: on arrays, on own videos, as one file, and optical flow."""
