"""`python -m greentrainer.cli`, where the script is not on the path."""

from greentrainer.cli.main import main

main()
