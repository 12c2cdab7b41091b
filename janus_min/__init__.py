"""janus-min: training on thousands of system messages (Janus, arXiv 2405.17977), from scratch."""
