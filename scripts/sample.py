"""Draw images from a DDPM pipeline: an output folder of train.py, or any DDPM on the Hub.

    python scripts/sample.py demo --num_images 64 --scheduler dpm --num_inference_steps 20 --output_dir samples
    accelerate launch scripts/sample.py demo --num_images 50000 --output_format npz --output_dir many
    python scripts/sample.py demo --interpolate one.png other.png --output_dir between

To resume an interrupted command, run it again.
"""

import sys

from ddpm_hf.cli.sample import main

if __name__ == "__main__":
    main(sys.argv[1:])
