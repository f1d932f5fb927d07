"""Runs tests of this package: ``python -m real [TEST...]``, names as unittest has them.

Nova's driver leaves threads behind that wait for libvirt's events for ever: the process ends itself.
"""

import os
import sys
import unittest

program = unittest.main(
    module=None, argv=["real", "--verbose", *(sys.argv[1:] or ["real.test_local"])], exit=False
)
sys.stdout.flush()
sys.stderr.flush()
os._exit(0 if program.result.wasSuccessful() and program.result.testsRun else 1)
