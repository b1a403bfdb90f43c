"""The digits protocol: leave-one-group-out and random halves, against exact retraining.

scikit-learn digits, 1,000 training and 797 test images; k-means inside each class, 5 groups a
class (K = 50); MLP 64-64-10; SGD .3, batch 100, 40 epochs, weight decay 1e-3: the preset "digits".
Truth: test losses of exact retraining, mean of 8 seeds. Scores: Spearman over the 50 groups and
over 40 random halves of the groups, averaged over test points.

Few steps are for single groups, many for halves. Settings were chosen on the partitions 1, 2 and
3; the default ones reported here are others.

    python benchmarks/digits_protocol.py [--quick] [--partitions 10 11 12]
"""

import harness
from protocol import GroupTable, write_group_table

BACK = 0.75  # the rewind that `protocol.py` has for the preset
EVERY = ((50, 0.0), (200, 0.0), (50, BACK), (200, BACK))
FULL = GroupTable(
    "digits",
    items=(1, 2, 5, 10),
    updates=EVERY,
    real=EVERY,
    forget=(1, 5),
    undistilled={"distance": "squared"},
    undistilled_updates=EVERY[2:],
)
QUICK = FULL._replace(
    changes=(
        "data.train_size=300",
        "data.test_size=200",
        "train.epochs=80",
        "cluster.num_groups=20",
        "distill.steps=300",
        "truth.subsets=8",
        "truth.seeds=3",
        "truth.subset_seeds=3",
    ),
    items=(2,),
    updates=EVERY[2:3],
    real=EVERY[2:3],
    forget=(1,),
    undistilled_updates=EVERY[2:3],
)

if __name__ == "__main__":
    write_group_table(harness.arguments(__doc__, quick="300 digits"), FULL, QUICK)
