"""The programs behind `python -m tajax.main`: a module with a `WORKFLOW` for each row of `tajax.questions`."""
