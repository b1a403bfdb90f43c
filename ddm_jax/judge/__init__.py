"""Retrained truth, and how estimators compare with it; knows no settings of a run."""
