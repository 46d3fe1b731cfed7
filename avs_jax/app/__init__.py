"""The page to try a checkpoint on: jobs.py runs predictions, page.py is what the browser shows."""
