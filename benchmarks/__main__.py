"""``python -m benchmarks cpu``: what each subcommand measures is said in its module."""

import argparse

from benchmarks import cpu, decoding, features, gpu, joins, llama_cpp, preferences, stock, tiles
from benchmarks.peers import command as peers

COMMANDS = {
    "cpu": cpu,
    "decoding": decoding,
    "features": features,
    "gpu": gpu,
    "joins": joins,
    "llama_cpp": llama_cpp,
    "peers": peers,
    "preferences": preferences,
    "stock": stock,
    "tiles": tiles,
}


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(required=True, metavar="{" + ",".join(COMMANDS) + "}")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
