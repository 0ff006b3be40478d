"""`python -m tutelage`, and what torchrun starts."""

from tutelage.cli import main

main()
