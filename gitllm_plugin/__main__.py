"""`python -m gitllm_plugin` is the `gitllm` command."""

import sys

from gitllm_plugin.cli.main import main

sys.exit(main())
