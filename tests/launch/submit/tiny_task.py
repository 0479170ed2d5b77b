"""A command that looks at its flags as the tasks do, and starts in no time.

python -m tests.launch.submit.tiny_task --config=good|bad|broken --workdir=DIR
"""

import sys

HELP = """tiny

flags:
  --config: what to do
  --coordinator: of the job
  --dry_run: look at the config
  --workdir: the run directory
"""


def main(*argv):
    """Prints, or fails; returns the exit code."""
    if "--help" in argv:
        print(HELP)
        return 0
    if "--config=bad" in argv:
        print("A warning", "error: config.lr must be a number, got x", sep="\n", file=sys.stderr)
        return 2
    if "--config=broken" in argv:
        raise ValueError("a bug")
    print("done", *argv)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
