"""The MNIST group protocol: leave-one-group-out and random halves, against exact retraining.

5,000 training and 500 test images at random; k-means inside each class (K = 50); MLP
784-128-64-10; SGD .1 with a cosine to .005, momentum .9, batch 100, 20 epochs, weight decay 1e-3:
the preset "mnist". Truth: test losses of exact retraining, mean of 8 seeds for single groups
(their effects are small) and of 4 for halves.

Settings were chosen on the partitions 1 and 2; the default ones reported here are others.

    python benchmarks/mnist_groups.py --data-dir DIR [--quick] [--partitions 10 11]
"""

import harness
from protocol import GroupTable, write_group_table

EVERY = ((20, 0.0), (40, 0.0), (200, 0.0))
FULL = GroupTable(
    "mnist",
    items=(1, 5, 20),
    updates=EVERY,
    real=((50, 0.0),),
    real_single=False,
    undistilled_updates=EVERY,
)
QUICK = FULL._replace(
    changes=(
        "data.train_size=500",
        "data.test_size=100",
        "model.hidden=32",
        "train.epochs=40",
        "cluster.num_groups=20",
        "distill.steps=300",
        "truth.subsets=10",
        "truth.seeds=3",
        "truth.subset_seeds=3",
    ),
    items=(2,),
    updates=((100, 0.0),),
    real=((100, 0.0),),
    undistilled_updates=((100, 0.0),),
)

if __name__ == "__main__":
    options = harness.arguments(__doc__, quick="500 images", partitions=(10, 11), data=True)
    write_group_table(options, FULL, QUICK)
