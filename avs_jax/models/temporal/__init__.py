"""What mixes the frames of a clip."""
