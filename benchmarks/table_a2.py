"""RecLM-cgen's Table A2; the same as ``gentrie bench table-a2``.

python benchmarks/table_a2.py --quick
python benchmarks/table_a2.py --model llama-3-8b --device cuda --output benchmarks/results
"""

import typer

from gentrie.bench.command import table_a2

if __name__ == "__main__":
    typer.run(table_a2)
