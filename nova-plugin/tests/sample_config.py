"""Prints etc/sealblk.conf.sample: the options of [sealblk] with their defaults and help."""

import io
import sys

from oslo_config import cfg
from oslo_config import generator


def sample():
    settings = cfg.ConfigOpts()
    generator.register_cli_opts(settings)
    settings(["--namespace", "sealblk", "--wrap-width", "98"], default_config_files=[])
    text = io.StringIO()
    generator.generate(settings, output_file=text)
    # The generator's own preamble and the empty [DEFAULT] are of no use here.
    return text.getvalue().partition("[sealblk]")[1] + text.getvalue().partition("[sealblk]")[2]


if __name__ == "__main__":
    sys.stdout.write(sample())
