"""What `main.py --mode=NAME` runs: one file a mode, each with `run(request)`; `run_lib.MODES` lists them."""
