"""What is measured, as ratios in one run; `embedded/` judges the embedded model."""
