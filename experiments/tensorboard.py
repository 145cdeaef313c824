"""TensorBoard, without what TensorFlow's libraries print when they start: curves and pictures of runs, HParams.

python -m experiments.tensorboard --logdir DIR, and all other flags of TensorBoard
"""

from tensorboard.main import run_main

if __name__ == "__main__":
    run_main()
