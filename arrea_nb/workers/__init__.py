"""What runs jobs: worker threads, shell processes, callables, their output, and the guard."""
