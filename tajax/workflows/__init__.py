"""The programs behind `python -m tajax.main`: each module has `run(config, workdir, *, overwrite)`."""
