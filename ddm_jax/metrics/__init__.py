"""Scores of an attribution against the truth: arrays in, arrays out.

Everywhere rows are what was removed (R subsets of the training set, or K groups) and columns are
queries: predictions and truths are `[R, Q]`, truths of several seeds `[S, R, Q]`.
"""

from ddm_jax.metrics.ceiling import Ceiling as Ceiling
from ddm_jax.metrics.ceiling import ceiling_of as ceiling_of
from ddm_jax.metrics.ceiling import noise_ceiling as noise_ceiling
from ddm_jax.metrics.ceiling import runs_needed as runs_needed
from ddm_jax.metrics.ceiling import spearman_brown as spearman_brown
from ddm_jax.metrics.correlation import Agreement as Agreement
from ddm_jax.metrics.correlation import additive_outputs as additive_outputs
from ddm_jax.metrics.correlation import agreement as agreement
from ddm_jax.metrics.correlation import group_lds as group_lds
from ddm_jax.metrics.correlation import leave_one_out_correlation as leave_one_out_correlation
from ddm_jax.metrics.correlation import linear_datamodeling_score as linear_datamodeling_score
from ddm_jax.metrics.correlation import mean_interval as mean_interval
from ddm_jax.metrics.correlation import nan_mean as nan_mean
from ddm_jax.metrics.correlation import per_query_correlation as per_query_correlation
from ddm_jax.metrics.correlation import pooled_correlation as pooled_correlation
from ddm_jax.metrics.forgetting import Unlearned as Unlearned
from ddm_jax.metrics.forgetting import klom as klom
from ddm_jax.metrics.forgetting import membership_auc as membership_auc
from ddm_jax.metrics.forgetting import unlearned as unlearned
from ddm_jax.metrics.intervals import Intervals as Intervals
from ddm_jax.metrics.intervals import coverage as coverage
from ddm_jax.metrics.intervals import expected as expected
from ddm_jax.metrics.intervals import fit_intervals as fit_intervals
from ddm_jax.metrics.intervals import half_widths as half_widths
from ddm_jax.metrics.intervals import reach as reach
from ddm_jax.metrics.privacy import Exposure as Exposure
from ddm_jax.metrics.privacy import membership_by_distance as membership_by_distance
from ddm_jax.metrics.privacy import nearest_training_points as nearest_training_points
from ddm_jax.metrics.profiles import Likeness as Likeness
from ddm_jax.metrics.profiles import compare_profiles as compare_profiles
from ddm_jax.metrics.profiles import profile as profile
from ddm_jax.metrics.ranking import Detection as Detection
from ddm_jax.metrics.ranking import Retrieval as Retrieval
from ddm_jax.metrics.ranking import detection as detection
from ddm_jax.metrics.ranking import retrieval as retrieval
from ddm_jax.metrics.removal import Additivity as Additivity
from ddm_jax.metrics.removal import Flips as Flips
from ddm_jax.metrics.removal import additivity as additivity
from ddm_jax.metrics.removal import curve_area as curve_area
from ddm_jax.metrics.removal import flips as flips
