"""Shows how a run goes: in the terminal, in `metrics.jsonl`, and in dashboards that mirror this file.

In: measured values and validation reports, on rank 0. Out: lines in `metrics.jsonl`, tables in the terminal, and the
same numbers with pictures in wandb, trackio, TensorBoard or MLflow. Errors here never stop a training.
"""
