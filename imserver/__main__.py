"""`python -m imserver`: the same as the command `imserver`."""

from imserver.cli import main

if __name__ == "__main__":
    main(prog_name="imserver")
