"""Programs around training: weights in and out, data, clips, the doctor. cli.py names them all."""
