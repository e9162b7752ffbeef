"""Run kd as a module: ``python -m kd``."""

from kd.cli import main

if __name__ == "__main__":
    main()
