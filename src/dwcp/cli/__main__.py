"""`python -m dwcp.cli` is `dwcp`."""

from dwcp.cli.main import run

if __name__ == "__main__":
    run()
