"""Push a model folder to its page on the Hub in one commit: pipeline, card and pictures.

python scripts/push.py demo --hub_model_id user/digits-ddpm
"""

import sys

from ddpm_hf.cli.push import main

if __name__ == "__main__":
    main(sys.argv[1:])
