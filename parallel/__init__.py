"""Expert parallelism on DeepSpeed: the sparse layer with its experts split over ranks."""
