"""Speed and memory beside what the libraries do: `python -m tests.bench.sft`, and so on.

No test: pytest does not collect these files, and nothing here fails because a machine is slow.
"""
